//! What the agent counts. Istio's names where one exists.

use std::sync::atomic::AtomicU64;

use prometheus_client::registry::Unit;
use stillmesh_runtime::telemetry::metrics::Metrics as Registry;
use stillmesh_runtime::telemetry::metrics::encoding::{EncodeLabelSet, EncodeLabelValue};
use stillmesh_runtime::telemetry::metrics::types::counter::Counter;
use stillmesh_runtime::telemetry::metrics::types::family::Family;
use stillmesh_runtime::telemetry::metrics::types::gauge::Gauge;
use stillmesh_runtime::telemetry::metrics::types::histogram::Histogram;

/// All metrics of the agent. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Changes of pods and namespaces that were looked at.
    pub events: Family<EventLabels, Counter>,
    /// Requests of the plugin by the status that they were answered with.
    pub plugin_requests: Family<ResponseLabels, Counter>,
    /// Tunnels connected now.
    pub tunnels: Gauge,
    /// Tunnels turned away: too many, or silent.
    pub tunnels_refused: Counter,
    /// Pods that a tunnel could not take.
    pub refusals: Counter,
    /// Pods by state.
    pub pods: Family<StateLabels, Gauge>,
    /// Connections of captured pods that were open before capture and still are.
    pub older_connections: Family<PodLabels, Gauge>,
    /// Steps of enrolment that failed and are tried again.
    pub failed_steps: Counter,
    /// Pods whose rules had changed under us and were put right.
    pub repairs: Counter,
    /// Annotations that could not be written at once.
    pub failed_writes: Counter,
    /// How long pods stood behind the guard, in seconds.
    pub guarded: Histogram,
    /// From the agent's start until the last pod that it found uncaptured was under the guard, in seconds.
    pub start_window: Gauge<f64, AtomicU64>,
    /// How often the installed plugin was put right.
    pub reinstalls: Counter,
}

/// Seconds behind the guard that are told apart.
const GUARDED_SECONDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        Self {
            events: Family::default(),
            plugin_requests: Family::default(),
            tunnels: Gauge::default(),
            tunnels_refused: Counter::default(),
            refusals: Counter::default(),
            pods: Family::default(),
            older_connections: Family::default(),
            failed_steps: Counter::default(),
            repairs: Counter::default(),
            failed_writes: Counter::default(),
            guarded: Histogram::new(GUARDED_SECONDS),
            start_window: Gauge::default(),
            reinstalls: Counter::default(),
        }
    }
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    /// Its type.
    pub r#type: EventType,
}

/// Type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label's values")]
pub enum EventType {
    /// A new object.
    add,
    /// A changed object.
    update,
    /// A removed object.
    delete,
}

/// How the plugin was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResponseLabels {
    /// HTTP status.
    pub response_code: u16,
}

/// What a pod is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    /// The state.
    pub state: PodState,
}

/// State of a pod that is, or is to be, in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label's values")]
pub enum PodState {
    /// On its way in.
    entering,
    /// Blocked until a tunnel takes it.
    pending,
    /// In.
    captured,
    /// On its way out.
    leaving,
}

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PodLabels {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
}

impl Metrics {
    /// New metrics, registered.
    pub fn registered(registry: &Registry) -> Self {
        let metrics = Self::default();
        // A state that nobody was in yet is 0, not absent.
        for state in [PodState::entering, PodState::pending, PodState::captured, PodState::leaving] {
            drop(metrics.pods.get_or_create(&StateLabels { state }));
        }
        registry.register(|registry| {
            let all = metrics.clone();
            registry.register("nodeagent_reconcile_events", "Events of pods and namespaces looked at", all.events);
            registry.register("istio_cni_plugin_requests", "Requests of the plugin by answer", all.plugin_requests);
            registry.register("ztunnel_connected", "Tunnels connected", all.tunnels);
            registry.register("stillmesh_agent_tunnels_refused", "Tunnels turned away", all.tunnels_refused);
            registry.register("stillmesh_agent_pods_refused", "Pods that a tunnel could not take", all.refusals);
            registry.register("stillmesh_agent_pods", "Pods by state", all.pods);
            let help = "Connections open since before capture, uncaptured";
            registry.register("stillmesh_agent_older_connections", help, all.older_connections);
            registry.register("stillmesh_agent_failed_steps", "Steps of enrolment tried again", all.failed_steps);
            registry.register("stillmesh_agent_repairs", "Pods whose rules were put right", all.repairs);
            registry.register("stillmesh_agent_failed_writes", "Annotations to be written again", all.failed_writes);
            let help = "Time that pods stood behind the guard, unable to open connections";
            registry.register_with_unit("stillmesh_agent_guarded", help, Unit::Seconds, all.guarded);
            let help = "Time from the agent's start until every pod that it found uncaptured was under the guard";
            registry.register_with_unit("stillmesh_agent_start_window", help, Unit::Seconds, all.start_window);
            registry.register("stillmesh_agent_reinstalls", "Times the plugin was put right", all.reinstalls);
        });
        metrics
    }
}

/// A pod counted under its state, exactly once; moves with [`Counted::set`] and ends when dropped.
#[derive(Debug)]
pub struct Counted {
    metrics: Metrics,
    state: Option<PodState>,
}

impl Counted {
    /// Not counted yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, state: None }
    }

    /// Counts the pod under `state`, and no longer under the one before.
    pub fn set(&mut self, state: Option<PodState>) {
        if self.state == state {
            return;
        }
        if let Some(before) = std::mem::replace(&mut self.state, state) {
            self.metrics.pods.get_or_create(&StateLabels { state: before }).dec();
        }
        if let Some(now) = state {
            self.metrics.pods.get_or_create(&StateLabels { state: now }).inc();
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_that_dashboards_ask_for() {
        let registry = Registry::default();
        let metrics = Metrics::registered(&registry);
        metrics.events.get_or_create(&EventLabels { r#type: EventType::update }).inc();
        metrics.plugin_requests.get_or_create(&ResponseLabels { response_code: 200 }).inc();
        let mut counted = Counted::new(metrics.clone());
        counted.set(Some(PodState::entering));
        counted.set(Some(PodState::captured));
        metrics.older_connections.get_or_create(&PodLabels { namespace: "shop".into(), pod: "web".into() }).set(1);
        let text = registry.encode();
        let served = stillmesh_runtime::telemetry::metrics::outline(&text);
        assert_eq!(served, include_str!("metrics.txt"), "metrics.txt beside this file says something else");
        for line in [
            r#"nodeagent_reconcile_events_total{type="update"} 1"#,
            r#"istio_cni_plugin_requests_total{response_code="200"} 1"#,
            "ztunnel_connected 0",
            r#"stillmesh_agent_pods{state="captured"} 1"#,
            r#"stillmesh_agent_pods{state="entering"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(counted);
        assert!(registry.encode().contains(r#"stillmesh_agent_pods{state="captured"} 0"#));
    }
}
