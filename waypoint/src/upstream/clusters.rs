//! What is known of services' endpoints from carrying traffic to them: how much is under way, whose turn it is, and who is left
//! out for a while. One [`Cluster`] for each port of a service, and of each subset.
//!
//! Bounds: there are as many as there are ports and subsets that something was sent to, with as many members as there are
//! endpoints; [`Clusters::tidy`] forgets what is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::{Mutex, RwLock};
use stillmesh_core::decide::retry::Outcome;
use stillmesh_core::decide::{Live, Target};
use stillmesh_core::model::destination::OutlierDetection;
use stillmesh_core::model::{ServiceKey, Str, WorkloadUid};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_proxy::Snapshots;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::outliers::{Health, Why, may_eject};

/// All of a waypoint.
#[derive(Debug, Default)]
pub struct Clusters {
    all: Mutex<HashMap<Key, Arc<Cluster>, RandomState>>,
}

/// `None`: everything that is dialled by its own address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Key {
    service: Option<ServiceKey>,
    port: u16,
    subset: Option<Str>,
}

impl Key {
    fn is_there(&self, snapshot: &Snapshot, namespace: &str) -> bool {
        let Some(service) = &self.service else { return true };
        let is_subset = |subset: &Str| {
            let rules = snapshot.destination(service, namespace);
            rules.is_some_and(|rules| rules.treatment(self.port, Some(subset)).is_some())
        };
        snapshot.service(service).is_some() && self.subset.as_ref().is_none_or(is_subset)
    }
}

/// Endpoints that are treated alike.
#[derive(Debug, Default)]
pub struct Cluster {
    members: RwLock<HashMap<WorkloadUid, Arc<Member>, RandomState>>,
    turn: AtomicU64,
    requests: AtomicUsize,
    retries: AtomicUsize,
    connections: AtomicUsize,
    pending: AtomicUsize,
    /// A connection's place is free again.
    freed: Notify,
}

/// One endpoint.
#[derive(Debug)]
struct Member {
    since: Instant,
    active: AtomicU64,
    health: Mutex<Health>,
}

impl Clusters {
    /// The one of a target.
    pub fn of(&self, target: &Target) -> Arc<Cluster> {
        let key = match target {
            Target::Service { service, port, subset, .. } => {
                Key { service: Some(service.key.clone()), port: port.mapping.service_port, subset: subset.clone() }
            }
            Target::Workload { .. } => Key::default(),
        };
        let mut all = self.all.lock();
        match all.get(&key) {
            Some(cluster) => cluster.clone(),
            None => all.entry(key).or_default().clone(),
        }
    }

    /// The one of a port of a service, or of a subset, if anything has been sent to it.
    pub fn known(&self, service: &ServiceKey, port: u16, subset: Option<&Str>) -> Option<Arc<Cluster>> {
        let key = Key { service: Some(service.clone()), port, subset: subset.cloned() };
        self.all.lock().get(&key).cloned()
    }

    /// Forgets services, subsets and endpoints that are gone, as a waypoint of this namespace sees them. Runs for ever.
    pub async fn tidy(self: Arc<Self>, snapshots: Arc<Snapshots>, namespace: Str) {
        loop {
            sleep(TIDY).await;
            self.forget(&snapshots.load(), &namespace);
        }
    }

    fn forget(&self, snapshot: &Snapshot, namespace: &str) {
        self.all.lock().retain(|key, cluster| {
            let is_there = key.is_there(snapshot, namespace);
            let mut members = cluster.members.write();
            members.retain(|uid, member| snapshot.workload(uid).is_some() || Arc::strong_count(member) > 1);
            // The map's lock is held: nobody begins to use one.
            let is_used =
                Arc::strong_count(cluster) > 1 || members.values().any(|member| Arc::strong_count(member) > 1);
            is_there || is_used
        });
    }
}

/// How often what is gone is forgotten.
const TIDY: Duration = Duration::from_secs(30);

/// Retries that are always allowed at a time: a share of few requests is none.
pub const FLOOR: usize = 3;

/// What a cluster counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counter {
    Requests,
    Retries,
    Connections,
    /// Those who wait for a connection.
    Pending,
}

/// A place among those that a cluster has; given back when dropped.
#[derive(Debug)]
pub struct Place {
    cluster: Arc<Cluster>,
    of: Counter,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cluster.count(self.of).fetch_sub(1, Ordering::Relaxed);
        // Whoever waits, waits for a connection.
        if self.of == Counter::Connections {
            self.cluster.freed.notify_one();
        }
    }
}

impl Cluster {
    fn count(&self, of: Counter) -> &AtomicUsize {
        match of {
            Counter::Requests => &self.requests,
            Counter::Retries => &self.retries,
            Counter::Connections => &self.connections,
            Counter::Pending => &self.pending,
        }
    }

    /// The place is taken first: of two who ask at once not both get the last one.
    fn place(self: &Arc<Self>, of: Counter, most: usize) -> Option<Place> {
        if self.count(of).fetch_add(1, Ordering::Relaxed) < most {
            return Some(Place { cluster: self.clone(), of });
        }
        // Nothing was freed: nobody is told.
        self.count(of).fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Counts a request for as long as what is returned is held; `None`: there are as many as may be.
    pub fn request(self: &Arc<Self>, most: Option<u32>) -> Option<Place> {
        self.place(Counter::Requests, bound(most))
    }

    /// The right to one retry, given back when dropped; `None`: as many requests as may be are retries, which is `percent` of
    /// them, [`FLOOR`] in any case, and `most`.
    pub fn retry(self: &Arc<Self>, percent: usize, most: Option<u32>) -> Option<Place> {
        let share = self.requests.load(Ordering::Relaxed).saturating_mul(percent) / 100;
        self.place(Counter::Retries, share.max(FLOOR).min(bound(most)))
    }

    /// A connection's place, waited for while not too many others wait; `None`: there is none.
    pub async fn connection(
        self: &Arc<Self>,
        most: Option<u32>,
        pending: Option<u32>,
        deadline: Instant,
    ) -> Option<Place> {
        let place = || self.place(Counter::Connections, bound(most));
        if let Some(place) = place() {
            return Some(place);
        }
        let _waiting = self.place(Counter::Pending, bound(pending))?;
        let freed = async {
            loop {
                let freed = self.freed.notified();
                if let Some(place) = place() {
                    return place;
                }
                freed.await;
            }
        };
        tokio::time::timeout_at(deadline, freed).await.ok()
    }

    /// Whose turn it is among endpoints that take turns: one more each time.
    pub fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Something is sent to an endpoint, for as long as what is returned is held.
    pub fn flight(&self, endpoint: &WorkloadUid) -> Flight {
        let member = self.member(endpoint);
        member.active.fetch_add(1, Ordering::Relaxed);
        Flight(member)
    }

    fn member(&self, endpoint: &WorkloadUid) -> Arc<Member> {
        if let Some(member) = self.members.read().get(endpoint) {
            return member.clone();
        }
        let new = || Arc::new(Member { since: Instant::now(), active: AtomicU64::new(0), health: Mutex::default() });
        self.members.write().entry(endpoint.clone()).or_insert_with(new).clone()
    }

    /// Takes how a try at an endpoint went. Says why and for how long it is left out, if it is from now on. `all`: how many
    /// endpoints there are.
    pub fn note(
        &self,
        endpoint: &WorkloadUid,
        rule: &OutlierDetection,
        outcome: Outcome,
        all: impl FnOnce() -> usize,
    ) -> Option<(Why, Duration)> {
        let (member, now) = (self.member(endpoint), Instant::now());
        let why = member.health.lock().note(rule, outcome)?;
        let members = self.members.read();
        let ejected = members.values().filter(|member| member.health.lock().is_ejected(now)).count();
        drop(members);
        let mut health = member.health.lock();
        if health.is_ejected(now) || !may_eject(rule, ejected, all()) {
            return None;
        }
        Some((why, health.eject(rule, now)))
    }
}

fn bound(most: Option<u32>) -> usize {
    most.map_or(usize::MAX, |most| most as usize)
}

impl Live for Cluster {
    fn active(&self, endpoint: &WorkloadUid) -> u64 {
        self.members.read().get(endpoint).map_or(0, |member| member.active.load(Ordering::Relaxed))
    }

    fn is_ejected(&self, endpoint: &WorkloadUid) -> bool {
        let members = self.members.read();
        members.get(endpoint).is_some_and(|member| member.health.lock().is_ejected(Instant::now()))
    }

    /// One that is seen for the first time begins now.
    fn age(&self, endpoint: &WorkloadUid) -> Duration {
        self.member(endpoint).since.elapsed()
    }
}

/// Something that is under way at an endpoint.
#[derive(Debug)]
pub struct Flight(Arc<Member>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use stillmesh_core::fixtures::{World, policy_key, uid};
    use stillmesh_core::model::destination::{DestinationRule, Subset, Traffic};
    use stillmesh_core::snapshot::Change;

    use super::*;

    #[test]
    fn a_share_of_the_requests_under_way_may_be_retries_and_a_few_always() {
        let cluster = Arc::new(Cluster::default());
        let mut requests: Vec<Place> = (0..10).filter_map(|_| cluster.request(None)).collect();
        let first: Vec<Place> = (0..9).filter_map(|_| cluster.retry(20, None)).collect();
        assert_eq!(first.len(), FLOOR, "two of ten would be fewer than the floor");
        drop(first);
        requests.extend((0..40).filter_map(|_| cluster.request(None)));
        let held: Vec<Place> = (0..50).filter_map(|_| cluster.retry(20, None)).collect();
        assert_eq!(held.len(), 10, "a fifth of fifty");
        drop(held);
        assert_eq!((0..9).filter_map(|_| cluster.retry(20, Some(1))).collect::<Vec<_>>().len(), 1, "as was written");
        drop(requests);
        assert_eq!((cluster.requests.load(Ordering::Relaxed), cluster.retries.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_connection_waits_for_one_while_few_do() {
        let cluster = Arc::new(Cluster::default());
        let soon = || Instant::now() + Duration::from_secs(5);
        let one = cluster.connection(Some(1), Some(1), soon()).await.unwrap();
        let waits = async { cluster.connection(Some(1), Some(1), soon()).await.is_some() };
        let meanwhile = async {
            assert!(cluster.connection(Some(1), Some(1), soon()).await.is_none(), "one waits already");
            drop(one);
        };
        assert!(tokio::join!(waits, meanwhile).0);
        let _held = cluster.connection(Some(1), None, soon()).await.unwrap();
        let began = Instant::now();
        assert!(cluster.connection(Some(1), None, soon()).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert_eq!(cluster.pending.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_fails_is_left_out_and_comes_back() {
        let cluster = Cluster::default();
        let rule = OutlierDetection { consecutive_5xx: 2, ..OutlierDetection::default() };
        let bad = Outcome::Answered { status: 500, grpc: None };
        let (a, b) = (uid("a"), uid("b"));
        assert_eq!(cluster.note(&a, &rule, bad, || 2), None);
        assert_eq!(cluster.note(&a, &rule, bad, || 2), Some((Why::Server, Duration::from_secs(30))));
        assert!(cluster.is_ejected(&a) && !cluster.is_ejected(&b));
        assert_eq!(cluster.note(&b, &rule, bad, || 2), None);
        assert_eq!(cluster.note(&b, &rule, bad, || 2), None, "more than a tenth");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(!cluster.is_ejected(&a));
    }

    #[test]
    fn what_is_gone_is_forgotten_once_nobody_uses_it() {
        let world = World::new().workload("a").service("web", &[(80, 80)], &["a"]);
        let service = world.get_service("web");
        let port = service.ports[0];
        let target = Target::Service { service, port, address: None, subset: None };
        let clusters = Clusters::default();
        let flight = clusters.of(&target).flight(&uid("a"));
        clusters.of(&target).flight(&uid("b"));
        clusters.forget(&world.snapshot(), "ns");
        assert_eq!(clusters.of(&target).members.read().len(), 1, "b is not there");
        clusters.forget(&World::new().snapshot(), "ns");
        assert_eq!(clusters.all.lock().len(), 1, "something is under way");
        drop(flight);
        // The workload is still there; its service is not.
        clusters.forget(&World::new().workload("a").snapshot(), "ns");
        assert!(clusters.all.lock().is_empty());
    }

    #[test]
    fn a_subset_that_nobody_defines_any_more_is_forgotten() {
        let world = World::new().workload("a").service("web", &[(80, 80)], &["a"]);
        let service = world.get_service("web");
        let port = service.ports[0];
        let target = |subset: Option<&str>| {
            let subset = subset.map(Into::into);
            Target::Service { service: service.clone(), port, address: None, subset }
        };
        let rule = |names: &[&str]| {
            let subset =
                |name: &&str| Subset { name: (*name).into(), members: Vec::new(), traffic: Traffic::default() };
            let rule = DestinationRule {
                key: policy_key("ns/r"),
                services: vec![service.key.clone()],
                exactness: 0,
                is_mesh_wide: false,
                created: 0,
                traffic: Traffic::default(),
                subsets: names.iter().map(subset).collect(),
            };
            world.snapshot().apply(&[Change::Destination(Arc::new(rule))]).0
        };
        let clusters = Clusters::default();
        for subset in [None, Some("old"), Some("kept")] {
            clusters.of(&target(subset));
        }
        clusters.forget(&rule(&["old", "kept"]), "ns");
        assert_eq!(clusters.all.lock().len(), 3);
        clusters.forget(&rule(&["kept"]), "ns");
        let left: Vec<_> = clusters.all.lock().keys().map(|key| key.subset.clone()).collect();
        assert!(left.len() == 2 && left.contains(&None) && left.contains(&Some("kept".into())), "{left:?}");
        clusters.forget(&world.snapshot(), "ns");
        assert_eq!(clusters.all.lock().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_ends_wakes_nobody_who_waits_for_a_connection() {
        let cluster = Arc::new(Cluster::default());
        drop(cluster.request(None));
        drop(cluster.retry(20, None));
        let told = tokio::time::timeout(Duration::from_secs(1), cluster.freed.notified()).await;
        assert!(told.is_err());
        drop(cluster.connection(None, None, Instant::now()).await);
        cluster.freed.notified().await;
    }
}
