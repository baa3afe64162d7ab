use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::attrs::{Claim, Headers, RequestAttrs, Token};
use crate::explain::nearest_request_misses;
use crate::fixtures::{World, policy_key, service_key};
use crate::model::access::{Access, Attachment, PathPattern, PathTemplate, RequestRule};
use crate::model::{Identity, ServiceAccountMatch, Str};
use crate::snapshot::Change;

/// Headers of a test's request.
struct Pairs<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Pairs<'_> {
    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        let values: Vec<&str> = self.0.iter().filter(|(key, _)| *key == name).map(|(_, value)| *value).collect();
        (!values.is_empty()).then(|| values.join(",").into())
    }

    fn lines(&self, name: &str) -> Vec<Cow<'_, str>> {
        let values = self.0.iter().filter(|(key, _)| *key == name);
        let lines: Vec<_> = values.map(|(_, value)| Cow::Borrowed(*value)).collect();
        if lines.len() > 1 { lines } else { Vec::new() }
    }
}

/// What arrives: `ns/a` asks `GET /api/v1/items` of `ns/web`.
#[derive(Debug)]
struct Asked {
    identity: Option<Identity>,
    remote_ip: IpAddr,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    token: Option<Token>,
    is_http: bool,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            identity: Some("spiffe://cluster.local/ns/ns/sa/a".parse().unwrap()),
            remote_ip: [203, 0, 113, 7].into(),
            method: "GET",
            host: "Web.ns:80",
            path: "/api/v1/items",
            headers: &[("x-team", "blue"), ("x-empty", "")],
            token: Some(token()),
            is_http: true,
        }
    }
}

fn token() -> Token {
    let text = |text: &str| Claim::Text(text.into());
    let groups = Claim::List(vec!["admins".into(), "users".into()]);
    let nested = Claim::Object(BTreeMap::from([("level".into(), text("gold")), ("sure".into(), Claim::Other)]));
    Token::new(BTreeMap::from([
        ("iss".into(), text("https://issuer")),
        ("sub".into(), text("alice")),
        ("aud".into(), Claim::List(vec!["shop".into(), "bank".into()])),
        ("azp".into(), text("app")),
        ("groups".into(), groups),
        ("scope".into(), text("read write")),
        ("name".into(), text("read write")),
        ("nested".into(), nested),
    ]))
}

fn policy(name: &str, action: RequestAction, rules: Vec<RequestRule>) -> RequestPolicy {
    RequestPolicy {
        key: policy_key(name),
        attached: Attachment::To(vec![service_key("ns/web")]),
        action,
        rules,
        dry_run: false,
        unreadable: None,
    }
}

fn rule(clauses: Vec<Vec<Vec<Condition>>>) -> RequestRule {
    let alternatives = |alternatives: Vec<Vec<Condition>>| RequestClause {
        alternatives: alternatives.into_iter().map(|conditions| Alternative { conditions }).collect(),
    };
    RequestRule { clauses: clauses.into_iter().map(alternatives).collect() }
}

fn of(wanted: Wanted) -> RequestRule {
    rule(vec![vec![vec![Condition { sense: Sense::AnyOf, wanted }]]])
}

fn not(wanted: Wanted) -> RequestRule {
    rule(vec![vec![vec![Condition { sense: Sense::NoneOf, wanted }]]])
}

fn world(policies: &[RequestPolicy]) -> Snapshot {
    let world = World::new().workload("a").workload("web").workload("gate");
    let world = world.service("ns/web", &[(80, 8080)], &["web"]).service("ns/gate", &[(15008, 15008)], &["gate"]);
    let changes: Vec<Change> =
        policies.iter().map(|policy| Change::Access(Arc::new(Access::Policy(policy.clone())))).collect();
    world.snapshot().apply(&changes).0
}

fn with<T>(snapshot: &Snapshot, asked: &Asked, then: impl FnOnce(&AccessAttrs<'_>) -> T) -> T {
    let gate = snapshot.workload(&crate::fixtures::uid("gate")).unwrap();
    let service = snapshot.service(&service_key("ns/web")).unwrap();
    let address = Some((service.vips[0].address, 80).into());
    let target = Target::Service { service: service.clone(), port: service.ports[0], address, subset: None };
    let headers = Pairs(asked.headers);
    let request = RequestAttrs {
        method: asked.method,
        scheme: "http",
        authority: asked.host,
        path: asked.path,
        query: None,
        headers: &headers,
        port: 80,
        token: None,
    };
    then(&AccessAttrs {
        waypoint: gate,
        target: &target,
        source_identity: asked.identity.as_ref(),
        source_ip: [10, 0, 0, 9].into(),
        remote_ip: asked.remote_ip,
        server_name: None,
        request: asked.is_http.then_some(&request),
        token: asked.token.as_ref(),
    })
}

fn ask(policies: &[RequestPolicy], asked: &Asked) -> RequestVerdict {
    let snapshot = world(policies);
    with(&snapshot, asked, |attrs| authorize_request(&snapshot, attrs))
}

fn texts(texts: &[&str]) -> Vec<StringMatch> {
    texts.iter().map(|text| StringMatch::Exact((*text).into())).collect()
}

fn path(text: &str) -> Wanted {
    Wanted::Path(vec![match PathTemplate::is_meant(text) {
        true => PathPattern::Template(PathTemplate::new(text).unwrap()),
        false => PathPattern::Text(StringMatch::Exact(text.into())),
    }])
}

fn claim(names: &[&str], values: &[&str]) -> Wanted {
    Wanted::Claim { path: names.iter().map(|name| Str::from(*name)).collect(), values: texts(values) }
}

/// What each attribute is compared with, for the request of [`Asked::default`].
fn attributes() -> Vec<(Wanted, bool)> {
    let nets = |text: &str| vec![text.parse().unwrap()];
    let present = || vec![StringMatch::Presence];
    let account = |name: &str| vec![ServiceAccountMatch { namespace: "ns".into(), service_account: name.into() }];
    vec![
        (Wanted::Namespace(texts(&["ns"])), true),
        (Wanted::Namespace(texts(&["NS"])), false),
        (Wanted::Principal(texts(&["cluster.local/ns/ns/sa/a"])), true),
        (Wanted::Principal(vec![StringMatch::Suffix("/sa/b".into())]), false),
        (Wanted::ServiceAccount(account("a")), true),
        (Wanted::ServiceAccount(account("b")), false),
        (Wanted::SourceIp(nets("10.0.0.0/24")), true),
        (Wanted::SourceIp(nets("203.0.113.0/24")), false),
        (Wanted::RemoteIp(nets("203.0.113.0/24")), true),
        (Wanted::RemoteIp(nets("10.0.0.0/24")), false),
        (Wanted::DestinationIp(nets("10.1.0.0/16")), true),
        (Wanted::DestinationIp(nets("10.0.0.0/16")), false),
        (Wanted::DestinationPort(vec![81, 80]), true),
        (Wanted::DestinationPort(vec![8080]), false),
        (Wanted::ServerName(present()), false),
        (Wanted::RequestPrincipal(texts(&["https://issuer/alice"])), true),
        (Wanted::RequestPrincipal(vec![StringMatch::Prefix("https://issuer/".into())]), true),
        (Wanted::RequestPrincipal(present()), true),
        (Wanted::RequestPrincipal(texts(&["https://issuer/bob"])), false),
        (Wanted::Audience(texts(&["bank"])), true),
        (Wanted::Audience(texts(&["ban"])), false),
        (Wanted::Presenter(texts(&["app"])), true),
        (claim(&["groups"], &["users"]), true),
        (claim(&["groups"], &["user"]), false),
        (claim(&["nested", "level"], &["gold"]), true),
        (claim(&["nested"], &["gold"]), false),
        (claim(&["nested", "sure"], &["true"]), false),
        (claim(&["scope"], &["write"]), true),
        (claim(&["name"], &["write"]), false),
        (claim(&["name"], &["read write"]), true),
        (claim(&[], &["x"]), false),
        (Wanted::host(texts(&["WEB.NS:80"])), true),
        (Wanted::host(texts(&["web.ns"])), false),
        (Wanted::host(vec![StringMatch::Prefix("WEB.".into())]), true),
        (Wanted::host(vec![StringMatch::Suffix(".NS:80".into())]), true),
        (Wanted::Method(texts(&["POST", "GET"])), true),
        (Wanted::Method(texts(&["get"])), false),
        (path("/api/v1/items"), true),
        (path("/api/V1/items"), false),
        (path("/api/{*}/items"), true),
        (path("/{*}/items"), false),
        (path("/api/{**}"), true),
        (Wanted::header("X-Team", texts(&["blue"])), true),
        (Wanted::header("x-team", texts(&["Blue"])), false),
        (Wanted::header("x-empty", present()), true),
        (Wanted::header("x-none", present()), false),
    ]
}

#[test]
fn each_attribute_is_compared_as_the_table_says() {
    for (wanted, expected) in attributes() {
        for (rule, expected) in [(of(wanted.clone()), expected), (not(wanted.clone()), !expected)] {
            let denied = ask(&[policy("ns/p", RequestAction::Deny, vec![rule.clone()])], &Asked::default());
            assert_eq!(!denied.allowed, expected, "deny {wanted:?}");
            let allowed = ask(&[policy("ns/p", RequestAction::Allow, vec![rule])], &Asked::default());
            assert_eq!(allowed.allowed, expected, "allow {wanted:?}");
        }
    }
}

#[test]
fn a_header_line_more_is_no_way_past_a_policy() {
    let role = |values: &[&str]| Wanted::header("x-role", texts(values));
    let lines = |headers| Asked { headers, ..Asked::default() };
    let verdict = |action, rule, asked: &Asked| ask(&[policy("ns/p", action, vec![rule])], asked).allowed;
    for headers in [&[("x-role", "guest"), ("x-role", "admin")], &[("x-role", "admin"), ("x-role", "")]] {
        let asked = lines(headers);
        assert!(!verdict(RequestAction::Deny, of(role(&["admin"])), &asked), "{headers:?}");
        assert!(!verdict(RequestAction::Allow, of(role(&["admin"])), &asked), "{headers:?}");
        assert!(!verdict(RequestAction::Deny, not(role(&["guest", ""])), &asked), "{headers:?}");
        assert!(!verdict(RequestAction::Allow, not(role(&["admin"])), &asked), "{headers:?}");
    }
    let both = lines(&[("x-role", "guest"), ("x-role", "guest")]);
    assert!(verdict(RequestAction::Deny, of(role(&["admin"])), &both));
    assert!(verdict(RequestAction::Allow, not(role(&["admin"])), &both));
    assert!(!verdict(RequestAction::Deny, of(role(&["guest,guest"])), &both), "all lines are one value too");
}

#[test]
fn without_a_token_no_claim_holds_and_every_not_does() {
    let nobody = Asked { token: None, ..Asked::default() };
    for wanted in [
        Wanted::RequestPrincipal(vec![StringMatch::Presence]),
        Wanted::Audience(texts(&["shop"])),
        claim(&["groups"], &["users"]),
    ] {
        assert!(!ask(&[policy("ns/p", RequestAction::Allow, vec![of(wanted.clone())])], &nobody).allowed);
        assert!(!ask(&[policy("ns/p", RequestAction::Deny, vec![not(wanted)])], &nobody).allowed);
    }
}

#[test]
fn deny_comes_first_then_what_cannot_be_read_then_allow() {
    let get = || of(Wanted::Method(texts(&["GET"])));
    let post = || of(Wanted::Method(texts(&["POST"])));
    let asked = Asked::default();
    let broken = RequestPolicy { unreadable: Some("odd".into()), ..policy("ns/odd", RequestAction::Allow, vec![]) };
    let deny = policy("ns/deny", RequestAction::Deny, vec![post(), get()]);
    let allow = policy("ns/allow", RequestAction::Allow, vec![get()]);
    let other = policy("ns/other", RequestAction::Allow, vec![post()]);

    assert_eq!(ask(&[], &asked).reason, Reason::NoPolicy);
    let one = ask(std::slice::from_ref(&allow), &asked);
    assert_eq!((one.allowed, one.reason), (true, Reason::AllowedBy { policy: policy_key("ns/allow"), rule: 0 }));
    let one = ask(&[allow.clone(), deny.clone(), broken.clone()], &asked);
    assert_eq!((one.allowed, one.reason), (false, Reason::DeniedBy { policy: policy_key("ns/deny"), rule: 1 }));
    let one = ask(&[allow.clone(), broken.clone()], &asked);
    assert_eq!(one.reason, Reason::PolicyUnreadable { policy: policy_key("ns/odd"), detail: "odd".into() });
    assert!(!one.allowed);
    let one = ask(std::slice::from_ref(&other), &asked);
    assert_eq!((one.allowed, one.reason), (false, Reason::NoAllowMatched { policies: vec![policy_key("ns/other")] }));
    assert!(ask(&[other, allow], &asked).allowed);
    // An ALLOW without rules lets nothing pass, a DENY without rules refuses nothing.
    assert!(!ask(&[policy("ns/none", RequestAction::Allow, vec![])], &asked).allowed);
    assert!(ask(&[policy("ns/none", RequestAction::Deny, vec![])], &asked).allowed);
    // A rule that asks nothing matches everything.
    assert!(!ask(&[policy("ns/all", RequestAction::Deny, vec![rule(vec![])])], &asked).allowed);
}

#[test]
fn dry_run_and_audit_decide_nothing_and_are_told() {
    let get = || of(Wanted::Method(texts(&["GET"])));
    let asked = Asked::default();
    let dry = RequestPolicy { dry_run: true, ..policy("ns/dry", RequestAction::Deny, vec![get()]) };
    let one = ask(&[dry], &asked);
    assert!(one.allowed);
    assert_eq!(one.dry_run, [Reason::DeniedBy { policy: policy_key("ns/dry"), rule: 0 }]);
    let dry = RequestPolicy { dry_run: true, ..policy("ns/dry", RequestAction::Allow, vec![]) };
    let one = ask(std::slice::from_ref(&dry), &asked);
    assert_eq!(one.dry_run, [Reason::NoAllowMatched { policies: vec![policy_key("ns/dry")] }]);
    // Beside another allow policy, one more could only let more pass.
    let one = ask(&[dry, policy("ns/allow", RequestAction::Allow, vec![get()])], &asked);
    assert!(one.allowed && one.dry_run.is_empty());
    let one = ask(&[policy("ns/audit", RequestAction::Audit, vec![get()])], &asked);
    assert_eq!((one.allowed, one.audited), (true, vec![(policy_key("ns/audit"), 0)]));
}

#[test]
fn a_connection_that_is_no_http_is_judged_more_strictly_by_what_requests_have() {
    let tcp = Asked { is_http: false, token: None, ..Asked::default() };
    let get = || Condition { sense: Sense::AnyOf, wanted: Wanted::Method(texts(&["GET"])) };
    let from = |name: &str| Condition { sense: Sense::AnyOf, wanted: Wanted::Namespace(texts(&[name])) };
    let both = |name: &str| rule(vec![vec![vec![from(name)]], vec![vec![get()]]]);
    assert!(!ask(&[policy("ns/p", RequestAction::Allow, vec![both("ns")])], &tcp).allowed);
    assert!(!ask(&[policy("ns/p", RequestAction::Deny, vec![both("ns")])], &tcp).allowed);
    assert!(ask(&[policy("ns/p", RequestAction::Deny, vec![both("other")])], &tcp).allowed);
    assert!(ask(&[policy("ns/p", RequestAction::Allow, vec![rule(vec![vec![vec![from("ns")]]])])], &tcp).allowed);
    let not_get = || not(Wanted::Method(texts(&["GET"])));
    assert!(!ask(&[policy("ns/p", RequestAction::Allow, vec![not_get()])], &tcp).allowed);
    assert!(!ask(&[policy("ns/p", RequestAction::Deny, vec![not_get()])], &tcp).allowed);
}

#[test]
fn policies_count_where_they_are_attached() {
    let deny = |attached| RequestPolicy { attached, ..policy("ns/p", RequestAction::Deny, vec![rule(vec![])]) };
    let allowed = |attached| ask(&[deny(attached)], &Asked::default()).allowed;
    assert!(!allowed(Attachment::To(vec![service_key("ns/web")])));
    // The waypoint's own service stands for all that it carries.
    assert!(!allowed(Attachment::To(vec![service_key("other/web"), service_key("ns/gate")])));
    assert!(allowed(Attachment::To(vec![service_key("other/web")])));
    assert!(!allowed(Attachment::Everything));
}

#[test]
fn what_cannot_be_read_keeps_its_last_good_version() {
    let good = policy("ns/p", RequestAction::Allow, vec![of(Wanted::Method(texts(&["GET"])))]);
    let broken = RequestPolicy { unreadable: Some("odd".into()), attached: Attachment::Everything, ..good.clone() };
    assert!(ask(&[good.clone(), broken.clone()], &Asked::default()).allowed);
    assert!(!ask(std::slice::from_ref(&broken), &Asked::default()).allowed);
    assert!(ask(&[broken.clone(), good.clone()], &Asked::default()).allowed);
    let snapshot = world(&[good.clone(), broken]);
    let removed = snapshot.apply(&[Change::AccessRemoved(Access::Policy(good).key())]).0;
    assert!(removed.accesses().next().is_none() && removed.same_content(&world(&[])));
}

#[test]
fn the_nearest_miss_says_what_to_change() {
    let near = policy("ns/near", RequestAction::Allow, vec![of(Wanted::Method(texts(&["POST", "PUT"])))]);
    let far = policy(
        "ns/far",
        RequestAction::Allow,
        vec![rule(vec![
            vec![vec![Condition { sense: Sense::AnyOf, wanted: path("/other") }]],
            vec![vec![Condition { sense: Sense::AnyOf, wanted: Wanted::Method(texts(&["POST"])) }]],
        ])],
    );
    let snapshot = world(&[near, far]);
    let misses = with(&snapshot, &Asked::default(), |attrs| nearest_request_misses(&snapshot, attrs, 2));
    assert_eq!((misses[0].policy.clone(), &*misses[0].attribute), (policy_key("ns/near"), "method"));
    assert_eq!((misses[0].wanted.as_str(), misses[0].seen.as_str()), ("PUT or POST", "GET"));
    assert_eq!(misses.len(), 2);

    let denied = world(&[policy("ns/p", RequestAction::Deny, vec![of(Wanted::Method(texts(&["GET"])))])]);
    let misses = with(&denied, &Asked::default(), |attrs| nearest_request_misses(&denied, attrs, 4));
    assert_eq!((misses.len(), misses[0].wanted.as_str()), (1, "not GET"));
    let passed = world(&[]);
    assert!(with(&passed, &Asked::default(), |attrs| nearest_request_misses(&passed, attrs, 4)).is_empty());
}

/// The order of decisions, written down once more without any of the machinery.
fn plainly(policies: &[RequestPolicy], asked: &Asked) -> bool {
    let snapshot = world(&[]);
    with(&snapshot, asked, |attrs| {
        let seen = RequestSeen::new(attrs);
        let condition = |one: &Condition, action| match (attrs.request.is_none(), one.wanted.is_of_requests()) {
            (true, true) => action == RequestAction::Deny,
            _ => has(&one.wanted, &seen) ^ (one.sense == Sense::NoneOf),
        };
        let matched = |policy: &RequestPolicy| {
            policy.rules.iter().any(|rule| {
                !rule.clauses.iter().any(|clause| {
                    !clause.alternatives.iter().any(|one| {
                        one.conditions.iter().filter(|one| condition(one, policy.action)).count()
                            == one.conditions.len()
                    })
                })
            })
        };
        let mut live: BTreeMap<PolicyKey, &RequestPolicy> = BTreeMap::new();
        for policy in policies {
            live.insert(policy.key.clone(), policy);
        }
        live.retain(|_, policy| !policy.dry_run);
        let of = |action| live.values().filter(move |policy| policy.action == action);
        let denied = of(RequestAction::Deny).any(|policy| matched(policy));
        let any_allow = of(RequestAction::Allow).next().is_some();
        !denied && (!any_allow || of(RequestAction::Allow).any(|policy| matched(policy)))
    })
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let wanted: Vec<Wanted> = attributes().into_iter().map(|(wanted, _)| wanted).collect();
    let sense = select(vec![Sense::AnyOf, Sense::NoneOf]);
    (sense, select(wanted)).prop_map(|(sense, wanted)| Condition { sense, wanted })
}

fn any_policy() -> impl Strategy<Value = RequestPolicy> {
    let conditions = prop::collection::vec(any_condition(), 1..3);
    let rules = prop::collection::vec(prop::collection::vec(prop::collection::vec(conditions, 1..3), 0..3), 0..3);
    let action = select(vec![RequestAction::Allow, RequestAction::Deny, RequestAction::Audit]);
    (select(vec!["ns/a", "ns/b", "ns/c"]), action, rules, prop::bool::weighted(0.2)).prop_map(
        |(name, action, rules, dry_run)| RequestPolicy {
            dry_run,
            ..policy(name, action, rules.into_iter().map(rule).collect())
        },
    )
}

fn any_asked() -> impl Strategy<Value = Asked> {
    let text = (select(vec!["GET", "POST"]), select(vec!["/api/v1/items", "/other"]), select(vec!["web.ns:80", "x"]));
    (text, any::<bool>(), any::<bool>(), prop::bool::weighted(0.8)).prop_map(
        |((method, path, host), has_token, has_identity, is_http)| Asked {
            method,
            path,
            host,
            token: (has_token && is_http).then(token),
            identity: has_identity.then(|| "spiffe://cluster.local/ns/ns/sa/a".parse().unwrap()),
            is_http,
            ..Asked::default()
        },
    )
}

proptest! {
    #[test]
    fn decisions_are_those_of_a_plain_evaluation(
        policies in prop::collection::vec(any_policy(), 0..4),
        asked in any_asked(),
    ) {
        prop_assert_eq!(ask(&policies, &asked).allowed, plainly(&policies, &asked));
    }

    #[test]
    fn one_more_deny_never_lets_more_pass_and_order_does_not_matter(
        policies in prop::collection::vec(any_policy(), 0..3),
        deny in any_policy(),
        asked in any_asked(),
    ) {
        let before = ask(&policies, &asked);
        let deny = RequestPolicy { key: policy_key("ns/zzz"), action: RequestAction::Deny, dry_run: false, ..deny };
        let mut more = policies.clone();
        more.push(deny);
        let after = ask(&more, &asked);
        prop_assert!(before.allowed || !after.allowed);
        let mut keyed: BTreeMap<_, _> = more.into_iter().map(|policy| (policy.key.clone(), policy)).collect();
        let forward: Vec<_> = keyed.values().cloned().collect();
        let backward: Vec<_> = std::mem::take(&mut keyed).into_values().rev().collect();
        prop_assert_eq!(ask(&forward, &asked), ask(&backward, &asked));
    }
}
