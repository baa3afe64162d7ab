//! Bytes and their ends.

use std::io::ErrorKind;
use std::time::Duration;

use stillmesh_core::fixtures;
use stillmesh_core::model::{Action, Scope};
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

#[test]
fn a_connection_between_pods_is_mutual_tls_with_both_identities_and_keeps_its_source() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let page = mesh.pod(&one, "shop/page").await;
        let details = mesh.pod(&two, "shop/details").await;
        details.echo(8080).await;

        let (seen, echo) = page.ask(details.at(8080), "hello").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v4.to_string(), "hello"));
        let (seen, echo) = page.ask(details.at_v6(8080), "hello six").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v6.to_string(), "hello six"));

        for (node, reporter) in [(&one, "source"), (&two, "destination")] {
            let labels = [
                &*format!("reporter=\"{reporter}\""),
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/page\"",
                "destination_principal=\"spiffe://cluster.local/ns/shop/sa/details\"",
                "connection_security_policy=\"mutual_tls\"",
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
    });
}

#[test]
fn pods_of_one_node_reach_each_other_too() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let (page, details) = (mesh.pod(&node, "shop/page").await, mesh.pod(&node, "shop/details").await);
        details.echo(8080).await;
        page.ask(details.at(8080), "hello").await.unwrap();
        node.counts("istio_tcp_connections_opened_total", &["mutual_tls"], 2).await;
    });
}

#[test]
fn what_is_outside_the_mesh_is_reached_unchanged() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let page = mesh.pod(&node, "shop/page").await;
        let outside = mesh.unmeshed("out/side").await;
        outside.echo(8080).await;
        let (seen, echo) = page.ask(outside.at(8080), "hello").await.unwrap();
        assert_eq!((seen, echo.as_str()), (page.v4.to_string(), "hello"));
        node.counts("istio_tcp_connections_opened_total", &["security_policy=\"unknown\""], 1).await;
        let refused = page.ask(outside.at(8081), "hello").await;
        assert!(refused.is_err(), "nobody listens there: {refused:?}");
        node.counts("istio_tcp_connections_failed_total", &["CONNECT"], 1).await;
    });
}

#[test]
fn each_direction_ends_by_itself() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        let listener = details.listen(8080).await;
        // The client ends first and still reads.
        let mut client = page.connect(details.at(8080)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        // The server ends first and still reads.
        let mut client = page.connect(details.at(8080)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"greeting").await.unwrap();
        server.shutdown().await.unwrap();
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "greeting");
        client.write_all(b"thanks").await.unwrap();
        drop(client);
        text.clear();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "thanks");
        one.connections("both are over", <[_]>::is_empty).await;
        two.counts("istio_tcp_connections_failed_total", &[], 0).await;
    });
}

#[test]
fn many_bytes_arrive_whole_in_both_directions_at_once() {
    const BYTES: usize = 64 << 20;
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        let listener = details.listen(8080).await;
        let client = page.connect(details.at(8080)).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let pattern = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
        let send = async |mut to: tokio::net::tcp::OwnedWriteHalf| {
            let mut at = 0;
            while at < BYTES {
                let chunk: Vec<u8> = (at..BYTES.min(at + (256 << 10))).map(pattern).collect();
                to.write_all(&chunk).await.unwrap();
                at += chunk.len();
            }
        };
        let receive = async |mut from: tokio::net::tcp::OwnedReadHalf| {
            let (mut at, mut buffer) = (0, vec![0; 256 << 10]);
            loop {
                let length = from.read(&mut buffer).await.unwrap();
                if length == 0 {
                    break at;
                }
                for byte in &buffer[..length] {
                    assert_eq!(*byte, pattern(at), "byte {at}");
                    at += 1;
                }
            }
        };
        let ((client_from, client_to), (server_from, server_to)) = (client.into_split(), server.into_split());
        let all = async { tokio::join!(send(client_to), send(server_to), receive(client_from), receive(server_from)) };
        let ((), (), back, there) = timeout(Duration::from_secs(120), all).await.unwrap();
        assert_eq!((back, there), (BYTES, BYTES));
        let labels = ["reporter=\"source\""];
        one.connections("it is over", <[_]>::is_empty).await;
        one.counts("istio_tcp_received_bytes_total", &labels, BYTES as u64).await;
        one.counts("istio_tcp_sent_bytes_total", &labels, BYTES as u64).await;
    });
}

#[test]
fn first_bytes_sent_behind_the_connect_arrive_once_and_are_counted_once() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        // Whether the first bytes are there in time, and the tunnel was used a moment ago, is the machine's to say: often enough.
        let mut asked = 0;
        while one.metric("stillmesh_ztunnel_early_total", &[]).await < 10 {
            assert!(asked < 10_000, "nothing is sent early");
            for _ in 0..20 {
                let (_, echo) = page.ask(details.at(8080), "hello").await.unwrap();
                assert_eq!(echo, "hello");
                asked += 1;
            }
        }
        for node in [&one, &two] {
            node.counts("istio_tcp_received_bytes_total", &[], asked * 5).await;
        }
        // Nobody listens there: they were refused, and nothing of them is sent.
        assert!(page.ask(details.at(8081), "hello").await.is_err());
    });
}

#[test]
fn many_connections_at_once_share_tunnels() {
    const CONNECTIONS: usize = 1000;
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let asking = (0..CONNECTIONS).map(|n| {
            let (page, to) = (&page, details.at(8080));
            async move { page.ask(to, &format!("hello {n}")).await.map(|(_, echo)| echo == format!("hello {n}")) }
        });
        let answers = futures::future::join_all(asking).await;
        let wrong = answers.iter().filter(|answer| !matches!(answer, Ok(true))).collect::<Vec<_>>();
        assert!(wrong.is_empty(), "{} of {CONNECTIONS}: {:?}", wrong.len(), wrong.first());
        let pods = one.admin("/stillmesh/pods").await;
        let tunnels = pods[0]["tunnels"].as_u64().unwrap();
        assert!((1..=40).contains(&tunnels), "{tunnels} tunnels");
    });
}

/// Has either end of a connection break: the other one is told so.
pub async fn resets_are_carried(client: &Pod, server: &Pod) {
    let listener = server.listen(8081).await;
    for client_breaks in [true, false] {
        let client = client.connect(server.at(8081)).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (breaks, mut other) = if client_breaks { (client, server) } else { (server, client) };
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        let read = timeout(Duration::from_secs(10), other.read(&mut [0; 1])).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "client breaks: {client_breaks}");
    }
}

#[test]
fn what_breaks_is_reset_at_the_other_end_however_it_is_carried() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        let outside = mesh.unmeshed("out/side").await;
        for (client, server) in [(&page, &details), (&page, &outside), (&outside, &details)] {
            resets_are_carried(client, server).await;
        }
        for node in [one, two] {
            node.counts("istio_tcp_connections_failed_total", &[], 4).await;
        }
    });
}

#[test]
fn what_cannot_be_opened_is_reset_and_does_not_look_like_an_end() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        let outside = mesh.unmeshed("out/side").await;
        details.echo(8080).await;
        // Nobody listens.
        for (client, server) in [(&page, &details), (&page, &outside), (&outside, &details)] {
            assert_eq!(client.failure(server.at(8099)).await, ErrorKind::ConnectionReset, "{}", server.name);
        }
        // A policy refuses.
        let only =
            fixtures::policy("shop/only-cart", Scope::Namespace, Action::Allow, vec![fixtures::from("shop/cart")]);
        mesh.policy(only);
        two.knows("the policy", |dump| dump["policies"].as_array().is_some_and(|all| all.len() == 1)).await;
        assert_eq!(page.failure(details.at(8080)).await, ErrorKind::ConnectionReset);
        // Who comes in clear and has sent nothing sees a plain close.
        let mut closed = outside.connect(details.at(8080)).await.unwrap();
        assert_eq!(timeout(Duration::from_secs(10), closed.read(&mut [0])).await.unwrap().unwrap(), 0);
        // There are too many.
        let full = mesh.node_with(&[("MAX_CONNECTIONS_PER_POD", "1")]).await;
        let busy = mesh.pod(&full, "shop/busy").await;
        outside.echo(8080).await;
        let _open = busy.connect(outside.at(8080)).await.unwrap();
        full.connections("one is open", |all| all.len() == 1).await;
        assert_eq!(outside.failure(busy.at(8080)).await, ErrorKind::ConnectionReset);
    });
}

#[test]
fn bytes_are_counted_while_the_connection_is_open() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let mut client = page.connect(details.at(8080)).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut answer = vec![0; page.v4.to_string().len() + 1 + 5];
        client.read_exact(&mut answer).await.unwrap();
        for node in [&one, &two] {
            // Bytes are counted once the kernel has taken them: the client may have read them a moment before.
            let counted = |all: &[serde_json::Value]| all.len() == 1 && all[0]["bytesSent"] == answer.len();
            let open = node.connections("one is open and its answer is counted", counted).await;
            assert_eq!(open[0]["protocol"], "HBONE");
            assert_eq!(open[0]["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/page");
            assert_eq!(open[0]["destination"]["identity"], "spiffe://cluster.local/ns/shop/sa/details");
            assert_eq!(open[0]["bytesReceived"], 5);
            node.counts("istio_tcp_received_bytes_total", &[], 5).await;
            node.counts("istio_tcp_sockets_open", &[], 1).await;
        }
        let ids = [one.admin("/stillmesh/connections").await, two.admin("/stillmesh/connections").await];
        assert_eq!(ids[0][0]["id"], ids[1][0]["id"], "both ends share the id");
    });
}

#[test]
fn ztunnels_own_ports_are_not_reached_through_it() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let (page, details) = (mesh.pod(&node, "shop/page").await, mesh.pod(&node, "shop/details").await);
        for to in [page.at(15001), details.at(15001), details.at(15006), details.at(15008)] {
            assert_eq!(page.failure(to).await, ErrorKind::ConnectionReset, "{to}");
        }
    });
}

#[test]
fn garbage_and_silence_at_the_tunnels_port_end_and_disturb_nobody() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        let stranger = mesh.unmeshed("out/side").await;
        details.echo(8080).await;
        let mut silent = stranger.connect(details.at(15008)).await.unwrap();
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 4096]] {
            let mut stream = stranger.connect(details.at(15008)).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            let mut answer = Vec::new();
            let ended = timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "{garbage:?}");
        }
        page.ask(details.at(8080), "hello").await.unwrap();
        let mut nothing = Vec::new();
        let ended = timeout(Duration::from_secs(15), silent.read_to_end(&mut nothing)).await;
        assert!(ended.is_ok(), "a silent peer is let go");
        assert!(two.metric("stillmesh_ztunnel_refused_total", &["tls"]).await >= 3);
    });
}
