use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{any_changes, any_peer};
use crate::attrs::InboundAttrs;
use crate::decide::{Refusal, authorize};
use crate::diagnose::Diagnose;
use crate::fixtures::{World, clear_text, from, policy, policy_key, service_key, to_port, uid};
use crate::model::{Action, Clause, Identity, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
use crate::snapshot::Snapshot;

/// One of each.
fn all() -> Vec<Reason> {
    let policy = policy_key("ns/p");
    let to = |text: &str| text.parse().unwrap();
    vec![
        Reason::NoPolicy,
        Reason::AllowedBy { policy: policy.clone(), rule: 0 },
        Reason::ToWorkload { workload: uid("a") },
        Reason::ToEndpoint { service: service_key("web"), workload: uid("a") },
        Reason::ToWaypoint { waypoint: "ns/gate".into() },
        Reason::Unmanaged,
        Reason::DeniedBy { policy: policy.clone(), rule: 1 },
        Reason::NoAllowMatched { policies: vec![policy.clone(), policy_key("ns/q")] },
        Reason::MutualTlsRequired { policy: policy.clone() },
        Reason::Quarantined { policy: policy.clone() },
        Reason::PolicyUnknown { policy: policy.clone() },
        Reason::PolicyUnreadable { policy, detail: "unknown field 14".into() },
        Reason::TokenRefused { problem: "expired" },
        Reason::NoHealthyEndpoint { service: service_key("web") },
        Reason::EndpointsEjected { service: service_key("web"), endpoints: 2 },
        Reason::SubsetUnknown { service: service_key("web"), subset: "v1".into() },
        Reason::NoServicePort { service: service_key("web"), port: 81 },
        Reason::NoRoute { service: service_key("web"), port: 81 },
        Reason::BackendInvalid { route: "TCPRoute ns/r".into(), problem: "gone".into() },
        Reason::WaypointUnavailable { waypoint: "ns/gate".into() },
        Reason::WorkloadGone { address: [10, 0, 0, 1].into() },
        Reason::NetworkUnreachable { network: "away".into() },
        Reason::ProxyPort { destination: to("10.0.0.1:15008") },
        Reason::ForeignAuthority { authority: "10.0.0.2:80".into() },
        Reason::UnknownAuthority { authority: "nobody:80".into() },
    ]
}

#[test]
fn codes_are_unique_and_stable() {
    let codes: Vec<_> = all().iter().map(Reason::code).collect();
    #[rustfmt::skip]
    assert_eq!(codes, [
        "NO_POLICY", "ALLOWED_BY", "TO_WORKLOAD", "TO_ENDPOINT", "TO_WAYPOINT", "UNMANAGED", "DENIED_BY",
        "NO_ALLOW_MATCHED", "MUTUAL_TLS_REQUIRED", "QUARANTINED", "POLICY_UNKNOWN", "POLICY_UNREADABLE", "TOKEN_REFUSED",
        "NO_HEALTHY_ENDPOINT", "ENDPOINTS_EJECTED", "SUBSET_UNKNOWN", "NO_SERVICE_PORT", "NO_ROUTE", "BACKEND_INVALID", "WAYPOINT_UNAVAILABLE", "WORKLOAD_GONE", "NETWORK_UNREACHABLE", "PROXY_PORT", "FOREIGN_AUTHORITY",
        "UNKNOWN_AUTHORITY",
    ]);
    assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), codes.len());
    assert_eq!(codes, catalogue().entries().iter().map(|entry| entry.code).collect::<Vec<_>>());
}

#[test]
fn the_code_in_json_is_the_code() {
    for reason in all() {
        let json = serde_json::to_value(&reason).unwrap();
        assert_eq!(json["code"], reason.code(), "{json}");
    }
    let denied = serde_json::to_string(&Reason::DeniedBy { policy: policy_key("ns/p"), rule: 1 }).unwrap();
    assert_eq!(denied, r#"{"code":"DENIED_BY","policy":"ns/p","rule":1}"#);
}

#[test]
fn every_reason_is_one_line_with_the_names_of_its_objects() {
    for reason in all() {
        let (line, entry) = (reason.to_string(), reason.entry());
        assert!(!line.is_empty() && !line.contains('\n'), "{line}");
        let json = serde_json::to_value(&reason).unwrap();
        for (_, value) in json.as_object().unwrap().iter().filter(|(key, _)| *key != "code") {
            let names = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            for name in names {
                let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
                assert!(line.contains(&name), "{line:?} does not name {name}");
            }
        }
        assert_eq!(entry.refuses, !entry.remedy.is_empty(), "{}", entry.code);
        assert!(!entry.meaning.contains('\n') && !entry.remedy.contains('\n'));
        assert!(!entry.meaning.contains('|') && !entry.remedy.contains('|'), "breaks the table: {}", entry.code);
    }
}

#[test]
fn a_refusal_diagnoses_as_its_reason() {
    let refusal = Refusal::from(Reason::NoServicePort { service: service_key("web"), port: 81 });
    assert_eq!((refusal.code(), refusal.fault()), ("NO_SERVICE_PORT", Fault::Downstream));
    assert_eq!(refusal.to_string(), "service ns/web.ns.svc.cluster.local has no port 81");
    assert!(refusal.remedy().contains("Service"));
}

#[test]
fn the_catalogue_renders_as_a_table_and_as_json() {
    let table = catalogue().to_string();
    assert_eq!(table.lines().count(), catalogue().entries().len() + 2);
    assert!(table.lines().all(|line| line.matches('|').count() == 5), "{table}");
    let json = serde_json::to_value(catalogue()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), catalogue().entries().len());
    assert_eq!(json[6]["code"], "DENIED_BY");
    assert_eq!(catalogue().find("DENIED_BY").map(|entry| entry.refuses), Some(true));
}

#[test]
fn the_documented_table_is_the_catalogue() {
    let documented = include_str!("../../../../docs/reasons.md");
    let table = catalogue().to_string();
    assert!(documented.ends_with(&table), "docs/reasons.md should end with:\n{table}");
}

/// The nearest misses of `ns/a` at 10.0.0.1 towards `b` at 10.0.0.2:80, as `policy#rule attribute: wanted, not seen`.
fn misses(world: World, identity: Option<&str>, limit: usize) -> Vec<String> {
    let world = world.workload("a").workload("b");
    let (snapshot, destination) = (world.snapshot(), world.get("b"));
    let identity: Option<Identity> = identity.map(|text| text.parse().unwrap());
    let attrs = InboundAttrs {
        destination: &destination,
        upstream: (world.address("b", false), 80).into(),
        source_ip: IpAddr::from([10, 0, 0, 1]),
        source_identity: identity.as_ref(),
    };
    let misses = nearest_misses(&snapshot, &attrs, limit);
    let line = |miss: &Miss| {
        let Miss { policy, rule, attribute, wanted, seen } = miss;
        format!("{policy}#{rule} {attribute}: {wanted}; {seen}")
    };
    misses.iter().map(line).collect()
}

const A: Option<&str> = Some("spiffe://cluster.local/ns/ns/sa/a");

#[test]
fn each_attribute_says_what_was_wanted_and_what_was_seen() {
    let none = Match::default;
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let account = vec![ServiceAccountMatch { namespace: "ns".into(), service_account: "c".into() }];
    let own = vec![ServiceAccountMatch { namespace: "ns".into(), service_account: "a".into() }];
    let nets = |text: &str| vec![text.parse().unwrap()];
    #[rustfmt::skip]
    let table = [
        (Match { namespaces: exact("other"), ..none() }, A, "namespace: other; ns"),
        (Match { not_namespaces: exact("ns"), ..none() }, A, "namespace: not ns; ns"),
        (Match { principals: exact("cluster.local/ns/ns/sa/c"), ..none() }, A,
            "principal: cluster.local/ns/ns/sa/c; cluster.local/ns/ns/sa/a"),
        (Match { principals: vec![StringMatch::Presence], ..none() }, None, "principal: *; none (clear text)"),
        (Match { principals: vec![StringMatch::Prefix("td/".into()), StringMatch::Suffix("/b".into())], ..none() }, A,
            "principal: */b or td/*; cluster.local/ns/ns/sa/a"),
        (Match { not_principals: vec![StringMatch::Presence], ..none() }, A,
            "principal: not *; cluster.local/ns/ns/sa/a"),
        (Match { service_accounts: account, ..none() }, A, "service_account: ns/c; ns/a"),
        (Match { not_service_accounts: own, ..none() }, A, "service_account: not ns/a; ns/a"),
        (Match { source_ips: nets("10.9.0.0/16"), ..none() }, A, "source_ip: 10.9.0.0/16; 10.0.0.1"),
        (Match { not_source_ips: nets("10.0.0.0/16"), ..none() }, A, "source_ip: not 10.0.0.0/16; 10.0.0.1"),
        (Match { destination_ips: nets("10.9.0.0/16"), ..none() }, A, "destination_ip: 10.9.0.0/16; 10.0.0.2"),
        (Match { not_destination_ips: nets("10.0.0.2/32"), ..none() }, A, "destination_ip: not 10.0.0.2/32; 10.0.0.2"),
        (Match { destination_ports: vec![443], ..none() }, A, "destination_port: 443; 80"),
        (Match { not_destination_ports: vec![80], ..none() }, A, "destination_port: not 80; 80"),
        (none(), A, "match: nothing: an empty match never matches; a connection"),
    ];
    for (matched, identity, expected) in table {
        let lines = misses(World::new().allow("ns/p", vec![matched.clone()]), identity, 9);
        assert_eq!(lines, [format!("ns/p#0 {expected}")], "{matched:?}");
    }
}

#[test]
fn the_rule_with_the_fewest_differences_comes_first_then_the_most_alike() {
    let far = Match { destination_ports: vec![443], ..from("other/z") };
    let world = World::new().allow("ns/p", vec![far, from("other/zzz"), from("ns/b")]);
    assert_eq!(
        misses(world.clone(), A, 9),
        [
            "ns/p#2 principal: cluster.local/ns/ns/sa/b; cluster.local/ns/ns/sa/a",
            "ns/p#1 principal: cluster.local/ns/other/sa/zzz; cluster.local/ns/ns/sa/a",
            "ns/p#0 principal: cluster.local/ns/other/sa/z; cluster.local/ns/ns/sa/a",
            "ns/p#0 destination_port: 443; 80",
        ]
    );
    assert_eq!(misses(world, A, 1).len(), 1);
}

#[test]
fn a_rule_with_several_clauses_tells_each_that_fails_by_its_nearest_match() {
    let clause = |matches: Vec<Match>| Clause { matches };
    let ports = clause(vec![Match { destination_ports: vec![443], ..from("x") }, to_port(8080)]);
    let mut allow = policy("ns/p", Scope::Namespace, Action::Allow, vec![]);
    allow.rules = vec![Rule { clauses: vec![clause(vec![from("a")]), ports, clause(vec![from("b")])] }];
    assert_eq!(
        misses(World::new().policy(allow), A, 9),
        ["ns/p#0 destination_port: 8080; 80", "ns/p#0 principal: cluster.local/ns/ns/sa/b; cluster.local/ns/ns/sa/a",]
    );
}

#[test]
fn long_lists_are_cut_and_counted() {
    let ports = Match { destination_ports: (1000..1100).collect(), ..Match::default() };
    let lines = misses(World::new().allow("ns/p", vec![ports]), A, 9);
    assert_eq!(lines, ["ns/p#0 destination_port: 1000 or 1001 or 1002 or 97 more; 80"]);
}

#[test]
fn a_policy_without_rules_lets_nothing_pass() {
    let lines = misses(World::new().allow("ns/p", vec![]), A, 9);
    assert_eq!(lines, ["ns/p#0 rules: nothing: the policy has no rules; a connection"]);
}

#[test]
fn a_denial_says_what_would_have_to_differ() {
    let world = World::new().deny("ns/p", vec![from("x"), Match { destination_ports: vec![80, 81], ..from("a") }]);
    assert_eq!(
        misses(world, A, 9),
        [
            "ns/p#1 principal: not cluster.local/ns/ns/sa/a; cluster.local/ns/ns/sa/a",
            "ns/p#1 destination_port: not 80 or 81; 80",
        ]
    );
    let strict = World::new().deny("ns/strict", vec![clear_text()]);
    assert_eq!(misses(strict, None, 9), ["ns/strict#0 principal: *; none (clear text)"]);
    let mut everything = policy("ns/p", Scope::Namespace, Action::Deny, vec![]);
    everything.rules = vec![Rule::default()];
    let lines = misses(World::new().policy(everything), A, 9);
    assert_eq!(lines, ["ns/p#0 rule: nothing: the rule matches every connection; a connection"]);
}

#[test]
fn what_passes_misses_nothing() {
    assert!(misses(World::new(), A, 9).is_empty());
    assert!(misses(World::new().allow("ns/p", vec![from("x"), from("a")]), A, 9).is_empty());
}

proptest! {
    #[test]
    fn what_a_policy_refuses_has_a_miss_and_what_passes_has_none(changes in any_changes(30), peer in any_peer()) {
        let snapshot = Snapshot::empty("").apply(&changes).0;
        let (identity, source_ip, upstream) = peer;
        for destination in snapshot.workloads() {
            let source_identity = identity.as_ref();
            let attrs = InboundAttrs { destination, upstream, source_ip, source_identity };
            let (verdict, misses) = (authorize(&snapshot, &attrs), nearest_misses(&snapshot, &attrs, 5));
            prop_assert!(misses.len() <= 5);
            prop_assert!(!verdict.allowed || misses.is_empty(), "{verdict:?} {misses:?}");
            prop_assert!(!verdict.reason.is_denial() || !misses.is_empty(), "{verdict:?}");
        }
    }

    /// Removing a difference brings an allow rule nearer: the explanation is of what was decided.
    #[test]
    fn a_rule_that_misses_nothing_matches(mut rules in prop::collection::vec(crate::arbitrary::any_match(), 1..3), peer in any_peer()) {
        let (identity, source_ip, upstream) = peer;
        rules.dedup();
        let allow = Policy { dry_run: false, ..policy("ns/p", Scope::Namespace, Action::Allow, rules) };
        let world = World::new().workload("b").policy(allow);
        let (snapshot, destination) = (world.snapshot(), world.get("b"));
        let attrs = InboundAttrs { destination: &destination, upstream, source_ip, source_identity: identity.as_ref() };
        let refused = !authorize(&snapshot, &attrs).allowed;
        prop_assert_eq!(refused, !nearest_misses(&snapshot, &attrs, usize::MAX).is_empty());
    }
}
