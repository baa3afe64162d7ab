//! What is heard of objects, also when the server was out of reach.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use stillmesh_cluster::{KubernetesSource, Scope, Watch};
use stillmesh_k8s::Kind;
use stillmesh_objects::{Change, Source, Update};
use stillmesh_test_api::{LIMIT, World};

use crate::proxy::Proxy;

async fn next(source: &mut KubernetesSource) -> Update {
    tokio::time::timeout(LIMIT, source.next()).await.expect("an update comes").expect("the source goes on")
}

fn told(update: &Update) -> Vec<String> {
    let one = |change: &Change| match change {
        Change::Set(placed) => format!("set {}", placed.object.name()),
        Change::Removed(key) => format!("removed {}", key.name),
    };
    let mut told: Vec<String> = update.changes.iter().map(one).collect();
    told.sort();
    told
}

async fn pods_of_the_node(world: &World, proxy: &Proxy) -> KubernetesSource {
    let access = world.access(Some(&proxy.url())).await;
    let watch = Watch { kind: Kind::Pod, scope: Scope::Node("api-node-1".to_owned()) };
    KubernetesSource::open(&access, vec![watch])
}

/// What is told until all of this has been.
async fn hears(source: &mut KubernetesSource, wanted: &[&str]) -> Vec<String> {
    let mut heard = Vec::new();
    while !wanted.iter().all(|one| heard.iter().any(|told| told == one)) {
        heard.extend(told(&next(source).await));
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_the_server_is_out_of_reach_is_heard_afterwards_and_nothing_else() {
    let world = World::new().await;
    world.pod("stays", "a", "api-node-1", "10.1.0.1").await;
    world.pod("goes", "a", "api-node-1", "10.1.0.2").await;
    let proxy = Proxy::start(&world).await;
    let mut source = pods_of_the_node(&world, &proxy).await;
    let first = next(&mut source).await;
    assert!(first.complete);
    let mine = |all: Vec<String>| -> Vec<String> { all.into_iter().filter(|one| !one.contains("ztunnel")).collect() };
    let heard = mine(told(&first));
    assert!(heard.contains(&"set goes".to_owned()) && heard.contains(&"set stays".to_owned()), "{heard:?}");
    proxy.cut();
    world.delete_pod("goes").await;
    world.pod("comes", "a", "api-node-1", "10.1.0.3").await;
    // Nothing is heard, and nothing is forgotten, while the server is away.
    let quiet = tokio::time::timeout(std::time::Duration::from_secs(2), source.next()).await;
    assert!(quiet.is_err());
    proxy.mend();
    let heard = hears(&mut source, &["set comes", "removed goes"]).await;
    assert!(!heard.contains(&"set stays".to_owned()), "{heard:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_has_expired_begins_anew_and_tells_only_what_changed() {
    let world = World::new().await;
    world.pod("stays", "a", "api-node-1", "10.1.0.1").await;
    world.pod("goes", "a", "api-node-1", "10.1.0.2").await;
    let proxy = Proxy::start(&world).await;
    let mut source = pods_of_the_node(&world, &proxy).await;
    assert!(next(&mut source).await.complete);
    let pods = kube::Api::<Pod>::namespaced(world.client(), &world.namespace);
    let version = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    proxy.cut();
    world.delete_pod("goes").await;
    // Until the server itself says that what was heard last is too old to go on from.
    let expired = async || {
        let mut events = pods.watch(&WatchParams::default().timeout(1), &version).await.unwrap().boxed();
        matches!(events.next().await, Some(Ok(WatchEvent::Error(status))) if status.code == 410)
    };
    let mut number = 0;
    while !expired().await {
        number += 1;
        assert!(number < 120, "the server forgets nothing");
        let name = format!("passes-{number}");
        world.pod(&name, "a", "api-node-1", "10.1.0.4").await;
        world.delete_pod(&name).await;
    }
    world.pod("comes", "a", "api-node-1", "10.1.0.3").await;
    proxy.mend();
    let heard = hears(&mut source, &["set comes", "removed goes"]).await;
    assert!(
        !heard.iter().any(|one| one == "set stays" || one == "removed stays" || one.contains("passes")),
        "{heard:?}"
    );
    // And it is a watch again.
    world.delete_pod("stays").await;
    hears(&mut source, &["removed stays"]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_waited_for() {
    let world = World::new().await;
    world.pod("stays", "a", "api-node-1", "10.1.0.1").await;
    let proxy = Proxy::start(&world).await;
    proxy.slow(std::time::Duration::from_millis(1500));
    let mut source = pods_of_the_node(&world, &proxy).await;
    let first = next(&mut source).await;
    assert!(first.complete && told(&first).contains(&"set stays".to_owned()));
    world.delete_pod("stays").await;
    world.pod("comes", "a", "api-node-1", "10.1.0.3").await;
    hears(&mut source, &["set comes", "removed stays"]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_maps_of_a_name_are_watched() {
    let world = World::new().await;
    let mut source = KubernetesSource::open(
        &world.access(None).await,
        vec![Watch::named_anywhere(Kind::ConfigMap, "istio-ca-root-cert")],
    );
    assert!(next(&mut source).await.complete);
    for name in ["other", "istio-ca-root-cert"] {
        let metadata = serde_json::json!({"name": name, "namespace": world.namespace});
        world
            .apply(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}))
            .await;
    }
    assert_eq!(told(&next(&mut source).await), ["set istio-ca-root-cert"]);
    world.end().await;
}
