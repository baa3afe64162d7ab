use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::super::condition::{Progress, gateway_status};
use super::super::generate::{Generated, Settings, Unmade, generate};
use super::*;
use crate::translate::Mesh;

fn gateway() -> Gateway {
    serde_json::from_value(json!({
        "metadata": {"name": "w", "namespace": "shop", "uid": "u1"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            "infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "w-options"}},
        },
    }))
    .unwrap()
}

fn map(name: &str, data: Value) -> ConfigMap {
    let metadata = json!({"name": name, "namespace": "shop", "labels": {DEFAULTS_FOR: "istio-waypoint"}});
    serde_json::from_value(json!({"metadata": metadata, "data": data})).unwrap()
}

fn with(own: Value, defaults: Option<Value>) -> Result<Generated, String> {
    let (own, defaults) = (map("w-options", own), defaults.map(|data| map("defaults", data)));
    let settings = Settings { image: "i:1".to_owned(), ..Settings::default() };
    let overlays = of(&gateway(), Some(&own), defaults.iter())?;
    generate(&gateway(), &settings, &Mesh::default(), &overlays).map_err(|unmade| match unmade {
        Unmade::Parameters(problem) => problem,
        Unmade::Gateway(problem) => panic!("{problem}"),
    })
}

#[test]
fn what_an_overlay_wants_different_is_and_the_rest_stays() {
    let overlay = "metadata: {annotations: {team: a}}\nspec:\n  replicas: 3\n  template:\n    metadata: {annotations: {x: 'y'}}\n    \
                   spec:\n      priorityClassName: high\n      containers:\n      - name: istio-proxy\n        \
                   env: [{name: RUST_LOG, value: debug}, {name: TRUST_DOMAIN, $patch: delete}]\n        \
                   resources: {limits: {cpu: 2, memory: 2Gi}}\n";
    let made = with(json!({"deployment": overlay}), None).unwrap();
    let deployment = serde_json::to_value(&made.deployment).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["metadata"]["annotations"]["team"], "a");
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["x"], "y");
    assert_eq!(template["metadata"]["annotations"]["prometheus.io/port"], "15020");
    assert_eq!(template["spec"]["priorityClassName"], "high");
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"], json!({"cpu": "2", "memory": "2Gi"}));
    assert_eq!(container["resources"]["requests"]["cpu"], "100m");
    let env = container["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|one| one["name"] == name).map(|one| one["value"].clone());
    assert_eq!((value("RUST_LOG"), value("TRUST_DOMAIN")), (Some(json!("debug")), None));
    assert!(value("CLUSTER_DOMAIN").is_some());
    let plain = with(json!({}), None).unwrap();
    assert_eq!((&made.service, &made.account), (&plain.service, &plain.account));
    assert!(made.autoscaler.is_none() && made.budget.is_none());
}

#[test]
fn a_gateways_own_overlay_is_laid_over_that_of_its_class() {
    let defaults =
        json!({"deployment": "spec: {replicas: 2, minReadySeconds: 5}", "service": "spec: {type: NodePort}"});
    let made = with(json!({"deployment": "spec: {replicas: 4}"}), Some(defaults)).unwrap();
    assert_eq!((made.deployment.spec.replicas, made.deployment.spec.min_ready_seconds), (Some(4), Some(5)));
    assert_eq!(made.service.spec.unwrap().type_.as_deref(), Some("NodePort"));
    let mut other = map("other", json!({"deployment": "nonsense"}));
    other.metadata.labels = Some([(DEFAULTS_FOR.to_owned(), "istio".to_owned())].into());
    let own = map("w-options", json!({}));
    assert_eq!(of(&gateway(), Some(&own), [&other].into_iter()).unwrap().len(), 1, "that of another class is not read");
}

#[test]
fn autoscaler_and_budget_are_made_where_they_are_asked_for() {
    let overlay = json!({
        "deployment": "spec: {replicas: 4}",
        "horizontalPodAutoscaler": "spec: {minReplicas: 2, maxReplicas: 5}",
        "podDisruptionBudget": "spec: {minAvailable: 50%}",
    });
    let made = with(overlay, None).unwrap();
    assert_eq!(made.deployment.spec.replicas, None, "the autoscaler alone says how many");
    let scaler = serde_json::to_value(made.autoscaler.as_ref().unwrap()).unwrap();
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "w"});
    assert_eq!(scaler["spec"], json!({"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 5}));
    let budget = serde_json::to_value(made.budget.as_ref().unwrap()).unwrap();
    let selector = json!({"matchLabels": {"gateway.networking.k8s.io/gateway-name": "w"}});
    assert_eq!(budget["spec"], json!({"minAvailable": "50%", "selector": selector}));
    for object in [&scaler, &budget] {
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u1");
        assert_eq!(object["metadata"]["labels"]["gateway.istio.io/managed"], "istio.io-mesh-controller");
    }
    let kinds: Vec<Kind> = made.objects().map(|object| object.kind()).collect();
    let all = [Kind::ServiceAccount, Kind::Service, Kind::Deployment, ASKED[0], ASKED[1]];
    assert_eq!(kinds, all);
}

const ASKED: [Kind; 2] = super::super::generate::ASKED_FOR;

#[test]
fn what_is_wrong_with_an_overlay_is_told_with_its_place() {
    let pods = |text: &str| json!({"deployment": format!("spec: {{template: {text}}}")});
    for (data, words) in [
        (json!({"deployments": ""}), "unknown key \"deployments\""),
        (json!({"deployment": "spec: ["}), "ConfigMap shop/w-options: deployment: not YAML"),
        (json!({"deployment": "- a"}), "not a map"),
        (json!({"deployment": "spec: {replica: 2}"}), "spec.replica: unknown field"),
        (json!({"deployment": "spec: {replicas: two}"}), "spec.replicas"),
        (json!({"deployment": "metadata: {name: v}"}), "metadata.name cannot be changed"),
        (json!({"service": "metadata: {name: v}"}), "name-override"),
        (json!({"service": "metadata: {namespace: v}"}), "metadata.namespace cannot be changed"),
        (json!({"deployment": "kind: StatefulSet"}), "kind cannot be changed"),
        (json!({"deployment": "metadata: {ownerReferences: []}\nspec: {}"}), ""),
        (json!({"deployment": "metadata: {ownerReferences: null}"}), "metadata.ownerReferences cannot be changed"),
        (json!({"deployment": "spec: {selector: {matchLabels: {a: b}}}"}), "spec.selector cannot be changed"),
        (json!({"service": "spec: {selector: {a: b}}"}), "spec.selector cannot be changed"),
        (json!({"podDisruptionBudget": "spec: {selector: null}"}), "spec.selector cannot be changed"),
        (json!({"horizontalPodAutoscaler": "spec: {scaleTargetRef: {name: v}, maxReplicas: 2}"}), "scaleTargetRef"),
        (json!({"horizontalPodAutoscaler": ""}), "spec.maxReplicas"),
        (json!({"service": "spec: {ports: [{port: 15008, $patch: delete}]}"}), "spec.ports cannot be changed"),
        (pods("{metadata: {labels: {istio.io/dataplane-mode: ambient}}}"), "dataplane-mode cannot be changed"),
        (pods("{spec: {serviceAccountName: other}}"), "gateway.istio.io/service-account"),
        (pods("{spec: {containers: [{name: istio-proxy, $patch: delete}]}}"), "containers cannot be changed"),
        (pods("{spec: {containers: [{image: x}]}}"), "spec.template.spec.containers[0]: name is missing"),
    ] {
        match with(data.clone(), None) {
            Err(problem) => assert!(!words.is_empty() && problem.contains(words), "{data}: {problem}"),
            Ok(_) => assert!(words.is_empty(), "{data}"),
        }
    }
}

#[test]
fn what_is_not_there_or_not_a_config_map_is_refused() {
    let mut gateway = gateway();
    let missing = of(&gateway, None, [].into_iter()).unwrap_err();
    assert!(missing.contains("there is no ConfigMap shop/w-options"), "{missing}");
    let infrastructure = gateway.spec.infrastructure.as_mut().unwrap();
    infrastructure.parameters_ref = Some(json!({"group": "x.example", "kind": "Options", "name": "a"}));
    assert!(named(&gateway).unwrap_err().contains("not Options.x.example"));
    gateway.metadata.annotations = Some([("gateway.istio.io/service-account".to_owned(), "mine".to_owned())].into());
    let overlays = [Overlay::read(&map("m", json!({"serviceAccount": "{}"})), false).unwrap()];
    let unmade = generate(&gateway, &Settings::default(), &Mesh::default(), &overlays).unwrap_err();
    assert!(matches!(unmade, Unmade::Parameters(problem) if problem.contains("serviceAccount")));
    let overlays = [Overlay { of_class: true, ..overlays[0].clone() }];
    assert!(generate(&gateway, &Settings::default(), &Mesh::default(), &overlays).is_ok());
}

#[test]
fn a_gateway_whose_overlay_is_refused_says_so_and_whether_it_still_runs() {
    let mut progress = Progress { parameters: Some("it is bad".to_owned()), ..Progress::default() };
    let said = |progress: &Progress| {
        let status = gateway_status(&gateway(), progress, &Mesh::default(), "2026-01-01T00:00:00Z").unwrap();
        let one = |type_: &str| {
            let one = status.conditions.iter().find(|one| one.type_ == type_).unwrap();
            (one.status.clone(), one.reason.clone(), one.message.clone())
        };
        (one("Accepted"), one("Programmed"))
    };
    let (accepted, programmed) = said(&progress);
    assert_eq!((accepted.0.as_str(), accepted.1.as_str()), ("False", "InvalidParameters"));
    assert!(accepted.2.contains("it is bad"));
    assert_eq!((programmed.0.as_str(), programmed.1.as_str()), ("False", "Invalid"));
    progress.addresses = vec!["10.0.0.1".parse().unwrap()];
    progress.ready = 1;
    assert_eq!(said(&progress).1.1, "Programmed");
}
