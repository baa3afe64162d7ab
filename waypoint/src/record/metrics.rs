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
use stillmesh_proxy::control::{CertificateMetrics, XdsMetrics};
use stillmesh_proxy::labels::Word;
use stillmesh_proxy::series::{Budget, Series};

use super::flow::Flows;
use super::judged::Judged;
use super::{Edited, RequestLabels, TcpLabels};

/// Label of refused work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: Word,
}

/// Label of what is lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lost {
    what: Word,
}

/// Label of decisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Authorized {
    verdict: Word,
    reason: Word,
}

type Requests = Series<Edited<RequestLabels>, Counter>;
type Histograms = Series<Edited<RequestLabels>, Histogram>;
type Connections = Series<Edited<TcpLabels>, Counter>;

/// One handle per metric.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are the metrics' names")]
pub struct Metrics {
    pub requests: Requests,
    pub request_duration: Histograms,
    pub request_bytes: Histograms,
    pub response_bytes: Histograms,
    pub request_messages: Requests,
    pub response_messages: Requests,
    pub tcp_opened: Connections,
    pub tcp_closed: Connections,
    pub tcp_received_bytes: Connections,
    pub tcp_sent_bytes: Connections,
    pub flows: Flows,
    pub xds: XdsMetrics,
    pub repicked: Counter,
    pub retried: Counter,
    pub mirrored: Counter,
    pub ejected: Counter,
    pub policy_closed: Counter,
    authorized: Family<Authorized, Counter>,
    refused: Family<Refused, Counter>,
    lost: Family<Lost, Counter>,
    pub certificates: CertificateMetrics,
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

impl Metrics {
    /// Makes the metrics and registers them. Those with names of others in their labels stay within `budget`.
    pub fn new(registry: &mut Registry, version: &str, budget: &Budget) -> Arc<Self> {
        let requests = |metric| budget.family(metric, Counter::default);
        let histograms = |metric| budget.family(metric, histogram);
        let tcp = |metric| budget.family(metric, Counter::default);
        let metrics = Self {
            requests: requests("istio_requests_total"),
            request_duration: histograms("istio_request_duration_milliseconds"),
            request_bytes: histograms("istio_request_bytes"),
            response_bytes: histograms("istio_response_bytes"),
            request_messages: requests("istio_request_messages_total"),
            response_messages: requests("istio_response_messages_total"),
            tcp_opened: tcp("istio_tcp_connections_opened_total"),
            tcp_closed: tcp("istio_tcp_connections_closed_total"),
            tcp_received_bytes: tcp("istio_tcp_received_bytes_total"),
            tcp_sent_bytes: tcp("istio_tcp_sent_bytes_total"),
            flows: Flows::default(),
            xds: XdsMetrics::default(),
            repicked: Counter::default(),
            retried: Counter::default(),
            mirrored: Counter::default(),
            ejected: Counter::default(),
            policy_closed: Counter::default(),
            authorized: Family::default(),
            refused: Family::default(),
            lost: Family::default(),
            certificates: CertificateMetrics::default(),
            memory_held: Gauge::default(),
            memory_limit: Gauge::default(),
            memory_refused: Counter::default(),
            memory_broken: Counter::default(),
        };
        metrics.register(registry, version);
        budget.register(registry);
        Arc::new(metrics)
    }

    fn register(&self, registry: &mut Registry, version: &str) {
        let istio = registry.sub_registry_with_prefix("istio");
        istio.register("requests", "Requests", self.requests.clone());
        istio.register("request_duration_milliseconds", "Time that requests took", self.request_duration.clone());
        istio.register("request_bytes", "Bytes of requests' bodies", self.request_bytes.clone());
        istio.register("response_bytes", "Bytes of responses' bodies", self.response_bytes.clone());
        istio.register("request_messages", "gRPC messages of clients", self.request_messages.clone());
        istio.register("response_messages", "gRPC messages of endpoints", self.response_messages.clone());
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
        own.register("policy_closed", "Open connections closed by a policy change", self.policy_closed.clone());
        own.register("authorizations", "Decisions of policies", self.authorized.clone());
        own.register("refused", "Work refused", self.refused.clone());
        own.register("telemetry_lost", "Lines, spans and records that found no place or no taker", self.lost.clone());
        self.certificates.register(own);
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

    /// Counts something that nobody will be told.
    pub fn lost(&self, what: &'static str) {
        self.lost_many(what, 1);
    }

    /// Counts so many of them.
    pub fn lost_many(&self, what: &'static str, count: u64) {
        self.lost.get_or_create(&Lost { what: Word(what) }).inc_by(count);
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

#[cfg(test)]
mod tests {
    use stillmesh_proxy::labels::{Principal, Text};
    use stillmesh_runtime::telemetry::metrics::{encode, outline};

    use stillmesh_core::model::Str;

    use super::super::{Ends, Flags, Tags};
    use super::*;

    /// Contract 9.2 as it is served: a change here is one that users' dashboards notice.
    const SERVED: &str = include_str!("metrics.txt");

    fn ends() -> Ends {
        let (text, principal) = (Text::default, Principal::default);
        Ends {
            reporter: Word("waypoint"),
            source_workload: text(),
            source_canonical_service: text(),
            source_canonical_revision: text(),
            source_workload_namespace: text(),
            source_principal: principal(),
            source_app: text(),
            source_version: text(),
            source_cluster: text(),
            destination_service: text(),
            destination_service_namespace: text(),
            destination_service_name: text(),
            destination_workload: text(),
            destination_canonical_service: text(),
            destination_canonical_revision: text(),
            destination_workload_namespace: text(),
            destination_principal: principal(),
            destination_app: text(),
            destination_version: text(),
            destination_cluster: text(),
            connection_security_policy: Word("mutual_tls"),
        }
    }

    fn request(code: u16) -> Edited<RequestLabels> {
        let labels = RequestLabels {
            ends: ends(),
            request_protocol: Word("http"),
            response_code: code,
            grpc_response_status: String::new(),
            response_flags: Flags::default(),
        };
        labels.into()
    }

    #[test]
    fn what_is_served_is_what_is_listed() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, "1.2.3", &Budget::new(10));
        for family in [&metrics.requests, &metrics.request_messages, &metrics.response_messages] {
            family.get(&request(200)).inc();
        }
        for family in [&metrics.request_duration, &metrics.request_bytes, &metrics.response_bytes] {
            family.get(&request(200)).observe(1.0);
        }
        let tcp = TcpLabels { ends: ends(), request_protocol: Word("tcp"), response_flags: Flags::default() };
        let tcp = Edited::from(tcp);
        for family in [&metrics.tcp_opened, &metrics.tcp_closed, &metrics.tcp_received_bytes, &metrics.tcp_sent_bytes] {
            family.get(&tcp).inc();
        }
        metrics.refuse("handshakes");
        metrics.lost("access_log");
        drop(metrics.authorized.get_or_create(&Authorized { verdict: Word("denied"), reason: Word("x") }));
        let text = encode(&registry);
        assert!(text.contains("istio_build{component=\"proxy\",tag=\"1.2.3\"} 1"), "{text}");
        let served = outline(&text);
        assert_eq!(served, SERVED, "metrics.txt beside this file says something else");
    }

    #[test]
    fn codes_that_an_endpoint_invents_end_in_classes() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, "1.2.3", &Budget::new(100));
        for code in 100..1000 {
            metrics.requests.get(&request(code)).inc();
        }
        let text = encode(&registry);
        let series: Vec<_> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        assert_eq!(series.len(), 108);
        let fives = series.iter().find(|line| line.contains("source_app=\"overflow\"") && line.contains("\"500\""));
        assert!(fives.is_some_and(|line| line.ends_with(" 100")), "{series:?}");
    }

    #[test]
    fn labels_are_what_users_make_of_them() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, "1.2.3", &Budget::new(2));
        let tags = |host: &str| {
            let tags = [("host", Some(host)), ("response_code", Some("5xx")), ("source_principal", None)];
            let tags = tags.map(|(name, value)| (Str::from(name), value.map(Str::from)));
            Some(Arc::new(Tags::from(tags)))
        };
        for host in ["a", "b\"c", "c", "d"] {
            metrics.requests.get(&Edited { tags: tags(host), ..request(503) }).inc();
        }
        let text = encode(&registry);
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        assert_eq!(lines.len(), 3, "two and what found no place: {lines:?}");
        assert!(lines.iter().all(|line| !line.contains("source_principal")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("response_code=\"5xx\"") && line.contains("host=\"a\"} 1")));
        assert!(lines.iter().any(|line| line.contains("host=\"b\\\"c\"} 1")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("host=\"overflow\"} 2")), "{lines:?}");
    }
}
