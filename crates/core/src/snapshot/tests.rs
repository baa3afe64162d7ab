use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::arbitrary::{SERVICES, WORKLOADS, any_changes};
use crate::fixtures::{World, clear_text, from, policy, policy_key, service, service_key, uid, workload};
use crate::model::access::{Access, AccessKey, AccessKind, Attachment, RequestAction, RequestPolicy};
use crate::model::{Action, Match, NetworkCidr, NetworkMode, Scope};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> NetworkAddress {
    NetworkAddress::new("", ip(text))
}

fn changed(workload: Workload) -> Change {
    Change::Workload(Arc::new(workload))
}

fn deny(name: &str, scope: Scope) -> Policy {
    policy(name, scope, Action::Deny, vec![clear_text()])
}

/// The same content, put together at once by somebody who never saw the changes.
fn rebuilt(snapshot: &Snapshot) -> Snapshot {
    let policies = snapshot.policies().cloned().map(Change::Policy);
    let services = snapshot.services().cloned().map(Change::Service);
    let workloads = snapshot.workloads().cloned().map(Change::Workload);
    let all: Vec<_> = workloads.chain(services).chain(policies).collect();
    Snapshot::empty(snapshot.network().clone()).apply(&all).0
}

proptest! {
    #[test]
    fn an_incremental_snapshot_is_the_rebuilt_one(batches in prop::collection::vec(any_changes(12), 1..8)) {
        let mut snapshot = Snapshot::empty("");
        for batch in &batches {
            snapshot = snapshot.apply(batch).0;
            prop_assert!(snapshot.same_content(&rebuilt(&snapshot)));
        }
        prop_assert_eq!(snapshot.generation(), batches.len() as u64);
    }

    #[test]
    fn a_batch_is_its_changes_one_by_one(before in any_changes(20), batch in any_changes(20)) {
        let start = Snapshot::empty("").apply(&before).0;
        let (at_once, touched) = start.apply(&batch);
        let (mut stepwise, mut every) = (start.clone(), Touched::default());
        for change in &batch {
            let (next, touched) = stepwise.apply(std::slice::from_ref(change));
            stepwise = next;
            every.merge(touched);
        }
        prop_assert!(at_once.same_content(&stepwise));
        // What comes and goes within a batch is not told; all that is told was also told step by step.
        prop_assert!(every.everything || !touched.everything);
        prop_assert!(touched.namespaces.iter().all(|namespace| every.namespaces.contains(namespace)));
        prop_assert!(touched.workloads.iter().all(|uid| every.workloads.contains(uid)));
    }

    #[test]
    fn what_is_not_touched_has_the_policies_it_had(before in any_changes(20), batch in any_changes(12)) {
        let old = Snapshot::empty("").apply(&before).0;
        let (new, touched) = old.apply(&batch);
        let policies = |snapshot: &Snapshot, workload: &Workload| {
            snapshot.policies_of(workload).cloned().collect::<Vec<_>>()
        };
        for workload in new.workloads().filter(|workload| !touched.includes(workload)) {
            let before = old.workload(&workload.uid);
            prop_assert!(before.is_some(), "{} is new and not touched", workload.uid);
            if let Some(before) = before {
                prop_assert_eq!(policies(&old, before), policies(&new, workload));
                prop_assert_eq!(before.identity(), workload.identity());
            }
        }
    }

    #[test]
    fn the_same_again_touches_nothing(batch in any_changes(20)) {
        let snapshot = Snapshot::empty("").apply(&batch).0;
        let known: Vec<_> = snapshot.workloads().cloned().map(Change::Workload)
            .chain(snapshot.policies().cloned().map(Change::Policy)).collect();
        let (again, touched) = snapshot.apply(&known);
        prop_assert!(touched.is_empty());
        prop_assert!(again.same_content(&snapshot));
    }

    #[test]
    fn an_old_view_never_changes(before in any_changes(20), batch in any_changes(20)) {
        let old = Snapshot::empty("").apply(&before).0;
        let copy = rebuilt(&old);
        let _new = old.apply(&batch);
        prop_assert!(old.same_content(&copy));
    }

    #[test]
    fn lookups_find_what_a_search_through_everything_finds(batch in any_changes(40), last in 0..16u8, own in 0..6usize) {
        let snapshot = Snapshot::empty("").apply(&batch).0;
        let client = workload(WORKLOADS[own]);
        let address = IpAddr::from([10, 0, 0, last]);
        let owners: Vec<_> = snapshot.workloads()
            .filter(|workload| workload.network_mode == NetworkMode::Standard && workload.addresses.contains(&address))
            .collect();
        let found = snapshot.workload_at(&NetworkAddress::new("", address));
        prop_assert_eq!(found.is_some(), !owners.is_empty());
        prop_assert!(found.is_none_or(|found| owners.contains(&found)));

        for name in SERVICES {
            let key = service_key(name);
            let mut members: Vec<_> =
                snapshot.workloads().filter(|workload| workload.is_member_of(&key)).map(|found| &found.uid).collect();
            members.sort();
            prop_assert!(snapshot.members(&key).map(|found| &found.uid).eq(members));
        }

        for vip in [IpAddr::from([10, 1, 0, last % 4]), IpAddr::from([10, 3, 0, 1]), IpAddr::from([10, 5, 7, 9])] {
            let visible = |service: &&Arc<Service>| {
                service.visibility == Visibility::Public || service.key.namespace == client.namespace
            };
            let exact = snapshot.services().filter(visible)
                .filter(|service| service.vips.iter().any(|known| known.address == vip))
                .min_by_key(|service| (service.key.namespace != client.namespace, !service.canonical, &service.key));
            let around = || snapshot.services().filter(visible)
                .flat_map(|service| service.cidr_vips.iter().map(move |range| (range.cidr, service)))
                .filter(|(cidr, _)| cidr.contains(&vip))
                .min_by_key(|(cidr, service)| (
                    service.key.namespace != client.namespace, 128 - cidr.prefix_len(), !service.canonical, &service.key,
                ))
                .map(|(_, service)| service);
            prop_assert_eq!(snapshot.service_at(&client, vip), exact.or_else(around));
        }
    }
}

#[test]
fn a_change_costs_its_shards_and_not_the_mesh() {
    let world = |index: u32| {
        let mut new = workload(&format!("ns-{}/pod-{index}", index % 50));
        new.addresses = vec![IpAddr::from((0x0a00_0000 + index).to_be_bytes())];
        new.services = vec![(service_key(&format!("ns-{}/svc-{}", index % 50, index % 1000)), Vec::new())];
        new.authorization_policies = vec![policy_key("istio-system/istio_converted_static_strict")];
        new
    };
    let mut changes: Vec<_> = (0..10_000).map(|index| changed(world(index))).collect();
    changes.extend(
        (0..1000)
            .map(|index| Change::Service(Arc::new(service(&format!("ns-{}/svc-{index}", index % 50), &[(80, 8080)])))),
    );
    let (old, touched) = Snapshot::empty("").apply(&changes);
    assert_eq!((old.counts(), touched.workloads.len()), ((10_000, 1000, 0), 10_000));

    let mut one = world(4711);
    one.health = Health::Unhealthy;
    let new = old.apply(&[changed(one)]).0;
    let copied = [
        new.tables.workloads.copied_since(&old.tables.workloads),
        new.tables.by_address.copied_since(&old.tables.by_address),
        new.tables.by_pod.copied_since(&old.tables.by_pod),
        new.tables.members.copied_since(&old.tables.members),
        new.tables.named_by.copied_since(&old.tables.named_by),
        new.tables.services.copied_since(&old.tables.services),
    ];
    assert_eq!(copied, [1, 1, 1, 1, 1, 0]);
}

#[test]
fn of_several_workloads_at_an_address_a_pod_comes_first_then_hbone() {
    let one = |uid: &str, protocol| {
        let mut new = workload(uid);
        new.uid = WorkloadUid(uid.into());
        new.addresses = vec![ip("10.0.0.1")];
        new.tunnel_protocol = protocol;
        changed(new)
    };
    let entry = one("Kubernetes/networking.istio.io/WorkloadEntry/ns/a", TunnelProtocol::Hbone);
    let plain = one("Kubernetes//Pod/ns/a", TunnelProtocol::None);
    let tunnelled = one("Kubernetes//Pod/ns/z", TunnelProtocol::Hbone);
    let snapshot = Snapshot::empty("").apply(&[entry, plain, tunnelled]).0;
    let found = |snapshot: &Snapshot| snapshot.workload_at(&at("10.0.0.1")).map(|found| found.uid.to_string());
    assert_eq!(found(&snapshot).as_deref(), Some("Kubernetes//Pod/ns/z"));
    let snapshot = snapshot.apply(&[Change::WorkloadRemoved(uid("ns/z"))]).0;
    assert_eq!(found(&snapshot).as_deref(), Some("Kubernetes//Pod/ns/a"));
    let snapshot = snapshot.apply(&[Change::WorkloadRemoved(uid("ns/a"))]).0;
    assert_eq!(found(&snapshot).as_deref(), Some("Kubernetes/networking.istio.io/WorkloadEntry/ns/a"));
}

#[test]
fn workloads_on_the_host_network_own_no_address() {
    let world = World::new().workload_with("a", |workload| workload.network_mode = NetworkMode::HostNetwork);
    assert_eq!(world.snapshot().workload_at(&at("10.0.0.1")), None);
    assert!(world.snapshot().workload(&uid("a")).is_some());
}

#[test]
fn a_captured_pod_is_found_by_node_and_all_its_names() {
    let snapshot = World::new().workload("ns/a").workload_with("ns/b", |b| b.node = "node-2".into()).snapshot();
    let found = |node, namespace, name, account| snapshot.local_workload(node, namespace, name, account).is_some();
    assert!(found("node-1", "ns", "a", "a"));
    assert!(found("node-2", "ns", "b", "b"));
    assert!(!found("node-2", "ns", "a", "a"));
    assert!(!found("node-1", "other", "a", "a"));
    assert!(!found("node-1", "ns", "a", "b"));
}

#[test]
fn of_several_services_at_a_vip_the_own_namespaces_wins_then_the_canonical_then_the_first() {
    let vip = |name: &str, canonical: bool| {
        let mut new = service(name, &[(80, 80)]);
        new.vips = vec![at("10.1.0.9")];
        new.canonical = canonical;
        new.key.hostname = "shared.example".into();
        Change::Service(Arc::new(new))
    };
    let snapshot = Snapshot::empty("").apply(&[vip("ns/x", false), vip("a/x", false), vip("z/x", true)]).0;
    let reached = |client: &str| {
        let by_vip = snapshot.service_at(&workload(client), ip("10.1.0.9")).map(|found| found.key.namespace.clone());
        let by_name = snapshot.service_named(client.split('/').next().unwrap(), "shared.example");
        assert_eq!(by_vip, by_name.map(|found| found.key.namespace.clone()));
        by_vip.map(|namespace| namespace.to_string())
    };
    assert_eq!(reached("ns/client").as_deref(), Some("ns"));
    assert_eq!(reached("other/client").as_deref(), Some("z"));
    let snapshot = snapshot.apply(&[Change::ServiceRemoved(ServiceKey::new("z", "shared.example"))]).0;
    let named = |preferred| snapshot.service_named_preferring("other", "shared.example", preferred);
    assert_eq!(named(None).map(|found| &*found.key.namespace), Some("a"));
    assert_eq!(named(Some("ns")).map(|found| &*found.key.namespace), Some("ns"));
}

#[test]
fn a_service_for_its_namespace_is_not_seen_by_others() {
    let world = World::new().service_with("ns/web", &[(80, 80)], &[], |web| web.visibility = Visibility::Namespace);
    let snapshot = world.snapshot();
    let vip = world.address("ns/web", false);
    assert!(snapshot.service_at(&workload("ns/a"), vip).is_some());
    assert_eq!(snapshot.service_at(&workload("other/a"), vip), None);
    assert_eq!(snapshot.service_named("other", "web.ns.svc.cluster.local"), None);
}

#[test]
fn a_vip_of_another_network_is_not_reached() {
    let world = World::new().service_with("web", &[(80, 80)], &[], |web| {
        web.vips = vec![NetworkAddress::new("elsewhere", ip("10.1.0.1"))];
    });
    assert_eq!(world.snapshot().service_at(&workload("a"), ip("10.1.0.1")), None);
}

#[test]
fn of_ranges_the_longest_wins_whatever_their_host_bits_say() {
    let range = |name: &str, cidr: &str| {
        let mut new = service(name, &[(80, 80)]);
        new.cidr_vips = vec![NetworkCidr { network: "".into(), cidr: cidr.parse().unwrap() }];
        Change::Service(Arc::new(new))
    };
    let changes = [range("x/wide", "172.16.9.9/12"), range("x/narrow", "172.16.5.5/24"), range("x/six", "fd05::1/64")];
    let snapshot = Snapshot::empty("").apply(&changes).0;
    let found = |snapshot: &Snapshot, address| {
        snapshot.service_at(&workload("ns/a"), ip(address)).map(|found| found.name.to_string())
    };
    assert_eq!(found(&snapshot, "172.16.5.200").as_deref(), Some("narrow"));
    assert_eq!(found(&snapshot, "172.17.5.200").as_deref(), Some("wide"));
    assert_eq!(found(&snapshot, "fd05::77").as_deref(), Some("six"));
    assert_eq!(found(&snapshot, "192.0.2.1"), None);
    let snapshot = snapshot.apply(&[Change::ServiceRemoved(service_key("x/narrow"))]).0;
    assert_eq!(found(&snapshot, "172.16.5.200").as_deref(), Some("wide"));
}

#[test]
fn unready_endpoints_take_traffic_only_if_the_service_says_so() {
    let world = World::new()
        .workload("a")
        .workload_with("b", |b| b.health = Health::Unhealthy)
        .service("web", &[(80, 80)], &["a", "b"])
        .service_with("all", &[(80, 80)], &["a", "b"], |all| {
            all.load_balancing.health_policy = HealthPolicy::AllowAll;
        });
    let snapshot = world.snapshot();
    let count = |name| (snapshot.endpoints(&service_key(name)).count(), snapshot.members(&service_key(name)).count());
    assert_eq!(count("web"), (1, 2));
    assert_eq!(count("all"), (2, 2));
}

#[test]
fn a_policy_touches_its_scope() {
    let snapshot = World::new()
        .workload("ns/a")
        .workload("ns/b")
        .policy_ref("ns/a", "ns/p")
        .policy(deny("ns/p", Scope::WorkloadSelector))
        .snapshot();
    let mut selected = deny("ns/p", Scope::WorkloadSelector);
    selected.action = Action::Allow;
    let touched = |change| snapshot.apply(&[change]).1;
    let policy = |policy| Change::Policy(Arc::new(policy));
    let only_a = Touched { workloads: vec![uid("ns/a")], ..Touched::default() };
    assert_eq!(touched(policy(selected)), only_a);
    assert_eq!(touched(Change::PolicyRemoved(policy_key("ns/p"))), only_a);
    assert_eq!(touched(policy(deny("ns/q", Scope::WorkloadSelector))), Touched::default());
    assert_eq!(touched(policy(deny("ns/q", Scope::Namespace))).namespaces, ["ns".into()]);
    assert!(touched(policy(deny("root/q", Scope::Global))).everything);
    // A policy that becomes narrower touches what it leaves, too.
    let wide = snapshot.apply(&[policy(deny("ns/p", Scope::Namespace))]).0;
    let (_, touched) = wide.apply(&[policy(deny("ns/p", Scope::WorkloadSelector))]);
    assert_eq!((touched.namespaces, touched.workloads), (vec!["ns".into()], vec![uid("ns/a")]));
}

#[test]
fn what_decides_about_requests_touches_what_it_is_attached_to() {
    let policy = |services: &[&str], dry_run: bool| {
        let attached = Attachment::To(services.iter().map(|name| service_key(name)).collect());
        let key = policy_key("ns/p");
        let (rules, unreadable) = (Vec::new(), None);
        let policy = RequestPolicy { key, attached, action: RequestAction::Deny, rules, dry_run, unreadable };
        Change::Access(Arc::new(Access::Policy(policy)))
    };
    let services = |touched: Touched| touched.services;
    let (snapshot, touched) = Snapshot::empty("").apply(&[policy(&["web", "api"], false)]);
    assert_eq!(services(touched), [service_key("api"), service_key("web")]);
    assert!(snapshot.apply(&[policy(&["web", "api"], false)]).1.is_empty());
    assert_eq!(services(snapshot.apply(&[policy(&["api"], true)]).1).len(), 2, "what it leaves, too");
    let key = AccessKey { kind: AccessKind::AuthorizationPolicy, key: policy_key("ns/p") };
    let gone = Change::AccessRemoved(key);
    assert_eq!(services(snapshot.apply(std::slice::from_ref(&gone)).1).len(), 2);
    assert!(snapshot.apply(&[gone, policy(&["web", "api"], false)]).1.is_empty(), "it ends where it began");
}

#[test]
fn a_workload_is_touched_by_what_changes_its_policies_and_by_nothing_else() {
    let world = World::new().workload("ns/a");
    let snapshot = world.snapshot();
    let touched = |change: fn(&mut Workload)| {
        let mut new = Workload::clone(&world.get("ns/a"));
        change(&mut new);
        snapshot.apply(&[changed(new)]).1
    };
    assert!(touched(|_| ()).is_empty());
    assert!(touched(|new| new.health = Health::Unhealthy).is_empty());
    assert!(touched(|new| new.addresses.clear()).is_empty());
    assert_eq!(touched(|new| new.authorization_policies.push(policy_key("ns/p"))).workloads, [uid("ns/a")]);
    assert_eq!(touched(|new| new.service_account = "other".into()).workloads, [uid("ns/a")]);
    assert_eq!(touched(|new| new.namespace = "other".into()).workloads, [uid("ns/a")]);
    assert!(snapshot.apply(&[Change::WorkloadRemoved(uid("ns/a"))]).1.is_empty());
}

#[test]
fn what_comes_and_goes_within_a_batch_touches_nothing() {
    let snapshot = World::new().workload("ns/a").deny("ns/p", vec![from("x")]).snapshot();
    let p = snapshot.policy(&policy_key("ns/p")).cloned().unwrap();
    let batch = [Change::PolicyRemoved(p.key.clone()), Change::Policy(p)];
    assert!(snapshot.apply(&batch).1.is_empty());
}

#[test]
fn a_version_that_cannot_be_read_leaves_the_last_good_one_in_force() {
    let unreadable = |name| Policy {
        unreadable: Some("field 99".into()),
        ..policy(name, Scope::Global, Action::Allow, vec![Match::default()])
    };
    let good = World::new().deny("ns/p", vec![from("x")]).snapshot();
    let (next, touched) = good.apply(&[Change::Policy(Arc::new(unreadable("ns/p")))]);
    assert!(touched.is_empty());
    assert_eq!(next.policy(&policy_key("ns/p")), good.policy(&policy_key("ns/p")));
    // Without a good one it is kept as what it is, and a good one replaces it.
    let (next, touched) = good.apply(&[Change::Policy(Arc::new(unreadable("ns/q")))]);
    assert!(touched.everything);
    assert!(next.policy(&policy_key("ns/q")).unwrap().unreadable.is_some());
    let (next, touched) = next.apply(&[Change::Policy(Arc::new(deny("ns/q", Scope::Namespace)))]);
    assert!(touched.everything && touched.namespaces == ["ns".into()]);
    assert_eq!(next.policy(&policy_key("ns/q")).unwrap().unreadable, None);
    // Removed means forgotten.
    let removed = good.apply(&[Change::PolicyRemoved(policy_key("ns/p"))]).0;
    let (next, _) = removed.apply(&[Change::Policy(Arc::new(unreadable("ns/p")))]);
    assert!(next.policy(&policy_key("ns/p")).unwrap().unreadable.is_some());
}

#[test]
fn routes_come_and_go_with_snapshots() {
    use crate::model::http::{HttpRoute, RouteKey, RouteKind, RouteParent};
    let key = RouteKey { kind: RouteKind::Http, namespace: "ns".into(), name: "r".into() };
    let parents = vec![RouteParent { service: service_key("ns/web"), port: None }];
    let route =
        HttpRoute { key: key.clone(), parents, consumer: None, created: 0, rules: Vec::new(), streams: Vec::new() };
    let route = Arc::new(route);
    let empty = Snapshot::empty("");
    let (known, touched) = empty.apply(&[Change::Route(route.clone())]);
    assert!(touched.is_empty(), "open connections are not decided again for a route");
    assert_eq!(known.route(&key), Some(&route));
    assert!(known.routes(&service_key("ns/web"), 80, None).is_some() && !known.same_content(&empty));
    let (both, _) = known.apply(&[Change::RouteRemoved(key.clone()), Change::Route(route)]);
    assert!(both.same_content(&known));
    let (gone, _) = known.apply(&[Change::RouteRemoved(key)]);
    assert!(gone.same_content(&empty) && gone.routes(&service_key("ns/web"), 80, None).is_none());
}
