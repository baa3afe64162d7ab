use super::*;

fn zone(manifests: &str) -> Zone {
    let mut zone = Zone::new("cluster.local");
    for placed in stillmesh_k8s::parse::documents("test.yaml", manifests).objects {
        zone.take(&Change::Set(placed));
    }
    zone
}

fn shop() -> Zone {
    zone(
        "
apiVersion: v1
kind: Service
metadata: {name: page, namespace: shop}
spec: {clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20, 'fd00:96::20'], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {type: ExternalName, externalName: example.org}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.5], hostname: db-0, conditions: {ready: true}}
- {addresses: [10.244.2.6], conditions: {ready: true}}
- {addresses: [10.244.2.7], conditions: {ready: false}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
spec: {containers: [{name: a, image: stillmesh/echo}]}
status: {podIP: 10.244.1.9}
",
    )
}

fn ips(texts: &[&str]) -> Option<Meaning> {
    Some(Meaning::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect()))
}

#[test]
fn names_mean_what_the_specification_says() {
    let zone = shop();
    let mean = |name: &str| zone.meaning(name);
    assert_eq!(mean("page.shop.svc.cluster.local"), ips(&["10.96.0.20", "fd00:96::20"]));
    assert_eq!(mean("db.shop.svc.cluster.local"), ips(&["10.244.1.5", "10.244.2.6"]));
    assert_eq!(mean("db-0.db.shop.svc.cluster.local"), ips(&["10.244.1.5"]));
    assert_eq!(mean("10-244-2-6.db.shop.svc.cluster.local"), ips(&["10.244.2.6"]));
    assert_eq!(mean("10-244-1-9.shop.pod.cluster.local"), ips(&["10.244.1.9"]));
    assert_eq!(mean("away.shop.svc.cluster.local"), Some(Meaning::Alias("example.org".into())));
    assert_eq!(mean("dns-version.cluster.local"), Some(Meaning::Text("1.1.0".into())));
    for nothing in ["cluster.local", "svc.cluster.local", "shop.svc.cluster.local", "_tcp.page.shop.svc.cluster.local"]
    {
        assert_eq!(mean(nothing), Some(Meaning::Nothing), "{nothing}");
    }
    for absent in ["x.shop.svc.cluster.local", "page.svc.cluster.local", "page", "a.b.c.page.shop.svc.cluster.local"] {
        assert_eq!(mean(absent), None, "{absent}");
    }
}

#[test]
fn ports_are_found_behind_virtual_addresses_and_endpoints() {
    let zone = shop();
    let host = |host: &str, port| Target { host: host.into(), port };
    assert_eq!(
        zone.meaning("_http._tcp.page.shop.svc.cluster.local"),
        Some(Meaning::Services(vec![host("page.shop.svc.cluster.local", 80)]))
    );
    assert_eq!(
        zone.meaning("_sql._tcp.db.shop.svc.cluster.local"),
        Some(Meaning::Services(vec![
            host("db-0.db.shop.svc.cluster.local", 5432),
            host("10-244-2-6.db.shop.svc.cluster.local", 5432)
        ]))
    );
    assert_eq!(zone.meaning("_http._udp.page.shop.svc.cluster.local"), None);
}

#[test]
fn addresses_lead_back_to_names() {
    let zone = shop();
    let pointers = |names: &[&str]| Some(Meaning::Pointers(names.iter().map(|name| (*name).to_owned()).collect()));
    assert_eq!(zone.meaning("20.0.96.10.in-addr.arpa"), pointers(&["page.shop.svc.cluster.local"]));
    assert_eq!(zone.meaning("5.1.244.10.in-addr.arpa"), pointers(&["db-0.db.shop.svc.cluster.local"]));
    assert_eq!(zone.meaning("9.9.9.9.in-addr.arpa"), None);
    let six = "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(zone.meaning(six), pointers(&["page.shop.svc.cluster.local"]));
}

#[test]
fn what_is_removed_is_gone() {
    let mut zone = shop();
    zone.take(&Change::Removed(ObjectKey::new(Kind::Service, "shop", "page")));
    assert_eq!(zone.meaning("page.shop.svc.cluster.local"), None);
}
