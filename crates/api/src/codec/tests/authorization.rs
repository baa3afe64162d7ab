use bytes::Bytes;
use stillmesh_core::model::*;

use super::bytes::Wire;
use crate::codec::authorization::{decode, encode};

fn read(wire: Wire) -> Policy {
    decode("shop/allow", Bytes::from(wire.0)).unwrap()
}

fn frame(matching: Wire) -> Wire {
    let rule = Wire::new().message(1, Wire::new().message(2, matching));
    Wire::new().text(1, "allow").text(2, "shop").number(3, 2).number(4, 1).message(5, rule)
}

/// Every field of a Match, contract 5.1.
fn match_wire() -> Wire {
    let range = |bytes: [u8; 4], length| Wire::new().bytes(1, bytes).number(2, length);
    let account = |namespace, name| Wire::new().text(1, namespace).text(2, name);
    Wire::new()
        .message(1, Wire::new().text(1, "shop"))
        .message(2, Wire::new().text(2, "team-"))
        .message(3, Wire::new().text(3, "/sa/page"))
        .message(4, Wire::new().message(4, Wire::new()))
        .message(5, range([10, 0, 0, 0], 8))
        .message(6, range([10, 1, 0, 0], 16))
        .message(7, Wire::new().bytes(1, [0xfd; 16]).number(2, 128))
        .message(8, range([10, 3, 0, 1], 32))
        .packed(9, &[80, 65_535])
        .packed(10, &[8080])
        .message(11, account("shop", "page"))
        .message(12, account("shop", "evil"))
}

fn matching() -> Match {
    let net = |text: &str| vec![text.parse().unwrap()];
    let account = |name: &str| ServiceAccountMatch { namespace: "shop".into(), service_account: name.into() };
    Match {
        namespaces: vec![StringMatch::Exact("shop".into())],
        not_namespaces: vec![StringMatch::Prefix("team-".into())],
        principals: vec![StringMatch::Suffix("/sa/page".into())],
        not_principals: vec![StringMatch::Presence],
        source_ips: net("10.0.0.0/8"),
        not_source_ips: net("10.1.0.0/16"),
        destination_ips: net("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd/128"),
        not_destination_ips: net("10.3.0.1/32"),
        destination_ports: vec![80, 65_535],
        not_destination_ports: vec![8080],
        service_accounts: vec![account("page")],
        not_service_accounts: vec![account("evil")],
    }
}

fn policy() -> Policy {
    Policy {
        key: PolicyKey::new("shop", "allow"),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![matching()] }] }],
        dry_run: true,
        unreadable: None,
        order: None,
    }
}

#[test]
fn a_policy_of_all_fields_is_read_from_the_contracts_numbers() {
    assert_eq!(read(frame(match_wire()).number(6, 1)), policy());
}

#[test]
fn a_policy_of_all_fields_is_written_with_the_contracts_numbers() {
    assert_eq!(encode(&policy()), frame(match_wire()).number(6, 1).0);
}

#[test]
fn ports_are_read_packed_or_not() {
    let ports = read(frame(Wire::new().number(9, 80).number(9, 443)));
    assert_eq!(ports.rules[0].clauses[0].matches[0].destination_ports, [80, 443]);
}

#[test]
fn scopes_and_actions_are_those_of_the_contract() {
    let of = |scope, action| {
        let policy = read(Wire::new().text(1, "allow").text(2, "shop").number(3, scope).number(4, action));
        assert_eq!(policy.unreadable, None);
        (policy.scope, policy.action)
    };
    assert_eq!(of(0, 0), (Scope::Global, Action::Allow));
    assert_eq!(of(1, 1), (Scope::Namespace, Action::Deny));
    assert_eq!(of(2, 0), (Scope::WorkloadSelector, Action::Allow));
}

/// What cannot be read must not be read as less: the policy says so, keeps its scope and admits nobody.
fn assert_unreadable(wire: Wire, why: &str) {
    let policy = read(wire);
    let reason = policy.unreadable.expect(why);
    assert!(reason.contains(why), "{reason:?} should say {why:?}");
    assert_eq!((policy.action, policy.rules), (Action::Allow, Vec::new()));
}

#[test]
fn an_unknown_field_at_any_level_makes_a_policy_unreadable() {
    let unknown = |level: &dyn Fn(Wire) -> Wire| level(match_wire().text(14, "narrower"));
    assert_unreadable(frame(match_wire()).number(8, 1), "unknown field 8");
    let rule = |rule: Wire| frame(match_wire()).message(5, rule);
    assert_unreadable(rule(Wire::new().number(2, 1)), "rule: unknown field 2");
    assert_unreadable(rule(Wire::new().message(1, Wire::new().number(1, 1))), "clause: unknown field 1");
    assert_unreadable(unknown(&frame), "match: unknown field 14");
    let inner = |field, content| frame(Wire::new().message(field, content));
    assert_unreadable(inner(1, Wire::new().text(1, "x").text(5, "regex")), "namespaces: unknown field 5");
    assert_unreadable(inner(4, Wire::new().message(4, Wire::new().number(1, 1))), "presence: unknown field 1");
    assert_unreadable(inner(5, Wire::new().bytes(1, [1, 2, 3, 4]).number(3, 1)), "source_ips: unknown field 3");
    assert_unreadable(inner(12, Wire::new().text(3, "x")), "not_service_accounts: unknown field 3");
}

#[test]
fn unknown_values_and_broken_elements_make_a_policy_unreadable() {
    assert_unreadable(frame(match_wire()).number(4, 2), "action: 2");
    assert_unreadable(frame(Wire::new().message(1, Wire::new())), "namespaces: a match without a kind");
    assert_unreadable(frame(Wire::new().message(5, Wire::new().bytes(1, [1, 2, 3]))), "source_ips: an address of 3");
    let long = Wire::new().bytes(1, [1, 2, 3, 4]).number(2, 33);
    assert_unreadable(frame(Wire::new().message(7, long)), "destination_ips: a prefix length of 33");
    assert_unreadable(frame(Wire::new().packed(9, &[65_536])), "destination_ports: port 65536");
    assert_unreadable(frame(Wire::new().message(11, Wire::new().text(1, "shop"))), "service_accounts: an empty");
    let extension = Wire::new().text(1, "example.org/time-of-day");
    assert_unreadable(frame(Wire::new().message(13, extension)), "example.org/time-of-day");
    assert_unreadable(frame(match_wire()).text(1, "other"), "own key");
}

#[test]
fn a_remark_on_the_whole_policy_is_no_part_of_it() {
    assert_eq!(read(frame(match_wire()).number(6, 1).message(7, Wire::new().text(1, "example.org/x"))), policy());
}

#[test]
fn the_order_that_a_policy_was_made_of_is_a_remark_that_is_read() {
    let remark = |kind: &str, value: Wire| {
        let any = Wire::new().text(1, kind).bytes(2, value.0);
        let remark = Wire::new().text(1, "stillmesh.io/order").message(2, any);
        read(frame(match_wire()).number(6, 1).message(7, remark))
    };
    let kind = "type.googleapis.com/google.protobuf.StringValue";
    assert_eq!(remark(kind, Wire::new().text(1, "u-1")), Policy { order: Some("u-1".into()), ..policy() });
    assert_eq!(remark("type.googleapis.com/x", Wire::new().text(1, "u-1")), policy(), "what cannot be read is none");
    assert_eq!(remark(kind, Wire::new().text(1, &"u".repeat(200))), policy());
    assert_eq!(remark(kind, Wire::new()), policy());
}

#[test]
fn an_unreadable_policy_keeps_its_scope_and_has_the_widest_when_that_is_lost() {
    assert_eq!(read(frame(match_wire()).number(9, 1)).scope, Scope::WorkloadSelector);
    assert_eq!(read(frame(match_wire()).number(3, 3)).scope, Scope::Global);
    assert_unreadable(frame(match_wire()).number(3, 3), "scope: 3");
    let cut = Wire(frame(match_wire()).0[..20].to_vec());
    assert_eq!(read(cut.clone()).scope, Scope::Global);
    assert_unreadable(cut, "not a message");
}

#[test]
fn a_policy_whose_resource_has_no_key_is_refused() {
    let error = decode("nameless", Bytes::new()).unwrap_err();
    assert_eq!(error.to_string(), "nameless: name: <namespace>/<name> is accepted");
}
