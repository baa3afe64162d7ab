//! The metrics of the node tunnel under Istio's names (contract 9.1).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use stillmesh_core::model::{Str, Workload};
use stillmesh_proxy::control::{CertificateMetrics, XdsMetrics};
use stillmesh_proxy::series::{Budget, Labels, Series};

use super::labels::{Principal, Text, TrafficLabels, Word};

/// Label of the socket gauge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reporter {
    /// `source` or `destination`.
    pub reporter: Word,
}

/// Labels of the DNS metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct DnsLabels {
    pub request_query_type: Text,
    pub request_protocol: Word,
    pub source_canonical_service: Text,
    pub source_canonical_revision: Text,
}

/// Labels of names resolved for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct OnDemandDns {
    pub source_workload: Text,
    pub source_canonical_service: Text,
    pub source_canonical_revision: Text,
    pub source_workload_namespace: Text,
    pub source_principal: Principal,
    pub source_app: Text,
    pub source_version: Text,
    pub source_cluster: Text,
    pub hostname: Text,
}

impl OnDemandDns {
    /// For a connection of `source`.
    pub fn new(hostname: &Str, source: &Workload) -> Self {
        Self {
            source_workload: Text::from(&source.workload_name),
            source_canonical_service: Text::from(&source.canonical_name),
            source_canonical_revision: Text::from(&source.canonical_revision),
            source_workload_namespace: Text::from(&source.namespace),
            source_principal: Principal::Of(source.identity()),
            source_app: Text::from(&source.canonical_name),
            source_version: Text::from(&source.canonical_revision),
            source_cluster: Text::from(&source.cluster),
            hostname: Text::from(hostname),
        }
    }
}

impl Labels for OnDemandDns {
    fn overflow(&self) -> Self {
        let text = Text::overflow;
        Self {
            source_workload: text(),
            source_canonical_service: text(),
            source_canonical_revision: text(),
            source_workload_namespace: text(),
            source_principal: Principal::Overflow,
            source_app: text(),
            source_version: text(),
            source_cluster: text(),
            hostname: text(),
        }
    }
}

impl Labels for DnsLabels {
    fn overflow(&self) -> Self {
        Self {
            request_query_type: Text::overflow(),
            request_protocol: self.request_protocol,
            source_canonical_service: Text::overflow(),
            source_canonical_revision: Text::overflow(),
        }
    }
}

/// Label of refused work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refused {
    /// Which bound was reached, or what was wrong with the peer.
    pub reason: Word,
}

/// Label of questions for probes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Probed {
    /// `probe`, `closed`, `other`, or `unanswered`.
    pub verdict: Word,
}

/// What is counted of the connections of one label set: five metrics, found by one look-up. Each has the label set from when it was
/// first counted in it, those of bytes from when the first connection was open.
#[derive(Debug, Default)]
pub struct Traffic {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    /// Whether a connection was open.
    has_bytes: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    const METRICS: [&str; 5] = [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_connections_failed_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
    ];

    /// A connection was opened and may carry bytes from now on.
    pub fn opened(&self) {
        self.has_bytes.store(true, Ordering::Relaxed);
        self.tried();
    }

    /// A connection counts as opened that never could carry bytes.
    pub fn tried(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes more from the client's and from the server's side.
    pub fn carried(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// A connection ended, well or not.
    pub fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// It failed.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn count(count: &AtomicU64) -> Option<ConstCounter> {
        let count = count.load(Ordering::Relaxed);
        (count > 0).then(|| ConstCounter::new(count))
    }

    fn bytes(&self, count: &AtomicU64) -> Option<ConstCounter> {
        self.has_bytes.load(Ordering::Relaxed).then(|| ConstCounter::new(count.load(Ordering::Relaxed)))
    }
}

/// One handle per metric. Cheap to clone through its `Arc`.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are the metrics' names")]
pub struct Metrics {
    pub traffic: Series<TrafficLabels, Traffic>,
    pub sockets_open: Family<Reporter, Gauge>,

    pub on_demand_dns: Series<OnDemandDns, Counter>,
    pub dns_requests: Series<DnsLabels, Counter>,
    pub dns_upstream_requests: Series<DnsLabels, Counter>,
    pub dns_upstream_failures: Series<DnsLabels, Counter>,
    pub dns_upstream_duration: Series<DnsLabels, Histogram>,

    pub xds: XdsMetrics,

    pub active_proxies: Gauge,
    pub pending_proxies: Gauge,
    pub proxies_started: Counter,
    pub proxies_stopped: Counter,

    pub refused: Family<Refused, Counter>,
    pub probes: Family<Probed, Counter>,
    pub repicked: Counter,
    pub early: Counter,
    pub policy_closed: Counter,
    pub policy_skipped: Counter,
    pub certificates: CertificateMetrics,
    pub memory_held: Gauge,
    pub memory_limit: Gauge,
    pub memory_refused: Counter,
    pub memory_broken: Counter,
    pub crl_rejections: Family<Reporter, Counter>,
    pub crl_untracked: Family<Reporter, Counter>,
    pub panics: Counter,
    pub spans_lost: Counter,
    pub lines_lost: Counter,
}

fn dns_histogram() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.01, 0.1, 1.0, 5.0])
}

impl Metrics {
    /// Makes the metrics and registers them. Those with names of others in their labels stay within `budget`.
    pub fn new(registry: &mut Registry, version: &str, budget: &Budget) -> Arc<Self> {
        let dns = |metric| budget.family(metric, Counter::default);
        let metrics = Self {
            traffic: budget.shared(&Traffic::METRICS, Traffic::default),
            sockets_open: Family::default(),
            on_demand_dns: budget.family("istio_on_demand_dns_total", Counter::default),
            dns_requests: dns("istio_dns_requests_total"),
            dns_upstream_requests: dns("istio_dns_upstream_requests_total"),
            dns_upstream_failures: dns("istio_dns_upstream_failures_total"),
            dns_upstream_duration: budget.family("istio_dns_upstream_request_duration_seconds", dns_histogram),
            xds: XdsMetrics::default(),
            active_proxies: Gauge::default(),
            pending_proxies: Gauge::default(),
            proxies_started: Counter::default(),
            proxies_stopped: Counter::default(),
            refused: Family::default(),
            probes: Family::default(),
            repicked: Counter::default(),
            early: Counter::default(),
            policy_closed: Counter::default(),
            policy_skipped: Counter::default(),
            certificates: CertificateMetrics::default(),
            memory_held: Gauge::default(),
            memory_limit: Gauge::default(),
            memory_refused: Counter::default(),
            memory_broken: Counter::default(),
            crl_rejections: Family::default(),
            crl_untracked: Family::default(),
            panics: Counter::default(),
            spans_lost: Counter::default(),
            lines_lost: Counter::default(),
        };
        metrics.register(registry, version);
        budget.register(registry);
        Arc::new(metrics)
    }

    fn register(&self, registry: &mut Registry, version: &str) {
        let istio = registry.sub_registry_with_prefix("istio");
        let traffic = |part| self.traffic.view(part);
        let opened = traffic(|traffic| Traffic::count(&traffic.opened));
        istio.register("tcp_connections_opened", "TCP connections opened", opened);
        let closed = traffic(|traffic| Traffic::count(&traffic.closed));
        istio.register("tcp_connections_closed", "TCP connections closed", closed);
        let failed = traffic(|traffic| Traffic::count(&traffic.failed));
        istio.register("tcp_connections_failed", "TCP connections that failed", failed);
        let received = traffic(|traffic| traffic.bytes(&traffic.received));
        istio.register("tcp_received_bytes", "Bytes from the client's side", received);
        let sent = traffic(|traffic| traffic.bytes(&traffic.sent));
        istio.register("tcp_sent_bytes", "Bytes from the server's side", sent);
        istio.register("tcp_sockets_open", "Connections being carried", self.sockets_open.clone());
        istio.register("on_demand_dns", "Endpoint names resolved for a connection", self.on_demand_dns.clone());
        istio.register("dns_requests", "DNS queries of captured workloads", self.dns_requests.clone());
        istio.register("dns_upstream_requests", "DNS queries passed on", self.dns_upstream_requests.clone());
        istio.register("dns_upstream_failures", "DNS queries passed on in vain", self.dns_upstream_failures.clone());
        istio.register(
            "dns_upstream_request_duration_seconds",
            "Time that resolvers took",
            self.dns_upstream_duration.clone(),
        );
        self.xds.register(istio);
        istio.register(
            "crl_policy_rejections",
            "Handshakes and connections refused because a certificate is revoked",
            self.crl_rejections.clone(),
        );
        istio.register(
            "crl_untracked_connections",
            "Connections that a revocation could not end: there are none",
            self.crl_untracked.clone(),
        );
        let build = Gauge::<i64>::default();
        build.set(1);
        let labels = [("component".into(), "ztunnel".into()), ("tag".into(), version.to_owned().into())];
        istio.sub_registry_with_labels(labels.into_iter()).register("build", "This build", build);
        registry.register("workload_manager_active_proxy_count", "Pods served", self.active_proxies.clone());
        registry.register("workload_manager_pending_proxy_count", "Pods waiting", self.pending_proxies.clone());
        registry.register("workload_manager_proxies_started", "Pods taken up", self.proxies_started.clone());
        registry.register("workload_manager_proxies_stopped", "Pods let go", self.proxies_stopped.clone());
        registry.register("stillmesh_ztunnel_refused", "Work refused at a bound", self.refused.clone());
        registry.register(
            "stillmesh_ztunnel_probes",
            "Connections that policies refuse, asked about whether they are probes",
            self.probes.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_repicked",
            "Connections sent to a further endpoint",
            self.repicked.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_early",
            "Connections whose first bytes were sent behind the CONNECT",
            self.early.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_policy_closed",
            "Open connections closed by a policy change",
            self.policy_closed.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_policy_skipped",
            "Decisions made without a policy that has not arrived",
            self.policy_skipped.clone(),
        );
        self.certificates.register(registry.sub_registry_with_prefix("stillmesh_ztunnel"));
        registry.register("stillmesh_ztunnel_memory_bytes", "Bytes that tunnels hold", self.memory_held.clone());
        registry.register(
            "stillmesh_ztunnel_memory_limit_bytes",
            "Bytes that they may hold",
            self.memory_limit.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_memory_refused_streams",
            "Streams refused for want of memory",
            self.memory_refused.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_memory_broken_streams",
            "Streams broken because they held more than their share",
            self.memory_broken.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_spans_lost",
            "Spans that found no place or no taker",
            self.spans_lost.clone(),
        );
        registry.register(
            "stillmesh_ztunnel_lines_lost",
            "Lines of the access log that found no place",
            self.lines_lost.clone(),
        );
        registry.register("stillmesh_ztunnel_panics", "Connections ended by a fault of ours", self.panics.clone());
        registry.register(
            "stillmesh_ztunnel_version",
            "Version of this program",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
    }

    /// Counts work that was refused.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason: Word(reason) }).inc();
    }
}

#[cfg(test)]
mod tests {
    use stillmesh_runtime::telemetry::metrics::outline;

    use super::*;
    use crate::record::labels::{LabelParts, Party};
    use crate::record::{Direction, Flag};
    use crate::testing;

    /// Contract 9.1 as it is served: a change here is one that users' dashboards notice.
    const SERVED: &str = include_str!("metrics.txt");

    #[test]
    fn what_is_served_is_what_is_listed() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, "1.2.3", &Budget::new(10));
        let workload = testing::workload("shop", "details-1", [10, 0, 0, 2]);
        let traffic = TrafficLabels::from(LabelParts {
            direction: Direction::Outbound,
            source: Party::from(&workload),
            source_identity: None,
            destination: None,
            service: None,
            flag: Flag::None,
            mutual_tls: false,
        });
        let dns = DnsLabels {
            request_query_type: Text::default(),
            request_protocol: Word("udp"),
            source_canonical_service: Text::default(),
            source_canonical_revision: Text::default(),
        };
        let traffic = metrics.traffic.get(&traffic);
        traffic.opened();
        traffic.closed();
        traffic.failed();
        for family in [&metrics.dns_requests, &metrics.dns_upstream_requests, &metrics.dns_upstream_failures] {
            family.get(&dns).inc();
        }
        metrics.dns_upstream_duration.get(&dns).observe(0.1);
        metrics.on_demand_dns.get(&OnDemandDns::new(&"db.example".into(), &workload)).inc();
        for family in [&metrics.crl_rejections, &metrics.crl_untracked] {
            family.get_or_create(&Reporter { reporter: Word("source") }).inc();
        }
        metrics.sockets_open.get_or_create(&Reporter { reporter: Word("source") }).set(2);
        metrics.probes.get_or_create(&Probed { verdict: Word("probe") }).inc();
        metrics.refuse("handshakes");
        let text = stillmesh_runtime::telemetry::metrics::encode(&registry);
        let served = outline(&text);
        assert_eq!(served, SERVED, "metrics.txt beside this file says something else");
        for line in [
            "istio_build{component=\"ztunnel\",tag=\"1.2.3\"} 1",
            "istio_tcp_sockets_open{reporter=\"source\"} 2",
            "workload_manager_proxies_started_total 0",
            "workload_manager_active_proxy_count 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
