//! Which endpoint it is, and what else than HTTP is carried.

use stillmesh_core::model::TunnelProtocol;
use stillmesh_hbone::TunnelError;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn an_endpoint_that_refuses_is_left_for_another_one() {
    isolated_async(|| async {
        let mut world = World::new().await;
        // Nothing listens at `gone`; behind the tunnel of `deaf` there is no application.
        let (gone, deaf, there) = (world.workload("gone"), world.workload("deaf"), world.workload("there"));
        let web = world.service("web", "10.1.0.1", 1, &[&gone, &deaf, &there]);
        let raw = world.service("raw", "10.1.0.2", 4, &[&gone, &deaf, &there]);
        world.endpoint(&deaf).await;
        let endpoint = world.endpoint(&there).await;
        let app = endpoint.app("there").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        for _ in 0..20 {
            let response = http.request("POST", "/echo", "hello");
            let response = http.send(response).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(http_body_util::BodyExt::collect(response).await.unwrap().to_bytes(), "hello");
        }
        assert_eq!(app.requests(), 20);
        for _ in 0..10 {
            let mut stream = client.stream(raw).await;
            stream.write_all(b"GET /name HTTP/1.0\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("there"), "{answer}");
        }
        assert!(world.metric("stillmesh_waypoint_repicked_total", &[]).await > 0.0);
        world.counts("istio_requests_total", &["response_flags=\"-\""], 20.0).await;
        world.counts("istio_tcp_connections_opened_total", &["destination_workload=\"there\""], 10.0).await;
    });
}

#[test]
fn where_no_endpoint_is_left_requests_get_503_and_connections_none() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let gone = world.workload("gone");
        let web = world.service("web", "10.1.0.1", 1, &[&gone]);
        let raw = world.service("raw", "10.1.0.2", 4, &[&gone]);
        let empty = world.service("empty", "10.1.0.3", 1, &[]);
        world.start(&[]).await;

        let client = world.client("page", 1);
        let (status, text) = client.http1(web).await.get("/name").await;
        assert_eq!((status.as_u16(), text.as_str()), (503, "no endpoint was reached"));
        let (status, text) = client.http2(empty).await.get("/name").await;
        assert_eq!((status.as_u16(), text.as_str()), (503, "no endpoint"));
        for (flag, count) in [("UF,URX", 1.0), ("UH", 1.0)] {
            let labels = ["response_code=\"503\"", &*format!("response_flags=\"{flag}\"")];
            world.counts("istio_requests_total", &labels, count).await;
        }
        let Err(TunnelError::Refused { status, .. }) = client.open(raw).await else { panic!("nobody can take it") };
        assert_eq!(status, 503);
    });
}

#[test]
fn a_kept_connection_that_the_endpoint_closes_costs_no_request() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        world.start(&[]).await;
        world.tasks.spawn("application", async move {
            // Each connection is good for two requests, and says so of neither; the second one it does not answer.
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                // Closes as the next request comes.
                drop(stream.read_u8().await);
            }
        });

        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        for number in 0..5 {
            let (status, text) = http.get("/").await;
            assert_eq!((status.as_u16(), text), (200, number.to_string()));
        }
    });
}

#[test]
fn a_request_that_may_have_been_seen_is_sent_again_only_if_that_does_no_harm() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        world.start(&[]).await;
        let (sender, mut heads) = tokio::sync::mpsc::channel(8);
        world.tasks.spawn("application", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                sender.send(head).await.unwrap();
            }
        });

        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        let response = http.send(http.request("POST", "/", "hello")).await.unwrap();
        assert_eq!(response.status(), 503, "it closed without an answer");
        assert!(heads.recv().await.unwrap().starts_with(b"POST / "));
        assert!(heads.try_recv().is_err(), "sent once");
        world.counts("istio_requests_total", &["response_flags=\"UC\""], 1.0).await;
    });
}

#[test]
fn a_stream_that_an_endpoint_refuses_is_sent_again_with_its_body() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let (one, two) = (world.workload("one"), world.workload("two"));
        let web = world.service("web", "10.1.0.1", 2, &[&one, &two]);
        let listeners = [world.endpoint(&one).await.listen().await, world.endpoint(&two).await.listen().await];
        world.start(&[]).await;
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for listener in listeners {
            let (tasks, seen) = (world.tasks.clone(), seen.clone());
            let own = world.tasks.clone();
            tasks.spawn("application", async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (seen, requests) = (seen.clone(), own.clone());
                    own.spawn("connection", async move {
                        let mut connection = h2::server::handshake(stream).await.unwrap();
                        while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                            // Every other request is refused, wherever it comes.
                            if seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2 == 0 {
                                respond.send_reset(h2::Reason::REFUSED_STREAM);
                                continue;
                            }
                            let answering = async move {
                                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                                let text = request.body_mut().data().await.unwrap().unwrap();
                                stream.send_data(text, true).unwrap();
                            };
                            requests.spawn("request", answering);
                        }
                    });
                }
            });
        }

        let client = world.client("page", 1);
        let mut http = client.http2(web).await;
        for _ in 0..4 {
            let response = http.send(http.request("POST", "/", "hello")).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(http_body_util::BodyExt::collect(response).await.unwrap().to_bytes(), "hello");
        }
        assert_eq!(seen.load(std::sync::atomic::Ordering::Relaxed), 8);
    });
}

#[test]
fn an_endpoint_without_a_tunnel_is_reached_in_the_clear() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let mut workload = world.workload("plain");
        workload.tunnel_protocol = TunnelProtocol::None;
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let app =
            stillmesh_waypoint_tests::App::start("plain", (workload.addresses[0], 8080).into(), &world.tasks).await;
        world.start(&[]).await;
        let client = world.client("page", 1);
        assert_eq!(client.http1(web).await.get("/name").await.1, "plain");
        assert_eq!(app.requests(), 1);
    });
}

#[test]
fn a_server_that_speaks_first_on_an_unnamed_port_is_heard() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("db");
        let db = world.service("db", "10.1.0.1", 0, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        world.start(&[("PROTOCOL_DETECTION_TIMEOUT", "10ms")]).await;
        world.tasks.spawn("application", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"who are you?").await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            stream.write_all(format!("hello {said}").as_bytes()).await.unwrap();
        });

        let client = world.client("page", 1);
        let mut stream = client.stream(db).await;
        let mut asked = [0; 12];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"who are you?");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello GET / HTTP/1.1\r\n\r\n", "a half-close is one, and bytes stay as they are");
        let labels = ["reporter=\"waypoint\"", "request_protocol=\"tcp\"", "response_flags=\"-\""];
        world.counts("istio_tcp_sent_bytes_total", &labels, 36.0).await;
        world.counts("istio_tcp_received_bytes_total", &labels, 18.0).await;
    });
}

#[test]
fn a_client_that_speaks_http_late_on_an_unnamed_port_is_still_served_http() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 0, &[&workload]);
        let endpoint = world.endpoint(&workload).await;
        let app = endpoint.app("web").await;
        world.start(&[("PROTOCOL_DETECTION_TIMEOUT", "1ms")]).await;

        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        // The endpoint is connected to once the client has been silent for too long.
        while app.connections() == 0 {
            tokio::task::yield_now().await;
        }
        let (status, text) = http.get("/name").await;
        assert_eq!((status.as_u16(), text.as_str()), (200, "web"));
        world.counts("istio_requests_total", &["response_code=\"200\""], 1.0).await;
        world.counts("istio_tcp_connections_opened_total", &[], 0.0).await;
    });
}

#[test]
fn other_protocols_on_an_unnamed_port_are_carried_as_they_are() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("db");
        let db = world.service("db", "10.1.0.1", 0, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        world.start(&[("PROTOCOL_DETECTION_TIMEOUT", "10ms")]).await;
        world.tasks.spawn("application", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut said = [0; 4];
                stream.read_exact(&mut said).await.unwrap();
                stream.write_all(&said).await.unwrap();
            }
        });
        let client = world.client("page", 1);
        // The last one could become a method, and never does.
        for said in [b"\x16\x03\x01\x02", b"*1\r\n", b"PING"] {
            let mut stream = client.stream(db).await;
            stream.write_all(said).await.unwrap();
            stream.flush().await.unwrap();
            let mut back = [0; 4];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, said);
        }
    });
}

#[test]
fn what_is_not_bound_to_this_waypoint_is_refused() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let free = world.unbound("free", "10.1.0.2", &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let pod = (workload.addresses[0], 8080).into();
        for (to, expected) in
            [(free, 400), (pod, 400), ((web.ip(), 81).into(), 400), ("192.0.2.1:80".parse().unwrap(), 503)]
        {
            let Err(TunnelError::Refused { status, .. }) = client.open(to).await else { panic!("{to} was taken") };
            assert_eq!(status.as_u16(), expected, "{to}");
        }
        assert_eq!(app.connections(), 0);
        world.counts("stillmesh_waypoint_refused_total", &["reason=\"not_bound\""], 4.0).await;
    });
}
