//! Routes: which rule takes a request, and what becomes of it.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use stillmesh_core::model::http::{
    Forward, HeaderEdit, HeaderMatch, PathRewrite, Redirect, RedirectPort, RequestMatch, Respond, Rewrite, RouteAction,
    RouteBackend, RouteKey, RouteKind, RouteRule, TextMatch, WeightedBackend,
};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::routes::{asked, forward, path, route, routed, rule, set, to};

#[test]
fn the_first_rule_in_order_decides_where_a_request_goes() {
    isolated_async(|| async {
        let header = HeaderMatch { name: "x-to".into(), value: TextMatch::Exact("two".into()) };
        let by_header = RequestMatch { headers: vec![header], ..RequestMatch::default() };
        let rules = vec![
            rule(vec![by_header], forward(vec![to("two", 1)])),
            rule(path("/name"), forward(vec![to("one", 1), to("two", 0)])),
        ];
        let (world, web) = routed(vec![route("r", None, rules)]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            assert_eq!(http.get("/name").await, (StatusCode::OK, "one".to_owned()));
            let headers = [("x-to", "two")];
            assert_eq!(asked(&mut http, "/who", &headers).await.0.status, StatusCode::OK);
            let who: serde_json::Value = serde_json::from_str(&asked(&mut http, "/who", &headers).await.1).unwrap();
            let host = match who["version"].as_str() {
                Some("HTTP/1.1") => &who["headers"]["host"],
                _ => &who["target"],
            };
            assert!(who["name"] == "two" && (host == "web" || host == "http://web/who"), "the host stays: {who}");
            assert_eq!(http.get("/other").await.0, StatusCode::NOT_FOUND, "there are routes, and none takes it");
        }
        world
            .counts(
                "istio_requests_total",
                &["destination_service=\"one.shop.svc.cluster.local\"", "response_code=\"200\""],
                2.0,
            )
            .await;
    });
}

#[test]
fn heads_are_rewritten_on_both_ways() {
    isolated_async(|| async {
        let rewrite =
            Rewrite { authority: Some("rewritten.example".into()), path: Some(PathRewrite::Prefix("/who".into())) };
        let backend = WeightedBackend {
            request_headers: set("x-backend", "b"),
            response_headers: set("x-answer", "backend"),
            ..to("one", 1)
        };
        let action = RouteAction::Forward(Forward { backends: vec![backend], rewrite, ..Forward::default() });
        let rules = vec![RouteRule {
            request_headers: HeaderEdit {
                add: vec![("x-rule".into(), "r".into())],
                remove: vec!["x-gone".into()],
                ..HeaderEdit::default()
            },
            response_headers: set("x-also", "rule"),
            ..rule(path("/api"), action)
        }];
        let (world, web) = routed(vec![route("r", None, rules)]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            let (head, body) = asked(&mut http, "/api?a=b", &[("x-gone", "1"), ("x-rule", "0")]).await;
            assert_eq!(
                (&head.headers["x-answer"], &head.headers["x-also"]),
                (&"backend".parse().unwrap(), &"rule".parse().unwrap())
            );
            let who: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                who["target"],
                if who["version"] == "HTTP/1.1" { "/who?a=b" } else { "http://rewritten.example/who?a=b" }
            );
            if who["version"] == "HTTP/1.1" {
                assert_eq!(who["headers"]["host"], "rewritten.example");
            }
            assert_eq!(who["headers"]["x-backend"], "b");
            assert!(who["headers"]["x-gone"].is_null());
        }
    });
}

#[test]
fn a_waypoint_answers_by_itself_where_a_route_says_so() {
    isolated_async(|| async {
        let redirect =
            Redirect { scheme: Some("https".into()), host: None, port: RedirectPort::Derived, path: None, status: 301 };
        let invalid = WeightedBackend { backend: RouteBackend::Invalid { problem: "gone".into() }, ..to("one", 1) };
        let respond = RouteAction::Respond(Respond { status: 418, body: "tea".into() });
        let rules = vec![
            rule(path("/old"), RouteAction::Redirect(redirect)),
            RouteRule { response_headers: set("x-own", "1"), ..rule(path("/tea"), respond) },
            rule(path("/invalid"), forward(vec![invalid])),
            rule(path("/none"), forward(vec![])),
            rule(path("/nobody"), forward(vec![to("nobody", 1)])),
        ];
        let (world, web) = routed(vec![route("r", None, rules)]).await;
        let mut http = world.client("page", 1).http1(web).await;
        let (head, _) = asked(&mut http, "/old/page?a=b", &[]).await;
        assert_eq!(
            (head.status, head.headers["location"].to_str().unwrap()),
            (StatusCode::MOVED_PERMANENTLY, "https://web/old/page?a=b")
        );
        let (head, body) = asked(&mut http, "/tea", &[]).await;
        assert_eq!((head.status.as_u16(), head.headers["x-own"].to_str().unwrap(), body.as_str()), (418, "1", "tea"));
        for path in ["/invalid", "/none", "/nobody"] {
            assert_eq!(http.get(path).await.0, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
        }
        // A gRPC client is told in its own words.
        let (head, _) = asked(&mut http, "/none", &[("content-type", "application/grpc")]).await;
        assert_eq!((head.status, head.headers["grpc-status"].to_str().unwrap()), (StatusCode::OK, "14"));
    });
}

#[test]
fn a_consumers_route_is_for_clients_of_its_namespace_by_their_certificates() {
    isolated_async(|| async {
        let all = |to_name: &str| vec![rule(vec![], forward(vec![to(to_name, 1)]))];
        let routes = vec![route("producer", None, all("one")), route("consumer", Some("shop"), all("two"))];
        let (world, web) = routed(routes).await;
        let mut http = world.client("page", 1).http1(web).await;
        assert_eq!(http.get("/name").await.1, "two", "the client is of namespace shop");
    });
}

#[test]
fn a_request_that_takes_longer_than_its_route_allows_is_answered_504() {
    isolated_async(|| async {
        let slow = RouteAction::Forward(Forward {
            backends: vec![to("one", 1)],
            timeout: Some(Duration::from_millis(50)),
            ..Forward::default()
        });
        let (world, web) = routed(vec![route("r", None, vec![rule(vec![], slow)])]).await;
        let mut http = world.client("page", 1).http1(web).await;
        assert_eq!(http.get("/wait").await.0, StatusCode::GATEWAY_TIMEOUT);
        world.counts("istio_requests_total", &["response_code=\"504\"", "response_flags=\"UT\""], 1.0).await;
    });
}

#[test]
fn a_route_that_changes_holds_for_the_next_request_of_an_open_connection() {
    isolated_async(|| async {
        let all = |to_name: &str| vec![rule(vec![], forward(vec![to(to_name, 1)]))];
        let (world, web) = routed(vec![route("r", None, all("one"))]).await;
        let mut http = world.client("page", 1).http1(web).await;
        assert_eq!(http.get("/name").await.1, "one");
        world.control.store.publish(vec![route("r", None, all("two"))]);
        let begin = tokio::time::Instant::now();
        while http.get("/name").await.1 != "two" {
            assert!(begin.elapsed() < stillmesh_waypoint_tests::PATIENCE, "the change arrives");
        }
        let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "r".into() };
        world.control.store.publish(vec![Change::RouteRemoved(key)]);
        while http.get("/name").await.1 != "web" {
            assert!(begin.elapsed() < stillmesh_waypoint_tests::PATIENCE, "the removal arrives");
        }
    });
}

#[test]
fn own_answers_to_head_have_no_body_in_either_version() {
    isolated_async(|| async {
        let respond = RouteAction::Respond(Respond { status: 200, body: "hello".into() });
        let (world, web) = routed(vec![route("r", None, vec![rule(path("/own"), respond)])]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            for (path, length) in [("/own", Some("5")), ("/none", None)] {
                let response = http.send(http.request("HEAD", path, "")).await.unwrap();
                let told = response.headers().get("content-length").map(|value| value.to_str().unwrap());
                assert!(length.is_none() || told == length, "{path}: {told:?}");
                assert_eq!(response.collect().await.unwrap().to_bytes().len(), 0);
            }
            assert_eq!(http.get("/own").await.1, "hello", "on the same connection");
        }
    });
}
