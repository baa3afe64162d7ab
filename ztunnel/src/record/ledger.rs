//! What is open: indexed by destination workload for [`crate::enforce`], listed for the admin port, and flushed
//! into the byte counters when metrics are read. Sharded plain maps behind short locks.

use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::WorkloadUid;
use stillmesh_hbone::copy::Counters;
use stillmesh_proxy::decisions::short_microseconds;
use stillmesh_proxy::series::Held;
use stillmesh_records::Recorder;

use super::labels::Word;
use super::metrics::{Metrics, Reporter, Traffic};
use super::span::Hops;
use super::{Direction, Facts, Flag, Outcome, Protocol};

/// Ends a connection from outside.
#[derive(Debug, Default)]
pub struct Cut {
    because: OnceLock<Box<Outcome>>,
    waits: AtomicWaker,
}

impl Cut {
    /// Ends the connection. The first reason stays.
    pub fn cut(&self, because: Outcome) {
        let _ = self.because.set(Box::new(because));
        self.waits.wake();
    }

    /// Whether it was ended.
    pub fn is_cut(&self) -> bool {
        self.because.get().is_some()
    }

    /// Waits until somebody ends the connection, and says why. For the one task that carries it. Cancel-safe.
    pub fn wait(&self) -> impl Future<Output = Outcome> {
        poll_fn(|cx| self.poll(cx))
    }

    /// Ready when somebody has ended the connection, and why. For the one task that carries it.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Outcome> {
        self.waits.register(cx.waker());
        self.because.get().map_or(Poll::Pending, |because| Poll::Ready((**because).clone()))
    }
}

/// One connection; open, once it is listed.
#[derive(Debug)]
pub struct Live {
    /// Unique in this process.
    pub number: u64,
    /// What is known of it.
    pub facts: Facts,
    /// Ends it.
    pub cut: Cut,
    pub(super) began: Instant,
    pub(super) told: Mutex<Told>,
    counters: Arc<Counters>,
}

/// What has happened to a connection so far.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Why it was let pass, once that is decided.
    pub(super) because: Option<Reason>,
    /// How long that took, microseconds.
    pub(super) decide_us: u32,
    /// How long it took until bytes might flow, microseconds; 0 until they may.
    pub(super) open_us: u32,
    /// How often it was tried anew.
    pub(super) retries: u16,
    /// What it is counted in, from its opening to its end.
    counted: Option<Counted>,
}

/// What a connection is counted in, found once by its labels, and how many of its bytes are.
#[derive(Debug)]
struct Counted {
    traffic: Held<Traffic>,
    received: u64,
    sent: u64,
}

impl Counted {
    /// So many bytes were received and sent by now.
    fn follow(&mut self, (received, sent): (u64, u64)) {
        self.traffic.carried(received.saturating_sub(self.received), sent.saturating_sub(self.sent));
        (self.received, self.sent) = (received, sent);
    }
}

impl Live {
    /// When it began.
    pub fn since(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.lasted()).unwrap_or(now)
    }

    /// For how long it has been there.
    pub(super) fn lasted(&self) -> Duration {
        self.began.elapsed()
    }

    /// The byte counters, shared with whoever moves the bytes.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Counts it as opened, once; the byte metrics follow from now on.
    pub(super) fn open(&self, metrics: &Metrics) {
        let open_us = short_microseconds(self.lasted());
        let traffic = metrics.traffic.get(&self.facts.labels(Flag::None));
        traffic.opened();
        self.sockets(metrics).inc();
        let mut told = self.told.lock();
        (told.open_us, told.counted) = (open_us, Some(Counted { traffic, received: 0, sent: 0 }));
    }

    /// Counts it as over, once, and as opened where it never was.
    pub(super) fn close(&self, metrics: &Metrics, outcome: &Outcome) {
        let mut labels = None;
        let mut find = |flag: Flag| {
            let labels = labels.get_or_insert_with(|| self.facts.labels(flag));
            labels.response_flags = Word(flag.as_str());
            metrics.traffic.get(labels)
        };
        let counted = self.told.lock().counted.take();
        let opened = if let Some(mut counted) = counted {
            counted.follow(self.bytes());
            self.sockets(metrics).dec();
            counted.traffic
        } else {
            let traffic = find(Flag::None);
            traffic.tried();
            traffic
        };
        let ended = if outcome.flag == Flag::None { opened } else { find(outcome.flag) };
        ended.closed();
        if outcome.error.is_some() {
            ended.failed();
        }
    }

    fn sockets(&self, metrics: &Metrics) -> Gauge {
        metrics.sockets_open.get_or_create_owned(&Reporter { reporter: Word(self.facts.direction.reporter()) })
    }

    /// Brings the byte metrics up to date while it is open. Any number of callers at once count each byte once.
    pub fn flush(&self) {
        if let Some(counted) = &mut self.told.lock().counted {
            counted.follow(self.bytes());
        }
    }

    /// Bytes from the client's side and from the server's side.
    pub fn bytes(&self) -> (u64, u64) {
        let Counters { forward, backward } = &*self.counters;
        let (forward, backward) = (forward.load(Ordering::Relaxed), backward.load(Ordering::Relaxed));
        // The first side of copying is the client, but for inbound tunnels.
        match (self.facts.direction, self.facts.protocol) {
            (Direction::Inbound, Protocol::Hbone) => (backward, forward),
            _ => (forward, backward),
        }
    }
}

type Shard = HashMap<Option<WorkloadUid>, HashMap<u64, Arc<Live>>>;

/// All open connections of this node.
#[derive(Debug)]
pub struct Ledger {
    pub(super) metrics: Arc<Metrics>,
    pub(super) records: Recorder,
    hops: OnceLock<Hops>,
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    next: AtomicU64,
    /// How many were listed so far.
    listed: AtomicU64,
    /// How many are open.
    open: AtomicUsize,
    /// How many were at most since that was asked last.
    most: AtomicUsize,
    /// Ends of connections without a tunnel.
    direct: AtomicUsize,
}

impl Ledger {
    const SHARDS: usize = 16;

    /// An empty ledger that counts into `metrics` and keeps what has ended in `records`.
    pub fn new(metrics: Arc<Metrics>, records: Recorder) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            records,
            hops: OnceLock::new(),
            shards: (0..Self::SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            next: AtomicU64::new(1),
            listed: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            direct: AtomicUsize::new(0),
        })
    }

    /// The metrics that it counts into.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Has spans told of what ends from now on; once.
    pub fn tell_hops(&self, hops: Hops) {
        // The first one stays.
        let _ = self.hops.set(hops);
    }

    /// Who is told spans of what ends.
    pub fn hops(&self) -> Option<&Hops> {
        self.hops.get()
    }

    /// What has ended.
    pub fn records(&self) -> &Recorder {
        &self.records
    }

    /// A connection that is not listed.
    pub(super) fn begin(&self, facts: Facts, counters: Arc<Counters>) -> Live {
        Live {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            facts,
            cut: Cut::default(),
            began: Instant::now(),
            told: Mutex::default(),
            counters,
        }
    }

    pub(super) fn enlist(&self, live: &Arc<Live>) {
        let key = Self::key(live);
        self.listed.fetch_add(1, Ordering::Relaxed);
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(open, Ordering::Relaxed);
        if live.facts.protocol == Protocol::Direct {
            self.direct.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(shard) = self.shard(&key) {
            shard.lock().entry(key).or_default().insert(live.number, live.clone());
        }
    }

    pub(super) fn delist(&self, live: &Live) {
        let key = Self::key(live);
        if live.facts.protocol == Protocol::Direct {
            self.direct.fetch_sub(1, Ordering::SeqCst);
        }
        let Some(shard) = self.shard(&key) else { return };
        let mut shard = shard.lock();
        if let Some(of_workload) = shard.get_mut(&key) {
            if of_workload.remove(&live.number).is_some() {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
            if of_workload.is_empty() {
                shard.remove(&key);
            }
        }
    }

    /// Inbound connections are found by the workload they arrive at; outbound ones are only listed.
    fn key(live: &Live) -> Option<WorkloadUid> {
        match live.facts.direction {
            Direction::Inbound => live.facts.destination.as_ref().map(|workload| workload.uid.clone()),
            Direction::Outbound => None,
        }
    }

    fn shard(&self, key: &Option<WorkloadUid>) -> Option<&Mutex<Shard>> {
        let hash = self.hasher.hash_one(key);
        self.shards.get(usize::try_from(hash % self.shards.len() as u64).unwrap_or(0))
    }

    /// Inbound connections that arrive at `workload`.
    pub fn at(&self, workload: &WorkloadUid) -> Vec<Arc<Live>> {
        let key = Some(workload.clone());
        let Some(shard) = self.shard(&key) else { return Vec::new() };
        shard.lock().get(&key).map(|lives| lives.values().cloned().collect()).unwrap_or_default()
    }

    /// Inbound connections whose destination `select` takes.
    pub fn inbound(&self, mut select: impl FnMut(&Facts) -> bool) -> Vec<Arc<Live>> {
        let mut selected = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            for (_, of_workload) in shard.iter().filter(|(key, _)| key.is_some()) {
                if of_workload.values().next().is_some_and(|live| select(&live.facts)) {
                    selected.extend(of_workload.values().cloned());
                }
            }
        }
        selected
    }

    /// Outbound connections that `select` takes.
    pub fn outbound(&self, mut select: impl FnMut(&Facts) -> bool) -> Vec<Arc<Live>> {
        let Some(shard) = self.shard(&None) else { return Vec::new() };
        let shard = shard.lock();
        let all = shard.get(&None).into_iter().flat_map(HashMap::values);
        all.filter(|live| live.facts.direction == Direction::Outbound && select(&live.facts)).cloned().collect()
    }

    /// Whether anything is open without a tunnel, between two pods of this node.
    pub fn has_direct(&self) -> bool {
        self.direct.load(Ordering::SeqCst) > 0
    }

    /// Everything open, in no order.
    pub fn all(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().values().flat_map(|lives| lives.values().cloned()));
        }
        all
    }

    /// How many connections were listed so far. Those that a client tries in vain are none.
    pub fn listed(&self) -> u64 {
        self.listed.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many were open at most since this was asked last. For one who asks.
    pub fn most(&self) -> usize {
        self.most.swap(self.len(), Ordering::Relaxed)
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Brings the byte metrics of everything open up to date; called before metrics are read.
    pub fn flush(&self) {
        for live in self.all() {
            live.flush();
        }
    }
}
