//! Faults, copies and cross-origin answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use stillmesh_core::fixtures::service_key;
use stillmesh_core::model::http::{
    Abort, Cors, Fault, Forward, HttpRoute, Mirror, RouteAction, RouteKey, RouteKind, RouteParent, RouteRule, Share,
    TextMatch,
};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::Http;
use stillmesh_waypoint_tests::routes::{Shop, asked, forward, path, route, rule, set, shop, to};

fn faulty(at: &str, delay: Option<(Duration, Share)>, abort: Option<(Abort, Share)>) -> RouteRule {
    RouteRule { fault: Some(Fault { delay, abort }), ..rule(path(at), forward(vec![to("one", 1)])) }
}

#[test]
fn requests_fail_and_wait_on_purpose_in_the_share_that_the_rule_says() {
    isolated_async(|| async {
        let (all, none) = (Share::ALL, Share::parts_per_million(0));
        let delay = Duration::from_millis(50);
        let rules = vec![
            faulty("/http", None, Some((Abort::Http(418), all))),
            faulty("/grpc", None, Some((Abort::Grpc(8), all))),
            faulty("/delayed", Some((delay, all)), None),
            faulty("/both", Some((delay, all)), Some((Abort::Http(500), all))),
            faulty("/name", Some((Duration::from_secs(3600), none)), Some((Abort::Http(500), none))),
        ];
        let Shop { world, web, apps } = shop(1, &[], vec![route("r", None, rules)]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            assert_eq!(http.get("/http").await.0, StatusCode::IM_A_TEAPOT);
            let (head, _) = asked(&mut http, "/grpc", &[("content-type", "application/grpc")]).await;
            assert_eq!((head.status, &head.headers["grpc-status"]), (StatusCode::OK, &"8".parse().unwrap()));
            assert_eq!(http.get("/grpc").await.0, StatusCode::TOO_MANY_REQUESTS, "a client that speaks no gRPC");
            let began = tokio::time::Instant::now();
            assert_eq!(http.get("/delayed").await.0, StatusCode::NOT_FOUND, "the application's answer");
            assert!(began.elapsed() >= delay);
            assert_eq!(http.get("/both").await.0, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(http.get("/name").await.1, "one");
        }
        assert_eq!(apps[1].requests(), 4, "what fails on purpose reaches nobody");
        for (flags, count) in [("FI", 6.0), ("DI", 2.0), ("DI,FI", 2.0), ("-", 2.0)] {
            world.counts("istio_requests_total", &[&*format!("response_flags=\"{flags}\"")], count).await;
        }
    });
}

#[test]
fn a_client_that_goes_ends_its_delay() {
    isolated_async(|| async {
        let rules = vec![faulty("/", Some((Duration::from_secs(3600), Share::ALL)), None)];
        let Shop { world, web, .. } = shop(1, &[], vec![route("r", None, rules)]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            let asking = http.send(http.request("GET", "/name", ""));
            tokio::time::timeout(Duration::from_secs(1), asking).await.unwrap_err();
        }
        world.counts("istio_requests_total", &["response_flags=\"DI,DC\""], 2.0).await;
    });
}

fn mirrored(mirrors: Vec<Mirror>) -> RouteAction {
    RouteAction::Forward(Forward { backends: vec![to("one", 1)], mirrors, ..Forward::default() })
}

#[test]
fn copies_go_to_those_who_are_to_have_one_and_what_becomes_of_them_changes_nothing() {
    isolated_async(|| async {
        let mirror = |name: &str, share| Mirror { backend: to(name, 1).backend, share };
        let rules = vec![RouteRule {
            request_headers: set("x-edited", "1"),
            ..rule(
                path("/"),
                mirrored(vec![
                    mirror("two", Share::ALL),
                    mirror("web", Share::parts_per_million(0)),
                    mirror("nobody", Share::ALL),
                ]),
            )
        }];
        let environment = [("MAX_REPLAY_BYTES", "1024")];
        let Shop { world, web, apps } = shop(1, &environment, vec![route("r", None, rules)]).await;
        let client = world.client("page", 1);
        for mut http in [client.http1(web).await, client.http2(web).await] {
            assert_eq!(http.get("/name").await.1, "one");
            let response = http.send(http.request("POST", "/length", vec![b'a'; 1024])).await.unwrap();
            assert_eq!(response.collect().await.unwrap().to_bytes(), "1024 bytes");
        }
        world.counts("stillmesh_waypoint_mirrored_total", &[], 4.0).await;
        assert_eq!(apps[2].requests(), 4);
        assert_eq!(apps[2].counts.received.load(Ordering::Relaxed), 2 * 1024, "bodies are copied");
        let seen = apps[2].counts.last.lock().clone().unwrap();
        assert_eq!((&seen.headers["x-edited"], seen.method), (&"1".parse().unwrap(), Method::POST));
        world.counts("stillmesh_waypoint_refused_total", &["reason=\"mirror_backend\""], 4.0).await;
        // Too long to be kept: the request goes on, its copy does not.
        let mut http = client.http1(web).await;
        let response = http.send(http.request("POST", "/length", vec![b'a'; 1025])).await.unwrap();
        assert_eq!(response.collect().await.unwrap().to_bytes(), "1025 bytes");
        world.counts("stillmesh_waypoint_refused_total", &["reason=\"mirror_body\""], 1.0).await;
        assert_eq!((apps[0].requests(), apps[2].requests()), (0, 4));
    });
}

#[test]
fn a_copy_that_hangs_is_waited_for_by_nobody_and_copies_are_bounded() {
    isolated_async(|| async {
        let hanging = mirrored(vec![Mirror { backend: to("two", 1).backend, share: Share::ALL }]);
        let rules = vec![rule(path("/"), hanging)];
        let environment = [("MAX_MIRRORED_REQUESTS", "2")];
        let Shop { mut world, web, apps } = shop(1, &environment, vec![route("r", None, rules)]).await;
        let mut http = world.client("page", 1).http1(web).await;
        for _ in 0..5 {
            apps[1].counts.held.add_permits(1);
            assert_eq!(http.get("/held/500").await.0, StatusCode::INTERNAL_SERVER_ERROR);
        }
        world.counts("stillmesh_waypoint_refused_total", &["reason=\"mirrors\""], 3.0).await;
        assert_eq!(apps[1].requests(), 5);
        drop(http);
        // A drain does not wait for copies either.
        world.drain(Duration::from_secs(3600));
        world.ended().await;
    });
}

#[test]
fn a_virtual_services_copy_says_that_it_is_one() {
    isolated_async(|| async {
        let mirror = Mirror { backend: to("two", 1).backend, share: Share::ALL };
        let route = HttpRoute {
            key: RouteKey { kind: RouteKind::VirtualService, namespace: "shop".into(), name: "r".into() },
            parents: vec![RouteParent { service: service_key("shop/web"), port: None }],
            consumer: None,
            created: 0,
            streams: Vec::new(),
            rules: vec![rule(path("/"), mirrored(vec![mirror]))],
        };
        let Shop { world, web, apps } = shop(1, &[], vec![Change::Route(Arc::new(route))]).await;
        let client = world.client("page", 1);
        for (count, mut http) in [(1.0, client.http1(web).await), (2.0, client.http2(web).await)] {
            let mut request = http.request("GET", "/name", "");
            if matches!(http, Http::One(_)) {
                request.headers_mut().insert("host", "web:81".parse().unwrap());
            } else {
                *request.uri_mut() = "http://web:81/name".parse().unwrap();
            }
            assert_eq!(http.send(request).await.unwrap().status(), StatusCode::OK);
            world.counts("stillmesh_waypoint_mirrored_total", &[], count).await;
            let seen = apps[2].counts.last.lock().clone().unwrap();
            let host = seen.uri.authority().map(ToString::to_string);
            assert_eq!(
                host.as_deref().unwrap_or(seen.headers.get("host").map_or("", |host| host.to_str().unwrap())),
                "web-shadow:81"
            );
            let seen = apps[1].counts.last.lock().clone().unwrap();
            let host = seen.uri.authority().map(ToString::to_string);
            assert_eq!(
                host.as_deref().unwrap_or(seen.headers.get("host").map_or("", |host| host.to_str().unwrap())),
                "web:81"
            );
        }
    });
}

#[test]
fn browsers_of_permitted_origins_are_answered_and_others_get_nothing() {
    isolated_async(|| async {
        let cors = Cors {
            origins: vec![TextMatch::Exact("https://shop.example".into())],
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["*".into()],
            expose: vec![],
            max_age: Some(Duration::from_secs(60)),
            credentials: true,
            forward_unmatched: false,
        };
        let left = Cors { forward_unmatched: true, ..cors.clone() };
        let to_one = || forward(vec![to("one", 1)]);
        let rules = vec![
            RouteRule { cors: Some(cors), ..rule(path("/who"), to_one()) },
            RouteRule { cors: Some(left), ..rule(path("/name"), to_one()) },
        ];
        let Shop { world, web, apps } = shop(1, &[], vec![route("r", None, rules)]).await;
        let mut http = world.client("page", 1).http1(web).await;
        let question = |origin: &'static str| {
            [("origin", origin), ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-a")]
        };
        let mut ask = async |path: &str, method: Method, headers: &[(&'static str, &str)]| {
            let mut request = http.request(method.as_str(), path, "");
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            let (head, body) = http.send(request).await.unwrap().into_parts();
            drop(body.collect().await.unwrap());
            head
        };
        let head = ask("/who", Method::OPTIONS, &question("https://shop.example")).await;
        assert_eq!(head.status, StatusCode::OK);
        for (name, value) in [
            ("access-control-allow-origin", "https://shop.example"),
            ("access-control-allow-methods", "GET, PUT"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-max-age", "60"),
            ("access-control-allow-credentials", "true"),
            ("vary", "origin"),
        ] {
            assert_eq!(head.headers[name], value, "{name}");
        }
        let evil = question("https://evil.example");
        let head = ask("/who", Method::OPTIONS, &evil).await;
        assert!(head.status == StatusCode::OK && !head.headers.contains_key("access-control-allow-origin"));
        assert_eq!(apps[1].requests(), 0, "questions are answered by the waypoint");
        let head = ask("/who", Method::GET, &[("origin", "https://shop.example")]).await;
        assert_eq!(head.headers["access-control-allow-origin"], "https://shop.example");
        let head = ask("/who", Method::GET, &[("origin", "https://evil.example")]).await;
        assert!(!head.headers.contains_key("access-control-allow-origin"));
        assert!(!ask("/who", Method::GET, &[]).await.headers.contains_key("vary"), "no other origin");
        assert_eq!(apps[1].requests(), 3);
        ask("/name", Method::OPTIONS, &evil).await;
        assert_eq!(apps[1].requests(), 4, "this rule leaves it to the endpoint");
    });
}
