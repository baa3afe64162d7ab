use serde_json::{Value, json};
use stillmesh_core::model::http::RouteBackend;
use stillmesh_core::model::stream::{ServerName, StreamBackend};

use super::*;
use crate::translate::route::fixtures::World;
use crate::translate::{Mesh, Virtual, virtual_service};

fn translated(mut spec: Value) -> Virtual {
    spec["hosts"] = json!(["details"]);
    let written = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "shop"}, "spec": spec});
    virtual_service(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn to(host: &str) -> Value {
    json!([{"destination": {"host": host}}])
}

fn told(read: &Virtual) -> (&'static str, &str) {
    let condition = read.condition.as_ref().unwrap();
    (condition.reason, &condition.message)
}

#[test]
fn rules_for_tls_come_before_those_for_tcp() {
    let read = translated(json!({
        "tcp": [{"match": [{"port": 9080}], "route": to("mixed")}, {"route": to("details")}],
        "tls": [{"match": [{"sniHosts": ["details", "*.details"], "port": 443}], "route": to("details")}]}));
    assert_eq!(told(&read).0, "Accepted", "{read:?}");
    let route = read.route.unwrap();
    assert!(route.is_for_streams() && !route.is_for_requests());
    let names = vec![ServerName::Exact("details".into()), ServerName::Suffix(".details".into())];
    let matched = |rule: usize| route.streams[rule].matches.clone();
    assert_eq!(matched(0), [StreamMatch { server_names: names, port: Some(443) }]);
    assert_eq!(matched(1), [StreamMatch { server_names: Vec::new(), port: Some(9080) }]);
    assert_eq!(matched(2), []);
}

#[test]
fn destinations_have_shares_ports_and_subsets() {
    let read = translated(json!({"tcp": [{"route": [
        {"destination": {"host": "details", "subset": "v2"}, "weight": 30},
        {"destination": {"host": "page", "port": {"number": 8080}}, "weight": 70},
        {"destination": {"host": "nobody"}},
    ]}]}));
    let (reason, message) = told(&read);
    assert!(reason == "PartiallyInvalid" && message.contains("its share is refused"), "{message}");
    let backends = &read.route.as_ref().unwrap().streams[0].backends;
    let seen = |one: &StreamBackend| match &one.backend {
        RouteBackend::Service { service, port, subset } => {
            let name = service.hostname.split('.').next().unwrap_or_default().to_owned();
            (one.weight, name, port.map(|port| port.get()), subset.as_deref().map(str::to_owned))
        }
        RouteBackend::Invalid { .. } => (one.weight, "invalid".to_owned(), None, None),
    };
    assert_eq!(
        backends.iter().map(seen).collect::<Vec<_>>(),
        [
            (30, "details".to_owned(), Some(9080), Some("v2".to_owned())),
            (70, "page".to_owned(), Some(8080), None),
            (0, "invalid".to_owned(), None, None),
        ]
    );
}

#[test]
fn a_match_that_never_holds_at_a_waypoint_is_left_out_and_said() {
    for (field, value) in
        [("sourceLabels", json!({"a": "b"})), ("sourceNamespace", json!("x")), ("gateways", json!(["edge"]))]
    {
        let both = json!([{field: value.clone()}, {"port": 9080}]);
        let read = translated(json!({"tcp": [{"match": both, "route": to("details")}]}));
        assert!(told(&read).1.contains(&format!("a match with {field} never holds")), "{read:?}");
        assert_eq!(read.route.unwrap().streams[0].matches.len(), 1);
        let alone = json!([{field: value.clone()}]);
        let read = translated(json!({"tcp": [{"match": alone, "route": to("details")}]}));
        assert!(read.route.is_none() && !read.refused, "nothing is left of it: {read:?}");
        let names = json!([{field: value, "sniHosts": ["details"]}]);
        let read = translated(json!({"tls": [{"match": names, "route": to("details")}]}));
        assert!(read.route.is_none() && told(&read).1.contains("never holds"));
    }
}

#[test]
fn what_is_not_supported_or_says_nothing_refuses_it_as_a_whole() {
    for (spec, expected) in [
        (json!({"tls": [{"route": to("details")}]}), "spec.tls[0]: a match with sniHosts is needed"),
        (json!({"tls": [{"match": [{"port": 1}], "route": to("details")}]}), "spec.tls[0]: match: sniHosts is missing"),
        (
            json!({"tls": [{"match": [{"sniHosts": ["a*"]}], "route": to("details")}]}),
            "spec.tls[0]: \"a*\" is no name that a client of TLS asks for",
        ),
        (
            json!({"tls": [{"match": [{"sniHosts": ["a"], "destinationSubnets": ["10.0.0.0/8"]}], "route": to("x")}]}),
            "spec.tls[0]: match: destinationSubnets is not supported",
        ),
        (
            json!({"tcp": [{"match": [{"sourceSubnet": "10.0.0.0/8"}], "route": to("details")}]}),
            "spec.tcp[0]: match: sourceSubnet is not supported",
        ),
        (json!({"tcp": [{"route": []}]}), "spec.tcp[0]: route: the weights add up to nothing"),
    ] {
        let read = translated(spec);
        let (reason, message) = told(&read);
        assert!(read.refused && read.route.is_none() && reason == "Invalid", "{read:?}");
        assert!(message.starts_with(expected), "{message}");
    }
}
