//! The waypoint's metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use stillmesh_core::explain::Reason;
use stillmesh_hbone::Memory;
use stillmesh_proxy::control::XdsMetrics;
use stillmesh_proxy::labels::Word;

use super::judged::Judged;
use super::{RequestLabels, TcpLabels};

/// Label of refused work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: Word,
}

/// Label of decisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Authorized {
    verdict: Word,
    reason: Word,
}

type Histograms = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// One handle per metric.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are the metrics' names")]
pub struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub request_duration: Histograms,
    pub request_bytes: Histograms,
    pub response_bytes: Histograms,
    pub tcp_opened: Family<TcpLabels, Counter>,
    pub tcp_closed: Family<TcpLabels, Counter>,
    pub tcp_received_bytes: Family<TcpLabels, Counter>,
    pub tcp_sent_bytes: Family<TcpLabels, Counter>,
    pub xds: XdsMetrics,
    pub repicked: Counter,
    pub retried: Counter,
    pub mirrored: Counter,
    pub ejected: Counter,
    authorized: Family<Authorized, Counter>,
    refused: Family<Refused, Counter>,
    memory_held: Gauge,
    memory_limit: Gauge,
    memory_refused: Counter,
    memory_broken: Counter,
}

/// Envoy's (contract 9.2).
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

fn histograms() -> Histograms {
    Family::new_with_constructor(histogram)
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry, version: &str) -> Arc<Self> {
        let metrics = Self {
            requests: Family::default(),
            request_duration: histograms(),
            request_bytes: histograms(),
            response_bytes: histograms(),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tcp_received_bytes: Family::default(),
            tcp_sent_bytes: Family::default(),
            xds: XdsMetrics::default(),
            repicked: Counter::default(),
            retried: Counter::default(),
            mirrored: Counter::default(),
            ejected: Counter::default(),
            authorized: Family::default(),
            refused: Family::default(),
            memory_held: Gauge::default(),
            memory_limit: Gauge::default(),
            memory_refused: Counter::default(),
            memory_broken: Counter::default(),
        };
        metrics.register(registry, version);
        Arc::new(metrics)
    }

    fn register(&self, registry: &mut Registry, version: &str) {
        let istio = registry.sub_registry_with_prefix("istio");
        istio.register("requests", "Requests", self.requests.clone());
        istio.register("request_duration_milliseconds", "Time that requests took", self.request_duration.clone());
        istio.register("request_bytes", "Bytes of requests' bodies", self.request_bytes.clone());
        istio.register("response_bytes", "Bytes of responses' bodies", self.response_bytes.clone());
        istio.register("tcp_connections_opened", "TCP connections opened", self.tcp_opened.clone());
        istio.register("tcp_connections_closed", "TCP connections closed", self.tcp_closed.clone());
        istio.register("tcp_received_bytes", "Bytes from clients", self.tcp_received_bytes.clone());
        istio.register("tcp_sent_bytes", "Bytes to clients", self.tcp_sent_bytes.clone());
        self.xds.register(istio);
        let build = Gauge::<i64>::default();
        build.set(1);
        let labels = [("component".into(), "proxy".into()), ("tag".into(), version.to_owned().into())];
        istio.sub_registry_with_labels(labels.into_iter()).register("build", "This build", build);
        let own = registry.sub_registry_with_prefix("stillmesh_waypoint");
        own.register("repicked", "Requests and connections sent to a further endpoint", self.repicked.clone());
        own.register("retried", "Requests sent again because a rule asks for it", self.retried.clone());
        own.register("mirrored", "Copies of requests that were answered", self.mirrored.clone());
        own.register("ejected", "Endpoints left out for a while because they failed", self.ejected.clone());
        own.register("authorizations", "Decisions of policies", self.authorized.clone());
        own.register("refused", "Work refused", self.refused.clone());
        own.register("memory_bytes", "Bytes that tunnels hold", self.memory_held.clone());
        own.register("memory_limit_bytes", "Bytes that they may hold", self.memory_limit.clone());
        own.register("memory_refused_streams", "Streams refused for want of memory", self.memory_refused.clone());
        own.register(
            "memory_broken_streams",
            "Streams broken because they held more than their share",
            self.memory_broken.clone(),
        );
    }

    /// Counts a decision, and what dry-run policies would have made of it. What no policy applies to is not counted.
    pub fn judged(&self, judged: &Judged) {
        let count = |verdict, reason: &Reason| {
            self.authorized.get_or_create(&Authorized { verdict: Word(verdict), reason: Word(reason.code()) }).inc();
        };
        if judged.reason != Reason::NoPolicy {
            count(if judged.allowed { "allowed" } else { "denied" }, &judged.reason);
        }
        judged.dry_run.iter().for_each(|reason| count("dry_run", reason));
    }

    /// Counts work that was refused.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason: Word(reason) }).inc();
    }

    /// Brings what is known of the tunnels' memory up to date.
    pub fn count_memory(&self, memory: &Memory) {
        let bytes = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.memory_held.set(bytes(memory.held()));
        self.memory_limit.set(bytes(memory.limit()));
        for (counter, count) in [(&self.memory_refused, memory.refused()), (&self.memory_broken, memory.broken())] {
            counter.inner().fetch_max(count, Ordering::Relaxed);
        }
    }
}
