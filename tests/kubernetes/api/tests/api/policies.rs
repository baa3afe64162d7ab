//! What becomes of policies: in their status, and at the nodes.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use stillmesh_test_api::{Controller, Node, World};

fn condition(policy: &Value) -> Value {
    let all = policy["status"]["conditions"].as_array().into_iter().flatten();
    all.clone().find(|one| one["type"] != "stillmesh.io/InForce").cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_policy_is_in_its_status_and_a_restart_writes_nothing() {
    let world = World::new().await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    world.policy("page", json!({"rules": [{}]})).await;
    world.policy("audit", json!({"action": "AUDIT", "rules": [{}]})).await;
    let told = |name: &'static str, status: &'static str, generation: i64| {
        let world = &world;
        async move {
            let condition = condition(&world.get_policy(name).await);
            condition["type"] == "ZtunnelAccepted"
                && condition["status"] == status
                && condition["observedGeneration"] == generation
        }
    };
    world.until("the good one is accepted", || told("page", "True", 1)).await;
    world.until("the other one is not", || told("audit", "False", 1)).await;
    let since = condition(&world.get_policy("page").await)["lastTransitionTime"].clone();
    world.policy("page", json!({"action": "DENY", "rules": [{}]})).await;
    world.until("the change is told", || told("page", "True", 2)).await;
    let page = world.get_policy("page").await;
    assert_eq!(condition(&page)["lastTransitionTime"], since, "its status has not changed");
    controller.stop().await;
    let again = Controller::start(&world, &[]).await;
    again.ready().await;
    // Something that is written after all that would have been.
    world.policy("last", json!({"rules": [{}]})).await;
    world.until("the last one is told", || told("last", "True", 1)).await;
    let version = |policy: &Value| policy["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&world.get_policy("page").await), version(&page));
    again.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_read_refuses_and_says_so() {
    let world = World::new().await;
    let tunnel = world.pod("ztunnel-1", "ztunnel", "api-node-1", "10.1.0.1").await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    world.until("the roots are there", || async { !world.roots_in(&world.namespace).await.is_empty() }).await;
    let roots = world.roots_in(&world.namespace).await;
    let token = world.token("ztunnel", "istio-ca", Some(&tunnel)).await;
    let mut node = Node::connect(&world, controller.control_plane(&roots, &token), "ztunnel-1", "api-node-1");
    node.next().await;
    node.next().await;
    let unreadable = json!({"selector": {"matchLabels": {"app": "ztunnel"}}, "rules": [{"from": [{"source": {"ipBlocks": ["nonsense"]}}]}]});
    world.policy("p", unreadable.clone()).await;
    let (_, said) = node.hears("policy").await;
    assert!(said[0].ends_with("WorkloadSelector Deny"), "{said:?}");
    let says = |word: &'static str| {
        let world = &world;
        async move {
            let condition = condition(&world.get_policy("p").await);
            condition["status"] == "False" && condition["message"].as_str().unwrap_or_default().contains(word)
        }
    };
    world.until("its status says what follows", || says("is refused until it can be read")).await;
    world
        .until("and what is wrong", || says("spec.rules[0].from[0].source.ipBlocks[0]: \"nonsense\" is not an address"))
        .await;
    controller.says("/debug/findings", "nonsense").await;
    world.policy("p", json!({"selector": {"matchLabels": {"app": "ztunnel"}}, "rules": [{}]})).await;
    let (_, said) = node.hears("policy").await;
    assert!(said[0].ends_with("WorkloadSelector Allow"), "{said:?}");
    world.policy("p", unreadable).await;
    world.until("its last good version is kept", || says("stays in force")).await;
    assert_eq!(node.heard().len(), 0);
    world.delete_policy("p").await;
    node.hears("no policy").await;
    controller.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_itself_refuses_what_its_schema_can_tell() {
    let world = World::new().await;
    for (spec, word) in [
        (
            json!({"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [{"kind": "Service", "name": "x"}]}),
            "a selector, or targetRefs, or neither",
        ),
        (json!({"action": "CUSTOM", "rules": [{}]}), "needs a provider"),
        (json!({"provider": {"name": "x"}, "rules": [{}]}), "needs a provider"),
        (json!({"rules": [{"to": [{"operation": {"ports": ["70000"]}}]}]}), "ports[0]"),
        (json!({"rules": [{"when": [{"key": "", "values": ["x"]}]}]}), "key"),
    ] {
        let refused = world.try_policy("bad", spec.clone()).await.unwrap_err().to_string();
        assert!(refused.contains(word), "{spec}: {refused}");
    }
    world.policy("good", json!({"rules": [{"to": [{"operation": {"ports": ["65535", "1", "08080"]}}]}]})).await;
    let peer = |spec: Value| {
        let metadata = json!({"name": "p", "namespace": world.namespace});
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata, "spec": spec})
    };
    let labels = json!({"matchLabels": {"a": "b"}});
    for (spec, word) in [
        (json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}), "need a selector"),
        (json!({"selector": labels, "portLevelMtls": {"0": {"mode": "STRICT"}}}), "is a port"),
        (json!({"selector": labels, "portLevelMtls": {"http": {"mode": "STRICT"}}}), "is a port"),
    ] {
        let refused = world.try_apply(peer(spec.clone())).await.unwrap_err().to_string();
        assert!(refused.contains(word), "{spec}: {refused}");
    }
    world.apply(peer(json!({"selector": labels, "portLevelMtls": {"80": {"mode": "STRICT"}}}))).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mesh_config_asks_for_in_vain_is_named() {
    let world = World::new().await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    let metadata = json!({"name": "istio", "namespace": world.namespace});
    world.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh": "enableTracing: true\n"}})).await;
    controller.says("/debug/findings", "data.mesh.enableTracing").await;
    let none = Patch::Merge(json!({"data": {"mesh": ""}}));
    world.maps(&world.namespace).patch("istio", &PatchParams::default(), &none).await.unwrap();
    world
        .until("it is named no more", || async {
            !controller.page("/debug/findings").await.1.contains("enableTracing")
        })
        .await;
    controller.stop().await;
    world.end().await;
}
