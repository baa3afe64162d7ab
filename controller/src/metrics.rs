//! What the controller counts, under the names that dashboards and alerts of Istio's control plane use (contract 9.3).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use stillmesh_api::xds::ResourceType;
use stillmesh_core::snapshot::Change;
use stillmesh_identity::Issuer;
use stillmesh_k8s::Kind;
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabel {
    cluster_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// The version that metrics and `/version` tell.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// From a millisecond to half a minute.
const SECONDS: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];
/// From a kilobyte to 40 megabytes.
const BYTES: [f64; 6] = [1e3, 1e4, 1e5, 1e6, 4e6, 4e7];

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
    expired: Family<TypeLabel, Count>,
    stuck: Family<TypeLabel, Count>,
    convergence: Histogram,
    events: Family<EventLabels, Count>,
    registry_events: Family<EventLabels, Count>,
    triggers: Family<TypeLabel, Count>,
    push_time: Family<TypeLabel, Histogram, fn() -> Histogram>,
    push_bytes: Family<TypeLabel, Histogram, fn() -> Histogram>,
    validation_passed: Family<KindLabel, Count>,
    validation_failed: Family<KindLabel, Count>,
    pub services: Gauge,
    pub virtual_services: Gauge,
    pub findings: Gauge,
    pub foreign_maps: Gauge,
    pub csr_count: Count,
    pub issued: Count,
    pub csr_parsing_errors: Count,
    pub csr_signing_errors: Count,
    pub authentication_failures: Count,
    pub identity_errors: Count,
    pub statuses_failed: Count,
    root_expiry: Gauge,
    chain_expiry: Gauge,
    root_left: Gauge,
    chain_left: Gauge,
    publications: Mutex<VecDeque<(u64, Instant)>>,
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self {
            shared: Shared::new(),
            started: Instant::now(),
            uptime: Gauge::default(),
            connected: Family::default(),
            pushes: Family::default(),
            rejects: Family::default(),
            expired: Family::default(),
            stuck: Family::default(),
            convergence: Histogram::new(SECONDS),
            events: Family::default(),
            registry_events: Family::default(),
            triggers: Family::default(),
            push_time: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            push_bytes: Family::new_with_constructor(|| Histogram::new(BYTES)),
            validation_passed: Family::default(),
            validation_failed: Family::default(),
            services: Gauge::default(),
            virtual_services: Gauge::default(),
            findings: Gauge::default(),
            foreign_maps: Gauge::default(),
            csr_count: Count::default(),
            issued: Count::default(),
            csr_parsing_errors: Count::default(),
            csr_signing_errors: Count::default(),
            authentication_failures: Count::default(),
            identity_errors: Count::default(),
            statuses_failed: Count::default(),
            root_expiry: Gauge::default(),
            chain_expiry: Gauge::default(),
            root_left: Gauge::default(),
            chain_left: Gauge::default(),
            publications: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let build: Family<BuildLabels, Gauge> = Family::default();
        let info: Family<VersionLabel, Gauge> = Family::default();
        let clusters: Family<ClusterLabel, Gauge> = Family::default();
        clusters.get_or_create(&ClusterLabel { cluster_type: "local" }).set(1);
        build.get_or_create(&BuildLabels { component: "pilot", tag: VERSION }).set(1);
        info.get_or_create(&VersionLabel { version: VERSION }).set(1);
        // There before the first one: what a series begins with is no increase.
        for kind in ResourceType::ALL {
            drop(self.rejects.get_or_create(&TypeLabel { r#type: short(kind) }));
        }
        self.shared.register(|registry| {
            registry.register("pilot_xds", "Connected nodes", self.connected.clone());
            registry.register("pilot_xds_pushes", "Responses that nodes answered", self.pushes.clone());
            registry.register("pilot_total_xds_rejects", "Responses with a refused resource", self.rejects.clone());
            registry.register("pilot_xds_expired_nonce", "Answers to what is older", self.expired.clone());
            registry.register("pilot_xds_write_timeout", "Responses that nodes did not read", self.stuck.clone());
            let help = "Seconds from publishing until a node has applied it";
            registry.register("pilot_proxy_convergence_time", help, self.convergence.clone());
            registry.register("pilot_k8s_cfg_events", "Changes of objects", self.events.clone());
            let help = "Objects that the webhook let pass";
            registry.register("galley_validation_passed", help, self.validation_passed.clone());
            let help = "Objects that the webhook refused";
            registry.register("galley_validation_failed", help, self.validation_failed.clone());
            let help = "Changes of workloads, services and what they are made of";
            registry.register("pilot_k8s_reg_events", help, self.registry_events.clone());
            registry.register("pilot_push_triggers", "What was published", self.triggers.clone());
            let help = "Seconds for making and handing over a response";
            registry.register("pilot_xds_push_time", help, self.push_time.clone());
            let help = "Sizes of responses";
            registry.register("pilot_xds_config_size_bytes", help, self.push_bytes.clone());
            registry.register("istiod_managed_clusters", "Clusters that are followed", clusters);
            registry.register("pilot_services", "Services", self.services.clone());
            registry.register("pilot_virt_services", "VirtualServices", self.virtual_services.clone());
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
            let help = "Seconds until the root expires";
            registry.register("citadel_server_root_cert_expiry_seconds", help, self.root_left.clone());
            let help = "When the signing certificate expires, Unix time";
            registry.register("citadel_server_cert_chain_expiry_timestamp", help, self.chain_expiry.clone());
            let help = "Seconds until the signing certificate expires";
            registry.register("citadel_server_cert_chain_expiry_seconds", help, self.chain_left.clone());
            let help = "Errors and warnings about objects that hold now";
            registry.register("stillmesh_controller_findings", help, self.findings.clone());
            let help = "ConfigMaps of roots that another control plane keeps; told by the leader";
            registry.register("stillmesh_controller_foreign_root_maps", help, self.foreign_maps.clone());
            let help = "Status conditions that could not be written and will be tried again";
            registry.register("stillmesh_controller_status_failures", help, self.statuses_failed.clone());
        });
    }

    pub fn encode(&self) -> String {
        self.uptime.set(i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.root_left.set(self.root_expiry.get().saturating_sub(now));
        self.chain_left.set(self.chain_expiry.get().saturating_sub(now));
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

    /// A node has answered something that is not waited for.
    pub fn expired(&self, kind: ResourceType) {
        self.expired.get_or_create(&TypeLabel { r#type: short(kind) }).inc();
    }

    /// A node has not read a response for too long.
    pub fn stuck(&self, kind: ResourceType) {
        self.stuck.get_or_create(&TypeLabel { r#type: short(kind) }).inc();
    }

    /// The webhook has checked an object.
    pub fn validated(&self, kind: &'static str, passed: bool) {
        let family = if passed { &self.validation_passed } else { &self.validation_failed };
        family.get_or_create(&KindLabel { kind }).inc();
    }

    /// An object has changed: one of configuration, or of the registry of what runs.
    pub fn event(&self, kind: Kind, event: &'static str) {
        let family = match kind {
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::ConfigMap
            | Kind::Gateway
            | Kind::GrpcRoute
            | Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Telemetry
            | Kind::HttpRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::ReferenceGrant
            | Kind::GatewayClass
            | Kind::Bypass
            | Kind::Quarantine => &self.events,
            _ => &self.registry_events,
        };
        family.get_or_create(&EventLabels { r#type: kind.as_str(), event }).inc();
    }

    /// A response has been sent.
    pub fn sent(&self, kind: ResourceType, bytes: usize, took: Duration) {
        let label = TypeLabel { r#type: short(kind) };
        self.push_time.get_or_create(&label).observe(took.as_secs_f64());
        self.push_bytes.get_or_create(&label).observe(bytes as f64);
    }

    /// Changes are about to be published.
    pub fn triggered(&self, changes: &[Change]) {
        let of = |change: &Change| match change {
            Change::Workload(_) | Change::WorkloadRemoved(_) => "endpoint",
            Change::Service(_) | Change::ServiceRemoved(_) => "service",
            Change::Policy(_)
            | Change::PolicyRemoved(_)
            | Change::Route(_)
            | Change::RouteRemoved(_)
            | Change::Access(_)
            | Change::AccessRemoved(_)
            | Change::Destination(_)
            | Change::DestinationRemoved(_) => "config",
        };
        for kind in ["endpoint", "service", "config"] {
            if changes.iter().any(|change| of(change) == kind) {
                self.triggers.get_or_create(&TypeLabel { r#type: kind }).inc();
            }
        }
    }

    /// The CA that signs now.
    pub fn authority(&self, issuer: &Issuer) {
        let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let root = stillmesh_identity::expiry(issuer.bundle().roots()).map_or(0, unix);
        self.root_expiry.set(i64::try_from(root).unwrap_or(i64::MAX));
        self.chain_expiry.set(i64::try_from(unix(issuer.not_after())).unwrap_or(i64::MAX));
    }

    pub fn published(&self, generation: u64) {
        let mut publications = self.publications.lock();
        if publications.len() == PUBLICATIONS {
            publications.pop_front();
        }
        publications.push_back((generation, Instant::now()));
    }

    /// A node has applied everything up to a generation, perhaps a while after it was published. What was published
    /// before it asked (`since`) is not counted: that took no time of anybody's.
    pub fn applied(&self, generation: u64, since: Instant) {
        let published = self.publications.lock().iter().rev().find(|(one, _)| *one <= generation).map(|(_, at)| *at);
        if let Some(at) = published.filter(|at| *at >= since) {
            self.convergence.observe(at.elapsed().as_secs_f64());
        }
    }
}

/// The names that Istio's metrics have for the types.
fn short(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Address => "wds",
        ResourceType::Authorization => "wads",
        ResourceType::Route => "rds",
        ResourceType::Access => "access",
        ResourceType::Destination => "destination",
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
        let since = Instant::now();
        metrics.published(3);
        metrics.applied(4, since);
        metrics.applied(4, Instant::now() + Duration::from_secs(1));
        metrics.expired(ResourceType::Authorization);
        metrics.stuck(ResourceType::Address);
        metrics.event(Kind::HttpRoute, "update");
        metrics.event(Kind::Pod, "update");
        metrics.validated("AuthorizationPolicy", true);
        metrics.validated("AuthorizationPolicy", false);
        metrics.sent(ResourceType::Address, 100, Duration::from_millis(1));
        metrics.triggered(&[Change::PolicyRemoved(stillmesh_core::model::PolicyKey::new("shop", "web"))]);
        let text = metrics.encode();
        let served = stillmesh_runtime::telemetry::metrics::outline(&text);
        assert_eq!(served, include_str!("metrics.txt"), "metrics.txt beside this file says something else");
        for line in [
            &format!("pilot_xds{{version=\"{VERSION}\"}} 2\n"),
            "pilot_xds_pushes{type=\"wds\"} 1\n",
            "pilot_total_xds_rejects{type=\"wds\"} 1\n",
            "pilot_total_xds_rejects{type=\"wads\"} 0\n",
            "pilot_xds_expired_nonce{type=\"wads\"} 1\n",
            "citadel_server_csr_count 1\n",
            "citadel_server_success_cert_issuance_count 0\n",
            "pilot_proxy_convergence_time_count 1\n",
            "process_open_fds ",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
