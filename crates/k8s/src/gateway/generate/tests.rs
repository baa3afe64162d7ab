use serde_json::json;

use super::*;

fn gateway(value: Value) -> Gateway {
    serde_json::from_value(value).unwrap()
}

fn plain() -> Gateway {
    gateway(json!({
        "metadata": {"name": "waypoint", "namespace": "shop", "uid": "u1", "labels": {"istio.io/waypoint-for": "all", "team": "a"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x", "note": "n"}},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    }))
}

fn settings() -> Settings {
    Settings {
        image: "r.example/stillmesh:1".to_owned(),
        xds_address: "https://stillmesh-controller.stillmesh-system.svc:15012".to_owned(),
        ca_address: "https://stillmesh-controller.stillmesh-system.svc:15012".to_owned(),
        ..Settings::default()
    }
}

fn objects(gateway: &Gateway) -> [Value; 3] {
    let made = generate(gateway, &settings(), &Mesh::default(), &[]).unwrap();
    let value = |object: Result<Value, serde_json::Error>| object.unwrap();
    [
        value(serde_json::to_value(made.account)),
        value(serde_json::to_value(made.deployment)),
        value(serde_json::to_value(made.service)),
    ]
}

#[test]
fn everything_is_named_labelled_and_owned() {
    for object in objects(&plain()) {
        let metadata = &object["metadata"];
        assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!("waypoint"), &json!("shop")));
        assert_eq!(
            metadata["labels"],
            json!({
                "gateway.istio.io/managed": "istio.io-mesh-controller",
                "gateway.networking.k8s.io/gateway-class-name": "istio-waypoint",
                "gateway.networking.k8s.io/gateway-name": "waypoint",
                "istio.io/waypoint-for": "all",
                "team": "a",
            })
        );
        assert_eq!(metadata["annotations"]["note"], "n");
        assert_eq!(metadata["annotations"]["kubectl.kubernetes.io/last-applied-configuration"], Value::Null);
        let owner =
            json!([{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "waypoint", "uid": "u1"}]);
        assert_eq!(metadata["ownerReferences"], owner);
    }
}

#[test]
fn its_service_has_the_ports_of_its_listeners_for_tunnels() {
    let mut gateway = plain();
    gateway.spec.listeners.push(super::super::Listener {
        name: "web".into(),
        port: 80,
        protocol: "HTTP".into(),
        ..Default::default()
    });
    let [_, deployment, service] = objects(&gateway);
    let ports = json!([
        {"name": "status-port", "port": 15021, "protocol": "TCP"},
        {"name": "mesh", "port": 15008, "protocol": "TCP", "appProtocol": "hbone"},
    ]);
    assert_eq!(service["spec"]["ports"], ports);
    let selector = json!({"gateway.networking.k8s.io/gateway-name": "waypoint"});
    assert_eq!(service["spec"]["selector"], selector);
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], selector);
    assert_eq!(
        (&service["spec"]["type"], &service["spec"]["ipFamilyPolicy"]),
        (&json!("ClusterIP"), &json!("PreferDualStack"))
    );
    assert_eq!(service["metadata"]["annotations"]["networking.istio.io/traffic-distribution"], "PreferClose");
    assert_eq!(deployment["spec"].get("replicas"), None, "how many there are is the user's");
}

#[test]
fn its_pods_have_no_rights_and_stay_out_of_the_mesh() {
    let [_, deployment, _] = objects(&plain());
    let template = &deployment["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    assert_eq!(
        (&labels["istio.io/dataplane-mode"], &labels["sidecar.istio.io/inject"]),
        (&json!("none"), &json!("false"))
    );
    assert_eq!(labels["service.istio.io/canonical-name"], "waypoint");
    assert_eq!(labels["gateway.istio.io/managed"], "istio.io-mesh-controller");
    assert_eq!(labels.get("topology.istio.io/network"), None);
    assert_eq!(template["metadata"]["annotations"]["prometheus.io/port"], "15020");
    let pod = &template["spec"];
    assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&json!("waypoint"), &json!(false)));
    assert_eq!(
        (&pod["securityContext"]["runAsNonRoot"], &pod["securityContext"]["runAsUser"]),
        (&json!(true), &json!(1337))
    );
    let container = &pod["containers"][0];
    assert_eq!((&container["name"], &container["args"]), (&json!("istio-proxy"), &json!(["proxy", "waypoint"])));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    let variable = |name: &str| container["env"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned();
    assert_eq!(variable("XDS_ADDRESS").unwrap()["value"], settings().xds_address);
    assert_eq!(variable("POD_NAME").unwrap()["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
    assert_eq!(variable("NETWORK"), None, "an empty value is none");
    let token = &pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!((&token["audience"], &token["expirationSeconds"]), (&json!("istio-ca"), &json!(43_200)));
}

#[test]
fn infrastructure_replaces_what_is_copied_and_annotations_rename() {
    let mut gateway = plain();
    gateway.spec.infrastructure = Some(super::super::Infrastructure {
        labels: [("gateway.networking.k8s.io/x".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
        ..Default::default()
    });
    gateway.metadata.annotations = Some(
        [
            ("gateway.istio.io/name-override", "other"),
            ("gateway.istio.io/service-account", "mine"),
            ("networking.istio.io/service-type", "NodePort"),
        ]
        .map(owned)
        .into(),
    );
    let made = generate(&gateway, &settings(), &Mesh::default(), &[]).unwrap();
    assert_eq!(made.account, None);
    let labels = made.deployment.metadata.labels.unwrap();
    assert_eq!(
        (labels.get("b").map(String::as_str), labels.get("team"), labels.get("gateway.networking.k8s.io/x")),
        (Some("2"), None, None)
    );
    assert_eq!(made.deployment.metadata.name.as_deref(), Some("other"));
    assert_eq!(made.service.spec.unwrap().type_.as_deref(), Some("NodePort"));
    let pod = made.deployment.spec.template.spec.unwrap();
    assert_eq!(pod.service_account_name.as_deref(), Some("mine"));
}

#[test]
fn clients_prefer_the_replicas_of_their_zone() {
    let made = generate(&plain(), &settings(), &Mesh::default(), &[]).unwrap();
    let service = crate::translate::service(&made.service, None, None, &Mesh::default()).unwrap();
    use stillmesh_core::model::{Mode, RoutingScope};
    let balancing = service.load_balancing;
    assert_eq!(balancing.mode, Mode::Failover);
    assert_eq!(balancing.routing_preferences, [RoutingScope::Network, RoutingScope::Region, RoutingScope::Zone]);
}
