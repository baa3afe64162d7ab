use serde_json::{Value, json};
use stillmesh_core::model::http::{HeaderMatch, RouteKind, TextMatch};

use super::*;
use crate::translate::route::fixtures::{World, message, page, said};

fn with(rule: Value) -> Routed {
    let written = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
        "metadata": {"name": "r", "namespace": "shop"}, "spec": {"parentRefs": [page()], "rules": [rule]}});
    grpc_route(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn rule(rule: Value) -> RouteRule {
    let routed = with(rule);
    assert_eq!(said(&routed)[0], ("Accepted", "True", "Accepted"), "{:?}", routed.parents);
    assert_eq!(routed.routes[0].key.kind, RouteKind::Grpc);
    routed.routes[0].rules[0].clone()
}

#[test]
fn a_method_is_a_path() {
    let path = |method: Value| rule(json!({"matches": [{"method": method}]})).matches[0].path.clone();
    let both = path(json!({"service": "shop.Cart", "method": "Add"}));
    assert_eq!(both, Some(PathMatch::Exact("/shop.Cart/Add".into())));
    assert_eq!(path(json!({"service": "shop.Cart"})), Some(PathMatch::Segments("/shop.Cart".into())));
    let holds = |method: Value, asked: &str| path(method).unwrap().holds(asked);
    assert!(holds(json!({"method": "Add"}), "/any.Service/Add") && !holds(json!({"method": "Add"}), "/a/b/Add"));
    assert!(!holds(json!({"method": "Add"}), "/any.Service/AddAll"));
    let regex = json!({"type": "RegularExpression", "service": "shop[.].*|other", "method": "(Add|Take)"});
    for (asked, expected) in [
        ("/shop.Cart/Add", true),
        ("/other/Take", true),
        ("/other/Look", false),
        ("/shopxCart/Add", false),
        ("/x/other/Add", false),
    ] {
        assert_eq!(holds(regex.clone(), asked), expected, "{asked}");
    }
    let any = json!({"type": "RegularExpression", "service": "a+"});
    assert!(holds(any.clone(), "/aa/Whatever") && !holds(any, "/ab/Whatever"));
    assert_eq!(rule(json!({"matches": [{}]})).matches[0].path, None);
    assert_eq!(rule(json!({})).matches, []);
}

#[test]
fn headers_backends_and_filters_are_those_of_http() {
    let read = rule(json!({
        "name": "one",
        "matches": [{"headers": [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]}],
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["X-B"]}},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "details", "port": 9080}}}],
        "backendRefs": [{"name": "details", "port": 9080, "weight": 3}, {"name": "page", "port": 80, "weight": 0}]}));
    assert_eq!(read.name.as_deref(), Some("one"));
    let value = TextMatch::Exact("1".into());
    assert_eq!(read.matches[0].headers, [HeaderMatch { name: "x-a".into(), value }]);
    assert_eq!(read.request_headers.remove, ["x-b".into()]);
    let RouteAction::Forward(forward) = read.action else { panic!() };
    assert_eq!(forward.backends.iter().map(|one| one.weight).collect::<Vec<_>>(), [3, 0]);
    assert_eq!(forward.mirrors.len(), 1);
}

#[test]
fn what_is_not_for_grpc_refuses_the_whole_route_and_says_so() {
    for (written, part) in [
        (json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "a"}}]}), "URLRewrite in a GRPCRoute"),
        (json!({"filters": [{"type": "CORS", "cors": {}}]}), "CORS in a GRPCRoute"),
        (
            json!({"backendRefs": [{"name": "page", "port": 80, "filters": [{"type": "URLRewrite", "urlRewrite": {}}]}]}),
            "URLRewrite in a GRPCRoute",
        ),
        (json!({"sessionPersistence": {}}), "sessionPersistence"),
        (json!({"matches": [{"method": {"type": "Glob", "service": "*"}}]}), "\"Glob\""),
        (json!({"matches": [{"method": {"type": "RegularExpression", "service": "("}}]}), "("),
    ] {
        let routed = with(written.clone());
        assert!(routed.routes.is_empty() && routed.refused, "{written}");
        assert_eq!(said(&routed)[0], ("Accepted", "False", "UnsupportedValue"), "{written}");
        assert!(message(&routed).contains(part), "{written}: {}", message(&routed));
    }
}

#[test]
fn a_grant_is_for_a_kind_of_routes() {
    let routed = with(json!({"backendRefs": [{"name": "page", "namespace": "else", "port": 80}]}));
    assert_eq!(said(&routed)[1], ("ResolvedRefs", "False", "RefNotPermitted"), "this one is for HTTPRoutes");
}
