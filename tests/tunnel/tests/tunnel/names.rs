//! Services, their addresses and their names.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use stillmesh_runtime::sys::netns::NetnsThread;
use stillmesh_runtime::sys::socket::Mark;
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use stillmesh_ztunnel::dns::forward::Forwarder;
use stillmesh_ztunnel::dns::message::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Waits until a node knows a service with so many endpoints.
async fn knows(node: &Node, hostname: &str, endpoints: usize) {
    node.knows("the service", |dump| {
        let services = dump["services"].as_array().cloned().unwrap_or_default();
        let found = services.iter().find(|service| service["hostname"] == hostname);
        found.is_some_and(|service| service["endpoints"].as_object().is_some_and(|all| all.len() == endpoints))
    })
    .await;
}

#[test]
fn a_service_is_reached_by_its_address_and_port() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let service = mesh.service("shop/details", &["10.96.0.1"], &[(80, 8080)], &[(&two, &details)]);
        knows(&one, &service.key.hostname, 1).await;
        let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
        let (_, echo) = page.ask(vip, "hello").await.unwrap();
        assert_eq!(echo, "hello");
        let labels = ["destination_service_name=\"details\"", "destination_workload=\"details\""];
        for node in [&one, &two] {
            node.counts("istio_tcp_connections_opened_total", &labels, 1).await;
        }
        assert!(page.ask("10.96.0.1:81".parse().unwrap(), "hello").await.is_err(), "the service has no such port");
    });
}

#[test]
fn endpoints_that_cannot_be_reached_are_passed_over_before_the_first_byte() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let page = mesh.pod(&one, "shop/page").await;
        let (alive, dead) = (mesh.pod(&two, "shop/details-a").await, mesh.pod(&two, "shop/details-b").await);
        alive.echo(8080).await;
        let endpoints = [(&two, &alive), (&two, &dead)];
        let service = mesh.service("shop/details", &["10.96.0.1"], &[(80, 8080)], &endpoints);
        knows(&one, &service.key.hostname, 2).await;
        for n in 0..20 {
            let (_, echo) = page.ask("10.96.0.1:80".parse().unwrap(), "hello").await.unwrap();
            assert_eq!(echo, "hello", "connection {n}");
        }
        assert!(one.metric("stillmesh_ztunnel_repicked_total", &[]).await > 0);
        // Also with first bytes that were sent already, to who refused: they are sent again.
        let mut n = 0;
        while one.metric("stillmesh_ztunnel_early_total", &[]).await < 20 {
            assert!(n < 10_000, "nothing is sent early");
            n += 1;
            let (_, echo) = page.ask("10.96.0.1:80".parse().unwrap(), "hello").await.unwrap();
            assert_eq!(echo, "hello", "connection {n}");
        }
        one.counts("istio_tcp_connections_failed_total", &[], 0).await;
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let page = mesh.pod(&node, "shop/page").await;
        page.echo(8080).await;
        let service = mesh.service("shop/page", &["10.96.0.1"], &[(80, 8080)], &[(&node, &page)]);
        knows(&node, &service.key.hostname, 1).await;
        let (_, echo) = page.ask("10.96.0.1:80".parse().unwrap(), "hello").await.unwrap();
        assert_eq!(echo, "hello");
    });
}

async fn resolve(pod: &Pod, name: &str, kind: RecordType) -> Message {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let socket = pod.datagrams().await;
    // Any server will do: questions are captured.
    socket.send_to(&question.to_vec().unwrap(), "10.96.0.10:53").await.unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(from.to_string(), "10.96.0.10:53");
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

#[test]
fn names_of_the_mesh_are_answered_in_the_pod() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let page = mesh.pod(&node, "shop/page").await;
        let service = mesh.service("shop/details", &["10.96.0.1"], &[(80, 8080)], &[]);
        knows(&node, &service.key.hostname, 0).await;
        for name in ["details", "details.shop", "details.shop.svc.cluster.local."] {
            let answer = resolve(&page, name, RecordType::A).await;
            let addresses: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!(addresses, ["10.96.0.1"], "{name}");
        }
        let answer = resolve(&page, "details.shop.svc.cluster.local.", RecordType::AAAA).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        node.counts("istio_dns_requests_total", &["request_query_type=\"A\""], 3).await;
    });
}

/// Answers one question per transport with NXDOMAIN.
async fn resolver(pod: &Pod) {
    let udp = pod.place.run_async(|| {
        let any = SocketAddr::from(([0, 0, 0, 0], 53));
        stillmesh_runtime::sys::socket::udp_socket(any, stillmesh_runtime::sys::socket::Options::default())
    });
    let udp = tokio::net::UdpSocket::from_std(udp.await.unwrap()).unwrap();
    let tcp = pod.listen(53).await;
    let answer = |question: &[u8]| {
        let question = Message::from_vec(question).unwrap();
        let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, ResponseCode::NXDomain);
        answer.add_query(question.queries[0].clone());
        answer.to_vec().unwrap()
    };
    let serving = async move {
        let mut buffer = [0; 1500];
        let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
        // A forged answer first: another id.
        let mut forged = answer(&buffer[..length]);
        forged[0] ^= 0xff;
        udp.send_to(&forged, client).await.unwrap();
        udp.send_to(&answer(&buffer[..length]), client).await.unwrap();
        let (mut stream, _) = tcp.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        stream.read_exact(&mut buffer[..usize::from(length)]).await.unwrap();
        let answer = answer(&buffer[..usize::from(length)]);
        stream.write_u16(answer.len() as u16).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    };
    let tasks = stillmesh_runtime::tasks::Tasks::new("resolver");
    tasks.spawn("serve", serving);
    std::mem::forget(tasks);
}

#[test]
fn other_names_are_asked_of_the_next_resolver_when_one_is_silent() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let page = mesh.pod(&node, "shop/page").await;
        let (silent, answering) = (mesh.unmeshed("out/silent").await, mesh.unmeshed("out/answering").await);
        let _silent = silent.listen(53).await;
        resolver(&answering).await;
        let thread = NetnsThread::spawn("asker", page.place.netns().clone()).unwrap();
        let servers = [silent.at(53), answering.at(53)];
        let forwarder = Forwarder { thread: &thread, mark: Mark::PROXY, servers: &servers };
        let mut question = Message::query();
        question.metadata.id = 7;
        question.add_query(Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A));
        let question = question.to_vec().unwrap();
        for transport in [Transport::Udp, Transport::Tcp] {
            let reply = forwarder.ask(&question, transport).await.unwrap();
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::NXDomain), "{transport:?}");
        }
    });
}
