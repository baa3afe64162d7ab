//! How every node takes what it is sent: connected, up to which generation, what it refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_api::xds::{NodeId, Observer, Rejected, ResourceType};
use tracing::{info, warn};

use crate::metrics::Metrics;

/// How many refused resources are remembered per node and type.
const REMEMBERED: usize = 16;

/// The nodes that are connected now, by stream.
pub(crate) struct Nodes {
    streams: Mutex<BTreeMap<u64, Node>>,
    metrics: Arc<Metrics>,
}

struct Node {
    id: NodeId,
    since: Instant,
    types: BTreeMap<ResourceType, Taken>,
}

#[derive(Default)]
struct Taken {
    applied: Option<u64>,
    answered: Option<Instant>,
    refusals: u64,
    refused: Vec<Rejected>,
}

impl Nodes {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { streams: Mutex::default(), metrics }
    }

    /// For `/debug/syncz`.
    pub fn to_json(&self, generation: u64) -> Value {
        let now = Instant::now();
        let streams = self.streams.lock();
        let nodes = streams.values().map(|node| {
            let types: serde_json::Map<String, Value> = ResourceType::ALL
                .iter()
                .map(|kind| {
                    let nothing = Taken::default();
                    let taken = node.types.get(kind).unwrap_or(&nothing);
                    let status = match (taken.applied, taken.refused.is_empty()) {
                        (_, false) => "REJECTED",
                        (Some(applied), true) if applied >= generation => "SYNCED",
                        (Some(_), true) => "STALE",
                        (None, true) => "NOT SENT",
                    };
                    let refused: Vec<Value> =
                        taken.refused.iter().map(|one| json!({"name": one.name, "reason": one.reason})).collect();
                    let value = json!({
                        "status": status,
                        "applied": taken.applied,
                        "answeredSecondsAgo": taken.answered.map(|at| now.duration_since(at).as_secs()),
                        "rejects": taken.refusals,
                        "rejected": refused,
                    });
                    (kind.url().to_owned(), value)
                })
                .collect();
            json!({
                "proxy": &*node.id.id,
                "node": &*node.id.node,
                "proxyType": "ztunnel",
                "account": format!("{}/{}", node.id.caller.namespace, node.id.caller.service_account),
                "connectedSeconds": now.duration_since(node.since).as_secs(),
                "types": types,
            })
        });
        json!({"generation": generation, "nodes": nodes.collect::<Vec<_>>()})
    }

    fn with(&self, node: &NodeId, kind: ResourceType, change: impl FnOnce(&mut Taken)) {
        if let Some(known) = self.streams.lock().get_mut(&node.stream) {
            let taken = known.types.entry(kind).or_default();
            taken.answered = Some(Instant::now());
            change(taken);
        }
    }
}

impl Observer for Nodes {
    fn connected(&self, node: &NodeId) {
        info!(node = %node.node, id = %node.id, "node connected");
        let mut streams = self.streams.lock();
        streams.insert(node.stream, Node { id: node.clone(), since: Instant::now(), types: BTreeMap::new() });
        self.metrics.connected(streams.len());
    }

    fn acked(&self, node: &NodeId, kind: ResourceType, generation: u64) {
        self.metrics.answered(kind, false);
        self.metrics.applied(generation);
        self.with(node, kind, |taken| {
            taken.applied = Some(generation);
            taken.refused.clear();
        });
    }

    fn nacked(&self, node: &NodeId, kind: ResourceType, generation: Option<u64>, rejected: &[Rejected]) {
        self.metrics.answered(kind, true);
        for one in rejected.iter().take(REMEMBERED) {
            warn!(node = %node.node, resource = %one.name, reason = %one.reason, "a node refused a resource");
        }
        self.with(node, kind, |taken| {
            taken.applied = generation.or(taken.applied);
            taken.refusals += 1;
            taken.refused = rejected.iter().take(REMEMBERED).cloned().collect();
        });
    }

    fn gone(&self, node: &NodeId, reason: &str) {
        info!(node = %node.node, id = %node.id, reason, "node gone");
        let mut streams = self.streams.lock();
        streams.remove(&node.stream);
        self.metrics.connected(streams.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillmesh_api::Caller;

    #[test]
    fn a_nodes_answers_are_told() {
        let nodes = Nodes::new(Arc::new(Metrics::new()));
        let caller =
            Caller { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None, pod: None };
        let node = NodeId { id: "ztunnel~1".into(), node: "n1".into(), caller, stream: 7 };
        let status =
            |nodes: &Nodes, kind: ResourceType| nodes.to_json(2)["nodes"][0]["types"][kind.url()]["status"].clone();
        nodes.connected(&node);
        assert_eq!(status(&nodes, ResourceType::Address), "NOT SENT");
        nodes.acked(&node, ResourceType::Address, 1);
        assert_eq!(status(&nodes, ResourceType::Address), "STALE");
        nodes.acked(&node, ResourceType::Address, 2);
        assert_eq!(status(&nodes, ResourceType::Address), "SYNCED");
        let rejected = [Rejected { name: "a/b".into(), reason: "odd".into() }];
        nodes.nacked(&node, ResourceType::Authorization, None, &rejected);
        assert_eq!(status(&nodes, ResourceType::Authorization), "REJECTED");
        nodes.gone(&node, "done");
        assert_eq!(nodes.to_json(2)["nodes"].as_array().map(Vec::len), Some(0));
    }
}
