//! Who writes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use stillmesh_cluster::{Candidate, Leader, Terms};
use stillmesh_test_api::World;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const TERMS: Terms =
    Terms { lease: Duration::from_secs(3), hold: Duration::from_secs(2), every: Duration::from_millis(200) };

async fn candidate(world: &World, name: &str) -> (Leader, CancellationToken, stillmesh_runtime::tasks::Task<()>) {
    let access = world.access(None).await;
    let (candidate, leader) = Candidate::new(&access, &world.namespace, "stillmesh-leader", name, TERMS);
    let end = CancellationToken::new();
    let task = world.tasks.spawn("candidate", candidate.run(end.clone()));
    (leader, end, task)
}

async fn holder(world: &World) -> String {
    let api: Api<Lease> = Api::namespaced(world.client(), &world.namespace);
    let lease = api.get_opt("stillmesh-leader").await.unwrap();
    lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_leads_and_another_one_after_its_end() {
    let world = World::new().await;
    let mut all = Vec::new();
    for name in ["a", "b", "c"] {
        all.push((name, candidate(&world, name).await));
    }
    world.until("one leads", || async { all.iter().any(|(_, (leader, ..))| leader.leads()) }).await;
    // For as long as several terms there is exactly one.
    let end = Instant::now() + TERMS.lease * 2;
    while Instant::now() < end {
        let leading = all.iter().filter(|(_, (leader, ..))| leader.leads()).count();
        assert!(leading <= 1, "{leading} lead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One that ends as it should gives the lease back: nobody waits for it to run out.
    let place = all.iter().position(|(_, (leader, ..))| leader.leads()).unwrap();
    let (_, (leader, end, _task)) = all.remove(place);
    let begun = Instant::now();
    end.cancel();
    world.until("another one leads", || async { all.iter().any(|(_, (leader, ..))| leader.leads()) }).await;
    assert!(!leader.leads());
    assert!(begun.elapsed() < TERMS.lease, "{:?}", begun.elapsed());
    // One that is killed is waited for, and never leads beside its successor.
    let place = all.iter().position(|(_, (leader, ..))| leader.leads()).unwrap();
    let (name, (killed, _end, task)) = all.remove(place);
    task.cut();
    assert_eq!(holder(&world).await, name);
    let other = &all[0].1.0;
    world
        .until("the last one leads", || async {
            assert!(!(killed.leads() && other.leads()), "both lead");
            other.leads()
        })
        .await;
    assert_eq!(holder(&world).await, all[0].0);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_reach_the_server_stops_writing_before_another_one_begins() {
    let world = World::new().await;
    let proxy = crate::proxy::Proxy::start(&world).await;
    let access = world.access(Some(&proxy.url())).await;
    let (cut_off, mut leader) = Candidate::new(&access, &world.namespace, "stillmesh-leader", "cut-off", TERMS);
    world.tasks.spawn("candidate", cut_off.run(CancellationToken::new()));
    leader.gained().await;
    let (other, ..) = candidate(&world, "other").await;
    proxy.cut();
    // A write that is under way ends with the lease.
    let begun = Instant::now();
    assert!(leader.write(std::future::pending::<()>()).await.is_err());
    assert!(begun.elapsed() <= TERMS.hold + Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(!other.leads(), "the other one waits for longer");
    world.until("the other one leads", || async { other.leads() }).await;
    assert!(!leader.leads());
    proxy.mend();
    tokio::time::sleep(TERMS.every * 4).await;
    assert!(other.leads() && !leader.leads());
    world.end().await;
}
