use serde_json::{Value, json};
use stillmesh_core::model::http::{RouteBackend, RouteKind};

use super::*;
use crate::translate::route::fixtures::{World, message, page, said};

const ACCEPTED: (&str, &str, &str) = ("Accepted", "True", "Accepted");
const RESOLVED: (&str, &str, &str) = ("ResolvedRefs", "True", "ResolvedRefs");

fn service(name: &str) -> Value {
    json!({"group": "", "kind": "Service", "name": name})
}

fn on(mut parent: Value, port: u16) -> Value {
    parent["port"] = port.into();
    parent
}

fn tcp(parent: Value, backends: Value) -> Routed {
    let written = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "TCPRoute",
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"parentRefs": [parent], "rules": [{"name": "only", "backendRefs": backends}]}});
    tcp_route(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn tls(parent: Value, hostnames: Value, backends: Value) -> Routed {
    let written = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "TLSRoute",
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"parentRefs": [parent], "hostnames": hostnames, "rules": [{"backendRefs": backends}]}});
    tls_route(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn details() -> Value {
    json!([{"name": "details", "port": 9080}])
}

#[test]
fn a_route_for_tcp_takes_every_connection_by_weight() {
    let backends = json!([{"name": "details", "port": 9080, "weight": 3}, {"name": "page", "port": 80}]);
    let routed = tcp(on(service("mixed"), 80), backends);
    assert_eq!(said(&routed), [ACCEPTED, RESOLVED]);
    let route = &routed.routes[0];
    assert_eq!((route.key.kind, route.consumer.as_ref(), route.rules.len()), (RouteKind::Tcp, None, 0));
    assert_eq!(
        (&*route.parents[0].service.hostname, route.parents[0].port),
        ("mixed.shop.svc.cluster.local", Some(80))
    );
    let rule = &route.streams[0];
    assert_eq!((rule.name.as_deref(), rule.matches.len()), (Some("only"), 0));
    assert_eq!(rule.backends.iter().map(|one| one.weight).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn a_route_for_tls_takes_the_names_that_it_has() {
    let routed = tls(service("details"), json!(["a.example", "*.Example"]), details());
    assert_eq!(said(&routed), [ACCEPTED, RESOLVED]);
    assert_eq!(routed.routes[0].key.kind, RouteKind::Tls);
    let names = [ServerName::Exact("a.example".into()), ServerName::Suffix(".example".into())];
    assert_eq!(routed.routes[0].streams[0].matches[0].server_names, names);
    let routed = tls(service("details"), json!([]), details());
    assert_eq!(routed.routes[0].streams[0].matches[0].server_names, [ServerName::Any], "as earlier versions allow");
    for name in ["*", "*a.example", "a.*.example", "*."] {
        let routed = tls(service("details"), json!([name]), details());
        let taken = said(&routed)[0].1 == "True";
        assert_eq!(taken, name == "*", "{name}: {}", message(&routed));
        assert_eq!(routed.refused, !taken);
    }
}

#[test]
fn a_route_is_refused_at_a_port_that_speaks_something_else() {
    let refused = ("Accepted", "False", "NoMatchingParent");
    for (routed, expected) in [
        (tcp(on(page(), 80), details()), Err("port 80 is by its appProtocol or name no TCP or TLS, which a TCPRoute")),
        (tcp(on(page(), 8080), details()), Ok(())),
        (tcp(page(), details()), Ok(())),
        (tls(on(service("mixed"), 80), json!(["a"]), details()), Err("no TLS, which a TLSRoute is for")),
        (tls(on(service("mixed"), 8080), json!(["a"]), details()), Ok(())),
        (tls(on(service("mixed"), 9), json!(["a"]), details()), Err("has no port 9")),
        (tls(service("nobody"), json!(["a"]), details()), Err("Service shop/nobody is not there")),
    ] {
        match expected {
            Ok(()) => assert!(said(&routed)[0] == ACCEPTED && !routed.routes.is_empty(), "{}", message(&routed)),
            Err(text) => {
                assert!(message(&routed).contains(text), "{}", message(&routed));
                assert!(said(&routed)[0] == refused && routed.routes.is_empty());
            }
        }
    }
}

#[test]
fn a_route_for_tcp_means_nothing_beside_routes_for_tls() {
    let routed = tcp(on(service("mixed"), 8080), details());
    assert_eq!(said(&routed)[0], ("Accepted", "False", "Conflicted"));
    assert!(message(&routed).contains("has TLSRoutes, beside which a TCPRoute means nothing"), "{}", message(&routed));
    assert!(routed.routes.is_empty() && !routed.refused);
}

#[test]
fn a_backend_that_is_not_there_or_not_open_is_said_and_its_share_refused() {
    let elsewhere = |namespace: &str| json!([{"name": "page", "namespace": namespace, "port": 80}]);
    for (backends, reason) in [
        (json!([{"name": "nobody", "port": 80}]), "BackendNotFound"),
        (json!([{"name": "details", "port": 1}]), "BackendNotFound"),
        (json!([{"name": "x", "kind": "Other", "port": 1}]), "InvalidKind"),
        (elsewhere("closed"), "RefNotPermitted"),
        (elsewhere("else"), "RefNotPermitted"),
    ] {
        let routed = tcp(service("details"), backends.clone());
        assert_eq!(said(&routed), [ACCEPTED, ("ResolvedRefs", "False", reason)], "{backends}");
        let backend = &routed.routes[0].streams[0].backends[0].backend;
        assert!(matches!(backend, RouteBackend::Invalid { .. }), "{backend:?}");
    }
    // A grant is for one kind of routes.
    assert_eq!(said(&tls(service("details"), json!(["a"]), elsewhere("else"))), [ACCEPTED, RESOLVED]);
}

#[test]
fn a_route_on_a_service_of_another_namespace_is_for_its_own_clients() {
    let parent = json!({"group": "", "kind": "Service", "name": "page", "namespace": "else"});
    let routed = tls(parent, json!(["a"]), details());
    assert_eq!(routed.routes[0].consumer.as_deref(), Some("shop"));
    assert_eq!(&*routed.routes[0].key.name, "r@consumer");
}
