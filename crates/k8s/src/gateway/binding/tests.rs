use super::*;
use crate::object::Object;
use crate::parse;

fn object(text: &str) -> Object {
    let found = parse::documents("t", text);
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    found.objects.into_iter().next().unwrap().object
}

pub(super) fn metadata(text: &str) -> ObjectMeta {
    serde_json::from_value(serde_saphyr::from_str(text).unwrap()).unwrap()
}

pub(super) fn namespace(labels: &str) -> Namespace {
    Namespace { metadata: metadata(&format!("{{name: shop, labels: {labels}}}")), ..Namespace::default() }
}

/// A Gateway in `infra`.
fn gateway(extra: &str, class: &str, from: &str, addresses: &str) -> Gateway {
    let listener = format!("{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {from}}}}}");
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: infra, {extra}}}\n\
         spec: {{gatewayClassName: {class}, listeners: [{listener}]}}\nstatus: {{addresses: {addresses}}}\n"
    );
    match object(&text) {
        Object::Gateway(gateway) => (*gateway).clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) const READY: &str = "[{type: Hostname, value: w.infra.svc.cluster.local}]";

pub(super) fn waypoint(extra: &str, from: &str, addresses: &str) -> Waypoint {
    Waypoint::read(&gateway(extra, "istio-waypoint", from, addresses), None)
}

/// What becomes of something in `shop`, as its condition says; `-` where none is said.
fn outcome(
    target: Target,
    labels: &str,
    namespace_labels: &str,
    found: Option<&Waypoint>,
) -> (Option<String>, &'static str) {
    let object = metadata(&format!("{{name: page, namespace: shop, labels: {labels}}}"));
    let namespace = namespace(namespace_labels);
    let binding = bind(target, &object, Some(&namespace), |_| found, &Mesh::default());
    let reason = binding.condition().map_or("-", |condition| condition.reason);
    (binding.destination().map(|one| format!("{}:{}", one.destination, one.hbone_mtls_port)), reason)
}

#[test]
fn a_label_of_its_own_wins_over_that_of_its_namespace_and_none_stops_both() {
    let bound = |own: &str, of_namespace: &str| {
        let object = metadata(&format!("{{name: page, namespace: shop, labels: {own}}}"));
        let asked = std::cell::RefCell::new(None);
        let find = |named: &Named| {
            *asked.borrow_mut() = Some(named.to_string());
            None
        };
        bind(Target::Service, &object, Some(&namespace(of_namespace)), find, &Mesh::default());
        asked.into_inner().unwrap_or_default()
    };
    for (own, of_namespace, expected) in [
        ("{}", "{}", ""),
        ("{istio.io/use-waypoint: a}", "{}", "shop/a"),
        ("{istio.io/use-waypoint: a}", "{istio.io/use-waypoint: b}", "shop/a"),
        ("{}", "{istio.io/use-waypoint: b}", "shop/b"),
        ("{istio.io/use-waypoint: none}", "{istio.io/use-waypoint: b}", ""),
        ("{}", "{istio.io/use-waypoint: none}", ""),
        ("{istio.io/use-waypoint: ''}", "{istio.io/use-waypoint: b}", "shop/b"),
        ("{istio.io/use-waypoint: a, istio.io/use-waypoint-namespace: x}", "{}", "x/a"),
        ("{}", "{istio.io/use-waypoint: b, istio.io/use-waypoint-namespace: z}", "z/b"),
        // The namespace is read only beside the name.
        ("{istio.io/use-waypoint-namespace: x}", "{istio.io/use-waypoint: b}", "shop/b"),
        ("{istio.io/use-waypoint: a}", "{istio.io/use-waypoint: b, istio.io/use-waypoint-namespace: z}", "shop/a"),
        // A waypoint's own Service and pods.
        (
            "{gateway.istio.io/managed: istio.io-mesh-controller, istio.io/use-waypoint: a}",
            "{istio.io/use-waypoint: b}",
            "",
        ),
        ("{gateway.istio.io/managed: istio.io-gateway-controller}", "{istio.io/use-waypoint: b}", "shop/b"),
    ] {
        assert_eq!(bound(own, of_namespace), expected, "{own} {of_namespace}");
    }
}

#[test]
fn a_waypoint_takes_the_traffic_that_it_is_for() {
    use Target::{Service, Workload};
    const OWN: &str = "{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}";
    for (traffic, target, takes) in [
        ("", Service, true),
        ("", Workload, false),
        ("service", Service, true),
        ("service", Workload, false),
        ("workload", Service, false),
        ("workload", Workload, true),
        ("all", Service, true),
        ("all", Workload, true),
        ("none", Service, false),
        ("none", Workload, false),
    ] {
        let label =
            if traffic.is_empty() { String::new() } else { format!("labels: {{istio.io/waypoint-for: {traffic}}}") };
        let found = waypoint(&label, "{from: All}", READY);
        let (destination, reason) = outcome(target, OWN, "{}", Some(&found));
        assert_eq!(destination.is_some(), takes, "{traffic} {target:?}");
        assert_eq!(reason, if takes { "WaypointAccepted" } else { "UnsupportedTrafficType" });
        // Asked for by the namespace, it is no fault that it is not for this.
        let (destination, reason) = outcome(target, "{}", OWN, Some(&found));
        assert_eq!(destination.is_some(), takes, "{traffic} {target:?}");
        assert_eq!(reason, if takes { "WaypointAccepted" } else { "-" });
    }
}

#[test]
fn what_it_is_for_may_stand_on_its_class() {
    let class = object(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
         metadata: {name: mine, labels: {istio.io/waypoint-for: workload}}\n\
         spec: {controllerName: istio.io/mesh-controller}\n",
    );
    let Object::GatewayClass(class) = class else { panic!("a class") };
    let of = |extra: &str| Waypoint::read(&gateway(extra, "mine", "{}", READY), Some(&class)).traffic;
    assert_eq!(of(""), Traffic::Workload);
    assert_eq!(of("labels: {istio.io/waypoint-for: all}"), Traffic::All);
}

#[test]
fn a_waypoint_says_which_namespaces_may_bind() {
    const OWN: &str = "{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}";
    for (from, labels, allowed) in [
        ("{}", "{}", false),
        ("{from: Same}", "{}", false),
        ("{from: All}", "{}", true),
        ("{from: None}", "{}", false),
        ("{from: Selector, selector: {matchLabels: {team: a}}}", "{team: a}", true),
        ("{from: Selector, selector: {matchLabels: {team: a}}}", "{team: b}", false),
        ("{from: Selector}", "{team: a}", false),
    ] {
        let found = waypoint("", from, READY);
        let (destination, reason) = outcome(Target::Service, OWN, labels, Some(&found));
        assert_eq!(destination.is_some(), allowed, "{from} {labels}");
        assert_eq!(reason, if allowed { "WaypointAccepted" } else { "AttachmentDenied" });
    }
    let found = waypoint("", "{from: Same}", READY);
    let object = metadata("{name: page, namespace: infra, labels: {istio.io/use-waypoint: w}}");
    let binding = bind(Target::Service, &object, None, |_| Some(&found), &Mesh::default());
    assert!(matches!(binding, Binding::Bound { ready: true, .. }));
}

#[test]
fn one_of_ours_is_bound_before_it_is_ready_unless_it_says_otherwise() {
    const OWN: &str = "{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}";
    let there = Some("infra/w.infra.svc.cluster.local:15008".to_owned());
    let outcome = |found: Option<&Waypoint>| outcome(Target::Service, OWN, "{}", found);
    assert_eq!(outcome(None), (None, "WaypointIsNotReady"));
    assert_eq!(outcome(Some(&waypoint("", "{from: All}", "[]"))), (there.clone(), "WaypointIsNotReady"));
    assert_eq!(outcome(Some(&waypoint("", "{from: All}", READY))), (there.clone(), "WaypointAccepted"));
    let direct = "annotations: {stillmesh.io/waypoint-fallback: direct}";
    assert_eq!(outcome(Some(&waypoint(direct, "{from: All}", "[]"))), (None, "WaypointIsNotReady"));
    assert_eq!(outcome(Some(&waypoint(direct, "{from: All}", READY))), (there, "WaypointAccepted"));
    let named = "annotations: {gateway.istio.io/name-override: other}";
    let found = outcome(Some(&waypoint(named, "{from: All}", "[]"))).0;
    assert_eq!(found.as_deref(), Some("infra/other.infra.svc.cluster.local:15008"));
}

#[test]
fn one_of_another_controller_is_where_its_status_says() {
    const OWN: &str = "{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra}";
    for (addresses, expected) in [
        ("[]", None),
        ("[{type: IPAddress, value: 10.0.0.9}]", Some("/10.0.0.9:15008")),
        ("[{type: IPAddress, value: 10.0.0.9}, {type: Hostname, value: x.example}]", Some("infra/x.example:15008")),
    ] {
        let found = Waypoint::read(&gateway("", "other", "{from: All}", addresses), None);
        let (destination, reason) = outcome(Target::Service, OWN, "{}", Some(&found));
        assert_eq!(destination.as_deref(), expected);
        assert_eq!(reason, if expected.is_some() { "WaypointAccepted" } else { "WaypointIsNotReady" });
    }
}

#[test]
fn one_without_a_listener_for_tunnels_is_never_ready() {
    let mut gateway = gateway("", "istio-waypoint", "{from: All}", READY);
    gateway.spec.listeners[0].port = 15009;
    let found = Waypoint::read(&gateway, None);
    let object = metadata("{name: page, namespace: infra, labels: {istio.io/use-waypoint: w}}");
    let binding = bind(Target::Service, &object, None, |_| Some(&found), &Mesh::default());
    assert!(matches!(binding, Binding::Bound { ready: false, .. }), "{binding:?}");
}
