//! What an endpoint is spoken to in, and what a connection may become.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint::upstream::connections::Owned;
use stillmesh_waypoint_tests::routes::{Shop, asked, shop};
use stillmesh_waypoint_tests::{Http, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Of service ports, as numbered on the wire.
const HTTP: i32 = 1;
const HTTP2: i32 = 2;

#[test]
fn a_port_that_speaks_http2_is_spoken_to_in_it_whatever_the_client_speaks() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(HTTP2, &[], vec![]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            let headers = [("connection", "upgrade"), ("upgrade", "echo"), ("x-kept", "1"), ("te", "trailers")];
            let headers = if matches!(http, Http::One(_)) { &headers[..] } else { &headers[2..] };
            let (head, body) = asked(&mut http, "/who?a=b", headers).await;
            assert_eq!(head.status, StatusCode::OK);
            let who: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!((&who["version"], &who["target"]), (&"HTTP/2.0".into(), &"http://web/who?a=b".into()));
            assert!(who["headers"]["x-kept"] == "1" && who["headers"]["te"] == "trailers");
            assert!(who["headers"]["host"].is_null() && who["headers"]["upgrade"].is_null());
            let mut request = http.request("POST", "/echo", "hello");
            request.headers_mut().insert("expect", "100-continue".parse().unwrap());
            let response = http.send(request).await.unwrap();
            assert_eq!(response.collect().await.unwrap().to_bytes(), "hello");
        }
        assert_eq!(apps[0].connections(), 1);
    });
}

#[test]
fn a_port_that_speaks_http_is_spoken_to_as_the_client_speaks() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(HTTP, &[], vec![]).await;
        let client = world.client("page", 1);
        for (mut http, expected) in [(client.http1(web).await, "HTTP/1.1"), (client.http2(web).await, "HTTP/2.0")] {
            let who: serde_json::Value = serde_json::from_str(&http.get("/who").await.1).unwrap();
            assert_eq!(who["version"], expected);
        }
    });
}

fn connect(path: &str) -> http::Request<stillmesh_waypoint_tests::Body> {
    let mut request = http::Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://web{path}"))
        .version(http::Version::HTTP_2)
        .body(stillmesh_waypoint_tests::body_of(vec![]))
        .unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    request
}

#[test]
fn a_stream_of_http2_becomes_a_websocket_at_an_endpoint_that_speaks_http1() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(HTTP, &[], vec![]).await;
        let mut http = world.client("page", 1).http2(web).await;
        // The waypoint's settings have come with the first answer.
        assert_eq!(http.get("/name").await.1, "web");
        let response = http.send(connect("/upgrade")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let seen = apps[0].counts.last.lock().clone().unwrap();
        assert_eq!((&seen.method, seen.uri.path()), (&Method::GET, "/upgrade"));
        for (name, value) in [("upgrade", "websocket"), ("connection", "upgrade"), ("host", "web")] {
            assert_eq!(seen.headers[name], value);
        }
        assert_eq!(seen.headers["sec-websocket-key"].len(), 24);
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut back).await.unwrap(), 0, "both sides end");
        // One that does not switch has not opened anything.
        assert_eq!(http.send(connect("/name")).await.unwrap().status(), StatusCode::BAD_GATEWAY);
        assert_eq!(http.send(connect("/nothing")).await.unwrap().status(), StatusCode::NOT_FOUND);
        world.counts("istio_requests_total", &["response_code=\"101\"", "response_flags=\"-\""], 1.0).await;
    });
}

#[test]
fn a_stream_of_http2_becomes_a_websocket_at_an_endpoint_that_speaks_http2() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(HTTP2, &[], vec![]).await;
        let mut http = world.client("page", 1).http2(web).await;
        assert_eq!(http.get("/name").await.1, "web");
        let response = http.send(connect("/upgrade?a=b")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let seen = apps[0].counts.last.lock().clone().unwrap();
        assert_eq!((&seen.method, seen.uri.to_string().as_str()), (&Method::CONNECT, "http://web/upgrade?a=b"));
        assert!(
            !seen.headers.contains_key("sec-websocket-key") && seen.headers.contains_key("x-forwarded-client-cert")
        );
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
        assert_eq!(http.get("/name").await.1, "web", "beside it");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut back).await.unwrap(), 0, "both sides end");
        assert_eq!(http.send(connect("/nothing")).await.unwrap().status(), StatusCode::NOT_FOUND);
        let labels = ["response_code=\"200\"", "response_flags=\"-\""];
        world.counts("istio_requests_total", &labels, 3.0).await;
        assert_eq!(apps[0].connections(), 1, "all of it on one connection");
    });
}

#[test]
fn an_endpoint_that_does_not_announce_connect_is_not_asked() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", HTTP2, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        let tasks = world.tasks.clone();
        world.tasks.spawn("an application without CONNECT", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_ne!(request.method(), Method::CONNECT);
                    Ok::<_, std::convert::Infallible>(http::Response::new(String::from("plain")))
                });
                let builder = hyper::server::conn::http2::Builder::new(Owned(tasks.clone()));
                tasks.spawn("connection", builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        world.start(&[]).await;
        let mut http = world.client("page", 1).http2(web).await;
        assert_eq!(http.get("/").await.1, "plain");
        let response = http.send(connect("/upgrade")).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        world.counts("istio_requests_total", &["response_code=\"502\"", "response_flags=\"UC\""], 1.0).await;
        assert_eq!(http.get("/").await.1, "plain", "on the same connection");
    });
}
