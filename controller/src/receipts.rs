//! Receipts: of every policy, route, rule and binding, on how many nodes and waypoint replicas its content is in force, how
//! long that took, and who lags; of every enrolment, of how many pods ([`enrolled`]).
//!
//! An object belongs to the generation of the store in which its content, or what follows from it, was published last. A
//! client has it in force when it has acknowledged that generation of every type, which our clients do after they have
//! published it and decided again what is open, and refuses none of the object's resources. What is kept: one entry per
//! object with the names of its resources, one per client, and durations for at most [`flight::MOST`] generations, in buckets,
//! so that they cost the same for ten nodes and a thousand. Nothing is kept for a pair of an object and a client.

mod enrolled;
mod flight;
mod judge;
mod share;
mod tell;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use stillmesh_api::xds::{self, NodeId, ResourceType, Store};
use stillmesh_core::model::Str;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_objects::{Change, Update};
use tokio::sync::Notify;

use crate::build::{About, Enrolments, Made, Role, Running};
use crate::status::Statuses;
use flight::Flights;
use judge::{Place, Seen};
use share::Remote;
use tell::Teller;

pub(crate) use judge::{IN_FORCE, Receipt};
pub(crate) use share::Summary;
pub(crate) use tell::essence;

/// The least time between two looks at everything, and how many times as long as the last look took it is at least.
const PAUSE: Duration = Duration::from_millis(200);
const COST: u32 = 20;

/// A replica that has said nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Without word of the others for so long, nothing is told: who is not connected here may be connected there.
const DEAF: Duration = Duration::from_secs(10);

/// All receipts.
pub(crate) struct Receipts {
    store: Arc<Store>,
    fleet: OnceLock<Fleet>,
    state: Mutex<State>,
    /// Where several replicas serve.
    replicas: Mutex<Option<Replicas>>,
    news: Notify,
}

/// What other replicas say.
#[derive(Default)]
struct Replicas {
    /// By name of the replica: its text, since when it says this, what it means.
    said: BTreeMap<String, (String, Instant, Arc<Remote>)>,
    /// When they were listened to last.
    heard: Option<Instant>,
}

/// Who is expected to enforce, and to be captured.
struct Fleet {
    running: Arc<Running>,
    enrolments: Arc<Enrolments>,
    /// Accounts of nodes' tunnels.
    tunnels: Vec<(Str, Str)>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectKey, Tracked>,
    /// Hashes of what objects say, by which a change that means something is known from one that does not.
    specs: HashMap<ObjectKey, u64>,
    /// Objects that have no receipt, until that is told.
    without: BTreeSet<ObjectKey>,
    flights: Flights,
    clients: BTreeMap<u64, Client>,
    /// Who has been seen, by pod.
    pods: HashMap<Str, Pod>,
}

/// An object that carries a receipt.
#[derive(Debug)]
struct Tracked {
    /// The generation of the store from which on it is in force.
    generation: u64,
    /// The object's own generation.
    observed: Option<i64>,
    resources: BTreeSet<(ResourceType, Str)>,
    content: u64,
    about: About,
    /// Since when this content is there; `None` where it was there before this process was.
    arrived: Option<Instant>,
}

/// A stream.
#[derive(Debug)]
struct Client {
    /// Its pod: namespace and name.
    pod: Str,
    /// Whether the credentials say which pod it is, so that it is one that must be there.
    proven: bool,
    /// Its node; the pod where it is not known.
    node: Str,
    role: Role,
}

/// A pod that has been seen.
#[derive(Debug)]
struct Pod {
    since: Instant,
    /// The newest generation that it ever confirmed.
    reached: u64,
}

impl Receipts {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, fleet: OnceLock::new(), state: Mutex::default(), replicas: Mutex::default(), news: Notify::new() }
    }

    /// Whose pods are expected to be connected, and which ones captured. Told once, before anybody connects.
    pub fn expect(&self, running: Arc<Running>, enrolments: Arc<Enrolments>, tunnels: Vec<(Str, Str)>) {
        // A second telling would be the same.
        let _ = self.fleet.set(Fleet { running, enrolments, tunnels });
    }

    /// Objects have come: which of them say something else than before.
    pub fn read(&self, update: &Update) -> BTreeSet<ObjectKey> {
        let mut state = self.state.lock();
        let mut changed = BTreeSet::new();
        for change in &update.changes {
            let key = change.key();
            match change {
                Change::Set(placed) if carries(key.kind) => {
                    let hash = spec_hash(&placed.object);
                    if state.specs.insert(key.clone(), hash) != Some(hash) {
                        changed.insert(key);
                    }
                }
                Change::Set(_) => {}
                Change::Removed(_) => {
                    state.specs.remove(&key);
                }
            }
        }
        changed
    }

    /// Objects have been built, and what came of it is published: as this generation where anything changed.
    pub fn built(
        &self,
        made: Vec<Made>,
        changed: &BTreeSet<ObjectKey>,
        published: Option<u64>,
        arrived: Option<Instant>,
    ) {
        let mut state = self.state.lock();
        for one in made {
            let meant = changed.contains(&one.object) || !one.changed.is_empty();
            self.take(&mut state, one, meant, published, arrived);
        }
        drop(state);
        self.news.notify_one();
    }

    fn take(&self, state: &mut State, made: Made, meant: bool, published: Option<u64>, arrived: Option<Instant>) {
        let Made { object, generation, changed, about } = made;
        let old = state.objects.remove(&object);
        let Some(about) = about else {
            if let Some(old) = old {
                state.flights.leave(old.generation);
            }
            state.without.insert(object);
            return;
        };
        let is_new = old.is_none();
        let mut tracked = old.unwrap_or_else(|| Tracked {
            generation: self.store.generation(),
            observed: None,
            resources: BTreeSet::new(),
            content: 0,
            about: About::default(),
            arrived,
        });
        for (kind, name, is_there) in changed {
            match is_there {
                true => tracked.resources.insert((kind, name)),
                false => tracked.resources.remove(&(kind, name)),
            };
        }
        let spec = state.specs.get(&object).copied().unwrap_or_default();
        tracked.content = self.store.content(spec, tracked.resources.iter());
        (tracked.about, tracked.observed) = (about, generation);
        match published {
            Some(generation) if meant => {
                if !is_new {
                    state.flights.leave(tracked.generation);
                }
                (tracked.generation, tracked.arrived) = (generation, arrived);
                state.flights.enter(generation, arrived);
            }
            _ if is_new => state.flights.enter(tracked.generation, None),
            _ => {}
        }
        state.without.remove(&object);
        state.objects.insert(object, tracked);
    }

    /// A client has opened a stream.
    pub fn connected(&self, node: &NodeId) {
        let Some(fleet) = self.fleet.get() else { return };
        let caller = &node.caller;
        let role = fleet.running.role(&fleet.tunnels, &caller.namespace, &caller.service_account);
        let client = Client {
            pod: pod_of(node),
            proven: caller.pod.is_some(),
            node: if node.node.is_empty() { pod_of(node) } else { node.node.clone() },
            role: role.unwrap_or(Role::Tunnel),
        };
        let mut state = self.state.lock();
        state.pods.entry(client.pod.clone()).or_insert_with(|| Pod { since: Instant::now(), reached: 0 });
        state.clients.insert(node.stream, client);
        drop(state);
        self.news.notify_one();
    }

    /// A stream has ended.
    pub fn gone(&self, node: &NodeId) {
        self.state.lock().clients.remove(&node.stream);
        self.news.notify_one();
    }

    /// A client has acknowledged everything of these generations. Those that came before the client, or that it had
    /// confirmed by an earlier stream, say nothing about how long they took.
    pub fn confirmed(&self, node: &NodeId, generations: Range<u64>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let State { clients, pods, flights, .. } = &mut *state;
        if let Some(client) = clients.get(&node.stream)
            && let Some(pod) = pods.get_mut(&client.pod)
        {
            let from = generations.start.max(pod.reached + 1);
            flights.landed(from..generations.end, &client.role, pod.since, now);
            pod.reached = pod.reached.max(generations.end.saturating_sub(1));
        }
        drop(state);
        self.news.notify_one();
    }

    /// Something that was refused is told with the next look.
    pub fn refused(&self) {
        self.news.notify_one();
    }

    /// Others serve too: nothing is told before they have been listened to.
    pub fn is_one_of_several(&self) {
        self.replicas.lock().get_or_insert_default();
    }

    /// What the other replicas say, by name. What cannot be read says nothing.
    pub fn hear(&self, texts: BTreeMap<String, String>) {
        let now = Instant::now();
        let mut replicas = self.replicas.lock();
        let replicas = replicas.get_or_insert_default();
        let mut before = std::mem::take(&mut replicas.said);
        let mut news = replicas.heard.is_none();
        for (name, text) in texts {
            let known = before.remove(&name).filter(|(same, ..)| *same == text);
            let one = known.unwrap_or_else(|| {
                news = true;
                let summary: Summary = serde_json::from_str(&text).unwrap_or_default();
                (text, now, Arc::new(summary.into()))
            });
            replicas.said.insert(name, one);
        }
        replicas.heard = Some(now);
        if news || !before.is_empty() {
            self.news.notify_one();
        }
    }

    /// The other replicas that are there.
    fn remotes(&self) -> Vec<Arc<Remote>> {
        let replicas = self.replicas.lock();
        let said = replicas.iter().flat_map(|replicas| replicas.said.values());
        said.filter(|(_, since, _)| since.elapsed() < SILENCE).map(|(.., remote)| Arc::clone(remote)).collect()
    }

    /// Whether it is known who is connected where.
    pub fn hears(&self) -> bool {
        self.replicas.lock().as_ref().is_none_or(|all| all.heard.is_some_and(|heard| heard.elapsed() < DEAF))
    }

    /// What this replica has to say to others.
    pub fn summary(&self) -> Summary {
        let mut state = self.state.lock();
        let seen = self.seen(&mut state, &[]);
        Summary::new(&state.objects, &seen, &state.flights)
    }

    /// All receipts as they are now. Costs a look at each object, and at each client that carries it
    /// out where somebody lacks it.
    pub fn judge(&self) -> Vec<Receipt> {
        let remotes = self.remotes();
        let mut state = self.state.lock();
        let seen = self.seen(&mut state, &remotes);
        judge::receipts(&state.objects, seen.into_values().collect(), &state.flights, &remotes)
    }

    /// Everybody who is expected or connected, by pod.
    fn seen(&self, state: &mut State, remotes: &[Arc<Remote>]) -> BTreeMap<Str, Seen> {
        let Some(fleet) = self.fleet.get() else { return BTreeMap::new() };
        let proxies = fleet.running.proxies(&fleet.tunnels);
        let standings: HashMap<u64, xds::Standing> = self.store.standings().into_iter().collect();
        let now = Instant::now();
        let mut seen: BTreeMap<Str, Seen> = proxies
            .into_iter()
            .map(|proxy| {
                let pod = Str::from(format!("{}/{}", proxy.pod.0, proxy.pod.1));
                let name = if proxy.role == Role::Tunnel { proxy.node } else { pod.clone() };
                let there = |remote: &Arc<Remote>| Some(Place::There(Arc::clone(remote), remote.client(&pod)?));
                let place = remotes.iter().find_map(there).unwrap_or(Place::Nowhere);
                (pod, Seen { name, role: proxy.role, place })
            })
            .collect();
        for pod in seen.keys() {
            state.pods.entry(pod.clone()).or_insert_with(|| Pod { since: now, reached: 0 });
        }
        // Later streams of a pod come after earlier ones, and count instead of them.
        for (stream, client) in &state.clients {
            let Some(standing) = standings.get(stream) else { continue };
            if client.proven && !seen.contains_key(&client.pod) {
                continue;
            }
            let name = if client.role == Role::Tunnel { client.node.clone() } else { client.pod.clone() };
            seen.insert(client.pod.clone(), Seen::of(name, client.role.clone(), standing));
        }
        state.pods.retain(|pod, _| seen.contains_key(pod));
        seen
    }

    /// Tells statuses what receipts say, for ever.
    pub async fn keep(self: Arc<Self>, statuses: Arc<Statuses>) {
        let mut teller = Teller::default();
        let mut changes = self.fleet.get().map(|fleet| fleet.running.changes());
        let mut later: Option<Instant> = None;
        loop {
            let pods = async {
                if let Some(changes) = &mut changes
                    && changes.changed().await.is_ok()
                {
                    return;
                }
                std::future::pending().await
            };
            tokio::select! {
                () = self.news.notified() => {}
                () = pods => {}
                () = until(later) => {}
            }
            let begun = Instant::now();
            if self.hears() {
                let without = std::mem::take(&mut self.state.lock().without);
                let receipts = self.judge();
                later = teller.tell(&receipts, without, &statuses);
            } else {
                later = Some(begun + Duration::from_secs(1));
            }
            tokio::time::sleep(PAUSE.max(begun.elapsed() * COST)).await;
        }
    }

    /// For `/debug/receipts`: where objects are in force, then how enrolments stand.
    pub fn to_json(&self) -> Value {
        let enrolled = self.fleet.get().map(|fleet| enrolled::receipts(&fleet.enrolments, &fleet.running));
        let list = |page: serde_json::Result<Value>| match page {
            Ok(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let objects = list(serde_json::to_value(self.judge()));
        objects.into_iter().chain(list(serde_json::to_value(enrolled))).collect()
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Kinds whose text is what is in force; a Service's binding is in its resource.
fn carries(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::RequestAuthentication
            | Kind::DestinationRule
            | Kind::VirtualService
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
    )
}

fn spec_hash(object: &Object) -> u64 {
    let spec = serde_json::to_value(object).map(|value| value["spec"].to_string()).unwrap_or_default();
    xds::hash(spec.as_bytes())
}

/// Namespace and name of a client's pod: what its credentials say, else what it says itself.
fn pod_of(node: &NodeId) -> Str {
    let claimed = node.id.split('~').nth(2).and_then(|own| own.rsplit_once('.')).map(|(pod, _)| pod);
    let name = node.caller.pod.as_ref().map(|(name, _)| &**name).or(claimed).unwrap_or(&node.id);
    format!("{}/{name}", node.caller.namespace).into()
}
