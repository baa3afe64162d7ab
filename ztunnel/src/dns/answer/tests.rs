use std::sync::Arc;

use stillmesh_core::model::{
    Health, IpFamilies, LoadBalancing, NetworkAddress, PortMapping, ServiceKey, ServicePort, Visibility,
};
use stillmesh_core::snapshot::Change;

use super::*;
use crate::testing;

fn service(namespace: &str, hostname: &str, vips: &[&str]) -> Service {
    Service {
        name: hostname.split('.').next().unwrap().into(),
        key: ServiceKey::new(namespace, hostname),
        vips: vips.iter().map(|vip| NetworkAddress::new("", vip.parse().unwrap())).collect(),
        cidr_vips: Vec::new(),
        ports: vec![ServicePort { mapping: PortMapping { service_port: 80, target_port: 8080 }, app_protocol: 0 }],
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: true,
        visibility: Visibility::Public,
    }
}

fn snapshot(changes: Vec<Change>) -> Snapshot {
    Snapshot::empty("").apply(&changes).0
}

fn services(services: impl IntoIterator<Item = Service>) -> Snapshot {
    snapshot(services.into_iter().map(|service| Change::Service(Arc::new(service))).collect())
}

fn ask(snapshot: &Snapshot, name: &str, family: Family) -> Option<(Option<String>, Vec<String>)> {
    let client = testing::workload("shop", "page-1", [10, 0, 0, 1]);
    let zone = Zone::new("cluster.local", &["corp.example".to_owned()], true);
    match zone.answer(snapshot, &client, name, family, 42) {
        Answer::Unknown => None,
        Answer::Known { canonical, mut addresses, .. } => {
            addresses.sort();
            Some((canonical, addresses.iter().map(ToString::to_string).collect()))
        }
    }
}

#[test]
fn kubernetes_short_names_mean_the_service() {
    let snapshot = services([
        service("shop", "details.shop.svc.cluster.local", &["10.96.0.1"]),
        service("other", "details.other.svc.cluster.local", &["10.96.0.2"]),
    ]);
    for (name, address) in [
        ("details", "10.96.0.1"),
        ("DETAILS.", "10.96.0.1"),
        ("details.shop", "10.96.0.1"),
        ("details.other", "10.96.0.2"),
        ("details.other.svc", "10.96.0.2"),
        ("details.other.svc.cluster.local.", "10.96.0.2"),
    ] {
        assert_eq!(ask(&snapshot, name, Family::V4), Some((None, vec![address.to_owned()])), "{name}");
    }
    for name in ["reviews", "details.nowhere", "example.com", "", "svc.cluster.local"] {
        assert_eq!(ask(&snapshot, name, Family::V4), None, "{name}");
    }
}

#[test]
fn a_name_under_a_search_domain_is_an_alias_of_the_name() {
    let snapshot = services([
        service("shop", "www.example.com", &["240.240.0.1"]),
        service("shop", "details.shop.svc.cluster.local", &["10.96.0.1"]),
    ]);
    for name in [
        "www.example.com.shop.svc.cluster.local",
        "www.example.com.svc.cluster.local",
        "www.example.com.cluster.local",
        "www.example.com.corp.example",
    ] {
        let expected = (Some("www.example.com".to_owned()), vec!["240.240.0.1".to_owned()]);
        assert_eq!(ask(&snapshot, name, Family::V4), Some(expected), "{name}");
    }
    let expected = (Some("details.shop.svc.cluster.local".to_owned()), vec!["10.96.0.1".to_owned()]);
    assert_eq!(ask(&snapshot, "details.corp.example", Family::V4), Some(expected));
}

#[test]
fn wildcards_match_any_depth_and_the_exact_name_wins() {
    let snapshot = services([
        service("shop", "*.example.com", &["240.240.0.1"]),
        service("shop", "api.example.com", &["240.240.0.2"]),
    ]);
    for (name, address) in
        [("www.example.com", "240.240.0.1"), ("a.b.example.com", "240.240.0.1"), ("api.example.com", "240.240.0.2")]
    {
        assert_eq!(ask(&snapshot, name, Family::V4), Some((None, vec![address.to_owned()])), "{name}");
    }
    assert_eq!(ask(&snapshot, "example.com", Family::V4), None);
}

#[test]
fn a_known_name_without_the_family_is_empty_and_not_passed_on() {
    let snapshot = services([service("shop", "details.shop.svc.cluster.local", &["10.96.0.1"])]);
    assert_eq!(ask(&snapshot, "details", Family::V6), Some((None, vec![])));
    let mut only_v6 = service("shop", "six.shop.svc.cluster.local", &["10.96.0.1", "fd00:96::1"]);
    only_v6.ip_families = IpFamilies::Ipv6Only;
    let snapshot = services([only_v6]);
    assert_eq!(ask(&snapshot, "six", Family::V4), Some((None, vec![])));
    assert_eq!(ask(&snapshot, "six", Family::V6), Some((None, vec!["fd00:96::1".to_owned()])));
}

#[test]
fn addresses_of_other_networks_are_left_out() {
    let mut elsewhere = service("shop", "details.shop.svc.cluster.local", &["10.96.0.1"]);
    elsewhere.vips.push(NetworkAddress::new("east", "10.97.0.1".parse().unwrap()));
    let snapshot = services([elsewhere]);
    assert_eq!(ask(&snapshot, "details", Family::V4), Some((None, vec!["10.96.0.1".to_owned()])));
}

#[test]
fn headless_services_are_their_ready_endpoints_and_only_under_the_clusters_domain() {
    let key = ServiceKey::new("shop", "db.shop.svc.cluster.local");
    let endpoint = |n: u8, health| {
        let mut workload = testing::workload("shop", &format!("db-{n}"), [10, 0, 1, n]);
        workload.services = vec![(key.clone(), vec![PortMapping { service_port: 80, target_port: 8080 }])];
        workload.health = health;
        Change::Workload(Arc::new(workload))
    };
    let snapshot = snapshot(vec![
        Change::Service(Arc::new(service("shop", "db.shop.svc.cluster.local", &[]))),
        Change::Service(Arc::new(service("shop", "api.example.com", &[]))),
        endpoint(1, Health::Healthy),
        endpoint(2, Health::Healthy),
        endpoint(3, Health::Unhealthy),
    ]);
    assert_eq!(ask(&snapshot, "db", Family::V4), Some((None, vec!["10.0.1.1".to_owned(), "10.0.1.2".to_owned()])));
    assert_eq!(ask(&snapshot, "api.example.com", Family::V4), None);
}

#[test]
fn the_clients_own_namespace_wins_and_private_services_of_others_are_not_seen() {
    let mut private = service("other", "private.example.com", &["240.240.0.9"]);
    private.visibility = Visibility::Namespace;
    let snapshot = services([
        service("other", "api.example.com", &["240.240.0.1"]),
        service("shop", "api.example.com", &["240.240.0.2"]),
        private,
    ]);
    assert_eq!(ask(&snapshot, "api.example.com", Family::V4), Some((None, vec!["240.240.0.2".to_owned()])));
    assert_eq!(ask(&snapshot, "private.example.com", Family::V4), None);
}

#[test]
fn very_deep_names_are_not_looked_up() {
    let snapshot = services([service("shop", "*.com", &["240.240.0.1"])]);
    let deep = format!("{}com", "a.".repeat(40));
    assert_eq!(ask(&snapshot, &deep, Family::V4), None);
}

#[test]
fn the_order_follows_the_entropy_and_nothing_is_lost() {
    let vips: Vec<String> = (1..20).map(|n| format!("10.96.0.{n}")).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let snapshot = services([service("shop", "many.shop.svc.cluster.local", &vips)]);
    let client = testing::workload("shop", "page-1", [10, 0, 0, 1]);
    let zone = Zone::new("cluster.local", &[], true);
    let order = |entropy| match zone.answer(&snapshot, &client, "many", Family::V4, entropy) {
        Answer::Known { addresses, .. } => addresses,
        Answer::Unknown => panic!("unknown"),
    };
    assert_ne!(order(1), order(0x9e37_79b9_7f4a_7c15));
    assert_eq!(order(1).len(), 19);
}
