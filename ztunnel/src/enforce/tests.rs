use std::time::Duration;

use prometheus_client::registry::Registry;
use stillmesh_core::model::{Action, Policy, PolicyKey, Rule, Scope};
use stillmesh_core::snapshot::Change;
use stillmesh_proxy::INTERVAL;
use stillmesh_proxy::series::Budget;
use stillmesh_records::Recorder;
use tokio::time::Instant;

use super::*;
use crate::record::{Direction, Metrics, Protocol, Record};
use crate::testing;

struct World {
    ledger: Arc<Ledger>,
    cut_off: Arc<CutOff>,
    snapshot: Snapshot,
    enforcer: Enforcer,
}

impl World {
    /// Workloads `details` of `shop` and `stock` of `depot`, nothing forbidden.
    fn new() -> Self {
        let ledger = Ledger::new(Metrics::new(&mut Registry::default(), "test", &Budget::new(100)), Recorder::new(0));
        let workloads = [("shop", "details-1", 2), ("depot", "stock-1", 3)];
        let changes: Vec<Change> = workloads
            .iter()
            .map(|(namespace, name, n)| Change::Workload(Arc::new(testing::workload(namespace, name, [10, 0, 0, *n]))))
            .collect();
        let (snapshot, _) = Snapshot::empty("").apply(&changes);
        let cut_off = Arc::new(CutOff::new("node1"));
        Self { enforcer: Enforcer::new(ledger.clone(), cut_off.clone()), ledger, cut_off, snapshot }
    }

    fn connect(&self, namespace: &str, name: &str) -> (Record, Arc<Live>) {
        let destination = testing::workload(namespace, name, [10, 0, 0, 2]);
        let source = testing::workload("shop", "page-1", [10, 0, 0, 1]);
        let mut record = Record::new(
            &self.ledger,
            Facts {
                id: crate::record::Id::random(),
                parent: 0,
                direction: Direction::Inbound,
                protocol: Protocol::Hbone,
                source_addr: "10.0.0.1:4000".parse().unwrap(),
                described: None,
                peer: Some(Arc::new(source.identity())),
                source: None,
                original: "10.0.0.2:8080".parse().unwrap(),
                destination_addr: "10.0.0.2:15008".parse().unwrap(),
                authority: None,
                upstream: Some("10.0.0.2:8080".parse().unwrap()),
                destination: Some(Arc::new(destination)),
                service: None,
            },
        );
        let live = record.enlist().clone();
        (record, live)
    }

    /// Applies a policy that denies everything, or an unreadable one.
    async fn deny(&mut self, namespace: &str, scope: Scope, unreadable: bool) {
        let policy = Policy {
            key: PolicyKey::new(namespace, "no"),
            scope,
            action: Action::Deny,
            rules: vec![Rule::default()],
            dry_run: false,
            unreadable: unreadable.then(|| "a field of the future".into()),
            order: None,
        };
        let (snapshot, touched) = self.snapshot.apply(&[Change::Policy(Arc::new(policy))]);
        self.snapshot = snapshot;
        self.enforcer.pass(&self.snapshot, touched).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_denied_connection_is_closed_with_the_policy_as_reason() {
    let mut world = World::new();
    let (_record, live) = world.connect("shop", "details-1");
    world.deny("shop", Scope::Namespace, false).await;
    assert!(live.cut.is_cut());
    let outcome = live.cut.wait().await;
    assert_eq!(outcome.error.as_deref(), Some("connection closed due to policy change"));
    assert_eq!(outcome.flag, Flag::Deny);
    assert_eq!(outcome.reason.as_ref().unwrap().policy(), Some(&PolicyKey::new("shop", "no")));
    assert_eq!(world.ledger.metrics().policy_closed.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_tunnel_is_closed_when_it_needs_one_and_nothing_else_is() {
    let mut world = World::new();
    let put = |direct: bool| {
        let of = |name: &str, n: u8| Workload { direct, ..testing::workload("shop", name, [10, 0, 0, n]) };
        [Change::Workload(Arc::new(of("page-1", 1))), Change::Workload(Arc::new(of("details-1", 2)))]
    };
    (world.snapshot, _) = world.snapshot.apply(&put(true));
    let open = |world: &World, protocol: Protocol| {
        let (record, _) = world.connect("shop", "details-1");
        let source = Some(Arc::new(testing::workload("shop", "page-1", [10, 0, 0, 1])));
        let facts = Facts { direction: Direction::Outbound, protocol, source, ..record.facts().clone() };
        let mut record = Record::new(&world.ledger, facts);
        (record.enlist().clone(), record)
    };
    let ((direct, _one), (tunnel, _other)) = (open(&world, Protocol::Direct), open(&world, Protocol::Hbone));
    let (snapshot, touched) = world.snapshot.apply(&put(true)[..]);
    world.enforcer.pass(&snapshot, touched).await;
    assert!(!direct.cut.is_cut());
    let (snapshot, touched) = world.snapshot.apply(&put(false)[..1]);
    world.enforcer.pass(&snapshot, touched).await;
    assert!(direct.cut.is_cut() && !tunnel.cut.is_cut());
    assert!(direct.cut.wait().await.error.unwrap().contains("without a tunnel"));
    // One that is listed only afterwards learns it as well.
    assert!(needs_tunnel(&snapshot, &direct.facts).is_some() && needs_tunnel(&snapshot, &tunnel.facts).is_none());
    assert!(needs_tunnel(&world.snapshot, &direct.facts).is_none());
    drop((_one, _other));
    assert!(!world.ledger.has_direct());
}

#[tokio::test(start_paused = true)]
async fn connections_of_other_namespaces_stay() {
    let mut world = World::new();
    let (_shop, in_shop) = world.connect("shop", "details-1");
    let (_depot, in_depot) = world.connect("depot", "stock-1");
    world.deny("depot", Scope::Namespace, false).await;
    assert!(!in_shop.cut.is_cut() && in_depot.cut.is_cut());
    world.deny("istio-system", Scope::Global, false).await;
    assert!(in_shop.cut.is_cut());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_cuts_nothing_that_is_open() {
    let mut world = World::new();
    let (_record, live) = world.connect("shop", "details-1");
    world.deny("shop", Scope::Namespace, true).await;
    assert!(!live.cut.is_cut());
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_is_gone_keeps_its_connections() {
    let mut world = World::new();
    let (_record, live) = world.connect("shop", "details-1");
    let uid = testing::workload("shop", "details-1", [10, 0, 0, 2]).uid;
    let (snapshot, touched) = world.snapshot.apply(&[Change::WorkloadRemoved(uid)]);
    world.snapshot = snapshot;
    world.enforcer.pass(&world.snapshot, touched).await;
    world.deny("shop", Scope::Namespace, false).await;
    assert!(!live.cut.is_cut());
}

#[tokio::test(start_paused = true)]
async fn a_second_pass_waits_for_the_interval_and_idle_ones_wait_for_nothing() {
    let mut world = World::new();
    let begin = Instant::now();
    world.deny("depot", Scope::Namespace, false).await;
    world.deny("shop", Scope::Namespace, false).await;
    assert_eq!(begin.elapsed(), Duration::ZERO, "nothing is open");
    let mut world = World::new();
    let (_one, first) = world.connect("depot", "stock-1");
    let (_two, live) = world.connect("shop", "details-1");
    world.deny("depot", Scope::Namespace, false).await;
    assert!(first.cut.is_cut());
    assert_eq!(begin.elapsed(), Duration::ZERO);
    world.deny("shop", Scope::Namespace, false).await;
    assert_eq!(begin.elapsed(), INTERVAL);
    assert!(live.cut.is_cut());
}

#[tokio::test(start_paused = true)]
async fn outbound_connections_are_the_other_ends_to_decide() {
    let mut world = World::new();
    let (record, _) = world.connect("shop", "details-1");
    let mut facts = record.facts().clone();
    facts.direction = Direction::Outbound;
    let mut outbound = Record::new(&world.ledger, facts);
    let live = outbound.enlist().clone();
    world.deny("shop", Scope::Namespace, false).await;
    assert!(!live.cut.is_cut());
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_closes_what_is_open_both_ways_and_counts_it() {
    let mut world = World::new();
    let (_in, inbound) = world.connect("shop", "details-1");
    let (_other, other) = world.connect("depot", "stock-1");
    let outbound = |source: &str, destination: &str| {
        let (source, destination) =
            (testing::workload("shop", source, [10, 0, 0, 2]), testing::workload("depot", destination, [10, 0, 0, 3]));
        let mut record = Record::new(
            &world.ledger,
            Facts {
                direction: Direction::Outbound,
                peer: None,
                source: Some(Arc::new(source)),
                upstream: None,
                destination: Some(Arc::new(destination)),
                ..inbound.facts.clone()
            },
        );
        let live = record.enlist().clone();
        (record, live)
    };
    let (_out, from) = outbound("details-1", "stock-1");
    let (_unrelated, unrelated) = outbound("page-1", "stock-1");

    let key = PolicyKey::of_quarantine("shop", "q");
    let policy = Policy {
        key: key.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule::default()],
        dry_run: false,
        unreadable: None,
        order: Some("u-1".into()),
    };
    let again = Policy { order: Some("u-2".into()), ..policy.clone() };
    let mut details = testing::workload("shop", "details-1", [10, 0, 0, 2]);
    details.node = "node1".into();
    let uid = details.uid.clone();
    let free = details.clone();
    details.authorization_policies.push(key.clone());
    let changes = [Change::Policy(Arc::new(policy)), Change::Workload(Arc::new(details))];
    let (snapshot, touched) = world.snapshot.apply(&changes);
    world.enforcer.pass(&snapshot, touched).await;
    for live in [&inbound, &from] {
        assert!(live.cut.is_cut());
        assert_eq!(live.cut.wait().await.reason, Some(Reason::Quarantined { policy: key.clone() }));
    }
    assert!(!other.cut.is_cut() && !unrelated.cut.is_cut());
    let notice = world.cut_off.notice("u", &uid);
    assert_eq!((notice.quarantine.as_deref(), notice.order.as_deref(), notice.cut), (Some("shop/q"), Some("u-1"), 2));

    // One that is made again under its name is another one, and has cut nothing yet.
    let (snapshot, touched) = snapshot.apply(&[Change::Policy(Arc::new(again))]);
    world.enforcer.pass(&snapshot, touched).await;
    let notice = world.cut_off.notice("u", &uid);
    assert_eq!((notice.quarantine.as_deref(), notice.order.as_deref(), notice.cut), (Some("shop/q"), Some("u-2"), 0));

    let (snapshot, touched) = snapshot.apply(&[Change::Workload(Arc::new(free))]);
    world.enforcer.pass(&snapshot, touched).await;
    assert_eq!(world.cut_off.notice("u", &uid).quarantine, None);
}
