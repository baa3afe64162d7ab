//! Pods and ztunnels coming and going.

use std::time::Duration;

use stillmesh_core::fixtures;
use stillmesh_core::model::{Action, Scope};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// Opens a connection to an echo server and has it proven once.
async fn open(from: &Pod, to: &Pod) -> TcpStream {
    let mut stream = from.connect(to.at(8080)).await.unwrap();
    let mut greeting = vec![0; from.v4.to_string().len() + 1];
    timeout(SOON, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    echoes(&mut stream).await;
    stream
}

async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"ping");
}

/// The node's agent is of our own kind, which keeps the rules of a pod that leaves while connections end.
fn has_our_agent(node: &Node) {
    std::fs::write(node.home().join("probes.sock"), "").unwrap();
}

#[test]
fn a_pod_that_leaves_keeps_its_open_connections() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        [&one, &two].into_iter().for_each(has_our_agent);
        details.echo(8080).await;
        let mut stream = open(&page, &details).await;
        two.del(&details).await;
        one.del(&page).await;
        echoes(&mut stream).await;
        assert!(page.connect(details.at(8080)).await.is_err(), "nothing new is taken");
        drop(stream);
        one.connections("all are over", <[_]>::is_empty).await;
    });
}

#[test]
fn a_foreign_agent_takes_the_rules_with_it_and_so_connections_end_at_once() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let mut stream = open(&page, &details).await;
        two.del(&details).await;
        // Over or reset, but not silent.
        drop(timeout(SOON, stream.read(&mut [0; 4])).await.expect("the connection ends"));
        one.connections("all are over", <[_]>::is_empty).await;
    });
}

#[test]
fn a_pod_that_comes_back_in_the_same_namespace_is_served_again() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        has_our_agent(&two);
        let mut stream = open(&page, &details).await;
        two.del(&details).await;
        two.add(&details).await;
        page.ask(details.at(8080), "hello").await.unwrap();
        echoes(&mut stream).await;
    });
}

#[test]
fn a_pod_made_anew_with_the_same_address_has_its_own_identity() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        page.ask(details.at(8080), "hello").await.unwrap();
        let matches = vec![fixtures::from("shop/page")];
        mesh.policy(fixtures::policy("shop/only-page", Scope::Namespace, Action::Allow, matches));
        two.knows("the policy", |dump| dump["policies"].as_array().is_some_and(|all| all.len() == 1)).await;

        one.del(&page).await;
        mesh.publish(stillmesh_core::snapshot::Change::WorkloadRemoved(Mesh::uid(&page)));
        let impostor = page.reborn("shop/impostor");
        mesh.publish_pod(&one, &impostor, |_| ());
        one.add(&impostor).await;
        assert!(impostor.ask(details.at(8080), "hello").await.is_err(), "the address alone is nobody");
        let labels = ["source_principal=\"spiffe://cluster.local/ns/shop/sa/impostor\"", "DENY"];
        two.counts("istio_tcp_connections_failed_total", &labels, 1).await;
    });
}

#[test]
fn a_drain_lets_open_connections_end_and_cuts_the_rest_at_its_deadline() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (mut one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let (mut ends, mut stays) = (open(&page, &details).await, open(&page, &details).await);
        one.drain(Duration::from_secs(2));
        echoes(&mut ends).await;
        ends.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(SOON, ends.read_to_end(&mut rest)).await.unwrap().unwrap();
        echoes(&mut stays).await;
        assert!(page.connect(details.at(8080)).await.is_err(), "nothing new is taken");
        let cut = timeout(SOON, stays.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "it outlives the deadline");
        one.ended().await;
    });
}

#[test]
fn a_drain_without_connections_ends_at_once() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let mut node = mesh.node().await;
        let _page = mesh.pod(&node, "shop/page").await;
        let begin = std::time::Instant::now();
        node.drain(Duration::from_secs(60));
        node.ended().await;
        assert!(begin.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn certificates_are_renewed_under_load_and_tunnels_follow() {
    isolated_async(|| async {
        let mut mesh = Mesh::with_leaf_life(Duration::from_secs(6)).await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let mut stream = open(&page, &details).await;
        let serial = async |node: &stillmesh_tunnel_tests::Node| {
            node.admin("/config_dump").await["certificates"][0]["certChain"][0]["serialNumber"].clone()
        };
        let (first, begin) = (serial(&one).await, std::time::Instant::now());
        while begin.elapsed() < Duration::from_secs(9) {
            page.ask(details.at(8080), "hello").await.unwrap();
            echoes(&mut stream).await;
        }
        assert_ne!(serial(&one).await, first);
        one.counts("istio_tcp_connections_failed_total", &[], 0).await;
        two.counts("istio_tcp_connections_failed_total", &[], 0).await;
    });
}

#[test]
fn an_agent_that_is_started_anew_disturbs_no_pod_that_it_keeps() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        let gone = mesh.pod(&one, "shop/gone").await;
        details.echo(8080).await;
        let mut stream = open(&page, &details).await;
        one.restart_agent(&[&page]).await;
        echoes(&mut stream).await;
        page.ask(details.at(8080), "hello").await.unwrap();
        assert!(gone.connect(details.at(8080)).await.is_err(), "it was not named");
    });
}

#[test]
fn without_a_control_plane_all_works_on_with_what_is_known() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let mut stream = open(&page, &details).await;
        mesh.lose_control();
        echoes(&mut stream).await;
        for _ in 0..5 {
            page.ask(details.at(8080), "hello").await.unwrap();
        }
        one.restart_agent(&[&page]).await;
        page.ask(details.at(8080), "hello").await.unwrap();
    });
}
