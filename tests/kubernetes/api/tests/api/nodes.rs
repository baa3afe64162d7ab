//! Whom the controller believes, and what they get.

use std::time::Duration;

use stillmesh_api::ca;
use stillmesh_api::xds::ResourceType;
use stillmesh_core::model::Identity;
use stillmesh_test_api::{Controller, Node, World, csr, said};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_known_by_its_pods_token_and_gets_its_own_pods_certificates() {
    let world = World::new().await;
    let tunnel = world.pod("ztunnel-1", "ztunnel", "api-node-1", "10.1.0.1").await;
    world.pod("page-0", "page", "api-node-1", "10.1.0.2").await;
    world.pod("cart-0", "cart", "api-node-2", "10.1.0.3").await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    let namespace = world.namespace.clone();
    world.until("the roots are there", || async { !world.roots_in(&world.namespace).await.is_empty() }).await;
    let roots = world.roots_in(&namespace).await;
    let identity =
        |account: &str| -> Identity { format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap() };
    let ask = |token: &str| ca::Client::new(controller.control_plane(&roots, token));

    let token = world.token("ztunnel", "istio-ca", Some(&tunnel)).await;
    let chain = ask(&token).sign(&csr(), Some(&identity("page")), HOUR).await.unwrap();
    assert_eq!((chain.len(), chain[1].trim()), (2, roots.trim()));
    let refused = |result: Result<Vec<String>, ca::CaError>| result.unwrap_err().to_string();
    let elsewhere = refused(ask(&token).sign(&csr(), Some(&identity("cart")), HOUR).await);
    assert!(elsewhere.contains("runs on node api-node-1"), "{elsewhere}");
    let page = world.token("page", "istio-ca", None).await;
    let unbound = refused(ask(&page).sign(&csr(), None, HOUR).await);
    assert!(unbound.contains("not bound to a pod"), "{unbound}");
    let other = world.token("ztunnel", "others", Some(&tunnel)).await;
    let others = refused(ask(&other).sign(&csr(), Some(&identity("page")), HOUR).await);
    assert!(others.contains("not accepted"), "{others}");
    let nonsense = refused(ask("nonsense").sign(&csr(), None, HOUR).await);
    assert!(nonsense.contains("authenticate failure"), "{nonsense}");

    // Configuration: the tunnel gets all of it, a workload none.
    let mut node = Node::connect(&world, controller.control_plane(&roots, &token), "ztunnel-1", "api-node-1");
    let mut heard = vec![node.next().await, node.next().await];
    heard.sort();
    let all: Vec<String> = ["cart-0", "page-0", "ztunnel-1"]
        .iter()
        .map(|pod| format!("workload Kubernetes//Pod/{namespace}/{pod}"))
        .collect();
    let mine: Vec<String> = heard[0].1.iter().filter(|one| one.contains(&namespace)).cloned().collect();
    assert_eq!(mine, all);
    assert_eq!(heard[1], said(ResourceType::Authorization, &[]));
    let pod = world.pod("page-1", "page", "api-node-1", "10.1.0.4").await;
    node.hears("page-1").await;
    let workload = world.token("page", "istio-ca", Some(&pod)).await;
    let failures = || controller.metric("citadel_server_authentication_failure_count");
    assert_eq!(failures().await, 3);
    let mut curious = Node::connect(&world, controller.control_plane(&roots, &workload), "page-1", "api-node-1");
    world.until("a workload is refused", || async { failures().await > 3 }).await;
    assert_eq!(curious.heard().len(), 0);
    drop(curious);

    // A pod that is gone speaks for nobody, also while its token is remembered.
    world.delete_pod("ztunnel-1").await;
    node.hears("no workload").await;
    let gone = refused(ask(&token).sign(&csr(), Some(&identity("page")), HOUR).await);
    assert!(gone.contains("is not there"), "{gone}");
    controller.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_or_a_restart_sends_a_node_only_what_has_changed() {
    let world = World::new().await;
    let tunnel = world.pod("ztunnel-1", "ztunnel", "api-node-1", "10.1.0.1").await;
    world.pod("page-0", "page", "api-node-1", "10.1.0.2").await;
    world.pod("page-1", "page", "api-node-1", "10.1.0.3").await;
    world.policy("deny", serde_json::json!({"action": "DENY", "rules": [{}]})).await;
    let first = Controller::start(&world, &[]).await;
    first.ready().await;
    world.until("the roots are there", || async { !world.roots_in(&world.namespace).await.is_empty() }).await;
    let roots = world.roots_in(&world.namespace).await;
    let token = world.token("ztunnel", "istio-ca", Some(&tunnel)).await;
    let address = first.nodes.to_string();
    let mut node = Node::connect(&world, first.control_plane(&roots, &token), "ztunnel-1", "api-node-1");
    node.next().await;
    node.next().await;
    first.stop().await;
    world.delete_pod("page-1").await;
    let second = Controller::start(&world, &[("LISTEN", &address)]).await;
    second.ready().await;
    let mut heard = vec![node.next().await, node.next().await];
    heard.sort();
    let gone = format!("no workload Kubernetes//Pod/{}/page-1", world.namespace);
    assert_eq!(heard, [said(ResourceType::Address, &[&gone]), said(ResourceType::Authorization, &[])]);
    second.stop().await;
    world.end().await;
}
