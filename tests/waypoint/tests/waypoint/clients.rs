//! Who may connect, and for how long.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use stillmesh_core::fixtures::{from, policy, service_key};
use stillmesh_core::model::{Action, PortMapping, Scope};
use stillmesh_core::snapshot::Change;
use stillmesh_hbone::TunnelError;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::routes::{Shop, shop};
use stillmesh_waypoint_tests::{Client, PATIENCE};
use tokio::time::{Instant, timeout};

async fn refused_with(client: &Client, to: std::net::SocketAddr) -> Option<StatusCode> {
    let opened = client.open(to).await;
    assert!(matches!(opened, Ok(_) | Err(TunnelError::Refused { .. })), "{opened:?}");
    match opened {
        Err(TunnelError::Refused { status, .. }) => Some(status),
        _ => None,
    }
}

#[test]
fn policies_that_select_the_waypoint_decide_who_may_connect_and_who_stays() {
    isolated_async(|| async {
        let Shop { world, web, apps } = shop(1, &[], vec![]).await;
        let (good, evil) = (world.client("page", 1), world.client("evil", 2));
        let (mut kept, mut cut) = (good.http1(web).await, evil.http1(web).await);
        assert_eq!((kept.get("/name").await.0, cut.get("/name").await.0), (StatusCode::OK, StatusCode::OK));

        world.guard(&[policy("gate/no-evil", Scope::WorkloadSelector, Action::Deny, vec![from("shop/evil")])]);
        // Its open connection is closed, and no new one is let in.
        let ends = async { while cut.send(cut.request("GET", "/name", "")).await.is_ok() {} };
        assert!(timeout(PATIENCE, ends).await.is_ok());
        assert_eq!(refused_with(&evil, web).await, Some(StatusCode::UNAUTHORIZED));
        assert_eq!(kept.get("/name").await.0, StatusCode::OK, "on the same connection");
        world.counts("stillmesh_waypoint_refused_total", &["reason=\"denied\""], 2.0).await;

        // What is said about the namespace is not about what passes through.
        let nobody = policy("gate/nobody", Scope::Namespace, Action::Allow, vec![]);
        world.control.store.publish(vec![Change::Policy(Arc::new(nobody))]);
        world.guard(&[]);
        let begin = Instant::now();
        while refused_with(&evil, web).await.is_some() {
            assert!(begin.elapsed() < PATIENCE, "it is let in again");
        }
        assert!(apps[0].requests() >= 3);
    });
}

#[test]
fn old_connections_end_without_a_request_lost() {
    isolated_async(|| async {
        let Shop { world, web, .. } = shop(1, &[("CLIENT_CONNECTION_AGE", "200ms")], vec![]).await;
        let client = world.client("page", 1);
        // HTTP/1.1: told in an answer.
        let mut http = client.http1(web).await;
        let begin = Instant::now();
        loop {
            let response = http.send(http.request("GET", "/name", "")).await.expect("every request is answered");
            assert_eq!(response.status(), StatusCode::OK);
            if response.headers().get("connection").is_some_and(|value| value == "close") {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "it is told");
        }
        // HTTP/2: told by GOAWAY, and the tunnel itself is another one then.
        let mut http = client.http2(web).await;
        let begin = Instant::now();
        while let Ok(response) = http.send(http.request("GET", "/name", "")).await {
            assert_eq!(response.status(), StatusCode::OK);
            assert!(begin.elapsed() < PATIENCE, "it is told");
        }
        assert_eq!(client.http2(web).await.get("/name").await.0, StatusCode::OK);
        assert_eq!(world.metric("istio_requests_total", &["response_flags=\"DC\""]).await, 0.0);
    });
}

#[test]
fn clients_go_to_replicas_that_are_added() {
    isolated_async(|| async {
        let Shop { mut world, web, .. } = shop(1, &[], vec![]).await;
        let mut clients = Vec::new();
        for number in 1..=16 {
            let client = world.client(&format!("page-{number}"), number);
            let mut http = client.http1(web).await;
            assert_eq!(http.get("/name").await.0, StatusCode::OK);
            clients.push(http);
        }
        // A second replica, as good as the first.
        let mut second = world.workload("w-2");
        second.services.push((service_key("gate/w"), vec![PortMapping { service_port: 15008, target_port: 15008 }]));
        world.control.store.publish(vec![Change::Workload(Arc::new(second))]);
        let begin = Instant::now();
        let mut told = 0;
        while told == 0 || begin.elapsed() < Duration::from_secs(5) {
            assert!(begin.elapsed() < PATIENCE, "some are told");
            let mut staying = Vec::new();
            for mut http in clients {
                let response = http.send(http.request("GET", "/name", "")).await.expect("every request is answered");
                assert_eq!(response.status(), StatusCode::OK);
                if response.headers().get("connection").is_some_and(|value| value == "close") {
                    told += 1;
                } else {
                    drop(response.collect().await.expect("a whole answer"));
                    staying.push(http);
                }
            }
            clients = staying;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!clients.is_empty(), "those whom this replica is for stay");
    });
}
