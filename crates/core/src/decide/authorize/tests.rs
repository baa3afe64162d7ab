use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{any_changes, any_peer, any_policy};
use crate::fixtures::{World, clear_text, from, policy, policy_key, to_port, workload};
use crate::model::{Clause, Identity, Match, Rule, Scope, ServiceAccountMatch, StringMatch};
use crate::snapshot::Change;

/// A connection from `ns/a` at 10.0.0.9 to 10.0.0.2:8080, or one in the clear.
fn matches(matched: Match, identity: Option<&str>) -> bool {
    let identity: Option<Identity> = identity.map(|text| text.parse().unwrap());
    let world = World::new().workload("other").workload("b").deny("ns/p", vec![matched]);
    let upstream = (world.address("b", false), 8080).into();
    !world.authorize("b", upstream, "10.0.0.9".parse().unwrap(), identity).allowed
}

const A: Option<&str> = Some("spiffe://cluster.local/ns/ns/sa/a");
const CLEAR: Option<&str> = None;

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

#[test]
fn each_attribute_matches_as_the_contract_says() {
    let none = Match::default;
    let account = |namespace: &str, name: &str| {
        vec![ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() }]
    };
    let nets = |text: &str| vec![text.parse().unwrap()];
    let present = || vec![StringMatch::Presence];
    #[rustfmt::skip]
    let table = [
        // An empty match never matches.
        (none(), A, false),
        (none(), CLEAR, false),
        (Match { namespaces: exact("ns"), ..none() }, A, true),
        (Match { namespaces: exact("other"), ..none() }, A, false),
        (Match { namespaces: exact("ns"), ..none() }, CLEAR, false),
        (Match { namespaces: present(), ..none() }, CLEAR, false),
        (Match { not_namespaces: exact("ns"), ..none() }, A, false),
        (Match { not_namespaces: exact("ns"), ..none() }, CLEAR, true),
        (Match { principals: exact("cluster.local/ns/ns/sa/a"), ..none() }, A, true),
        (Match { principals: exact("spiffe://cluster.local/ns/ns/sa/a"), ..none() }, A, false),
        (Match { principals: exact("cluster.local/ns/ns/sa/A"), ..none() }, A, false),
        (Match { principals: vec![StringMatch::Prefix("cluster.local/ns/ns/".into())], ..none() }, A, true),
        (Match { principals: vec![StringMatch::Suffix("/sa/a".into())], ..none() }, A, true),
        (Match { principals: vec![StringMatch::Suffix("/sa/b".into())], ..none() }, A, false),
        (Match { principals: present(), ..none() }, A, true),
        (Match { principals: present(), ..none() }, CLEAR, false),
        (Match { principals: vec![StringMatch::Prefix("".into())], ..none() }, CLEAR, false),
        (Match { not_principals: present(), ..none() }, A, false),
        (Match { not_principals: present(), ..none() }, CLEAR, true),
        (Match { not_principals: exact("cluster.local/ns/ns/sa/b"), ..none() }, A, true),
        (Match { service_accounts: account("ns", "a"), ..none() }, A, true),
        (Match { service_accounts: account("ns", "a"), ..none() }, Some("spiffe://elsewhere/ns/ns/sa/a"), true),
        (Match { service_accounts: account("ns", "b"), ..none() }, A, false),
        (Match { service_accounts: account("ns", "a"), ..none() }, CLEAR, false),
        (Match { not_service_accounts: account("ns", "a"), ..none() }, A, false),
        (Match { not_service_accounts: account("ns", "a"), ..none() }, CLEAR, true),
        (Match { source_ips: nets("10.0.0.8/30"), ..none() }, CLEAR, true),
        (Match { source_ips: nets("10.0.0.0/29"), ..none() }, CLEAR, false),
        (Match { source_ips: nets("::/0"), ..none() }, CLEAR, false),
        (Match { not_source_ips: nets("10.0.0.9/32"), ..none() }, CLEAR, false),
        (Match { destination_ips: nets("10.0.0.2/32"), ..none() }, CLEAR, true),
        (Match { not_destination_ips: nets("10.0.0.2/32"), ..none() }, CLEAR, false),
        (Match { destination_ports: vec![80, 8080], ..none() }, CLEAR, true),
        (Match { destination_ports: vec![80], ..none() }, CLEAR, false),
        (Match { not_destination_ports: vec![80], ..none() }, CLEAR, true),
        (Match { not_destination_ports: vec![8080], ..none() }, CLEAR, false),
        // All that is set must hold.
        (Match { principals: present(), destination_ports: vec![8080], ..none() }, A, true),
        (Match { principals: present(), destination_ports: vec![80], ..none() }, A, false),
        (Match { principals: present(), not_principals: exact("cluster.local/ns/ns/sa/a"), ..none() }, A, false),
    ];
    for (matched, identity, expected) in table {
        assert_eq!(matches(matched.clone(), identity), expected, "{matched:?} with {identity:?}");
    }
}

#[test]
fn an_address_inside_ipv6_is_compared_as_what_it_is() {
    let world = World::new().workload("b").deny(
        "ns/p",
        vec![Match {
            source_ips: vec!["10.0.0.9/32".parse().unwrap()],
            destination_ips: vec!["10.0.0.1/32".parse().unwrap()],
            ..Match::default()
        }],
    );
    let upstream: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
    assert!(!world.authorize("b", upstream, "::ffff:10.0.0.9".parse().unwrap(), None).allowed);
}

#[test]
fn rules_need_all_clauses_and_clauses_any_match() {
    let clause = |matches: Vec<Match>| Clause { matches };
    let decide = |rules: Vec<Rule>| {
        let mut deny = policy("ns/p", Scope::Namespace, Action::Deny, Vec::new());
        deny.rules = rules;
        World::new().workload("a").workload("b").policy(deny).connect("a", "b", 80).reason().clone()
    };
    let denied = |rule| Reason::DeniedBy { policy: policy_key("ns/p"), rule };
    assert_eq!(decide(vec![]), Reason::NoPolicy);
    assert_eq!(decide(vec![Rule { clauses: vec![] }]), denied(0));
    assert_eq!(decide(vec![Rule { clauses: vec![clause(vec![])] }]), denied(0));
    assert_eq!(decide(vec![Rule { clauses: vec![clause(vec![Match::default()])] }]), Reason::NoPolicy);
    let both = Rule { clauses: vec![clause(vec![from("a")]), clause(vec![to_port(81)])] };
    assert_eq!(decide(vec![both.clone()]), Reason::NoPolicy);
    let either = Rule { clauses: vec![clause(vec![from("a")]), clause(vec![to_port(81), to_port(80)])] };
    assert_eq!(decide(vec![both, either]), denied(1));
}

#[test]
fn deny_wins_over_allow() {
    let world =
        World::new().workload("a").workload("b").allow("ns/allow", vec![from("a")]).deny("ns/deny", vec![to_port(80)]);
    assert_eq!(world.connect("a", "b", 81).reason().code(), "ALLOWED_BY");
    let refused = world.connect("a", "b", 80);
    assert_eq!(refused.reason(), &Reason::DeniedBy { policy: policy_key("ns/deny"), rule: 0 });
    assert!(refused.verdict.is_some_and(|verdict| verdict.ends_open_connection()));
}

#[test]
fn where_allow_policies_apply_one_must_match() {
    let world = World::new()
        .workload("a")
        .workload("b")
        .workload("c")
        .allow("ns/two", vec![from("c"), from("b")])
        .allow("ns/one", vec![to_port(81)]);
    assert_eq!(world.connect("c", "b", 80).reason(), &Reason::AllowedBy { policy: policy_key("ns/two"), rule: 0 });
    let missed = Reason::NoAllowMatched { policies: vec![policy_key("ns/one"), policy_key("ns/two")] };
    assert_eq!(world.connect("a", "b", 80).reason(), &missed);
}

#[test]
fn an_allow_policy_without_rules_refuses_everything() {
    let world = World::new().workload("a").workload("b").allow("ns/none", vec![]);
    assert_eq!(world.connect("a", "b", 80).reason().code(), "NO_ALLOW_MATCHED");
}

#[test]
fn policies_apply_by_scope() {
    let world = |scope, name: &str| {
        let all = policy(name, scope, Action::Deny, vec![to_port(80)]);
        World::new().workload("ns/a").workload("ns/b").workload("other/c").policy(all).policy_ref("ns/b", name)
    };
    let denied = |world: &World| ["ns/a", "ns/b", "other/c"].map(|to| !world.connect("ns/a", to, 80).allowed());
    assert_eq!(denied(&world(Scope::Global, "root/p")), [true, true, true]);
    assert_eq!(denied(&world(Scope::Namespace, "ns/p")), [true, true, false]);
    assert_eq!(denied(&world(Scope::WorkloadSelector, "ns/p")), [false, true, false]);
}

#[test]
fn many_allow_policies_are_named_up_to_a_bound() {
    let world = (0..20).fold(World::new().workload("a").workload("b"), |world, index| {
        world.allow(&format!("ns/p-{index:02}"), vec![from("nobody")])
    });
    let connection = world.connect("a", "b", 80);
    let Reason::NoAllowMatched { policies } = connection.reason() else { panic!("{:?}", connection.reason()) };
    assert_eq!(policies.len(), NAMED_POLICIES);
    assert_eq!(policies[0], policy_key("ns/p-00"));
}

#[test]
fn clear_text_under_strict_is_told_as_such() {
    let world = World::new().strict().workload("a").workload("b");
    let verdict = world.clear_text("10.9.9.9".parse().unwrap(), "b", 80);
    assert_eq!(verdict.reason, Reason::MutualTlsRequired { policy: policy_key(crate::fixtures::STATIC_STRICT) });
    assert!(verdict.reason.is_denial() && verdict.ends_open_connection());
    assert!(world.connect("a", "b", 80).allowed());
    let by_port = World::new()
        .workload("b")
        .policy(policy(
            "ns/converted_peer_authentication_x",
            Scope::WorkloadSelector,
            Action::Deny,
            vec![Match { destination_ports: vec![80], ..clear_text() }],
        ))
        .policy_ref("b", "ns/converted_peer_authentication_x");
    let at = |port| by_port.clear_text("10.9.9.9".parse().unwrap(), "b", port).reason.code();
    assert_eq!((at(80), at(81)), ("MUTUAL_TLS_REQUIRED", "NO_POLICY"));
    let deny = World::new().workload("b").deny("ns/no-clear-text", vec![clear_text()]);
    assert_eq!(deny.clear_text("10.9.9.9".parse().unwrap(), "b", 80).reason.code(), "DENIED_BY");
}

#[test]
fn unknown_policy_denies_when_strict_and_is_named() {
    let world = World::new().strict().workload("a").workload("b").policy_ref("b", "ns/not-sent-yet");
    let decision = world.connect("a", "b", 8080);
    assert!(!decision.allowed());
    assert_eq!(decision.reason(), &Reason::PolicyUnknown { policy: policy_key("ns/not-sent-yet") });
    // The known part still speaks for itself, and ends what it denies.
    let clear = world.clear_text("10.9.9.9".parse().unwrap(), "b", 80);
    assert_eq!(clear.reason.code(), "MUTUAL_TLS_REQUIRED");
    assert!(clear.ends_open_connection());
}

#[test]
fn an_unknown_policy_may_be_the_allow_that_is_missing() {
    let world = World::new().workload("a").workload("b").allow("ns/p", vec![from("x")]).policy_ref("b", "ns/late");
    let verdict = world.connect("a", "b", 80).verdict.unwrap();
    assert_eq!(verdict.reason.code(), "POLICY_UNKNOWN");
    assert!(!verdict.allowed && !verdict.ends_open_connection());
    let foreign = world.foreign().connect("a", "b", 80).verdict.unwrap();
    assert_eq!((foreign.reason.code(), foreign.skipped), ("NO_ALLOW_MATCHED", vec![policy_key("ns/late")]));
}

#[test]
fn an_unreadable_policy_counts_as_unknown_in_its_scope() {
    let mut broken = policy("ns/broken", Scope::Namespace, Action::Deny, vec![]);
    broken.unreadable = Some("unknown field 14".into());
    let world = World::new().workload("ns/a").workload("ns/b").workload("other/c").policy(broken);
    let verdict = world.connect("ns/a", "ns/b", 80).verdict.unwrap();
    let expected = Reason::PolicyUnreadable { policy: policy_key("ns/broken"), detail: "unknown field 14".into() };
    assert_eq!(verdict.reason, expected);
    assert!(!verdict.ends_open_connection());
    assert!(world.connect("ns/a", "other/c", 80).allowed());
    let foreign = world.foreign().connect("ns/a", "ns/b", 80).verdict.unwrap();
    assert!(foreign.allowed);
    assert_eq!(foreign.skipped, [policy_key("ns/broken")]);
}

#[test]
fn dry_run_policies_say_what_they_would_have_done() {
    let dry = |name: &str, action, matched| {
        let mut dry = policy(name, Scope::Namespace, action, vec![matched]);
        dry.dry_run = true;
        dry
    };
    let verdict = |world: &World| world.connect("a", "b", 80).verdict.unwrap();
    let base = World::new().workload("a").workload("b");

    let by_deny = verdict(&base.clone().policy(dry("ns/dry", Action::Deny, from("a"))));
    assert!(by_deny.allowed);
    assert_eq!(by_deny.dry_run, [Reason::DeniedBy { policy: policy_key("ns/dry"), rule: 0 }]);

    let by_allow = verdict(&base.clone().policy(dry("ns/dry", Action::Allow, from("x"))));
    assert!(by_allow.allowed);
    assert_eq!(by_allow.dry_run, [Reason::NoAllowMatched { policies: vec![policy_key("ns/dry")] }]);

    let beside_allow = base.clone().allow("ns/real", vec![from("a")]).policy(dry("ns/dry", Action::Allow, from("x")));
    assert_eq!(verdict(&beside_allow).dry_run, []);

    let would_admit = base.clone().allow("ns/real", vec![from("x")]).policy(dry("ns/dry", Action::Allow, from("a")));
    assert!(!verdict(&would_admit).allowed);
    assert_eq!(verdict(&would_admit).dry_run, [Reason::AllowedBy { policy: policy_key("ns/dry"), rule: 0 }]);

    let would_not = base.deny("ns/real", vec![from("a")]).policy(dry("ns/dry", Action::Allow, from("a")));
    assert_eq!(verdict(&would_not).dry_run, []);
}

/// `snapshot` and any destination in it, or one that nobody knows.
fn asked(snapshot: &Snapshot, workload: &Workload, peer: &(Option<Identity>, IpAddr, SocketAddr)) -> Verdict {
    let (identity, source_ip, upstream) = peer;
    let attrs = InboundAttrs {
        destination: workload,
        upstream: *upstream,
        source_ip: *source_ip,
        source_identity: identity.as_ref(),
    };
    authorize(snapshot, &attrs)
}

proptest! {
    #[test]
    fn the_order_of_policies_is_irrelevant(changes in any_changes(30), peer in any_peer(), turn in 0..30usize) {
        // The last of equals wins, so that only one of each may be moved about.
        let snapshot = Snapshot::empty("").apply(&changes).0;
        let mut policies: Vec<_> = snapshot.policies().cloned().map(Change::Policy).collect();
        policies.sort_by_key(|change| format!("{change:?}"));
        let turn = turn % policies.len().max(1);
        policies.rotate_left(turn);
        let turned = Snapshot::empty("").apply(&policies).0;
        for workload in snapshot.workloads() {
            let mut backwards = Workload::clone(workload);
            backwards.authorization_policies.reverse();
            prop_assert_eq!(asked(&snapshot, workload, &peer), asked(&turned, &backwards, &peer));
        }
    }

    #[test]
    fn a_deny_never_admits_more(changes in any_changes(30), peer in any_peer(), further in any_policy(), foreign: bool) {
        let unknown = if foreign { UnknownPolicies::Allow } else { UnknownPolicies::Refuse };
        let before = Snapshot::empty("").with_unknown_policies(unknown).apply(&changes).0;
        let key = policy_key("third/new-and-not-named");
        let deny = Policy { key, action: Action::Deny, ..further };
        let after = before.apply(&[Change::Policy(Arc::new(deny))]).0;
        for workload in before.workloads() {
            let (before, after) = (asked(&before, workload, &peer), asked(&after, workload, &peer));
            prop_assert!(before.allowed || !after.allowed, "{before:?} became {after:?}");
        }
    }

    #[test]
    fn one_more_allow_beside_others_never_refuses_more(changes in any_changes(30), peer in any_peer(), further in any_policy()) {
        let before = Snapshot::empty("").apply(&changes).0;
        let key = policy_key("third/new-and-not-named");
        let allow = Policy { key, action: Action::Allow, unreadable: None, ..further };
        let after = before.apply(&[Change::Policy(Arc::new(allow))]).0;
        for workload in before.workloads() {
            let (before, after) = (asked(&before, workload, &peer), asked(&after, workload, &peer));
            let was_by_allow = matches!(before.reason, Reason::AllowedBy { .. });
            prop_assert!(!was_by_allow || after.allowed, "{before:?} became {after:?}");
        }
    }

    #[test]
    fn refusing_unknown_policies_never_admits_more_than_passing_them_over(changes in any_changes(30), peer in any_peer()) {
        let strict = Snapshot::empty("").apply(&changes).0;
        let lax = strict.clone().with_unknown_policies(UnknownPolicies::Allow);
        for workload in strict.workloads() {
            let (strict, lax) = (asked(&strict, workload, &peer), asked(&lax, workload, &peer));
            prop_assert!(!strict.allowed || (lax.allowed && lax.skipped.is_empty()), "{strict:?} and {lax:?}");
            prop_assert!(strict.skipped.is_empty());
            prop_assert!(!lax.reason.is_undecided());
        }
    }

    #[test]
    fn dry_run_policies_decide_nothing(changes in any_changes(30), peer in any_peer()) {
        let with = Snapshot::empty("").apply(&changes).0;
        let removed: Vec<_> = with.policies().filter(|policy| policy.dry_run).map(|policy| {
            let silent = Policy { rules: Vec::new(), ..Policy::clone(policy) };
            Change::Policy(Arc::new(silent))
        }).collect();
        let without = with.apply(&removed).0;
        for workload in with.workloads() {
            let (with, without) = (asked(&with, workload, &peer), asked(&without, workload, &peer));
            prop_assert_eq!(with.reason, without.reason);
        }
    }
}

#[test]
fn a_destination_that_the_snapshot_does_not_know_is_judged_by_what_it_names() {
    let snapshot = World::new().deny("ns/p", vec![to_port(80)]).snapshot();
    let peer = (None, [10, 0, 0, 1].into(), ([10, 0, 0, 2], 80).into());
    assert!(!asked(&snapshot, &workload("ns/unknown"), &peer).allowed);
    assert!(asked(&snapshot, &workload("other/unknown"), &peer).allowed);
}

#[test]
fn a_policy_that_was_attached_since_the_caller_looked_the_workload_up_counts() {
    let old =
        World::new().workload("b").policy(policy("ns/p", Scope::WorkloadSelector, Action::Deny, vec![to_port(80)]));
    let stale = old.get("b");
    let peer = (None, [10, 0, 0, 9].into(), ([10, 0, 0, 1], 80).into());
    assert!(asked(&old.snapshot(), &stale, &peer).allowed);
    assert!(!asked(&old.policy_ref("b", "ns/p").snapshot(), &stale, &peer).allowed);
}

#[test]
fn at_a_waypoint_only_policies_that_select_it_are_asked() {
    let chosen = policy("ns/chosen", Scope::WorkloadSelector, Action::Deny, vec![from("ns/evil")]);
    let world = World::new()
        .workload("b")
        .policy(policy("ns/nobody", Scope::Namespace, Action::Allow, vec![]))
        .policy(policy("istio-system/nobody", Scope::Global, Action::Allow, vec![]))
        .policy(chosen)
        .policy_ref("b", "ns/chosen");
    let destination = world.get("b");
    for (name, expected) in [("ns/good", true), ("ns/evil", false)] {
        let identity = workload(name).identity();
        let attrs = InboundAttrs {
            destination: &destination,
            upstream: (world.address("b", false), 15008).into(),
            source_ip: "10.0.0.9".parse().unwrap(),
            source_identity: Some(&identity),
        };
        assert_eq!(authorize_at_waypoint(&world.snapshot(), &attrs).allowed, expected, "{name}");
        assert!(!authorize(&world.snapshot(), &attrs).allowed, "elsewhere all of them are");
    }
}

#[test]
fn a_quarantine_is_the_reason_before_any_other_policy_and_counts_at_waypoints() {
    use crate::model::PolicyKey;
    let rule = |matched| Rule { clauses: vec![Clause { matches: vec![matched] }] };
    let deny = |key, scope, rules| Policy {
        key,
        scope,
        action: Action::Deny,
        rules,
        dry_run: false,
        unreadable: None,
        order: None,
    };
    let of = PolicyKey::of_quarantine("ns", "q");
    let from = PolicyKey::from_quarantine("ns", "q");
    let address = Match { source_ips: vec!["10.0.0.9/32".parse().unwrap()], ..Match::default() };
    let world = World::new()
        .workload("b")
        .workload_with("cut", |cut| cut.authorization_policies.push(of.clone()))
        .deny("ns/a", vec![clear_text()])
        .policy(deny(of.clone(), Scope::WorkloadSelector, vec![Rule::default()]))
        .policy(deny(from.clone(), Scope::Global, vec![rule(address)]));
    let (cut_off, other): (IpAddr, IpAddr) = ("10.0.0.9".parse().unwrap(), "10.0.0.8".parse().unwrap());
    let ask = |to: &str, ip, who: Option<&str>| {
        let who = who.map(|who| who.parse().unwrap());
        world.authorize(to, (world.address(to, false), 80).into(), ip, who).reason
    };
    assert_eq!(ask("cut", other, A), Reason::Quarantined { policy: of.clone() });
    assert_eq!(ask("cut", other, None), Reason::Quarantined { policy: of });
    assert_eq!(ask("b", cut_off, A), Reason::Quarantined { policy: from.clone() });
    assert_eq!(ask("b", other, A), Reason::NoPolicy);
    let (snapshot, destination) = (world.snapshot(), world.get("b"));
    let identity = A.map(|who| who.parse().unwrap());
    let attrs = |source_ip| InboundAttrs {
        destination: &destination,
        upstream: "10.0.0.1:15008".parse().unwrap(),
        source_ip,
        source_identity: identity.as_ref(),
    };
    assert_eq!(authorize_at_waypoint(&snapshot, &attrs(cut_off)).reason, Reason::Quarantined { policy: from });
    assert!(authorize_at_waypoint(&snapshot, &attrs(other)).allowed);
}
