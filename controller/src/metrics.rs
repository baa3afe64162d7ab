//! What the controller counts, under the names that dashboards and alerts of Istio's control plane use (contract 9.3).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use stillmesh_api::xds::ResourceType;
use stillmesh_runtime::telemetry::metrics::Metrics as Shared;
use stillmesh_runtime::telemetry::metrics::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use stillmesh_runtime::telemetry::metrics::types::family::Family;
use stillmesh_runtime::telemetry::metrics::types::gauge::Gauge;
use stillmesh_runtime::telemetry::metrics::types::histogram::Histogram;
use stillmesh_runtime::telemetry::metrics::types::{MetricType, TypedMetric};

/// A counter whose name has no suffix, as Istio's have none: OpenMetrics would append `_total` to a counter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Unknown;
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&i64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    r#type: &'static str,
    event: &'static str,
}

/// The version that metrics and `/version` tell.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How many publications are remembered for the time that nodes take to apply them.
const PUBLICATIONS: usize = 1024;

/// All of the controller's metrics. Cheap to share by `Arc`.
#[derive(Debug)]
pub(crate) struct Metrics {
    shared: Shared,
    started: Instant,
    uptime: Gauge,
    connected: Family<VersionLabel, Gauge>,
    pushes: Family<TypeLabel, Count>,
    rejects: Family<TypeLabel, Count>,
    convergence: Histogram,
    events: Family<EventLabels, Count>,
    pub services: Gauge,
    pub findings: Gauge,
    pub csr_count: Count,
    pub issued: Count,
    pub csr_parsing_errors: Count,
    pub csr_signing_errors: Count,
    pub authentication_failures: Count,
    pub identity_errors: Count,
    pub statuses_failed: Count,
    root_expiry: Gauge,
    publications: Mutex<VecDeque<(u64, Instant)>>,
}

impl Metrics {
    pub fn new() -> Self {
        // From a millisecond to half a minute.
        let buckets = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];
        let metrics = Self {
            shared: Shared::new(),
            started: Instant::now(),
            uptime: Gauge::default(),
            connected: Family::default(),
            pushes: Family::default(),
            rejects: Family::default(),
            convergence: Histogram::new(buckets),
            events: Family::default(),
            services: Gauge::default(),
            findings: Gauge::default(),
            csr_count: Count::default(),
            issued: Count::default(),
            csr_parsing_errors: Count::default(),
            csr_signing_errors: Count::default(),
            authentication_failures: Count::default(),
            identity_errors: Count::default(),
            statuses_failed: Count::default(),
            root_expiry: Gauge::default(),
            publications: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let build: Family<BuildLabels, Gauge> = Family::default();
        let info: Family<VersionLabel, Gauge> = Family::default();
        build.get_or_create(&BuildLabels { component: "pilot", tag: VERSION }).set(1);
        info.get_or_create(&VersionLabel { version: VERSION }).set(1);
        self.shared.register(|registry| {
            registry.register("pilot_xds", "Connected nodes", self.connected.clone());
            registry.register("pilot_xds_pushes", "Responses that nodes answered", self.pushes.clone());
            registry.register("pilot_total_xds_rejects", "Responses with a refused resource", self.rejects.clone());
            let help = "Seconds from publishing until a node has applied it";
            registry.register("pilot_proxy_convergence_time", help, self.convergence.clone());
            registry.register("pilot_k8s_cfg_events", "Changes of objects", self.events.clone());
            registry.register("pilot_services", "Services", self.services.clone());
            registry.register("pilot_info", "Version", info);
            registry.register("istio_build", "Version", build);
            registry.register("istiod_uptime_seconds", "Time since the start", self.uptime.clone());
            registry.register("citadel_server_csr_count", "Requests for certificates", self.csr_count.clone());
            registry.register("citadel_server_success_cert_issuance_count", "Certificates", self.issued.clone());
            registry.register("citadel_server_csr_parsing_err_count", "Bad CSRs", self.csr_parsing_errors.clone());
            registry.register("citadel_server_csr_sign_err_count", "Failed signings", self.csr_signing_errors.clone());
            let help = "Callers that were not let in";
            registry.register(
                "citadel_server_authentication_failure_count",
                help,
                self.authentication_failures.clone(),
            );
            let help = "Identities that were refused";
            registry.register("citadel_server_id_extraction_err_count", help, self.identity_errors.clone());
            let help = "When the root expires, Unix time";
            registry.register("citadel_server_root_cert_expiry_timestamp", help, self.root_expiry.clone());
            let help = "Errors and warnings about objects that hold now";
            registry.register("stillmesh_controller_findings", help, self.findings.clone());
            let help = "Status conditions that could not be written and will be tried again";
            registry.register("stillmesh_controller_status_failures", help, self.statuses_failed.clone());
        });
    }

    pub fn encode(&self) -> String {
        self.uptime.set(i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        self.shared.encode()
    }

    pub fn connected(&self, nodes: usize) {
        let label = VersionLabel { version: VERSION };
        self.connected.get_or_create(&label).set(i64::try_from(nodes).unwrap_or(i64::MAX));
    }

    pub fn answered(&self, kind: ResourceType, refused: bool) {
        let label = TypeLabel { r#type: short(kind) };
        self.pushes.get_or_create(&label).inc();
        if refused {
            self.rejects.get_or_create(&label).inc();
        }
    }

    pub fn event(&self, kind: &'static str, event: &'static str) {
        self.events.get_or_create(&EventLabels { r#type: kind, event }).inc();
    }

    pub fn root_expires(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.root_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub fn published(&self, generation: u64) {
        let mut publications = self.publications.lock();
        if publications.len() == PUBLICATIONS {
            publications.pop_front();
        }
        publications.push_back((generation, Instant::now()));
    }

    /// A node has applied everything up to a generation, perhaps a while after it was published.
    pub fn applied(&self, generation: u64) {
        let published = self.publications.lock().iter().rev().find(|(one, _)| *one <= generation).map(|(_, at)| *at);
        if let Some(at) = published {
            self.convergence.observe(at.elapsed().as_secs_f64());
        }
    }
}

/// The names that Istio's metrics have for the types.
fn short(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Address => "wds",
        ResourceType::Authorization => "wads",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_dashboards_query() {
        let metrics = Metrics::new();
        metrics.connected(2);
        metrics.answered(ResourceType::Address, true);
        metrics.csr_count.inc();
        metrics.published(3);
        metrics.applied(4);
        let text = metrics.encode();
        for line in [
            &format!("pilot_xds{{version=\"{VERSION}\"}} 2\n"),
            "pilot_xds_pushes{type=\"wds\"} 1\n",
            "pilot_total_xds_rejects{type=\"wds\"} 1\n",
            "citadel_server_csr_count 1\n",
            "citadel_server_success_cert_issuance_count 0\n",
            "pilot_proxy_convergence_time_count 1\n",
            "process_open_fds ",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
