//! What a waypoint allocates, and copies within memory, for a request.
//!
//! Each bound is less than twice what was counted, without optimization: a change that doubles it fails.

use stillmesh_test_counting::Counting;
use stillmesh_test_support::isolated;
use stillmesh_waypoint_tests::{Http, World};

/// The threads of a waypoint that carry.
const CARRYING: &str = "waypoint";

/// As many requests are counted.
const MANY: u64 = 500;

async fn ask(http: &mut Http, times: u64) {
    for _ in 0..times {
        let (status, body) = http.get("/who").await;
        assert_eq!(status, 200, "{body}");
    }
}

#[test]
fn a_request_allocates_and_copies_no_more_than_ever() {
    isolated(|| {
        let carrying = tokio::runtime::Builder::new_multi_thread().thread_name(CARRYING).enable_all().build().unwrap();
        let others = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        others.block_on(async {
            let mut world = World::new().await;
            let workload = world.workload("web");
            let web = world.service("web", "10.1.0.1", 1, &[&workload]);
            let endpoint = world.endpoint(&workload).await;
            let _app = endpoint.app("web").await;
            let there = carrying.enter();
            world.start(&[]).await;
            drop(there);
            let mut http = world.client("page", 1).http1(web).await;
            ask(&mut http, 50).await;
            let counting = Counting::of(CARRYING);
            ask(&mut http, MANY).await;
            let counts = counting.end();
            assert!(counts.allocations > 0, "nothing is counted");
            counts.hold("a request in a waypoint", MANY, 51.0, 280_000.0);
        });
    });
}
