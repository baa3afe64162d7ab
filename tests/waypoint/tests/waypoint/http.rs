//! Requests and responses.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::{Client, Http, World, body_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn a_request_reaches_an_endpoint_of_the_service_with_its_host_and_who_sent_it() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let endpoint = world.endpoint(&workload).await;
        let app = endpoint.app("web").await;
        world.start(&[]).await;

        let mut http = world.client("page", 1).http1(web).await;
        for _ in 0..3 {
            let mut request = http.request("GET", "/who?a=b", "");
            for (name, value) in
                [("x-forwarded-for", "192.0.2.1"), ("connection", "x-hop"), ("x-hop", "1"), ("x-kept", "as it is")]
            {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            let response = http.send(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("keep-alive"), "what is for one hop stays there");
            let body = response.collect().await.unwrap().to_bytes();
            let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (&seen["name"], &seen["version"], &seen["target"]),
                (&"web".into(), &"HTTP/1.1".into(), &"/who?a=b".into())
            );
            let headers = &seen["headers"];
            assert_eq!(headers["host"], "web");
            assert_eq!(headers["x-kept"], "as it is");
            assert_eq!(headers["x-forwarded-for"], "127.0.3.1");
            assert_eq!(
                headers["x-forwarded-client-cert"],
                "By=spiffe://cluster.local/ns/gate/sa/w;URI=spiffe://cluster.local/ns/shop/sa/page"
            );
            assert_eq!(headers["x-request-id"].as_str().unwrap().len(), 36);
            assert!(headers["x-hop"].is_null() && headers["connection"].is_null());
        }
        assert_eq!(app.connections(), 1, "a connection serves one request after the other");
        world
            .counts(
                "istio_requests_total",
                &[
                    "reporter=\"waypoint\"",
                    "source_principal=\"spiffe://cluster.local/ns/shop/sa/page\"",
                    "destination_service=\"web.shop.svc.cluster.local\"",
                    "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
                    "request_protocol=\"http\"",
                    "response_code=\"200\"",
                    "response_flags=\"-\"",
                    "connection_security_policy=\"mutual_tls\"",
                ],
                3.0,
            )
            .await;
        world.counts("istio_request_duration_milliseconds_count", &["response_code=\"200\""], 3.0).await;
    });
}

#[test]
fn requests_of_one_connection_come_in_pieces_together_and_after_silence() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let mut stream = world.client("page", 1).stream(web).await;
        let request = b"GET /name HTTP/1.1\r\nhost: web\r\n\r\n";
        let mut text = String::new();
        for (cut, requests) in (0..=request.len()).zip([1, 3, 17].into_iter().cycle()) {
            let all = request.repeat(requests);
            text.clear();
            // All but the last one, and a piece of that.
            let cut = all.len() - request.len() + cut;
            for (piece, answers) in [(&all[..cut], cut / request.len()), (&all[cut..], requests)] {
                stream.write_all(piece).await.unwrap();
                stream.flush().await.unwrap();
                while text.matches("HTTP/1.1 200 OK").count() < answers || !text.is_empty() && !text.ends_with("web") {
                    let mut read = [0; 4096];
                    let length = stream.read(&mut read).await.unwrap();
                    assert!(length > 0, "{text}");
                    text += std::str::from_utf8(&read[..length]).unwrap();
                }
            }
            assert_eq!(text.matches("HTTP/1.1 200 OK").count(), requests);
        }
        stream.shutdown().await.unwrap();
        text.clear();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "", "it ends with its client");
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn http2_requests_share_connections_on_both_sides() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 2, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let Http::Two(sender) = client.http2(web).await else { unreachable!() };
        let all = (0..40).map(|_| {
            let mut http = Http::Two(sender.clone());
            async move { http.get("/who").await }
        });
        for (status, body) in futures::future::join_all(all).await {
            assert_eq!(status, 200);
            let seen: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!((&seen["version"], &seen["target"]), (&"HTTP/2.0".into(), &"http://web/who".into()));
        }
        assert_eq!(app.connections(), 1);
        world.counts("istio_requests_total", &["response_code=\"200\""], 40.0).await;
    });
}

#[test]
fn grpcs_trailers_arrive_and_its_status_is_counted() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 3, &[&workload]);
        world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let mut http = client.http2(web).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "of the request".parse().unwrap());
        // Two messages.
        let body = "\0\0\0\0\x07message\0\0\0\0\0";
        let frames = vec![Frame::data(body.into()), Frame::trailers(trailers)];
        for (path, trailer, value) in [("/grpc", "grpc-status", "5"), ("/echo", "x-sum", "of the request")] {
            let mut request = http.request_with("POST", path, body_of(frames_again(&frames)));
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            request.headers_mut().insert("te", "trailers".parse().unwrap());
            let whole = http.send(request).await.unwrap().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()[trailer], value, "{path}");
            assert_eq!(whole.to_bytes(), body);
        }
        let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"5\""];
        world.counts("istio_requests_total", &labels, 1.0).await;
        world.counts("istio_request_messages_total", &labels, 2.0).await;
        world.counts("istio_response_messages_total", &labels, 2.0).await;

        // Nobody takes it: gRPC is told in its own words.
        let nobody = world.workload("nobody");
        let alone = world.service("alone", "10.1.0.9", 3, &[&nobody]);
        let mut http = eventually_open(&client, alone).await;
        let mut request = http.request("POST", "/grpc", "message");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let response = http.send(request).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
    });
}

/// HTTP/2 to a service that was published a moment ago.
async fn eventually_open(client: &Client, to: std::net::SocketAddr) -> Http {
    while client.open(to).await.is_err() {
        tokio::task::yield_now().await;
    }
    client.http2(to).await
}

fn frames_again(frames: &[Frame<Bytes>]) -> Vec<Frame<Bytes>> {
    let again = |frame: &Frame<Bytes>| match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
    };
    frames.iter().map(again).collect()
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        let mut request = http.request("GET", "/upgrade", "");
        request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        request.headers_mut().insert("upgrade", "echo".parse().unwrap());
        let mut response = http.send(request).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["upgrade"]), (101, &"echo".parse().unwrap()));
        let mut upgraded = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        for text in ["hello", "again"] {
            upgraded.write_all(text.as_bytes()).await.unwrap();
            upgraded.flush().await.unwrap();
            let mut back = [0; 5];
            upgraded.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, text.as_bytes());
        }
        upgraded.shutdown().await.unwrap();
        assert_eq!(upgraded.read_to_end(&mut Vec::new()).await.unwrap(), 0, "the other side's end arrives");
        world.counts("istio_requests_total", &["response_code=\"101\"", "response_flags=\"-\""], 1.0).await;
    });
}

#[test]
fn large_bodies_pass_both_ways_under_a_small_memory_bound() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 0, &[&workload]);
        world.endpoint(&workload).await.app("web").await;
        world.start(&[("HBONE_MEMORY_LIMIT", "16Mi")]).await;

        const PIECES: usize = 64;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            let pieces = (0..PIECES).map(|number| Ok(Frame::data(Bytes::from(vec![number as u8; 1 << 20]))));
            let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces)));
            let mut echo = http.send(http.request_with("POST", "/echo", body)).await.unwrap().into_body();
            let (mut length, mut held) = (0, 0.0_f64);
            while let Some(frame) = echo.frame().await {
                let Ok(data) = frame.unwrap().into_data() else { continue };
                for byte in [data.first(), data.last()].into_iter().flatten() {
                    assert!(usize::from(*byte) < PIECES);
                }
                if length % (8 << 20) < data.len() {
                    held = held.max(world.metric("stillmesh_waypoint_memory_bytes", &[]).await);
                }
                length += data.len();
            }
            assert_eq!(length, PIECES << 20);
            assert!(held <= f64::from(16 << 20), "{held}");
        }
        world.counts("stillmesh_waypoint_memory_broken_streams_total", &[], 0.0).await;
    });
}

#[test]
fn a_client_that_does_not_read_stops_its_endpoint_and_nobody_else() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let mut stuck = client.http1(web).await;
        let response = stuck.send(stuck.request("GET", "/source", "")).await.unwrap();
        let mut other = client.http1(web).await;
        for _ in 0..50 {
            assert_eq!(other.get("/name").await.1, "web");
        }
        // What lies in windows and socket buffers on the way; it would be hundreds of MiB by now.
        let sent = app.counts.sent.load(Ordering::Relaxed);
        assert!(sent < 64 << 20, "{sent} bytes were sent to a client that reads none");
        drop(response);
        world.counts("istio_requests_total", &["response_flags=\"DC\""], 1.0).await;
    });
}

#[test]
fn a_client_that_goes_cancels_its_request_at_the_endpoint() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 0, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        for (count, mut http) in [(1, client.http1(web).await), (2, client.http2(web).await)] {
            {
                let mut waiting = std::pin::pin!(http.send(http.request("GET", "/wait", "")));
                tokio::select! {
                    _ = waiting.as_mut() => unreachable!("nobody lets it go on"),
                    () = app.counts.waiting.notified() => {}
                }
            }
            drop(http);
            app.counts.dropped.notified().await;
            assert_eq!(app.counts.cancelled.load(Ordering::Relaxed), count);
        }
        world.counts("istio_requests_total", &["response_code=\"0\"", "response_flags=\"DC\""], 2.0).await;
    });
}

#[test]
fn an_endpoint_may_say_no_before_it_is_sent_the_body() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        let mut stream = client.stream(web).await;
        let head = "POST /no HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 417 "), "{}", String::from_utf8_lossy(&answer));

        let mut stream = client.stream(web).await;
        stream.write_all(head.replace("/no", "/length").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&answer));
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        answer.clear();
        while !answer.ends_with(b"5 bytes") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    });
}

#[test]
fn what_may_not_be_forwarded_is_refused_here() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;

        let client = world.client("page", 1);
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
            "CONNECT web:80 HTTP/1.1\r\nhost: web:80\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
            "no HTTP\r\n\r\n",
        ] {
            let mut stream = client.stream(web).await;
            stream.write_all(bad.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(stream.read_u8().await.unwrap());
            }
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 400 "), "{bad:?}: {answer}");
        }
        assert_eq!(app.requests(), 0);
    });
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[("MAX_HEADER_BYTES", "16384")]).await;

        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        let mut request = http.request("GET", "/name", "");
        request.headers_mut().insert("x-long", "a".repeat(32 << 10).parse().unwrap());
        assert_eq!(http.send(request).await.unwrap().status(), 431);
        let mut http = client.http2(web).await;
        let mut request = http.request("GET", "/name", "");
        request.headers_mut().insert("x-long", "a".repeat(32 << 10).parse().unwrap());
        let refused = http.send(request).await;
        assert!(refused.as_ref().map_or(true, |response| response.status() == 431), "{refused:?}");
        assert_eq!(app.requests(), 0);
    });
}
