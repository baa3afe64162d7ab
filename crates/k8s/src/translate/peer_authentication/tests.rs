use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::istio::{MutualTls, WorkloadSelector};

fn peer(namespace: &str, name: &str, app: Option<&str>, own: Mode, ports: &[(u16, Mode)]) -> PeerAuthentication {
    let mut peer = PeerAuthentication::default();
    peer.metadata.namespace = Some(namespace.to_owned());
    peer.metadata.name = Some(name.to_owned());
    peer.spec.selector = app.map(|app| WorkloadSelector { match_labels: app_label(app) });
    peer.spec.mtls = Some(MutualTls { mode: own });
    peer.spec.port_level_mtls =
        ports.iter().map(|(port, mode)| (port.to_string(), MutualTls { mode: *mode })).collect();
    peer
}

fn app_label(app: &str) -> Labels {
    [("app".to_owned(), app.to_owned())].into()
}

fn strict_static() -> Option<String> {
    Some("istio-system/istio_converted_static_strict".to_owned())
}

fn attached(parent: bool, selecting: &[PeerAuthentication]) -> Option<String> {
    attached_policy(&app_label("page"), parent, selecting, &Mesh::default()).map(|key| key.to_string())
}

#[test]
fn a_namespace_overrides_the_mesh_and_unset_inherits() {
    use Mode::{Disable, Permissive, Strict, Unset};
    let table = [
        (None, None, false),
        (Some(Strict), None, true),
        (Some(Strict), Some(Unset), true),
        (Some(Strict), Some(Permissive), false),
        (Some(Strict), Some(Disable), false),
        (Some(Permissive), Some(Strict), true),
        (None, Some(Strict), true),
        (Some(Unset), Some(Unset), false),
    ];
    for (mesh, namespace, expected) in table {
        let mesh_wide = mesh.map(|mode| peer("istio-system", "m", None, mode, &[]));
        let of_namespace = namespace.map(|mode| peer("shop", "n", None, mode, &[]));
        assert_eq!(parent_is_strict(mesh_wide.as_ref(), of_namespace.as_ref()), expected, "{mesh:?} {namespace:?}");
    }
}

#[test]
fn levels_follow_namespace_and_selector() {
    let mesh = Mesh::default();
    assert_eq!(level(&peer("istio-system", "a", None, Mode::Strict, &[]), &mesh), Level::Mesh);
    assert_eq!(level(&peer("istio-system", "a", Some("page"), Mode::Strict, &[]), &mesh), Level::Nothing);
    assert_eq!(level(&peer("shop", "a", None, Mode::Strict, &[]), &mesh), Level::Namespace);
    assert_eq!(level(&peer("shop", "a", Some("page"), Mode::Strict, &[]), &mesh), Level::Workload);
    let mut empty = peer("shop", "a", None, Mode::Strict, &[]);
    empty.spec.selector = Some(WorkloadSelector::default());
    assert_eq!(level(&empty, &mesh), Level::Namespace);
}

#[test]
fn the_oldest_of_a_level_holds() {
    let at = |name: &str, seconds: Option<i64>| {
        let mut one = peer("shop", name, None, Mode::Strict, &[]);
        one.metadata.creation_timestamp = seconds.map(|seconds| {
            let text = format!("\"2026-01-01T00:00:{seconds:02}Z\"");
            serde_json::from_str(&text).unwrap()
        });
        one
    };
    let name = |all: &[PeerAuthentication]| oldest(all).and_then(|one| one.metadata.name.clone()).unwrap_or_default();
    assert_eq!(name(&[at("b", Some(2)), at("a", Some(3)), at("c", Some(1))]), "c");
    assert_eq!(name(&[at("b", None), at("a", None)]), "a");
    assert_eq!(name(&[at("a", None), at("b", Some(9))]), "b");
    assert_eq!(oldest([]), None);
}

#[test]
fn a_workload_names_the_static_policy_where_all_of_it_is_strict() {
    assert_eq!(attached(false, &[]), None);
    assert_eq!(attached(true, &[]), strict_static());
    let own = |mode| [peer("shop", "p", Some("page"), mode, &[])];
    assert_eq!(attached(false, &own(Mode::Strict)), strict_static());
    assert_eq!(attached(true, &own(Mode::Permissive)), None);
    assert_eq!(attached(true, &own(Mode::Unset)), strict_static());
    assert_eq!(attached(false, &[peer("shop", "p", Some("other"), Mode::Strict, &[])]), None);
    let all_strict = [peer("shop", "p", Some("page"), Mode::Strict, &[(80, Mode::Strict), (81, Mode::Unset)])];
    assert_eq!(attached(false, &all_strict), strict_static());
}

#[test]
fn a_strict_port_under_a_permissive_parent_is_denied_without_identity() {
    let own = peer("shop", "p", Some("page"), Mode::Permissive, &[(80, Mode::Strict), (90, Mode::Disable)]);
    let policy = port_policy(&own, true, &Mesh::default(), &[]).unwrap();
    assert_eq!(policy.key.to_string(), "shop/converted_peer_authentication_p");
    assert_eq!((policy.action, policy.scope), (Action::Deny, Scope::WorkloadSelector));
    let only = Match { not_principals: vec![StringMatch::Presence], destination_ports: vec![80], ..Match::default() };
    assert_eq!(policy.rules, [Rule { clauses: vec![Clause { matches: vec![only] }] }]);
    assert_eq!(attached(true, &[own]).as_deref(), Some("shop/converted_peer_authentication_p"));
}

#[test]
fn a_permissive_port_under_a_strict_parent_is_excepted() {
    let own = peer(
        "shop",
        "p",
        Some("page"),
        Mode::Unset,
        &[(80, Mode::Permissive), (81, Mode::Disable), (82, Mode::Strict)],
    );
    let policy = port_policy(&own, true, &Mesh::default(), &[]).unwrap();
    let clause = |one: Match| Clause { matches: vec![one] };
    let not = |port| clause(Match { not_destination_ports: vec![port], ..Match::default() });
    let no_identity = clause(Match { not_principals: vec![StringMatch::Presence], ..Match::default() });
    assert_eq!(policy.rules, [Rule { clauses: vec![not(80), not(81), no_identity] }]);
    // The same policy under a permissive parent differs in its strict port only.
    let under_permissive = port_policy(&own, false, &Mesh::default(), &[]).unwrap();
    assert_eq!(under_permissive.rules.len(), 1);
    assert_eq!(under_permissive.rules[0].clauses[0].matches[0].destination_ports, [82]);
}

#[test]
fn selectors_of_the_root_namespace_and_impossible_ports_mean_nothing() {
    let root = peer("istio-system", "p", Some("page"), Mode::Permissive, &[(80, Mode::Strict)]);
    assert_eq!(port_policy(&root, false, &Mesh::default(), &[]), None);
    let mut odd = peer("shop", "p", Some("page"), Mode::Permissive, &[]);
    odd.spec.port_level_mtls =
        [("http".to_owned(), MutualTls { mode: Mode::Strict }), ("0".to_owned(), MutualTls { mode: Mode::Strict })]
            .into();
    assert_eq!(port_policy(&odd, false, &Mesh::default(), &[]), None);
}

proptest! {
    #[test]
    fn every_port_is_as_strict_as_written(
        parent in any::<bool>(),
        own in select(vec![Mode::Unset, Mode::Disable, Mode::Permissive, Mode::Strict]),
        ports in proptest::collection::btree_map(1..4_u16, select(vec![Mode::Unset, Mode::Disable, Mode::Permissive, Mode::Strict]), 0..4),
    ) {
        let ports: Vec<(u16, Mode)> = ports.into_iter().collect();
        let policy = peer("shop", "p", Some("page"), own, &ports);
        let mesh = Mesh::default();
        let key = attached_policy(&app_label("page"), parent, [&policy], &mesh);
        let sent: Vec<Policy> = [static_strict_policy(&mesh, &[])].into_iter().chain(port_policy(&policy, parent, &mesh, &[])).collect();
        for port in 1..5_u16 {
            let written = ports.iter().find(|(one, _)| *one == port).map_or(Mode::Unset, |(_, mode)| *mode);
            let strict = resolve(written, resolve(own, parent));
            let denied = sent.iter().filter(|one| Some(&one.key) == key.as_ref()).any(|one| one.rules.iter().any(|rule| {
                rule.clauses.iter().all(|clause| clause.matches.iter().any(|one| {
                    (one.destination_ports.is_empty() || one.destination_ports.contains(&port))
                        && !one.not_destination_ports.contains(&port)
                }))
            }));
            prop_assert_eq!(denied, strict, "port {} of {:?}", port, key);
        }
    }
}
