//! How endpoints are treated, as DestinationRules say: picked, bounded, left out.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use stillmesh_core::fixtures::{policy_key, service_key};
use stillmesh_core::model::destination::{
    Balancing, ConnectionPool, DestinationRule, EndpointVersion, HashCookie, HashKey, Method, OutlierDetection, Subset,
    Traffic, TrafficPolicy,
};
use stillmesh_core::model::http::{Forward, Retry, RouteAction, RouteBackend, WeightedBackend};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::routes::{asked, forward, route, rule, to};
use stillmesh_waypoint_tests::{App, World};
use tokio::io::AsyncReadExt as _;

/// Service `web` with the endpoints `one`, `two` and `three`.
struct Web {
    world: World,
    at: SocketAddr,
    apps: Vec<App>,
}

fn by(method: Method) -> TrafficPolicy {
    TrafficPolicy { balancing: Some(Balancing { method, ..Balancing::default() }), ..TrafficPolicy::default() }
}

fn bounded(limits: ConnectionPool) -> TrafficPolicy {
    TrafficPolicy { limits: Some(limits), ..TrafficPolicy::default() }
}

/// A rule for `web`; each of its endpoints is a subset of its own.
fn destination(policy: TrafficPolicy) -> Change {
    let subset = |name: &&str| Subset {
        name: (*name).into(),
        members: vec![stillmesh_core::fixtures::uid(&format!("shop/{name}"))],
        traffic: Traffic::default(),
    };
    Change::Destination(Arc::new(DestinationRule {
        key: policy_key("shop/web"),
        services: vec![service_key("shop/web")],
        exactness: DestinationRule::WHOLE,
        is_mesh_wide: false,
        created: 0,
        traffic: Traffic { policy, ports: Vec::new() },
        subsets: NAMES[..2].iter().map(subset).collect(),
    }))
}

const NAMES: [&str; 3] = ["one", "two", "three"];

async fn web(protocol: i32, mut changes: Vec<Change>, policy: TrafficPolicy) -> Web {
    let mut world = World::new().await;
    let workloads = NAMES.map(|name| world.workload(name));
    let at = world.service("web", "10.1.0.1", protocol, &workloads.each_ref());
    let mut apps = Vec::new();
    for (workload, name) in workloads.iter().zip(NAMES) {
        apps.push(world.endpoint(workload).await.app(name).await);
    }
    changes.push(destination(policy));
    world.control.store.publish(changes);
    world.start(&[]).await;
    Web { world, at, apps }
}

/// Straight to the service: no other try whatever happens.
fn without_retries() -> Vec<Change> {
    let retry = Some(Retry { attempts: 0, per_try: None, backoff: None, on: vec![] });
    let forward = Forward { backends: vec![to("web", 1)], retry, ..Forward::default() };
    vec![route("r", None, vec![rule(vec![], RouteAction::Forward(forward))])]
}

fn subset(name: &str) -> WeightedBackend {
    let (service, subset) = (service_key("shop/web"), Some(name.into()));
    WeightedBackend { backend: RouteBackend::Service { service, port: None, subset }, ..to("web", 1) }
}

impl Web {
    fn requests(&self) -> Vec<usize> {
        self.apps.iter().map(App::requests).collect()
    }
}

#[test]
fn a_route_leads_to_a_subset_and_to_no_other_endpoint() {
    isolated_async(|| async {
        let routes = vec![
            route(
                "two",
                None,
                vec![rule(stillmesh_waypoint_tests::routes::path("/name"), forward(vec![subset("two")]))],
            ),
            route("none", None, vec![rule(vec![], forward(vec![subset("four")]))]),
        ];
        let web = web(1, routes, TrafficPolicy::default()).await;
        let mut http = web.world.client("page", 1).http1(web.at).await;
        for _ in 0..10 {
            assert_eq!(http.get("/name").await, (StatusCode::OK, "two".to_owned()));
        }
        assert_eq!(http.get("/who").await.0, StatusCode::SERVICE_UNAVAILABLE, "there is no such subset");
        let labels = ["response_code=\"503\"", "response_flags=\"NC\""];
        web.world.counts("istio_requests_total", &labels, 1.0).await;
    });
}

#[test]
fn turns_are_taken() {
    isolated_async(|| async {
        let web = web(1, vec![], by(Method::RoundRobin)).await;
        let mut http = web.world.client("page", 1).http1(web.at).await;
        for _ in 0..12 {
            assert_eq!(http.get("/name").await.0, StatusCode::OK);
        }
        assert_eq!(web.requests(), [4, 4, 4]);
    });
}

#[test]
fn an_endpoint_with_much_to_do_is_given_less() {
    isolated_async(|| async {
        let web = web(1, vec![], TrafficPolicy::default()).await;
        let client = web.world.client("page", 1);
        // One of them hangs in ten requests; of two endpoints the one with fewer is taken.
        let mut waiting = Vec::new();
        for _ in 0..30 {
            let mut http = client.http1(web.at).await;
            let request = http.request("GET", "/held/500", "");
            let asking = async move { http.send(request).await.unwrap().status() };
            waiting.push(web.world.tasks.spawn("client", asking));
            while web.requests().iter().sum::<usize>() < waiting.len() {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(web.requests().iter().sum::<usize>(), 30);
        assert!(web.requests().iter().all(|count| (7..=13).contains(count)), "{:?}", web.requests());
        web.apps.iter().for_each(|app| app.counts.held.add_permits(100));
        for mut waiting in waiting {
            assert_eq!(waiting.join().await.unwrap(), StatusCode::INTERNAL_SERVER_ERROR);
        }
    });
}

#[test]
fn the_same_header_comes_to_the_same_endpoint_and_a_cookie_is_given_for_it() {
    isolated_async(|| async {
        let web = web(1, vec![], by(Method::ConsistentHash(HashKey::Header("x-user".into())))).await;
        let mut http = web.world.client("page", 1).http1(web.at).await;
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        for number in 0..60 {
            let user = format!("user-{}", number % 12);
            let (_, name) = asked(&mut http, "/name", &[("x-user", &user)]).await;
            let owner = owners.entry(user.clone()).or_insert_with(|| name.clone());
            assert_eq!(*owner, name, "{user}");
        }
        assert!(owners.values().collect::<std::collections::BTreeSet<_>>().len() > 1, "{owners:?}");

        let cookie = HashCookie { name: "who".into(), path: Some("/".into()), ttl: Some(Duration::from_secs(60)) };
        web.world.control.store.publish(vec![destination(by(Method::ConsistentHash(HashKey::Cookie(cookie))))]);
        let (mut given, mut first) = (None, String::new());
        while given.is_none() {
            let (head, name) = asked(&mut http, "/name", &[]).await;
            (given, first) = (head.headers.get("set-cookie").cloned(), name);
        }
        let given = given.unwrap().to_str().unwrap().to_owned();
        assert!(given.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{given}");
        let pair = given.split(';').next().unwrap();
        for _ in 0..10 {
            let (head, name) = asked(&mut http, "/name", &[("cookie", pair)]).await;
            assert_eq!((name, head.headers.get("set-cookie")), (first.clone(), None));
        }
    });
}

#[test]
fn an_endpoint_that_fails_again_and_again_is_left_out_for_a_while() {
    isolated_async(|| async {
        let base_ejection = Duration::from_secs(3600);
        let rule = OutlierDetection { consecutive_5xx: 3, base_ejection, ..OutlierDetection::default() };
        let policy = TrafficPolicy { outliers: Some(rule), ..by(Method::RoundRobin) };
        let web = web(1, without_retries(), policy).await;
        let mut http = web.world.client("page", 1).http1(web.at).await;
        // All fail alike; of three endpoints one may be left out.
        for _ in 0..9 {
            assert_eq!(http.get("/status/500").await.0, StatusCode::INTERNAL_SERVER_ERROR);
        }
        web.world.counts("stillmesh_waypoint_ejected_total", &[], 1.0).await;
        let before = web.requests();
        for _ in 0..12 {
            assert_eq!(http.get("/name").await.0, StatusCode::OK);
        }
        let mut more: Vec<usize> = web.requests().iter().zip(before).map(|(after, before)| after - before).collect();
        more.sort_unstable();
        assert_eq!(more, [0, 6, 6]);
    });
}

#[test]
fn what_is_beyond_the_bounds_is_refused_at_once() {
    isolated_async(|| async {
        let limits = ConnectionPool { requests: Some(2), ..ConnectionPool::default() };
        let web = web(1, vec![], bounded(limits)).await;
        let client = web.world.client("page", 1);
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut http = client.http1(web.at).await;
            let request = http.request("GET", "/held/500", "");
            let asking = async move { http.send(request).await.unwrap().status() };
            waiting.push(web.world.tasks.spawn("client", asking));
        }
        while web.requests().iter().sum::<usize>() < 2 {
            tokio::task::yield_now().await;
        }
        let mut http = client.http1(web.at).await;
        assert_eq!(http.get("/name").await.0, StatusCode::SERVICE_UNAVAILABLE);
        let labels = ["response_code=\"503\"", "response_flags=\"UO\""];
        web.world.counts("istio_requests_total", &labels, 1.0).await;
        web.apps.iter().for_each(|app| app.counts.held.add_permits(100));
        for mut waiting in waiting {
            assert_eq!(waiting.join().await.unwrap(), StatusCode::INTERNAL_SERVER_ERROR);
        }
        assert_eq!(http.get("/name").await.0, StatusCode::OK);
    });
}

#[test]
fn requests_wait_for_a_connection_while_few_wait() {
    isolated_async(|| async {
        let limits = ConnectionPool { connections: Some(1), pending: Some(1), ..ConnectionPool::default() };
        let web = web(1, vec![], bounded(limits)).await;
        let client = web.world.client("page", 1);
        let mut holder = client.http1(web.at).await;
        let request = holder.request("GET", "/held/500", "");
        let mut held = web.world.tasks.spawn("client", async move { holder.send(request).await.unwrap().status() });
        while web.requests().iter().sum::<usize>() < 1 {
            tokio::task::yield_now().await;
        }
        let (mut one, mut two) = (client.http1(web.at).await, client.http1(web.at).await);
        let mut first = web.world.tasks.spawn("client", async move { one.get("/name").await.0 });
        let mut second = web.world.tasks.spawn("client", async move { two.get("/name").await.0 });
        // One of them is one too many; the other comes through as soon as there is room.
        let labels = ["response_code=\"503\"", "response_flags=\"UO\""];
        web.world.counts("istio_requests_total", &labels, 1.0).await;
        web.apps.iter().for_each(|app| app.counts.held.add_permits(100));
        let mut answers = [first.join().await.unwrap(), second.join().await.unwrap()];
        answers.sort();
        assert_eq!(answers, [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE]);
        held.join().await.unwrap();
    });
}

async fn two_requests_each(protocol: i32) {
    let limits = ConnectionPool { requests_per_connection: Some(2), ..ConnectionPool::default() };
    let routes = vec![route("r", None, vec![rule(vec![], forward(vec![subset("one")]))])];
    let web = web(protocol, routes, bounded(limits)).await;
    let mut http = web.world.client("page", 1).http1(web.at).await;
    for _ in 0..6 {
        assert_eq!(http.get("/name").await.0, StatusCode::OK);
    }
    assert_eq!((web.apps[0].requests(), web.apps[0].connections()), (6, 3));
}

#[test]
fn a_connection_carries_as_many_requests_as_it_may() {
    isolated_async(|| two_requests_each(1));
}

#[test]
fn a_connection_of_http2_does_so_too() {
    isolated_async(|| two_requests_each(2));
}

/// What an endpoint at a port of `protocol` hears a client of HTTP/1.1 in.
async fn heard(protocol: i32, version: EndpointVersion) -> serde_json::Value {
    let web = web(protocol, vec![], bounded(ConnectionPool { version, ..ConnectionPool::default() })).await;
    let mut http = web.world.client("page", 1).http1(web.at).await;
    serde_json::from_str::<serde_json::Value>(&http.get("/who").await.1).unwrap()["version"].clone()
}

#[test]
fn http1_is_made_http2_where_that_is_written() {
    isolated_async(|| async { assert_eq!(heard(1, EndpointVersion::Two).await, "HTTP/2.0") });
}

#[test]
fn a_clients_version_is_kept_where_that_is_written() {
    isolated_async(|| async { assert_eq!(heard(2, EndpointVersion::OfClient).await, "HTTP/1.1") });
}

#[test]
fn a_tcp_connection_on_which_nothing_passes_is_cut() {
    isolated_async(|| async {
        let limits = ConnectionPool { tcp_idle: Some(Duration::from_millis(50)), ..ConnectionPool::default() };
        let web = web(4, vec![], bounded(limits)).await;
        let mut stream = web.world.client("page", 1).stream(web.at).await;
        let mut buffer = [0; 1];
        assert!(stream.read(&mut buffer).await.is_err(), "a cut is no end");
        web.world.counts("istio_tcp_connections_closed_total", &["response_flags=\"SI\""], 1.0).await;
    });
}
