//! Pods of one node that may be connected without a tunnel, and those that may not.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use stillmesh_core::fixtures;
use stillmesh_core::model::{Action, PolicyKey, Rule, Scope};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::carry::resets_are_carried;

const SOON: Duration = Duration::from_secs(10);

/// Says whether a pod may be connected without a tunnel, and waits until its node knows.
async fn may(mesh: &Mesh, node: &Node, pod: &Pod, direct: bool) {
    mesh.publish_pod(node, pod, |workload| workload.direct = direct);
    let uid = Mesh::uid(pod).to_string();
    node.knows("whether it may", |dump| {
        let workloads = dump["workloads"].as_array();
        let own = workloads.into_iter().flatten().find(|workload| workload["uid"] == uid);
        own.is_some_and(|own| own["direct"].as_bool().unwrap_or_default() == direct)
    })
    .await;
}

/// A client and a server of one node, which may both.
async fn near(mesh: &mut Mesh) -> (Node, Pod, Pod) {
    let node = mesh.node().await;
    let (page, details) = (mesh.pod(&node, "shop/page").await, mesh.pod(&node, "shop/details").await);
    for pod in [&page, &details] {
        may(mesh, &node, pod, true).await;
    }
    details.echo(8080).await;
    (node, page, details)
}

/// Opens a connection to an echo server and has it proven once.
async fn open(from: &Pod, to: &Pod) -> TcpStream {
    let mut stream = from.connect(to.at(8080)).await.unwrap();
    let mut greeting = vec![0; from.v4.to_string().len() + 1];
    timeout(SOON, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    stream
}

/// How what is open is carried, at either end.
async fn carried(node: &Node, how: &str) -> Vec<Value> {
    node.connections(how, |all| all.len() == 2 && all.iter().all(|one| one["protocol"] == how)).await
}

async fn tunnels(node: &Node) -> u64 {
    let pods = node.admin("/stillmesh/pods").await;
    pods.as_array().unwrap().iter().map(|pod| pod["tunnels"].as_u64().unwrap()).sum()
}

async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    assert!(timeout(SOON, stream.read_to_end(&mut rest)).await.is_ok(), "it is still open");
}

#[test]
fn who_may_is_connected_without_a_tunnel_with_both_identities_and_its_own_address() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, details) = near(&mut mesh).await;
        let strict = fixtures::policy("shop/strict", Scope::Namespace, Action::Deny, vec![fixtures::clear_text()]);
        mesh.policy(strict);
        node.knows("the policy", |dump| dump["policies"].as_array().is_some_and(|all| all.len() == 1)).await;
        let (seen, echo) = page.ask(details.at(8080), "hello").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v4.to_string(), "hello"));
        let (seen, echo) = page.ask(details.at_v6(8080), "hello six").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v6.to_string(), "hello six"));
        for reporter in ["source", "destination"] {
            let labels = [
                &*format!("reporter=\"{reporter}\""),
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/page\"",
                "destination_principal=\"spiffe://cluster.local/ns/shop/sa/details\"",
                // There is no TLS.
                "connection_security_policy=\"unknown\"",
            ];
            for (metric, count) in [
                ("istio_tcp_connections_opened_total", 2),
                ("istio_tcp_connections_closed_total", 2),
                ("istio_tcp_connections_failed_total", 0),
                ("istio_tcp_received_bytes_total", 14),
            ] {
                node.counts(metric, &labels, count).await;
            }
        }
        let stream = open(&page, &details).await;
        let open = carried(&node, "DIRECT").await;
        assert_eq!(open[0]["id"], open[1]["id"], "both ends share the id");
        for end in &open {
            assert_eq!(end["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/page");
            assert_eq!(end["destination"]["identity"], "spiffe://cluster.local/ns/shop/sa/details");
        }
        let told = node.admin(&format!("/decisions?id={}", open[0]["id"].as_str().unwrap())).await;
        let told = told["decisions"].as_array().unwrap();
        let mut hops: Vec<_> = told.iter().map(|one| (one["hop"].as_str(), one["reason"].as_str())).collect();
        hops.sort_unstable();
        assert_eq!(hops, [(Some("inbound"), Some("NO_POLICY")), (Some("outbound"), Some("TO_WORKLOAD"))]);
        assert!(told.iter().all(|one| one["direct"] == true && one["tunnelled"] == false), "{told:?}");
        assert_eq!(tunnels(&node).await, 0);
        drop(stream);
        node.connections("it is over", <[_]>::is_empty).await;
        node.counts("istio_tcp_connections_failed_total", &[], 0).await;
    });
}

#[test]
fn where_one_end_may_not_or_is_elsewhere_there_is_a_tunnel() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, details) = near(&mut mesh).await;
        let other = mesh.node().await;
        for (page_may, details_may) in [(false, true), (true, false), (false, false)] {
            may(&mesh, &node, &page, page_may).await;
            may(&mesh, &node, &details, details_may).await;
            let stream = open(&page, &details).await;
            carried(&node, "HBONE").await;
            drop(stream);
            node.connections("it is over", <[_]>::is_empty).await;
        }
        may(&mesh, &node, &page, true).await;
        let far = mesh.pod(&other, "shop/far").await;
        may(&mesh, &other, &far, true).await;
        far.echo(8080).await;
        let _stream = open(&page, &far).await;
        node.connections("a tunnel", |all| all.len() == 1 && all[0]["protocol"] == "HBONE").await;
    });
}

#[test]
fn the_servers_policies_refuse_as_through_a_tunnel_and_at_both_ends_it_is_told() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, details) = near(&mut mesh).await;
        let only =
            fixtures::policy("shop/only-cart", Scope::Namespace, Action::Allow, vec![fixtures::from("shop/cart")]);
        mesh.policy(only);
        node.knows("the policy", |dump| dump["policies"].as_array().is_some_and(|all| all.len() == 1)).await;
        assert_eq!(page.failure(details.at(8080)).await, ErrorKind::ConnectionReset);
        for reporter in ["source", "destination"] {
            let labels = [&*format!("reporter=\"{reporter}\""), "response_flags=\"DENY\"", "ns/shop/sa/page"];
            node.counts("istio_tcp_connections_failed_total", &labels, 1).await;
        }
        let told = node.admin("/decisions?src=pod/shop/page").await;
        let told = told["decisions"].as_array().unwrap();
        assert_eq!((told.len(), &told[0]["id"]), (2, &told[1]["id"]), "{told:?}");
        assert!(told.iter().all(|one| one["refused"] == true), "{told:?}");
        let inbound = told.iter().find(|one| one["hop"] == "inbound").unwrap();
        assert_eq!((&inbound["reason"], &inbound["object"]), (&"NO_ALLOW_MATCHED".into(), &"shop/only-cart".into()));
        // Nobody listens: not a policy's doing.
        mesh.remove_policy(fixtures::policy_key("shop/only-cart"));
        node.knows("its end", |dump| dump["policies"].as_array().is_some_and(Vec::is_empty)).await;
        assert_eq!(page.failure(details.at(8099)).await, ErrorKind::ConnectionReset);
        node.counts("istio_tcp_connections_failed_total", &["response_flags=\"CONNECT\""], 2).await;
        assert_eq!(tunnels(&node).await, 0);
    });
}

#[test]
fn what_is_open_ends_when_a_policy_comes_to_deny_it_or_it_needs_a_tunnel() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, details) = near(&mut mesh).await;
        let mut denied = open(&page, &details).await;
        carried(&node, "DIRECT").await;
        let only =
            fixtures::policy("shop/only-cart", Scope::Namespace, Action::Allow, vec![fixtures::from("shop/cart")]);
        mesh.policy(only);
        ends(&mut denied).await;
        node.counts("stillmesh_ztunnel_policy_closed_total", &[], 1).await;
        node.counts("istio_tcp_connections_failed_total", &["reporter=\"destination\"", "DENY"], 1).await;
        mesh.remove_policy(fixtures::policy_key("shop/only-cart"));
        node.knows("its end", |dump| dump["policies"].as_array().is_some_and(Vec::is_empty)).await;
        for (pod, again) in [(&page, true), (&details, false)] {
            let mut stream = open(&page, &details).await;
            carried(&node, "DIRECT").await;
            may(&mesh, &node, pod, false).await;
            ends(&mut stream).await;
            node.connections("it is over", <[_]>::is_empty).await;
            let stream = open(&page, &details).await;
            carried(&node, "HBONE").await;
            drop(stream);
            node.connections("it is over", <[_]>::is_empty).await;
            may(&mesh, &node, pod, again).await;
        }
    });
}

#[test]
fn bytes_ends_and_resets_are_carried_as_they_come() {
    const BYTES: usize = 32 << 20;
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, details) = near(&mut mesh).await;
        let listener = details.listen(8082).await;
        let mut client = page.connect(details.at(8082)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let pattern = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
        let sent: Vec<u8> = (0..BYTES).map(pattern).collect();
        let (mut question, mut answer) = (Vec::new(), Vec::new());
        let asking = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_end(&mut answer).await.unwrap();
        };
        let answering = async {
            server.read_to_end(&mut question).await.unwrap();
            server.write_all(&question).await.unwrap();
            server.shutdown().await.unwrap();
        };
        timeout(Duration::from_secs(60), async { tokio::join!(asking, answering) }).await.unwrap();
        assert!(answer == sent);
        node.connections("it is over", <[_]>::is_empty).await;
        for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
            node.counts("istio_tcp_received_bytes_total", &[reporter], BYTES as u64).await;
            node.counts("istio_tcp_sent_bytes_total", &[reporter], BYTES as u64).await;
        }
        resets_are_carried(&page, &details).await;
        node.counts("istio_tcp_connections_failed_total", &[], 4).await;
    });
}

/// Has a pod leave under a foreign agent, whose rules go at once.
async fn leaves(is_server: bool) {
    let mut mesh = Mesh::new().await;
    let (node, page, details) = near(&mut mesh).await;
    let mut stream = open(&page, &details).await;
    carried(&node, "DIRECT").await;
    node.del(if is_server { &details } else { &page }).await;
    ends(&mut stream).await;
    node.connections("both are over", <[_]>::is_empty).await;
}

#[test]
fn a_server_that_leaves_ends_what_it_has() {
    isolated_async(|| leaves(true));
}

#[test]
fn a_client_that_leaves_ends_what_it_has() {
    isolated_async(|| leaves(false));
}

/// Has a Quarantine cut an end off.
async fn is_cut_off(is_server: bool) {
    let mut mesh = Mesh::new().await;
    let (node, page, details) = near(&mut mesh).await;
    let mut stream = open(&page, &details).await;
    carried(&node, "DIRECT").await;
    let key = PolicyKey::of_quarantine("shop", "q");
    let mut policy = fixtures::policy("shop/q", Scope::WorkloadSelector, Action::Deny, Vec::new());
    (policy.key, policy.rules) = (key.clone(), vec![Rule::default()]);
    mesh.policy(policy);
    mesh.publish_pod(&node, if is_server { &details } else { &page }, |workload| {
        (workload.direct, workload.authorization_policies) = (true, vec![key]);
    });
    ends(&mut stream).await;
    node.connections("both are over", <[_]>::is_empty).await;
    page.ask(details.at(8080), "hello").await.unwrap_err();
    assert_eq!(tunnels(&node).await, 0);
}

#[test]
fn a_server_that_is_cut_off_has_nothing_open_and_gets_nothing_new() {
    isolated_async(|| is_cut_off(true));
}

#[test]
fn a_client_that_is_cut_off_has_nothing_open_and_opens_nothing() {
    isolated_async(|| is_cut_off(false));
}

#[test]
fn a_pod_that_reaches_itself_by_its_service_needs_no_tunnel_either() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, _) = near(&mut mesh).await;
        page.echo(8080).await;
        let web = mesh.service("shop/web", &["10.96.0.1"], &[(80, 8080)], &[]);
        let ports = web.ports.iter().map(|port| port.mapping).collect();
        mesh.publish_pod(&node, &page, |workload| {
            (workload.direct, workload.services) = (true, vec![(web.key.clone(), ports)]);
        });
        node.knows("its service", |dump| {
            let own = Mesh::uid(&page).to_string();
            let workloads = dump["workloads"].as_array();
            let found = workloads.into_iter().flatten().find(|workload| workload["uid"] == own);
            found.is_some_and(|own| own["services"].as_array().is_some_and(|all| all.len() == 1))
        })
        .await;
        let (seen, echo) = page.ask("10.96.0.1:80".parse().unwrap(), "myself").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v4.to_string(), "myself"));
        for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
            let labels = [reporter, "connection_security_policy=\"unknown\"", "destination_service_name=\"web\""];
            node.counts("istio_tcp_received_bytes_total", &labels, 6).await;
        }
        assert_eq!(tunnels(&node).await, 0);
    });
}

#[test]
fn under_our_agent_what_is_open_goes_on_when_its_pods_leave() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (node, page, details) = near(&mut mesh).await;
        std::fs::write(node.home().join("probes.sock"), "").unwrap();
        let mut stream = open(&page, &details).await;
        carried(&node, "DIRECT").await;
        node.del(&details).await;
        node.del(&page).await;
        stream.write_all(b"still").await.unwrap();
        let mut echo = [0; 5];
        timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
        assert_eq!(&echo, b"still");
        drop(stream);
        node.connections("both are over", <[_]>::is_empty).await;
    });
}
