//! What both are told: routes of one service and policies on it, made by chance from a small vocabulary, so that rules
//! overlap and requests hit and miss them narrowly.

use std::num::NonZeroU16;

use stillmesh_core::fixtures::{policy_key, service_key};
use stillmesh_core::model::access::{
    Alternative, Attachment, Condition, PathNormalization, PathPattern, PathTemplate, RequestAction, RequestClause,
    RequestPolicy, RequestRule, Sense, Wanted,
};
use stillmesh_core::model::http::{
    Forward, HeaderEdit, HeaderMatch, HttpRoute, PathMatch, PathRewrite, Pattern, QueryMatch, Redirect, RedirectPort,
    RequestMatch, Respond, Rewrite, RouteAction, RouteBackend, RouteKey, RouteKind, RouteParent, RouteRule,
    Substitution, TextMatch, WeightedBackend,
};
use stillmesh_core::model::{Str, StringMatch};
use stillmesh_waypoint_tests::routes::{rule, to};

use super::chance::Chance;

/// Where requests may go.
pub const BACKENDS: [&str; 3] = ["one", "two", "three"];

pub const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c",
    "/a/42",
    "/ab",
    "/A",
    "/A/b",
    "/api",
    "/api/v1",
    "/api/v1/items",
    "/api/v2/items/7",
    "/items/42",
    "/items/x",
    "/x.html",
    "/a/x.html",
    "/a%20b",
    "/a;p=1",
    "/a.b",
    "/a/%c3%a9",
];
const PATTERNS: &[&str] = &[
    "/a/[0-9]+",
    r"/items/\d+",
    r"/.*\.html",
    "/(api|ab)/v[12]/.*",
    "/a.*",
    "/[^/]+",
    "(?i)/a/b",
    "/a|/ab",
    "/a(/.*)?",
    "/api/v(?P<version>[0-9])/items",
];
pub const METHODS: &[&str] = &["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "PURGE"];
pub const HOSTS: &[&str] = &["web", "web.shop", "web:80", "WEB", "other.example", "other.example:8080", "a.b.example"];
pub const NAMES: &[&str] = &["x-a", "x-b", "x-user"];
pub const VALUES: &[&str] = &["1", "one", "ones", "One", "a,b", "a b", ""];
pub const PARAMETERS: &[&str] = &["q", "v", "Q"];
pub const ARGUMENTS: &[&str] = &["1", "12", "on", "x%20y", "x+y", ""];
/// Response headers that backends send, and one more.
const ANSWERED: &[&str] = &["x-from", "x-drop", "x-multi", "x-resp"];

/// What one service is told.
#[derive(Debug)]
pub struct Table {
    /// The service in front.
    pub service: String,
    /// Of paths.
    pub level: PathNormalization,
    /// The routes.
    pub routes: Vec<HttpRoute>,
    /// Who may ask what.
    pub policies: Vec<RequestPolicy>,
}

impl Table {
    /// A table by chance, the `number`th.
    pub fn new(number: usize, level: PathNormalization, chance: &mut Chance) -> Self {
        let service = format!("web-{number}");
        let kind = if chance.hits(50) { RouteKind::VirtualService } else { RouteKind::Http };
        let objects = if kind == RouteKind::Http { 1 + chance.below(3) } else { 1 };
        let route = |object: usize, chance: &mut Chance| HttpRoute {
            key: RouteKey { kind, namespace: "shop".into(), name: format!("r-{number}-{object}").into() },
            parents: vec![RouteParent { service: service_key(&format!("shop/{service}")), port: None }],
            consumer: None,
            created: i64::try_from(chance.below(3)).unwrap_or_default(),
            rules: (0..1 + chance.below(6)).map(|_| a_rule(chance)).collect(),
            streams: Vec::new(),
        };
        let routes = (0..objects).map(|object| route(object, chance)).collect();
        let attached = Attachment::To(vec![service_key(&format!("shop/{service}"))]);
        let mut count = 0;
        let policies = chance.maybe(50, |chance| {
            chance.some(3, |chance| {
                count += 1;
                RequestPolicy {
                    key: policy_key(&format!("shop/p-{number}-{count}")),
                    attached: attached.clone(),
                    action: if chance.hits(40) { RequestAction::Allow } else { RequestAction::Deny },
                    rules: (0..1 + chance.below(2)).map(|_| a_policys_rule(chance)).collect(),
                    dry_run: false,
                    unreadable: None,
                }
            })
        });
        Self { service, level, routes, policies: policies.unwrap_or_default() }
    }

    /// A table with one route to two backends.
    pub fn split(number: usize, weights: [u32; 2]) -> Self {
        let backends = vec![to("one", weights[0]), to("two", weights[1])];
        let mut table = Self::new(number, PathNormalization::Base, &mut Chance::new(0));
        table.policies.clear();
        table.routes.truncate(1);
        table.routes[0].rules =
            vec![rule(Vec::new(), RouteAction::Forward(Forward { backends, ..Forward::default() }))];
        table
    }
}

fn text(chance: &mut Chance, all: &[&str]) -> Str {
    chance.of(all).into()
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn a_rule(chance: &mut Chance) -> RouteRule {
    let matches = chance.some(3, a_match);
    let action = match chance.below(10) {
        0 | 1 => RouteAction::Redirect(a_redirect(chance)),
        2 => {
            let status = chance.of(&[200, 401, 404, 418, 503]);
            RouteAction::Respond(Respond { status, body: text(chance, &["", "own words"]) })
        }
        _ => RouteAction::Forward(a_forward(chance)),
    };
    let mut rule = rule(matches, action);
    if matches!(rule.action, RouteAction::Forward(_)) {
        rule.request_headers = an_edit(chance, &["x-a", "x-b", "x-new"]);
    }
    rule.response_headers = an_edit(chance, ANSWERED);
    rule
}

fn a_match(chance: &mut Chance) -> RequestMatch {
    let mut one = RequestMatch { path: chance.maybe(75, a_path), ..RequestMatch::default() };
    one.method = chance.maybe(15, |chance| match chance.below(3) {
        0 => TextMatch::Regex(pattern("P.*")),
        _ => TextMatch::Exact(text(chance, METHODS)),
    });
    one.authority = chance.maybe(15, |chance| match chance.below(3) {
        0 => TextMatch::Exact(text(chance, HOSTS)),
        1 => TextMatch::Prefix("web".into()),
        _ => TextMatch::Regex(pattern(r"(.*\.)?example(:\d+)?")),
    });
    let header = |chance: &mut Chance| HeaderMatch { name: text(chance, NAMES), value: a_text(chance, VALUES) };
    one.headers = chance.maybe(25, |chance| chance.some(2, header)).unwrap_or_default();
    one.without_headers = chance.maybe(10, |chance| chance.some(2, header)).unwrap_or_default();
    let query = |chance: &mut Chance| QueryMatch { name: text(chance, PARAMETERS), value: a_text(chance, ARGUMENTS) };
    one.query = chance.maybe(20, |chance| chance.some(2, query)).unwrap_or_default();
    one
}

fn a_text(chance: &mut Chance, values: &[&str]) -> TextMatch {
    let not_empty: Vec<&str> = values.iter().copied().filter(|value| !value.is_empty()).collect();
    match chance.below(5) {
        0 => TextMatch::Prefix(text(chance, &["o", "1", "a"])),
        1 => TextMatch::Regex(pattern(chance.of(&["[0-9]+", "on.*", "one|ones", "(?i)one", ".*"]))),
        2 => TextMatch::Present,
        _ => TextMatch::Exact(text(chance, &not_empty)),
    }
}

fn a_path(chance: &mut Chance) -> PathMatch {
    match chance.below(8) {
        0 | 1 => PathMatch::Exact(text(chance, PATHS)),
        2 | 3 => PathMatch::segments(chance.of(PATHS)),
        4 => PathMatch::Prefix(text(chance, PATHS)),
        5 => PathMatch::Regex(pattern(chance.of(PATTERNS))),
        6 => PathMatch::ExactIgnoringCase(text(chance, PATHS)),
        _ => PathMatch::PrefixIgnoringCase(text(chance, PATHS)),
    }
}

fn a_rewrite(chance: &mut Chance) -> PathRewrite {
    match chance.below(4) {
        0 => PathRewrite::Full(text(chance, &["/new", "/", "/new/"])),
        1 => PathRewrite::Regex({
            let (pattern, with) =
                chance.of(&[("/a/(.*)", r"/z/\1"), ("/+", "/"), ("(b|c)", r"<\1>"), ("^/(.)", r"/\1\1")]);
            Substitution::new(pattern, with).expect("a substitution")
        }),
        _ => PathRewrite::Prefix(text(chance, &["/new", "/", "/n/m"])),
    }
}

fn a_redirect(chance: &mut Chance) -> Redirect {
    let host = chance.maybe(50, |chance| text(chance, &["elsewhere.example", "else"]));
    let port = match (&host, chance.below(4)) {
        (_, 0) => RedirectPort::Number(NonZeroU16::new(8443).expect("a port")),
        (Some(_), 1) => RedirectPort::OfScheme,
        (Some(_), _) => RedirectPort::Derived,
        // Envoy has no other port for a host that stays.
        (None, _) => RedirectPort::OfRequest,
    };
    Redirect {
        scheme: chance.maybe(40, |chance| text(chance, &["https", "http"])),
        host,
        port,
        path: chance.maybe(50, |chance| match a_rewrite(chance) {
            PathRewrite::Regex(_) => PathRewrite::Full("/gone".into()),
            other => other,
        }),
        status: chance.of(&[301, 302, 303, 307, 308]),
    }
}

fn a_forward(chance: &mut Chance) -> Forward {
    let backend = |chance: &mut Chance| {
        let name = chance.of(&BACKENDS);
        let (mut weight, mut edits) = (chance.of(&[0, 1, 1, 3]), [HeaderEdit::default(), HeaderEdit::default()]);
        if chance.hits(30) {
            edits = [an_edit(chance, &["x-a", "x-user", "x-new"]), an_edit(chance, ANSWERED)];
        }
        if weight > 1 && chance.hits(50) {
            weight = 1;
        }
        let [request_headers, response_headers] = edits;
        WeightedBackend { request_headers, response_headers, ..to(name, weight) }
    };
    let mut backends: Vec<WeightedBackend> = (0..1 + chance.below(3)).map(|_| backend(chance)).collect();
    // Each once: which of two equal ones was chosen cannot be seen.
    let mut names: Vec<RouteBackend> = Vec::new();
    backends.retain(|backend| {
        let is_new = !names.contains(&backend.backend);
        names.push(backend.backend.clone());
        is_new
    });
    if backends.iter().all(|backend| backend.weight == 0) {
        backends[0].weight = 1;
    }
    let rewrite = Rewrite {
        authority: chance.maybe(15, |chance| text(chance, &["rewritten.example", "re:81"])),
        path: chance.maybe(35, a_rewrite),
    };
    Forward { backends, rewrite, ..Forward::default() }
}

fn an_edit(chance: &mut Chance, names: &[&str]) -> HeaderEdit {
    if chance.hits(60) {
        return HeaderEdit::default();
    }
    let pair = |chance: &mut Chance| (text(chance, names), text(chance, &["edited", "2", "a, b"]));
    HeaderEdit {
        set: chance.some(1, pair),
        add: chance.some(2, pair),
        remove: chance.some(1, |chance| text(chance, names)),
    }
}

fn a_policys_rule(chance: &mut Chance) -> RequestRule {
    let clause = |chance: &mut Chance| {
        let alternative = |chance: &mut Chance| {
            let sense = if chance.hits(25) { Sense::NoneOf } else { Sense::AnyOf };
            Alternative { conditions: vec![Condition { sense, wanted: a_wanted(chance) }] }
        };
        RequestClause { alternatives: (0..1 + chance.below(2)).map(|_| alternative(chance)).collect() }
    };
    RequestRule { clauses: (0..1 + chance.below(2)).map(|_| clause(chance)).collect() }
}

fn a_wanted(chance: &mut Chance) -> Wanted {
    let texts = |chance: &mut Chance, values: &'static [&'static str]| -> Vec<StringMatch> {
        let not_empty: Vec<&str> = values.iter().copied().filter(|value| !value.is_empty()).collect();
        let one = |chance: &mut Chance| {
            let value = text(chance, &not_empty);
            let half = value.get(..value.len().div_ceil(2)).unwrap_or(&value);
            match chance.below(5) {
                0 => StringMatch::Prefix(half.into()),
                1 => StringMatch::Suffix(value.get(value.len() / 2..).unwrap_or(&value).into()),
                2 => StringMatch::Presence,
                _ => StringMatch::Exact(value),
            }
        };
        (0..1 + chance.below(2)).map(|_| one(chance)).collect()
    };
    match chance.below(6) {
        0 => Wanted::Method(texts(chance, METHODS)),
        1 => Wanted::header(chance.of(NAMES), texts(chance, VALUES)),
        2 => Wanted::host(texts(chance, HOSTS)),
        3 => {
            let template =
                chance.of(&["/a/{*}", "/api/{*}/items", "/{**}", "/api/{**}", "/{*}/b", "/a/{**}/c", "/{*}"]);
            Wanted::Path(vec![PathPattern::Template(PathTemplate::new(template).expect("a template"))])
        }
        _ => Wanted::Path(texts(chance, PATHS).into_iter().map(PathPattern::Text).collect()),
    }
}
