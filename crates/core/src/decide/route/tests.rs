mod grpc;

use std::borrow::Cow;
use std::sync::Arc;

use super::*;
use crate::attrs::{Claim, Headers, Token};
use crate::model::http::{
    ClaimMatch, HeaderEdit, HeaderMatch, Pattern, QueryMatch, RouteAction, RouteBackend, RouteKey, RouteKind,
    RouteParent, Substitution, TextMatch,
};
use crate::model::{ServiceKey, Str};
use crate::snapshot::Routes;

struct Listed<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Listed<'_> {
    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        let values: Vec<&str> = self.0.iter().filter(|(key, _)| *key == name).map(|(_, value)| *value).collect();
        (!values.is_empty()).then(|| values.join(",").into())
    }
}

fn get<'a>(target: &'a str, headers: &'a Listed<'a>) -> RequestAttrs<'a> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    RequestAttrs {
        method: "GET",
        scheme: "http",
        authority: "shop.example:8080",
        path,
        query,
        headers,
        port: 8080,
        token: None,
    }
}

const NONE: Listed<'static> = Listed(&[]);

fn web() -> ServiceKey {
    ServiceKey::new("shop", "web.shop.svc.cluster.local")
}

fn rule(name: &str, matches: Vec<RequestMatch>) -> RouteRule {
    RouteRule {
        name: Some(name.into()),
        matches,
        action: RouteAction::Forward(Forward::default()),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        fault: None,
        cors: None,
    }
}

fn path(path: PathMatch) -> RequestMatch {
    RequestMatch { path: Some(path), ..RequestMatch::default() }
}

fn header(name: &str, value: TextMatch) -> HeaderMatch {
    HeaderMatch { name: name.into(), value }
}

fn object(kind: RouteKind, name: &str, rules: Vec<RouteRule>) -> HttpRoute {
    HttpRoute {
        key: RouteKey { kind, namespace: "shop".into(), name: name.into() },
        parents: vec![RouteParent { service: web(), port: None }],
        consumer: None,
        created: 1000,
        rules,
        streams: Vec::new(),
    }
}

fn http(name: &str, rules: Vec<RouteRule>) -> HttpRoute {
    object(RouteKind::Http, name, rules)
}

fn known(routes: impl IntoIterator<Item = HttpRoute>) -> Routes {
    let mut known = Routes::default();
    known.apply(routes.into_iter().map(|route| (route.key.clone(), Some(Arc::new(route)))));
    known
}

/// The name of the rule that takes a request.
fn taken(routes: &Routes, request: &RequestAttrs<'_>) -> Option<Str> {
    route(routes.table(&web(), request.port, None)?, request)?.rule.name.clone()
}

fn taken_path<'a>(routes: &'a Routes, target: &'a str) -> Option<Str> {
    taken(routes, &get(target, &NONE))
}

#[test]
fn segments_are_whole_ones() {
    let routes = known([http("r", vec![rule("a", vec![path(PathMatch::segments("/a/b/"))])])]);
    for (target, is_taken) in [
        ("/a/b", true),
        ("/a/b/", true),
        ("/a/b/c", true),
        ("/a/b?x=/", true),
        ("/a/bc", false),
        ("/a", false),
        ("/A/b", false),
        ("/", false),
    ] {
        assert_eq!(taken_path(&routes, target).is_some(), is_taken, "{target}");
    }
    let all = known([http("r", vec![rule("all", vec![path(PathMatch::segments("/"))])])]);
    for target in ["/", "/a", "/a/b", "//"] {
        assert!(taken_path(&all, target).is_some(), "{target}");
    }
}

#[test]
fn each_kind_of_path_match_holds_for_what_it_says() {
    let pattern = |text: &str| PathMatch::Regex(Pattern::new(text).unwrap());
    for (matched, yes, no) in [
        (PathMatch::Exact("/a".into()), vec!["/a"], vec!["/a/", "/A", "/ab"]),
        (PathMatch::Prefix("/a".into()), vec!["/a", "/ab", "/a/b"], vec!["/A", "/"]),
        (pattern("/a|/b.*"), vec!["/a", "/b", "/bc"], vec!["/ab", "/x/a"]),
        (PathMatch::ExactIgnoringCase("/a".into()), vec!["/a", "/A"], vec!["/ab"]),
        (PathMatch::PrefixIgnoringCase("/ab".into()), vec!["/ab", "/ABc"], vec!["/a", "/é"]),
    ] {
        let routes = known([http("r", vec![rule("it", vec![path(matched.clone())])])]);
        for target in yes {
            assert!(taken_path(&routes, target).is_some(), "{matched:?} {target}");
        }
        for target in no {
            assert!(taken_path(&routes, target).is_none(), "{matched:?} {target}");
        }
    }
}

#[test]
fn everything_that_is_set_must_hold() {
    let matched = RequestMatch {
        method: Some(TextMatch::Exact("GET".into())),
        authority: Some(TextMatch::Prefix("shop.".into())),
        scheme: Some(TextMatch::Exact("http".into())),
        port: Some(8080),
        headers: vec![header("x-a", TextMatch::Exact("1,2".into())), header("x-b", TextMatch::Present)],
        without_headers: vec![header("x-no", TextMatch::Prefix("bad".into()))],
        query: vec![QueryMatch { name: "q".into(), value: TextMatch::Exact("%31".into()) }],
        ..RequestMatch::default()
    };
    let routes = known([http("r", vec![rule("it", vec![matched])])]);
    let good = [("x-a", "1"), ("x-a", "2"), ("x-b", "")];
    let all = Listed(&good);
    let request = get("/?q=%31&q=2", &all);
    assert!(taken(&routes, &request).is_some());
    for wrong in [
        RequestAttrs { method: "get", ..request },
        RequestAttrs { authority: "other", ..request },
        RequestAttrs { scheme: "https", ..request },
        RequestAttrs { headers: &Listed(&[("x-a", "1,2")]), ..request },
        RequestAttrs { headers: &Listed(&[("x-a", "1,2"), ("x-b", ""), ("x-no", "bad one")]), ..request },
        RequestAttrs { query: Some("q=1"), ..request },
        RequestAttrs { query: Some("q=2&q=%31"), ..request },
        RequestAttrs { query: None, ..request },
        RequestAttrs { port: 80, ..request },
    ] {
        assert!(taken(&routes, &wrong).is_none());
    }
}

#[test]
fn claims_of_a_verified_token_are_compared_and_without_one_there_is_none() {
    let claim =
        |path: &[&str], value: TextMatch| ClaimMatch { path: path.iter().map(|one| (*one).into()).collect(), value };
    let exact = |text: &str| TextMatch::Exact(text.into());
    let object = |name: &str, claim| Claim::Object([(name.into(), claim)].into());
    let token = Token::new(
        [
            ("sub".into(), Claim::Text("alice".into())),
            ("groups".into(), Claim::List(vec!["a".into(), "b".into()])),
            ("scope".into(), Claim::Text("read write".into())),
            ("org".into(), object("team", Claim::Text("shop".into()))),
            ("n".into(), Claim::Other),
        ]
        .into(),
    );
    let taken = |wanted: Vec<ClaimMatch>, unwanted: Vec<ClaimMatch>, token: Option<&Token>| {
        let matched = RequestMatch { claims: wanted, without_claims: unwanted, ..RequestMatch::default() };
        let routes = known([http("r", vec![rule("it", vec![matched])])]);
        self::taken(&routes, &RequestAttrs { token, ..get("/", &NONE) }).is_some()
    };
    for (path, value, holds) in [
        (&["sub"][..], exact("alice"), true),
        (&["sub"], exact("bob"), false),
        (&["sub"], TextMatch::Prefix("al".into()), true),
        (&["groups"], exact("b"), true),
        (&["groups"], exact("a,b"), false),
        (&["scope"], exact("write"), true),
        (&["org", "team"], exact("shop"), true),
        (&["org"], TextMatch::Present, false),
        (&["n"], TextMatch::Present, false),
        (&["none"], TextMatch::Present, false),
        (&["sub"], TextMatch::Present, true),
    ] {
        assert_eq!(taken(vec![claim(path, value.clone())], vec![], Some(&token)), holds, "{path:?} {value:?}");
        assert_eq!(taken(vec![], vec![claim(path, value.clone())], Some(&token)), !holds, "{path:?} {value:?}");
        assert!(!taken(vec![claim(path, value.clone())], vec![], None), "no token");
        assert!(taken(vec![], vec![claim(path, value)], None), "no token");
    }
}

#[test]
fn the_order_of_gateway_api_is_kept_whatever_the_order_of_writing() {
    let with = |path: PathMatch, change: fn(&mut RequestMatch)| {
        let mut matched = RequestMatch { path: Some(path), ..RequestMatch::default() };
        change(&mut matched);
        vec![matched]
    };
    let one_header = |matched: &mut RequestMatch| matched.headers = vec![header("x-a", TextMatch::Present)];
    let two_headers = |matched: &mut RequestMatch| {
        matched.headers = vec![header("x-a", TextMatch::Present), header("x-b", TextMatch::Present)];
    };
    let one_parameter = |matched: &mut RequestMatch| {
        matched.query = vec![QueryMatch { name: "q".into(), value: TextMatch::Present }];
    };
    let method = |matched: &mut RequestMatch| matched.method = Some(TextMatch::Exact("GET".into()));
    // From the strongest to the weakest; all of them take the request.
    let ordered = [
        rule("exact", with(PathMatch::Exact("/a/b/c".into()), |_| ())),
        rule("long", with(PathMatch::segments("/a/b"), |_| ())),
        rule("method", with(PathMatch::segments("/a"), method)),
        rule("two headers", with(PathMatch::segments("/a"), two_headers)),
        rule("one header", with(PathMatch::segments("/a"), one_header)),
        rule("parameter", with(PathMatch::segments("/a"), one_parameter)),
        rule("short", with(PathMatch::segments("/a"), |_| ())),
        rule("everything", vec![]),
        rule("pattern", with(PathMatch::Regex(Pattern::new("/a.*").unwrap()), two_headers)),
    ];
    let headers = Listed(&[("x-a", "1"), ("x-b", "2")]);
    let request = get("/a/b/c?q=1", &headers);
    for strongest in 0..ordered.len() {
        let mut rules: Vec<RouteRule> = ordered[strongest..].to_vec();
        for _ in 0..rules.len() {
            rules.rotate_left(1);
            let routes = known([http("r", rules.clone())]);
            assert_eq!(taken(&routes, &request), ordered[strongest].name);
        }
    }
}

#[test]
fn of_equal_matches_the_oldest_object_counts_then_its_name_then_the_place() {
    let both = |name: &str| http(name, vec![rule(name, vec![]), rule("second", vec![])]);
    let older = HttpRoute { created: 1, ..both("z") };
    assert_eq!(taken_path(&known([both("a"), older, both("b")]), "/").as_deref(), Some("z"));
    assert_eq!(taken_path(&known([both("b"), both("a")]), "/").as_deref(), Some("a"));
}

#[test]
fn a_virtual_service_keeps_its_own_order_and_the_older_comes_first() {
    let virtual_service = |name: &str, created| HttpRoute {
        created,
        ..object(
            RouteKind::VirtualService,
            name,
            vec![
                rule(name, vec![path(PathMatch::Prefix("/".into()))]),
                rule("exact", vec![path(PathMatch::Exact("/a".into()))]),
            ],
        )
    };
    let routes = known([virtual_service("young", 9), virtual_service("old", 1)]);
    assert_eq!(taken_path(&routes, "/a").as_deref(), Some("old"));
}

#[test]
fn a_route_for_one_port_takes_that_port_alone() {
    let on = |port| vec![RouteParent { service: web(), port }];
    let routes = known([
        HttpRoute {
            parents: on(Some(8080)),
            ..http("one", vec![rule("one", vec![path(PathMatch::segments("/one"))])])
        },
        HttpRoute { parents: on(None), ..http("any", vec![rule("any", vec![])]) },
    ]);
    assert_eq!(taken_path(&routes, "/one").as_deref(), Some("one"));
    assert_eq!(taken(&routes, &RequestAttrs { port: 81, ..get("/one", &NONE) }).as_deref(), Some("any"));
    let alone = known([HttpRoute { parents: on(Some(81)), ..http("one", vec![rule("one", vec![])]) }]);
    assert!(alone.table(&web(), 8080, None).is_none(), "no route is attached to this port");
}

#[test]
fn a_consumers_route_stands_in_place_of_the_services_own_for_its_clients() {
    let mine = HttpRoute {
        consumer: Some("mine".into()),
        ..http("c", vec![rule("consumer", vec![path(PathMatch::segments("/c"))])])
    };
    let routes = known([http("p", vec![rule("producer", vec![])]), mine]);
    let name = |namespace: Option<&str>, target: &str| {
        let chosen = route(routes.table(&web(), 8080, namespace).unwrap(), &get(target, &NONE))?;
        chosen.rule.name.clone()
    };
    assert_eq!(name(Some("mine"), "/c").as_deref(), Some("consumer"));
    assert_eq!(name(Some("mine"), "/p"), None, "404, not the producer's");
    assert_eq!(name(Some("other"), "/c").as_deref(), Some("producer"));
    assert_eq!(name(None, "/c").as_deref(), Some("producer"));
}

#[test]
fn routes_come_change_and_go() {
    let mut routes = known([http("r", vec![rule("first", vec![])])]);
    let before = routes.clone();
    let elsewhere = ServiceKey::new("shop", "other.shop.svc.cluster.local");
    let moved = HttpRoute {
        parents: vec![RouteParent { service: elsewhere.clone(), port: None }],
        ..http("r", vec![rule("moved", vec![])])
    };
    routes.apply([(moved.key.clone(), Some(Arc::new(moved.clone())))]);
    assert!(routes.table(&web(), 80, None).is_none() && routes.table(&elsewhere, 80, None).is_some());
    assert_eq!(routes, known([moved.clone()]));
    assert_eq!(taken_path(&before, "/").as_deref(), Some("first"), "who holds the old view keeps it");
    routes.apply([(moved.key, None)]);
    assert_eq!(routes, Routes::default());
}

#[test]
fn backends_are_chosen_by_weight() {
    let to = |name: &str, weight| WeightedBackend {
        backend: RouteBackend::Invalid { problem: name.into() },
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        authority: None,
    };
    let forward = Forward { backends: vec![to("a", 90), to("never", 0), to("b", 10)], ..Forward::default() };
    let step = u64::MAX / 10_000;
    let hits = (0..10_000).filter(|index| backend(&forward, index * step).unwrap().weight == 10).count();
    assert!((900..1100).contains(&hits), "{hits}");
    assert!(backend(&Forward { backends: vec![to("a", 0)], ..Forward::default() }, 5).is_none());
    assert!(backend(&Forward::default(), 5).is_none());
}

#[test]
fn chances_are_as_likely_as_said_and_do_not_hang_together() {
    let step = u64::MAX / 10_000;
    let quarter = Share::parts_per_million(250_000);
    let hits = |chance| -> Vec<bool> { (0..10_000).map(|index| is_hit(quarter, chance, index * step)).collect() };
    let (delay, mirror) = (hits(Chance::Delay), hits(Chance::Mirror(0)));
    let both = delay.iter().zip(&mirror).filter(|(one, other)| **one && **other).count();
    assert!((2300..2700).contains(&delay.iter().filter(|hit| **hit).count()));
    assert!((500..750).contains(&both), "{both}");
    assert!((0..100).all(|index| is_hit(Share::ALL, Chance::Abort, index * step)));
    assert!(!(0..100).any(|index| is_hit(Share::parts_per_million(0), Chance::Abort, index * step)));
}

#[test]
fn a_path_is_rewritten_by_what_matched() {
    let prefix = |new: &str| PathRewrite::Prefix(new.into());
    for (matched, rewrite, from, to) in [
        // The table of Gateway API's HTTPPathModifier, ReplacePrefixMatch.
        (Some(PathMatch::segments("/foo")), prefix("/xyz"), "/foo/bar", "/xyz/bar"),
        (Some(PathMatch::segments("/foo")), prefix("/xyz/"), "/foo/bar", "/xyz/bar"),
        (Some(PathMatch::segments("/foo/")), prefix("/xyz"), "/foo/bar", "/xyz/bar"),
        (Some(PathMatch::segments("/foo/")), prefix("/xyz/"), "/foo/bar", "/xyz/bar"),
        (Some(PathMatch::segments("/foo")), prefix("/xyz"), "/foo", "/xyz"),
        (Some(PathMatch::segments("/foo")), prefix("/xyz/"), "/foo/", "/xyz/"),
        (Some(PathMatch::segments("/foo")), prefix(""), "/foo/bar", "/bar"),
        (Some(PathMatch::segments("/foo")), prefix(""), "/foo/", "/"),
        (Some(PathMatch::segments("/foo")), prefix(""), "/foo", "/"),
        (Some(PathMatch::segments("/foo")), prefix("/"), "/foo/", "/"),
        (Some(PathMatch::segments("/foo")), prefix("/"), "/foo", "/"),
        (Some(PathMatch::segments("/foo")), prefix("/xyz/"), "/foo//bar", "/xyz//bar"),
        (Some(PathMatch::segments("/foo")), prefix("/"), "/foo//bar", "/bar"),
        (Some(PathMatch::segments("/")), prefix("/"), "//bar", "/bar"),
        (None, prefix("/x"), "/foo", "/x/foo"),
        // Istio's rewrite.uri.
        (Some(PathMatch::Prefix("/v1".into())), prefix("/api"), "/v1x/y", "/apix/y"),
        (Some(PathMatch::Exact("/v1".into())), prefix("/api"), "/v1", "/api"),
        (Some(PathMatch::Prefix("/v1/".into())), prefix("api/"), "/v1/y", "/api/y"),
        (None, PathRewrite::Full("/new".into()), "/foo/bar", "/new"),
        (
            None,
            PathRewrite::Regex(Substitution::new("/v([0-9]+)/([^/]+)", r"/\2/$\1").unwrap()),
            "/x/v12/page/z",
            "/x/page/$12/z",
        ),
    ] {
        let rule = rule("r", vec![]);
        let matched = matched.map(path);
        let route = http("r", vec![]);
        let chosen = Chosen { route: &Arc::new(route.clone()), rule: &rule, rule_index: 0, matched: matched.as_ref() };
        assert_eq!(chosen.rewritten(&rewrite, from), to, "{matched:?} {rewrite:?} {from}");
    }
}

#[test]
fn a_location_says_what_was_set_and_keeps_the_rest() {
    let same = Redirect { scheme: None, host: None, port: RedirectPort::Derived, path: None, status: 302 };
    let number = |port: u16| RedirectPort::Number(std::num::NonZeroU16::new(port).unwrap());
    let (rule, route) = (rule("r", vec![]), http("r", vec![]));
    let chosen = Chosen { route: &Arc::new(route.clone()), rule: &rule, rule_index: 0, matched: None };
    let request = get("/a?b=c", &NONE);
    for (redirect, location) in [
        (same.clone(), "http://shop.example:8080/a?b=c"),
        (Redirect { host: Some("new.example".into()), ..same.clone() }, "http://new.example:8080/a?b=c"),
        (Redirect { scheme: Some("https".into()), ..same.clone() }, "https://shop.example/a?b=c"),
        (Redirect { scheme: Some("https".into()), port: number(443), ..same.clone() }, "https://shop.example/a?b=c"),
        (Redirect { port: number(8443), ..same.clone() }, "http://shop.example:8443/a?b=c"),
        (Redirect { port: number(80), ..same.clone() }, "http://shop.example/a?b=c"),
        (Redirect { port: RedirectPort::OfScheme, ..same.clone() }, "http://shop.example/a?b=c"),
        (Redirect { port: RedirectPort::OfRequest, ..same.clone() }, "http://shop.example:8080/a?b=c"),
        (Redirect { path: Some(PathRewrite::Full("/new".into())), ..same.clone() }, "http://shop.example:8080/new?b=c"),
    ] {
        assert_eq!(chosen.location(&redirect, &request), location, "{redirect:?}");
    }
    let six = RequestAttrs { authority: "[::1]", port: 80, ..request };
    assert_eq!(chosen.location(&same, &six), "http://[::1]/a?b=c");
    let six = RequestAttrs { authority: "[::1]:99", port: 99, ..request };
    assert_eq!(chosen.location(&same, &six), "http://[::1]:99/a?b=c");
    let written = RequestAttrs { authority: "shop.example:80", ..request };
    let secure = Redirect { port: RedirectPort::OfRequest, scheme: Some("https".into()), ..same };
    assert_eq!(
        chosen.location(&secure, &written),
        "https://shop.example/a?b=c",
        "what http means is not what https means"
    );
}

#[test]
fn a_pattern_that_is_none_or_too_big_is_refused_with_what_is_wrong() {
    for text in ["(", "a)|(b", "[z-a]", "(a{1000}){1000}", "(?=x)"] {
        let error = Pattern::new(text).unwrap_err();
        assert!(error.to_string().contains(text) && !error.problem.is_empty(), "{error}");
        assert!(Substitution::new(text, "").is_err(), "{text}");
    }
}

proptest::proptest! {
    /// The index changes nothing: the entry found is the first of all that holds.
    #[test]
    fn the_index_finds_what_a_walk_through_all_entries_finds(
        prefixes in proptest::collection::vec(("(/[ab]{0,2}){0,3}", 0..5_u8), 0..12),
        target in "(/[ab]{0,2}){1,4}",
    ) {
        let rules = prefixes.iter().enumerate().map(|(index, (text, kind))| {
            let matched = match kind {
                0 => PathMatch::Exact(text.as_str().into()),
                1 => PathMatch::segments(text),
                2 => PathMatch::Prefix(text.as_str().into()),
                3 => PathMatch::PrefixIgnoringCase(text.as_str().into()),
                _ => PathMatch::Regex(Pattern::new(text).unwrap()),
            };
            rule(&index.to_string(), vec![path(matched)])
        });
        let routes = known([http("r", rules.collect())]);
        let request = get(&target, &NONE);
        let walked = routes.table(&web(), 8080, None).and_then(|table| {
            table.entries().iter().find(|entry| holds(entry.matched().unwrap(), &request))
        });
        let walked = walked.and_then(|entry| entry.rule()?.name.clone());
        proptest::prop_assert_eq!(taken(&routes, &request), walked);
    }
}
