//! When a request is sent again, and when it is not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use stillmesh_core::model::http::{Forward, Retry, RetryOn, RouteAction};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::routes::{Shop, asked, path, route, rule, shop, to};
use stillmesh_waypoint_tests::{Http, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn retrying(retry: Option<Retry>, timeout: Option<Duration>) -> Vec<Change> {
    let action = RouteAction::Forward(Forward { backends: vec![to("one", 1)], retry, timeout, ..Forward::default() });
    vec![route("r", None, vec![rule(vec![], action)])]
}

fn retry(attempts: u32, on: &[RetryOn]) -> Retry {
    Retry { attempts, per_try: None, backoff: Some(Duration::from_micros(1)), on: on.to_vec() }
}

async fn post(http: &mut Http, path: &str, body: impl Into<bytes::Bytes>) -> (StatusCode, String) {
    let response = http.send(http.request("POST", path, body)).await.unwrap();
    let status = response.status();
    let body = response.collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn a_rule_hides_failures_and_what_is_thrown_away_costs_no_connection() {
    isolated_async(|| async {
        let rule = retry(3, &[RetryOn::Status(500)]);
        let Shop { world, web, apps } = shop(1, &[], retrying(Some(rule), None)).await;
        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        // A POST as well: the rule asks for it.
        assert_eq!(post(&mut http, "/first/3/500", "hello").await, (StatusCode::OK, "one".to_owned()));
        assert_eq!((apps[1].requests(), apps[1].connections()), (4, 1));
        assert_eq!(http.get("/status/500").await.0, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((apps[1].requests(), apps[1].connections()), (8, 1));
        assert_eq!(http.get("/status/502").await.0, StatusCode::BAD_GATEWAY, "nobody asked for this one");
        assert_eq!(apps[1].requests(), 9);
        for (code, flags, count) in [("200", "-", 1.0), ("500", "URX", 1.0), ("502", "-", 1.0)] {
            let labels = [&*format!("response_code=\"{code}\""), &*format!("response_flags=\"{flags}\"")];
            world.counts("istio_requests_total", &labels, count).await;
        }
        world.counts("stillmesh_waypoint_retried_total", &[], 6.0).await;
    });
}

#[test]
fn without_a_rule_503_is_retried_where_the_method_allows_it() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(1, &[], vec![]).await;
        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        assert_eq!(http.get("/first/2/503").await.0, StatusCode::OK);
        assert_eq!(apps[0].requests(), 3);
        assert_eq!(http.get("/status/503").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(apps[0].requests(), 6);
        assert_eq!(post(&mut http, "/status/503", "once").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(apps[0].requests(), 7, "it may have been done");
        assert_eq!(http.get("/status/500").await.0, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(apps[0].requests(), 8);
        world.counts("istio_requests_total", &["response_code=\"503\"", "response_flags=\"URX\""], 1.0).await;
    });
}

#[test]
fn a_grpc_status_without_a_message_is_retried() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(3, &[], vec![]).await;
        let mut http = world.client("page", 1).http2(web).await;
        for (path, code, requests) in [("/grpc-status/14", "0", 2), ("/grpc-status/1", "0", 3)] {
            let mut request = http.request("POST", path, "message");
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            let response = http.send(request).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], code);
            assert_eq!(apps[0].requests(), requests, "{path}");
        }
    });
}

#[test]
fn a_retry_goes_to_another_endpoint_where_there_is_one() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let (one, two) = (world.workload("one"), world.workload("two"));
        let web = world.service("web", "10.1.0.1", 1, &[&one, &two]);
        let apps = [world.endpoint(&one).await.app("one").await, world.endpoint(&two).await.app("two").await];
        world.start(&[]).await;
        let mut http = world.client("page", 1).http1(web).await;
        for number in 1..=10 {
            // Each fails once in all: at the other endpoint, so that one retry does.
            let status = http.get("/first/1000000/503").await.0;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            let requests = apps.each_ref().map(|app| app.requests());
            assert!(requests.iter().all(|count| *count >= number), "both were asked each time: {requests:?}");
            assert_eq!(requests.iter().sum::<usize>(), 3 * number);
        }
    });
}

#[test]
fn a_body_beyond_the_buffer_is_not_sent_again() {
    isolated_async(|| async {
        let rule = retry(3, &[RetryOn::Status(500)]);
        let environment = [("MAX_REPLAY_BYTES", "1024")];
        let Shop { world, web, apps } = shop(1, &environment, retrying(Some(rule), None)).await;
        let mut http = world.client("page", 1).http1(web).await;
        assert_eq!(post(&mut http, "/length", vec![b'a'; 1024]).await.1, "1024 bytes");
        assert_eq!(post(&mut http, "/failing-length", vec![b'a'; 1024]).await.1, "1024 bytes");
        assert_eq!(apps[1].requests(), 1 + 4);
        assert_eq!(post(&mut http, "/failing-length", vec![b'a'; 1025]).await.1, "1025 bytes");
        assert_eq!(apps[1].requests(), 1 + 4 + 1, "it was too long to be kept");
    });
}

#[test]
fn a_try_that_takes_too_long_is_ended_and_another_one_made() {
    isolated_async(|| async {
        let rule = Retry { per_try: Some(Duration::from_secs(1)), ..retry(1, &[RetryOn::PerTryTimeout]) };
        let Shop { world, web, apps } = shop(1, &[], retrying(Some(rule), None)).await;
        let client = world.client("page", 1);
        for (count, mut http) in [(2, client.http1(web).await), (4, client.http2(web).await)] {
            // The ways are open before it counts how long they take.
            while http.get("/name").await.0 != StatusCode::OK {}
            let before = apps[1].requests();
            assert_eq!(http.get("/wait").await.0, StatusCode::GATEWAY_TIMEOUT);
            assert_eq!(apps[1].requests(), before + 2);
            while apps[1].counts.cancelled.load(std::sync::atomic::Ordering::Relaxed) < count {
                apps[1].counts.dropped.notified().await;
            }
        }
        assert!(
            world.metric("istio_requests_total", &["response_code=\"504\"", "response_flags=\"UT,URX\""]).await >= 1.0
        );
    });
}

#[test]
fn a_reset_is_retried_where_a_rule_asks_for_it_and_only_then() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("one");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        world.service("one", "10.1.0.2", 1, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        let to_one =
            |retry| RouteAction::Forward(Forward { backends: vec![to("one", 1)], retry, ..Forward::default() });
        let asked_for = rule(path("/again"), to_one(Some(retry(1, &[RetryOn::Reset]))));
        world.control.store.publish(vec![route("r", None, vec![asked_for, rule(vec![], to_one(None))])]);
        world.start(&[]).await;
        world.tasks.spawn("application", async move {
            // It answers when it is asked again, and else closes.
            for is_again in [false, false, true] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                if is_again {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            }
        });
        let mut http = world.client("page", 1).http1(web).await;
        assert_eq!(http.get("/once").await.0.as_u16(), 503);
        world.counts("istio_requests_total", &["response_flags=\"UC\""], 1.0).await;
        assert_eq!(http.get("/again").await.0.as_u16(), 200);
    });
}

#[test]
fn retries_beyond_the_budget_are_not_made() {
    isolated_async(|| async {
        let rule = retry(1, &[RetryOn::Status(500)]);
        let environment = [("RETRY_BUDGET_PERCENT", "0")];
        let Shop { world, web, apps } = shop(1, &environment, retrying(Some(rule), None)).await;
        // Each is held by its first try's application until all are there, fails, and is then held again.
        let mut asking = Vec::new();
        for number in 1..=8 {
            let mut http = world.client("page", number).http1(web).await;
            asking.push(world.tasks.spawn("client", async move { http.get("/held/500").await.0.as_u16() }));
        }
        while apps[1].requests() < 8 {
            tokio::task::yield_now().await;
        }
        apps[1].counts.held.add_permits(8);
        // Three retries are allowed at a time, whatever the share is; the rest is answered with what there is.
        world.counts("istio_requests_total", &["response_code=\"500\"", "response_flags=\"UO\""], 5.0).await;
        apps[1].counts.held.add_permits(3);
        for mut asked in asking {
            assert_eq!(asked.join().await.unwrap(), 500);
        }
        assert_eq!(apps[1].requests(), 11);
        world.counts("istio_requests_total", &["response_code=\"500\"", "response_flags=\"URX\""], 3.0).await;
    });
}

#[test]
fn a_timeout_bounds_the_whole_response_from_when_the_request_is_whole() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(1, &[], retrying(None, Some(Duration::from_secs(2)))).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            while http.get("/name").await.0 != StatusCode::OK {}
            // A response that began and goes on for ever.
            let response = http.send(http.request("GET", "/source", "")).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert!(response.collect().await.is_err(), "it is cut");
        }
        world.counts("istio_requests_total", &["response_code=\"200\"", "response_flags=\"UT\""], 2.0).await;
    });
}

#[test]
fn a_grpc_clients_deadline_bounds_its_request() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(3, &[], vec![]).await;
        let mut http = world.client("page", 1).http2(web).await;
        assert_eq!(http.get("/name").await.0, StatusCode::OK, "the way is open");
        let headers = [("content-type", "application/grpc"), ("grpc-timeout", "2S")];
        let (head, _) = asked(&mut http, "/wait", &headers).await;
        assert_eq!((head.status, &head.headers["grpc-status"]), (StatusCode::OK, &"4".parse().unwrap()));
        apps[0].counts.dropped.notified().await;
        world.counts("istio_requests_total", &["grpc_response_status=\"4\"", "response_flags=\"UT\""], 1.0).await;
    });
}
