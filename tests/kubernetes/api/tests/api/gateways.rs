//! Waypoints: what is made of a Gateway, and what is said of it, under the Gateway API's own definitions.

use serde_json::{Value, json};
use stillmesh_test_api::{Controller, World};

const GATEWAYS: &str = "gateway.networking.k8s.io/v1";

fn gateway(world: &World, name: &str) -> Value {
    let listener = json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
    json!({
        "apiVersion": GATEWAYS, "kind": "Gateway",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [listener]},
    })
}

/// A condition of an object: status, reason and message; `None` where it is not there.
async fn condition(world: &World, version: &str, kind: &str, name: &str, type_: &str) -> Option<[String; 3]> {
    let object = world.get(version, kind, name).await?;
    let found = object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == type_)?.clone();
    Some(["status", "reason", "message"].map(|key| found[key].as_str().unwrap_or_default().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_run_once_its_kinds_are_there_and_what_becomes_of_it_is_in_its_status() {
    let world = World::new().await;
    world.remove_gateway_api().await;
    let controller = Controller::start(&world, &[("WAYPOINT_IMAGE", "localhost/stillmesh:test")]).await;
    controller.ready().await;
    let metadata = json!({"name": "page", "namespace": world.namespace, "labels": {"istio.io/use-waypoint": "w"}});
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}});
    world.apply(service).await;
    let bound = |status: &'static str, words: &'static str| {
        let world = &world;
        async move {
            let found = condition(world, "v1", "Service", "page", "istio.io/WaypointBound").await;
            found.is_some_and(|[is, _, message]| is == status && message.contains(words))
        }
    };
    world.until("the service's status says that there is none", || bound("False", "there is no Gateway")).await;
    world.gateway_api().await;
    for class in ["istio-waypoint", "stillmesh-waypoint"] {
        world
            .until("the class is there and accepted", || async {
                let found = condition(&world, GATEWAYS, "GatewayClass", class, "Accepted").await;
                found.is_some_and(|[status, ..]| status == "True")
            })
            .await;
    }
    world.apply(gateway(&world, "w")).await;
    for (version, kind) in [("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "ServiceAccount")] {
        world.until("its objects are there", || async { world.get(version, kind, "w").await.is_some() }).await;
        let object = world.get(version, kind, "w").await.unwrap();
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["name"]), (&json!("Gateway"), &json!("w")));
        assert_eq!(object["metadata"]["labels"]["gateway.istio.io/managed"], "istio.io-mesh-controller");
    }
    let programmed = |name: &'static str, reason: &'static str| {
        let world = &world;
        async move {
            let found = condition(world, GATEWAYS, "Gateway", name, "Programmed").await;
            found.is_some_and(|[_, is, _]| is == reason)
        }
    };
    world.until("it waits for a pod", || programmed("w", "Pending")).await;
    let told = world.get(GATEWAYS, "Gateway", "w").await.unwrap();
    let hostname = format!("w.{}.svc.cluster.local", world.namespace);
    assert_eq!(told["status"]["addresses"][0], json!({"type": "Hostname", "value": hostname}));
    assert_eq!(told["status"]["addresses"][1]["type"], "IPAddress");
    assert_eq!(told["status"]["listeners"][0]["name"], "mesh");
    world.until("the service is attached", || bound("True", "Successfully attached to waypoint")).await;
    // Nobody runs pods here.
    world
        .patch_status("apps/v1", "Deployment", "w", json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}))
        .await;
    world.until("it is programmed", || programmed("w", "Programmed")).await;
    // Somebody takes its Service away and changes its Deployment.
    world.delete("v1", "Service", "w").await;
    world.until("its Service is back", || async { world.get("v1", "Service", "w").await.is_some() }).await;
    let mut deployment = world.get("apps/v1", "Deployment", "w").await.unwrap();
    deployment["metadata"]["managedFields"] = Value::Null;
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "elsewhere".into();
    world.apply(deployment).await;
    world
        .until("its image is back", || async {
            let found = world.get("apps/v1", "Deployment", "w").await.unwrap();
            found["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/stillmesh:test"
        })
        .await;
    controller.stop().await;
    // A new leader has nothing to say about what is as it should be.
    world.until("it is programmed again", || programmed("w", "Programmed")).await;
    let version = |object: Value| object["metadata"]["resourceVersion"].clone();
    let before = version(world.get(GATEWAYS, "Gateway", "w").await.unwrap());
    let again = Controller::start(&world, &[("WAYPOINT_IMAGE", "localhost/stillmesh:test")]).await;
    again.ready().await;
    world.apply(gateway(&world, "last")).await;
    world.until("the last one is told of", || programmed("last", "Pending")).await;
    assert_eq!(version(world.get(GATEWAYS, "Gateway", "w").await.unwrap()), before);
    again.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_made_is_left_to_them() {
    let world = World::new().await;
    world.gateway_api().await;
    let metadata = json!({"name": "w", "namespace": world.namespace});
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}});
    world.apply(service).await;
    let controller = Controller::start(&world, &[("WAYPOINT_IMAGE", "localhost/stillmesh:test")]).await;
    controller.ready().await;
    world.apply(gateway(&world, "w")).await;
    world
        .until("its status says so", || async {
            let found = condition(&world, GATEWAYS, "Gateway", "w", "Programmed").await;
            found.is_some_and(|[_, reason, message]| reason == "Invalid" && message.contains("is there already"))
        })
        .await;
    let service = world.get("v1", "Service", "w").await.unwrap();
    assert_eq!(service["spec"]["ports"][0]["port"], 80);
    controller.stop().await;
    world.end().await;
}

fn route(world: &World, name: &str, backend: &str) -> Value {
    let parent = json!({"group": "", "kind": "Service", "name": "page"});
    json!({
        "apiVersion": GATEWAYS, "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [{"name": backend, "port": 80}]}]},
    })
}

/// What this controller says to a route's one Service: the condition, and when it came to be.
async fn said(world: &World, name: &str, type_: &str) -> Option<Value> {
    let object = world.get(GATEWAYS, "HTTPRoute", name).await?;
    let parents = object["status"]["parents"].as_array()?.clone();
    let ours = parents.into_iter().find(|one| one["controllerName"] == "istio.io/gateway-controller")?;
    assert_eq!(ours["parentRef"]["kind"], "Service");
    let generation = object["metadata"]["generation"].clone();
    let found = ours["conditions"].as_array()?.iter().find(|one| one["type"] == type_)?.clone();
    (found["observedGeneration"] == generation).then_some(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_route_is_said_to_its_services_beside_what_others_say() {
    let world = World::new().await;
    world.gateway_api().await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    for name in ["page", "details"] {
        let metadata = json!({"name": name, "namespace": world.namespace});
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}});
        world.apply(service).await;
    }
    world.apply(route(&world, "r", "nobody")).await;
    let is = |type_: &'static str, status: &'static str| {
        let world = &world;
        async move { said(world, "r", type_).await.is_some_and(|one| one["status"] == status) }
    };
    world.until("its backend is not there", || is("ResolvedRefs", "False")).await;
    let accepted = said(&world, "r", "Accepted").await.unwrap();
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("True"), &json!("Accepted")));
    let waypoints = said(&world, "r", "ResolvedWaypoints").await.unwrap();
    assert!(waypoints["message"].as_str().unwrap().contains("istio.io/use-waypoint"), "{waypoints}");
    // Somebody else serves this route too.
    let parents = world.get(GATEWAYS, "HTTPRoute", "r").await.unwrap()["status"]["parents"].clone();
    let condition = json!({
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z",
    });
    let foreign =
        json!({"controllerName": "other.example/x", "parentRef": parents[0]["parentRef"], "conditions": [condition]});
    world.patch_status(GATEWAYS, "HTTPRoute", "r", json!({"parents": [foreign, parents[0]]})).await;
    world.apply(route(&world, "r", "details")).await;
    world.until("its backend is there", || is("ResolvedRefs", "True")).await;
    let all = world.get(GATEWAYS, "HTTPRoute", "r").await.unwrap()["status"]["parents"].clone();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    assert!(all.as_array().unwrap().contains(&foreign), "{all}");
    let later = said(&world, "r", "Accepted").await.unwrap();
    assert_eq!(later["lastTransitionTime"], accepted["lastTransitionTime"]);
    world.delete("v1", "Service", "page").await;
    world.until("its parent is gone", || is("Accepted", "False")).await;
    // A route that names no Service any more has nothing to hear from us.
    let mut other = route(&world, "r", "details");
    other["spec"]["parentRefs"] = json!([{"name": "ingress"}]);
    world.apply(other).await;
    world
        .until("nothing is left of what was said", || async {
            let object = world.get(GATEWAYS, "HTTPRoute", "r").await.unwrap();
            object["status"]["parents"] == json!([foreign])
        })
        .await;
    controller.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_changes_what_runs_a_gateway_and_a_bad_one_changes_nothing() {
    let world = World::new().await;
    world.gateway_api().await;
    let controller = Controller::start(&world, &[("WAYPOINT_IMAGE", "localhost/stillmesh:test")]).await;
    controller.ready().await;
    let options = |data: Value| {
        let metadata = json!({"name": "options", "namespace": world.namespace});
        world.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}))
    };
    let mut written = gateway(&world, "w");
    let reference = json!({"group": "", "kind": "ConfigMap", "name": "options"});
    written["spec"]["infrastructure"] = json!({"parametersRef": reference});
    world.apply(written).await;
    let accepted = |reason: &'static str| {
        let world = &world;
        async move {
            let found = condition(world, GATEWAYS, "Gateway", "w", "Accepted").await;
            found.is_some_and(|[_, is, _]| is == reason)
        }
    };
    world.until("it is said that the overlay is not there", || accepted("InvalidParameters")).await;
    assert!(world.get("apps/v1", "Deployment", "w").await.is_none());
    // Quantities and empty values as the server would not write them: it is applied once all the same.
    let deployment = "spec: {template: {spec: {containers: [{name: istio-proxy, resources: {limits: {cpu: 1000m}}, \
                      env: [{name: EMPTY, value: ''}]}]}}}";
    let scaler = "spec: {minReplicas: 2, maxReplicas: 4}";
    let data = json!({
        "deployment": deployment,
        "horizontalPodAutoscaler": scaler,
        "podDisruptionBudget": "spec: {minAvailable: 1}",
    });
    options(data).await;
    world.until("it is taken", || accepted("Accepted")).await;
    const ASKED: [(&str, &str); 2] =
        [("autoscaling/v2", "HorizontalPodAutoscaler"), ("policy/v1", "PodDisruptionBudget")];
    for (version, kind) in ASKED {
        world.until("what it asks for is there", || async { world.get(version, kind, "w").await.is_some() }).await;
    }
    let limit = |object: &Value| {
        object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"].as_str().map(str::to_owned)
    };
    let before = world.get("apps/v1", "Deployment", "w").await.unwrap();
    assert_eq!(limit(&before).as_deref(), Some("1"));
    options(json!({"deployment": "spec: {replica: 3}"})).await;
    world.until("it is refused", || accepted("InvalidParameters")).await;
    let after = world.get("apps/v1", "Deployment", "w").await.unwrap();
    assert_eq!(before["metadata"]["generation"], after["metadata"]["generation"]);
    assert!(world.get(ASKED[0].0, ASKED[0].1, "w").await.is_some(), "nothing is taken away by mistake");
    options(json!({"deployment": "spec: {minReadySeconds: 3}"})).await;
    world.until("it is taken", || accepted("Accepted")).await;
    for (version, kind) in ASKED {
        world.until("what nobody asks for is gone", || async { world.get(version, kind, "w").await.is_none() }).await;
    }
    world
        .until("the deployment follows", || async {
            let object = world.get("apps/v1", "Deployment", "w").await.unwrap();
            object["spec"]["minReadySeconds"] == 3 && limit(&object).is_none()
        })
        .await;
    controller.stop().await;
    world.end().await;
}
