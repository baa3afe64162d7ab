//! Start and end.

use std::time::Duration;

use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn a_drain_loses_no_request_and_readiness_goes_first() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 0, &[&workload]);
        let raw = world.service("raw", "10.1.0.2", 4, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[("DRAIN_QUIET_PERIOD", "60s")]).await;

        let client = world.client("page", 1);
        let mut idle = client.http1(web).await;
        assert_eq!(idle.get("/name").await.1, "web");
        let (mut one, mut two) = (client.http1(web).await, client.http2(web).await);
        let mut bytes = client.stream(raw).await;
        assert_eq!(world.is_ready().await, Some(true));
        let (request_one, request_two) = (one.request("GET", "/wait", ""), two.request("GET", "/wait", ""));
        let mut both = std::pin::pin!(futures::future::join(one.send(request_one), two.send(request_two)));
        for _ in 0..2 {
            tokio::select! {
                _ = both.as_mut() => unreachable!("nobody lets it go on"),
                () = app.counts.waiting.notified() => {}
            }
        }
        world.drain(Duration::from_secs(120));
        while world.is_ready().await != Some(false) {
            tokio::task::yield_now().await;
        }

        // On a connection that was idle as the drain began: answered, and told that it was the last one.
        let response = idle.send(idle.request("GET", "/name", "")).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["connection"]), (200, &"close".parse().unwrap()));
        // Permits do not add up: whoever is still waiting is let go on when the first has.
        let (one, two) = loop {
            tokio::select! {
                answers = both.as_mut() => break answers,
                () = tokio::task::yield_now() => app.counts.go.notify_one(),
            }
        };
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!((one.status().as_u16(), two.status().as_u16()), (200, 200));
        assert_eq!(one.headers()["connection"], "close");
        drop((one, two));

        // What is open goes on to its own end.
        bytes.write_all(b"GET /name HTTP/1.0\r\n\r\n").await.unwrap();
        bytes.flush().await.unwrap();
        let mut answer = String::new();
        bytes.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("web"), "{answer}");
        bytes.shutdown().await.unwrap();
        drop((bytes, client));
        world.ended().await;
    });
}

#[test]
fn what_outlasts_the_grace_period_is_cut() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let app = world.endpoint(&workload).await.app("web").await;
        world.start(&[]).await;
        let client = world.client("page", 1);
        let mut http = client.http1(web).await;
        let mut waiting = std::pin::pin!(http.send(http.request("GET", "/wait", "")));
        tokio::select! {
            _ = waiting.as_mut() => unreachable!("nobody lets it go on"),
            () = app.counts.waiting.notified() => {}
        }
        world.drain(Duration::from_millis(100));
        world.ended().await;
        assert!(waiting.await.is_err());
    });
}

#[test]
fn the_admin_port_says_what_is_known() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        world.service("web", "10.1.0.1", 1, &[&workload]);
        world.start(&[]).await;
        while world.is_ready().await != Some(true) {
            tokio::task::yield_now().await;
        }
        let dump = world.admin("/config_dump").await;
        assert_eq!(dump["known"]["services"], 2);
        assert_eq!(dump["certificates"][0]["identity"], "spiffe://cluster.local/ns/gate/sa/w");
        assert_eq!(dump["config"]["identity"], "spiffe://cluster.local/ns/gate/sa/w");
    });
}
