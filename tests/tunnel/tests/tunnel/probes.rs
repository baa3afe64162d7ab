//! The kubelet's probes under a policy that refuses clear text, and those who would pass for the kubelet.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod as Manifest;
use serde_json::json;
use stillmesh_cni::probes::Probes;
use stillmesh_core::fixtures;
use stillmesh_core::model::{Action, Match, Scope, StringMatch};
use stillmesh_netlink::nft::{Batch, Chain, Family, Hook, Kind, Rule, Table, apply, masquerade};
use stillmesh_runtime::sys::socket;
use stillmesh_runtime::tasks::Tasks;
use stillmesh_test_support::isolated_async;
use stillmesh_test_support::net::Place;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// An agent that answers by these ports, once it does.
async fn serve(probes: Probes, mesh: &Mesh, node: &Node, processes: &tempfile::TempDir) -> Tasks {
    let agent = Tasks::new("agent");
    let path = node.home().join("probes.sock");
    // Nobody listens to what tunnels say of pods.
    let (asks, _) = mpsc::channel(1);
    let (host, processes) = (mesh.router.netns().clone(), processes.path().to_owned());
    agent.spawn("probes", probes.serve(path.clone(), host, processes, asks));
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    agent
}

/// A pod under STRICT on a node whose agent answers for it; its probe port is 8080. The router is the node.
struct Scene {
    mesh: Mesh,
    node: Node,
    pod: Pod,
    _agent: Tasks,
    processes: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let pod = mesh.pod(&node, "shop/page").await;
        for port in [8080, 9090] {
            pod.echo(port).await;
        }
        // What PeerAuthentication STRICT becomes.
        let matches = vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }];
        mesh.policy(fixtures::policy("shop/strict", Scope::Namespace, Action::Deny, matches));
        node.knows("the policy", |dump| dump["policies"].as_array().is_some_and(|all| all.len() == 1)).await;
        let probes = Probes::default();
        let manifest: Manifest = serde_json::from_value(json!({
            "metadata": { "name": "page", "uid": pod.uid() },
            "spec": { "containers": [{ "name": "a", "readinessProbe": { "httpGet": { "port": 8080 } } }] },
        }))
        .unwrap();
        probes.learn(&manifest);
        // The node has one process: looking through all of this machine's takes as long as they are many.
        let processes = tempfile::tempdir().unwrap();
        let own = std::process::id().to_string();
        std::os::unix::fs::symlink(format!("/proc/{own}"), processes.path().join(&own)).unwrap();
        let agent = serve(probes, &mesh, &node, &processes).await;
        Self { mesh, node, pod, _agent: agent, processes }
    }
}

/// What a process at a place gets from an echo server; empty where the connection was closed.
async fn ask(place: &Place, to: SocketAddr) -> String {
    let made = place.run_async(move || socket::tcp_connect_socket(to, None, None)).await.unwrap();
    // Refused, it may be reset before the client has seen that it was taken.
    let Ok(mut stream) = made.connect(to).await else { return String::new() };
    let _ = stream.write_all(b"probe").await;
    let mut answer = vec![0; 64];
    let length = stream.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// All that leaves the place for others carries its own address, as pods' traffic to the outside does.
async fn masquerade_all(place: &Place) {
    place
        .run_async(|| {
            let mut batch = Batch::new();
            let chain = Chain::base("postrouting", Kind::Nat, Hook::Postrouting, 100).rule(Rule::new([masquerade()]));
            batch.replace_table(&Table::new(Family::Ip, "masquerade").chain(chain));
            apply(&batch).unwrap();
        })
        .await;
}

#[test]
fn the_nodes_own_connection_to_a_probe_port_passes_under_strict_and_to_another_port_does_not() {
    isolated_async(|| async {
        let scene = Scene::new().await;
        let router = scene.mesh.router.clone();
        assert!(ask(&router, scene.pod.at(8080)).await.contains('.'), "the probe is answered");
        assert_eq!(ask(&router, scene.pod.at(9090)).await, "", "no probe port");
        scene.node.counts("stillmesh_ztunnel_probes_total", &["verdict=\"probe\""], 1).await;
        scene.node.counts("istio_tcp_connections_failed_total", &["response_flags=\"DENY\""], 1).await;
    });
}

#[test]
fn a_pod_behind_the_nodes_address_is_no_probe() {
    isolated_async(|| async {
        let mut scene = Scene::new().await;
        let attacker = scene.mesh.unmeshed("out/attacker").await;
        masquerade_all(&scene.mesh.router).await;
        assert_eq!(ask(&attacker.place, scene.pod.at(8080)).await, "");
        scene.node.counts("stillmesh_ztunnel_probes_total", &["verdict=\"other\""], 1).await;
        // The node's own still pass.
        assert!(ask(&scene.mesh.router.clone(), scene.pod.at(8080)).await.contains('.'));
    });
}

#[test]
fn a_workload_that_is_known_is_refused_without_a_question() {
    isolated_async(|| async {
        let mut scene = Scene::new().await;
        let plain = scene.mesh.unmeshed("shop/plain").await;
        scene.mesh.publish_pod(&scene.node, &plain, |_| ());
        scene.node.knows("it", |dump| dump["workloads"].as_array().is_some_and(|all| all.len() == 2)).await;
        assert_eq!(ask(&plain.place, scene.pod.at(8080)).await, "");
        scene.node.counts("stillmesh_ztunnel_probes_total", &[], 0).await;
    });
}

#[test]
fn without_an_agent_that_answers_a_probe_is_ordinary_traffic() {
    isolated_async(|| async {
        let scene = Scene::new().await;
        let _silent = stillmesh_api::probes::listen(&scene.node.home().join("probes.sock")).unwrap();
        assert_eq!(ask(&scene.mesh.router.clone(), scene.pod.at(8080)).await, "");
        scene.node.counts("stillmesh_ztunnel_probes_total", &["verdict=\"unanswered\""], 1).await;
    });
}

#[test]
fn while_there_is_no_agent_whoever_has_probed_goes_on_and_nobody_else() {
    isolated_async(|| async {
        let mut scene = Scene::new().await;
        let other = scene.mesh.unmeshed("out/other").await;
        let router = scene.mesh.router.clone();
        assert!(ask(&router, scene.pod.at(8080)).await.contains('.'));
        std::fs::remove_file(scene.node.home().join("probes.sock")).unwrap();
        assert!(ask(&router, scene.pod.at(8080)).await.contains('.'), "the same client and port");
        scene.node.counts("stillmesh_ztunnel_probes_total", &["verdict=\"remembered\""], 1).await;
        assert_eq!(ask(&router, scene.pod.at(9090)).await, "", "no probe port");
        assert_eq!(ask(&other.place, scene.pod.at(8080)).await, "", "another client");
        // An agent that says no is believed.
        let _agent = serve(Probes::default(), &scene.mesh, &scene.node, &scene.processes).await;
        assert_eq!(ask(&router, scene.pod.at(8080)).await, "");
        scene.node.counts("stillmesh_ztunnel_probes_total", &["verdict=\"remembered\""], 1).await;
    });
}

#[test]
fn a_tcp_probe_that_has_closed_is_no_failure() {
    isolated_async(|| async {
        let scene = Scene::new().await;
        let to = scene.pod.at(8080);
        let router = scene.mesh.router.clone();
        let made = router.run_async(move || socket::tcp_connect_socket(to, None, None)).await.unwrap();
        drop(made.connect(to).await.unwrap());
        scene.node.counts("istio_tcp_connections_closed_total", &[], 1).await;
        scene.node.counts("istio_tcp_connections_failed_total", &[], 0).await;
    });
}
