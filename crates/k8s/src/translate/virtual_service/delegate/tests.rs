use serde_json::{Value, json};
use stillmesh_core::model::http::{PathMatch, RequestMatch, RouteAction, RouteBackend, RouteRule};

use super::*;
use crate::translate::route::fixtures::World;
use crate::translate::{Mesh, Virtual, virtual_service};

fn translated(spec: Value) -> Virtual {
    let written = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "shop"}, "spec": spec});
    virtual_service(&serde_json::from_value(written).unwrap(), &World, &Mesh::default())
}

fn with(rule: Value) -> Virtual {
    translated(json!({"hosts": ["details"], "http": [rule]}))
}

fn rules(read: Virtual) -> Vec<RouteRule> {
    read.route.map(|route| route.rules).unwrap_or_default()
}

fn told(read: &Virtual) -> (&'static str, &str) {
    let condition = read.condition.as_ref().unwrap();
    (condition.reason, &condition.message)
}

fn host(rule: &RouteRule) -> String {
    let RouteAction::Forward(forward) = &rule.action else { panic!("{rule:?}") };
    match &forward.backends[0].backend {
        RouteBackend::Service { service, .. } => service.hostname.to_string(),
        RouteBackend::Invalid { problem } => panic!("{problem}"),
    }
}

#[test]
fn a_delegates_rules_come_in_its_place_each_under_what_the_root_asks() {
    let read = with(json!({"name": "root", "match": [{"uri": {"prefix": "/api"}, "port": 9080}],
        "delegate": {"name": "inner"}, "timeout": "1s", "headers": {"request": {"set": {"x-root": "1"}}}}));
    assert_eq!(told(&read).0, "PartiallyInvalid");
    assert!(told(&read).1.contains("spec.http[1] asks for requests that the rule which delegates to it does not take"));
    let rules = rules(read);
    let api = || RequestMatch { port: Some(9080), ..RequestMatch::default() };
    let path = |prefix: &str| Some(PathMatch::Prefix(prefix.into()));
    assert_eq!(rules.iter().map(|rule| rule.name.as_deref()).collect::<Vec<_>>(), [Some("root-deep"), Some("root")]);
    assert_eq!(rules[0].matches[0], RequestMatch { path: path("/api/v2"), ..api() });
    assert_eq!((&rules[0].matches[1].path, rules[0].matches[1].headers.len()), (&path("/api"), 1));
    assert_eq!(rules[1].matches, [RequestMatch { path: path("/api"), ..api() }]);
    // What the delegate does not say the root does.
    let seconds = |rule: &RouteRule| match &rule.action {
        RouteAction::Forward(forward) => forward.timeout.map(|time| time.as_secs()),
        _ => None,
    };
    assert_eq!((seconds(&rules[0]), seconds(&rules[1])), (Some(2), Some(1)));
    assert_eq!(rules[1].request_headers.set.len(), 1);
}

#[test]
fn short_names_of_a_delegate_are_of_its_namespace() {
    let read = with(json!({"delegate": {"name": "abroad", "namespace": "else"}}));
    assert_eq!(host(&rules(read)[0]), "page.else.svc.cluster.local");
    let read = with(json!({"delegate": {"name": "inner"}}));
    assert_eq!(host(&rules(read)[0]), "page.shop.svc.cluster.local");
}

#[test]
fn a_delegate_that_cannot_be_used_is_left_out_and_said() {
    for (delegate, expected) in [
        (json!({"name": "nobody"}), "VirtualService shop/nobody is not there: the rule is left out"),
        (json!({"name": "hosted"}), "VirtualService shop/hosted has hosts of its own"),
        (json!({"name": "hidden", "namespace": "else"}), "VirtualService else/hidden is not exported to here"),
    ] {
        let rest = json!({"redirect": {"uri": "/rest"}});
        let read = translated(json!({"hosts": ["details"], "http": [{"delegate": delegate}, rest]}));
        assert_eq!(told(&read).0, "PartiallyInvalid");
        assert!(told(&read).1.contains(expected), "{}", told(&read).1);
        assert_eq!(rules(read).len(), 1);
    }
}

#[test]
fn what_a_delegate_cannot_say_refuses_the_root_as_a_whole() {
    for (rule, expected) in [
        (json!({"delegate": {"name": "nested"}}), "spec.http[0]: VirtualService shop/nested: spec.http[0]: a delegate"),
        (json!({"delegate": {"name": "broken"}}), "spec.http[0]: VirtualService shop/broken: spec.http[0]: redirect"),
        (json!({"delegate": {"namespace": "shop"}}), "spec.http[0]: delegate: the name is missing"),
        (json!({"delegate": {"name": "inner"}, "redirect": {"uri": "/"}}), "spec.http[0]: exactly one of"),
    ] {
        let read = with(rule);
        assert!(read.refused && told(&read).0 == "Invalid" && told(&read).1.starts_with(expected), "{read:?}");
    }
}

#[test]
fn one_without_hosts_is_for_others_and_its_rules_are_read() {
    let read = translated(json!({"http": [{"redirect": {"uri": "/"}}]}));
    assert!(read.route.is_none() && !read.refused && told(&read).0 == "Accepted", "{read:?}");
    assert_eq!(told(&translated(json!({"http": [{"redirect": {"redirectCode": 200}}]}))).0, "Invalid");
    let tcp = json!({"http": [{"redirect": {"uri": "/"}}], "tcp": [{"route": [{"destination": {"host": "page"}}]}]});
    assert_eq!(told(&translated(tcp)).0, "Invalid");
    assert_eq!(told(&translated(json!({}))).0, "Invalid");
}

#[test]
fn what_is_asked_is_narrowed_and_never_widened() {
    let text = |written: Value| -> StringMatch { serde_json::from_value(written).unwrap() };
    for (inner, root, expected) in [
        (json!({"exact": "/a/b"}), json!({"prefix": "/a"}), true),
        (json!({"prefix": "/a/b"}), json!({"prefix": "/a"}), true),
        (json!({"exact": "/a"}), json!({"exact": "/a"}), true),
        (json!({"regex": "/a.*"}), json!({}), true),
        (json!({"prefix": "/"}), json!({"prefix": "/a"}), false),
        (json!({"prefix": "/a"}), json!({"exact": "/a"}), false),
        (json!({"exact": "/b"}), json!({"exact": "/a"}), false),
        (json!({}), json!({"exact": "/a"}), false),
        (json!({"regex": "/a"}), json!({"regex": "/a"}), false),
        (json!({"exact": "/a"}), json!({"regex": "/a"}), false),
    ] {
        assert_eq!(is_narrower(&text(inner.clone()), &text(root.clone())), expected, "{inner} {root}");
    }
    let matched = |written: Value| -> HttpMatch { serde_json::from_value(written).unwrap() };
    let part = |inner: Value, root: Value| is_part(&matched(inner), &matched(root));
    assert!(!part(json!({"port": 1}), json!({"port": 2})) && part(json!({}), json!({"port": 2})));
    assert!(!part(json!({"headers": {"a": {"exact": "1"}}}), json!({"headers": {"a": {"exact": "2"}}})));
    assert!(part(json!({"headers": {"b": {}}}), json!({"headers": {"a": {"exact": "2"}}})));
    let without = |value: Value| json!({"withoutHeaders": {"a": value}});
    assert!(part(without(json!({})), without(json!({"exact": "1"}))), "more is excluded");
    assert!(!part(without(json!({"exact": "1"})), without(json!({}))), "what the root excludes stays so");
    assert!(!part(json!({"gateways": ["x"]}), json!({"gateways": ["mesh"]})));
    let both = both(&matched(json!({"headers": {"a": {}}, "port": 1})), &matched(json!({"headers": {"b": {}}})));
    assert_eq!((both.headers.len(), both.port), (2, Some(1)));
}
