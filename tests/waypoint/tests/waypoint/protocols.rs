//! What an endpoint is spoken to in, and what a connection may become.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::Http;
use stillmesh_waypoint_tests::routes::{Shop, asked, shop};
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
