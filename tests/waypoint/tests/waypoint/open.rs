//! What is open when policies change: connections that are no HTTP, and what connections were upgraded to.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use hyper_util::rt::TokioIo;
use stillmesh_core::fixtures::service_key;
use stillmesh_core::model::access::{Access, Attachment, RequestAction, RequestPolicy, Wanted};
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::access::{exact, of, policy, published};
use stillmesh_waypoint_tests::routes::{Shop, shop};
use stillmesh_waypoint_tests::streams::{Greeters, greeters, greeting};
use stillmesh_waypoint_tests::{Body, Http, PATIENCE, World};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// Of service ports, as numbered on the wire.
const HTTP: i32 = 1;
const TCP: i32 = 4;

/// Sends something and gets it back.
async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    let mut back = [0; 4];
    let there = async { stream.write_all(b"ping").await.is_ok() && stream.flush().await.is_ok() };
    there.await && stream.read_exact(&mut back).await.is_ok() && &back == b"ping"
}

/// Waits until nothing comes any more.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
    let read = timeout(PATIENCE, stream.read(&mut [0; 4])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

fn no_evil(name: &str) -> RequestPolicy {
    let evil = Wanted::Principal(exact(&["cluster.local/ns/shop/sa/evil"]));
    policy(name, RequestAction::Deny, vec![of(evil)])
}

/// Publishes what must not close anything, and waits until it is in force.
async fn harmless(world: &World, client: &mut Http) {
    let elsewhere =
        RequestPolicy { attached: Attachment::To(vec![service_key("shop/one")]), ..no_evil("shop/elsewhere") };
    let dry = RequestPolicy { dry_run: true, ..no_evil("shop/dry") };
    let unreadable = RequestPolicy { unreadable: Some("odd".into()), ..no_evil("shop/odd") };
    let key = Access::Policy(unreadable.clone()).key();
    world.control.store.publish([elsewhere, dry, unreadable].map(published).to_vec());
    while client.get("/name").await.0 != http::StatusCode::FORBIDDEN {}
    world.control.store.publish(vec![Change::AccessRemoved(key)]);
    while client.get("/name").await.0 != http::StatusCode::OK {}
}

#[test]
fn connections_that_are_denied_are_closed_and_others_go_on() {
    isolated_async(|| async {
        let Greeters { world, web } = greeters(TCP, &[], vec![], None).await;
        let mut streams = Vec::new();
        for (number, name) in [(1, "page"), (2, "evil"), (3, "evil")] {
            let mut stream = world.client(name, number).stream(web).await;
            assert_eq!(greeting(&mut stream).await.unwrap(), "web");
            assert!(echoes(&mut stream).await);
            streams.push(stream);
        }
        world.control.store.publish(vec![published(no_evil("shop/no-evil"))]);
        for stream in &mut streams[1..] {
            ended(stream).await;
        }
        assert!(echoes(&mut streams[0]).await);
        world.counts("istio_tcp_connections_closed_total", &["response_flags=\"DENY\""], 2.0).await;
        world.counts("stillmesh_waypoint_policy_closed_total", &[], 2.0).await;

        // What is attached to the waypoint's own service, its Gateway, is about all that it carries.
        let gateway = Attachment::To(vec![service_key("gate/w")]);
        let nobody = RequestPolicy { attached: gateway, ..policy("gate/nobody", RequestAction::Allow, vec![]) };
        world.control.store.publish(vec![published(nobody)]);
        ended(&mut streams[0]).await;
        world.counts("stillmesh_waypoint_policy_closed_total", &[], 3.0).await;
    });
}

#[test]
fn a_silent_connection_that_is_denied_may_still_speak_http() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(0, &[("PROTOCOL_DETECTION_TIMEOUT", "50ms")], vec![]).await;
        let mut stream = world.client("page", 1).stream(web).await;
        while apps[0].connections() == 0 {
            tokio::task::yield_now().await;
        }
        // A connection has no method.
        let get = policy("shop/get", RequestAction::Allow, vec![of(Wanted::Method(exact(&["GET"])))]);
        world.control.store.publish(vec![published(get)]);
        world.counts("stillmesh_waypoint_policy_closed_total", &[], 1.0).await;
        stream.write_all(b"GET /name HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    });
}

fn upgrade(http: &Http) -> http::Request<Body> {
    let mut request = http.request("GET", "/upgrade", "");
    match http {
        Http::One(_) => {
            request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
            request.headers_mut().insert("upgrade", "echo".parse().unwrap());
        }
        Http::Two(_) => {
            *request.method_mut() = http::Method::CONNECT;
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("echo"));
        }
    }
    request
}

#[test]
fn what_requests_opened_is_decided_by_the_request_that_opened_it() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(HTTP, &[], vec![]).await;
        let mut upgraded = Vec::new();
        for (number, name) in [(1, "page"), (2, "evil")] {
            let client = world.client(name, number);
            for mut http in [client.http1(web).await, client.http2(web).await] {
                // The waypoint's settings come with the first answer.
                assert_eq!(http.get("/name").await.1, "web");
                let response = http.send(upgrade(&http)).await.unwrap();
                let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
                assert!(echoes(&mut stream).await);
                upgraded.push((http, stream));
            }
        }
        let mut asks = world.client("evil", 2).http1(web).await;
        harmless(&world, &mut asks).await;
        for (_, stream) in &mut upgraded {
            assert!(echoes(stream).await, "what does not deny it does not close it");
        }
        let path = Wanted::Path(vec![stillmesh_core::model::access::PathPattern::Text(exact(&["/upgrade"]).remove(0))]);
        let mut both = of(path);
        both.clauses.extend(of(Wanted::Principal(exact(&["cluster.local/ns/shop/sa/evil"]))).clauses);
        world.control.store.publish(vec![published(policy("shop/p", RequestAction::Deny, vec![both]))]);
        for (_, stream) in &mut upgraded[2..] {
            ended(stream).await;
        }
        // Of HTTP/2, the stream alone.
        assert_eq!(upgraded[3].0.get("/name").await.0, http::StatusCode::OK);
        for (_, stream) in &mut upgraded[..2] {
            assert!(echoes(stream).await);
        }
        let labels = ["response_code=\"101\"", "response_flags=\"DENY\""];
        world.counts("istio_requests_total", &labels, 2.0).await;
        world.counts("stillmesh_waypoint_policy_closed_total", &[], 2.0).await;
    });
}
