//! How every node takes what it is sent: connected, up to which generation, what it refused.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_api::xds::{NodeId, Observer, Rejected, ResourceType, Store};
use tracing::{info, warn};

use crate::metrics::{Metrics, VERSION};
use crate::receipts::Receipts;

/// How many refused resources are remembered per node and type.
const REMEMBERED: usize = 16;

/// The nodes that are connected now, by stream.
pub(crate) struct Nodes {
    streams: Mutex<BTreeMap<u64, Node>>,
    cluster: String,
    metrics: Arc<Metrics>,
    receipts: Arc<Receipts>,
}

struct Node {
    id: NodeId,
    since: Instant,
    types: BTreeMap<ResourceType, Taken>,
}

#[derive(Default)]
struct Taken {
    applied: Option<u64>,
    /// Something has been sent that is not answered.
    open: bool,
    answered: Option<Instant>,
    refusals: u64,
    refused: Vec<Rejected>,
}

impl Nodes {
    pub fn new(cluster: &str, metrics: Arc<Metrics>, receipts: Arc<Receipts>) -> Self {
        Self { streams: Mutex::default(), cluster: cluster.to_owned(), metrics, receipts }
    }

    /// For `/debug/syncz`: a list, each entry with the names that tools for Istio read, and our own beside them.
    pub fn to_json(&self, store: &Store) -> Value {
        let (now, generation) = (Instant::now(), store.generation());
        let standings: BTreeMap<u64, _> = store.standings().into_iter().collect();
        let streams = self.streams.lock();
        let nodes = streams.values().map(|node| {
            let asks = |kind| standings.get(&node.id.stream).is_none_or(|standing| standing.asked.contains(kind));
            let types: serde_json::Map<String, Value> = ResourceType::ALL
                .iter()
                .map(|kind| {
                    let nothing = Taken::default();
                    let taken = node.types.get(kind).unwrap_or(&nothing);
                    let status = match (taken.applied, taken.open) {
                        _ if !taken.refused.is_empty() => "REJECTED",
                        (None, false) if !asks(kind) => "IGNORED",
                        (_, true) => "STALE",
                        // It need not be the newest generation: what does not concern a type is not sent.
                        (Some(_), false) => "SYNCED",
                        (None, false) => "NOT SENT",
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
            // `ztunnel~10.0.0.1~pod.namespace~domain`: tools want the first and the third.
            let part = |place| node.id.id.split('~').nth(place).unwrap_or(&node.id.id);
            let version = if node.id.version.is_empty() { VERSION } else { &*node.id.version };
            json!({
                "proxy": part(2),
                "proxy_type": part(0),
                "proxy_version": version,
                "istio_version": version,
                "cluster_id": self.cluster,
                "id": &*node.id.id,
                "node": &*node.id.node,
                "generation": generation,
                "account": format!("{}/{}", node.id.caller.namespace, node.id.caller.service_account),
                "connectedSeconds": now.duration_since(node.since).as_secs(),
                "types": types,
            })
        });
        Value::Array(nodes.collect())
    }

    fn with(&self, node: &NodeId, kind: ResourceType, change: impl FnOnce(&mut Taken)) {
        if let Some(known) = self.streams.lock().get_mut(&node.stream) {
            change(known.types.entry(kind).or_default());
        }
    }

    fn answered(&self, node: &NodeId, kind: ResourceType, change: impl FnOnce(&mut Taken)) {
        self.with(node, kind, |taken| {
            taken.answered = Some(Instant::now());
            taken.open = false;
            change(taken);
        });
    }
}

impl Observer for Nodes {
    fn connected(&self, node: &NodeId) {
        info!(node = %node.node, id = %node.id, "node connected");
        let mut streams = self.streams.lock();
        streams.insert(node.stream, Node { id: node.clone(), since: Instant::now(), types: BTreeMap::new() });
        self.metrics.connected(streams.len());
        drop(streams);
        self.receipts.connected(node);
    }

    fn confirmed(&self, node: &NodeId, generations: Range<u64>) {
        self.receipts.confirmed(node, generations);
    }

    fn sent(&self, node: &NodeId, kind: ResourceType, bytes: usize, took: Duration) {
        self.metrics.sent(kind, bytes, took);
        self.with(node, kind, |taken| taken.open = true);
    }

    fn expired(&self, _node: &NodeId, kind: ResourceType) {
        self.metrics.expired(kind);
    }

    fn stuck(&self, _node: &NodeId, kind: ResourceType) {
        self.metrics.stuck(kind);
    }

    fn acked(&self, node: &NodeId, kind: ResourceType, generation: u64) {
        self.metrics.answered(kind, false);
        let since = self.streams.lock().get(&node.stream).map(|known| known.since);
        self.answered(node, kind, |taken| {
            // One that asks for more of what it has is no measure.
            if let Some(since) = since
                && taken.applied.is_none_or(|before| before < generation)
            {
                self.metrics.applied(generation, since);
            }
            taken.applied = Some(generation);
            taken.refused.clear();
        });
    }

    fn nacked(&self, node: &NodeId, kind: ResourceType, generation: Option<u64>, rejected: &[Rejected]) {
        self.metrics.answered(kind, true);
        for one in rejected.iter().take(REMEMBERED) {
            warn!(node = %node.node, resource = %one.name, reason = %one.reason, "a node refused a resource");
        }
        self.answered(node, kind, |taken| {
            taken.applied = generation.or(taken.applied);
            taken.refusals += 1;
            taken.refused = rejected.iter().take(REMEMBERED).cloned().collect();
        });
        self.receipts.refused();
    }

    fn gone(&self, node: &NodeId, reason: &str) {
        info!(node = %node.node, id = %node.id, reason, "node gone");
        let mut streams = self.streams.lock();
        streams.remove(&node.stream);
        self.metrics.connected(streams.len());
        drop(streams);
        self.receipts.gone(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillmesh_api::Caller;

    #[test]
    fn a_nodes_answers_are_told() {
        let metrics = Arc::new(Metrics::new());
        let store = Arc::new(Store::new());
        let nodes = Nodes::new("Kubernetes", Arc::clone(&metrics), Arc::new(Receipts::new(Arc::clone(&store))));
        metrics.published(1);
        let caller =
            Caller { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None, pod: None };
        let node = NodeId {
            id: "ztunnel~10.0.0.1~z-1.mesh~mesh.svc.cluster.local".into(),
            node: "n1".into(),
            version: "1.31.0".into(),
            caller,
            stream: 7,
        };
        let status =
            |nodes: &Nodes, kind: ResourceType| nodes.to_json(&store)[0]["types"][kind.url()]["status"].clone();
        nodes.connected(&node);
        let told = nodes.to_json(&store)[0].clone();
        assert_eq!([&told["proxy"], &told["proxy_type"], &told["istio_version"]], ["z-1.mesh", "ztunnel", "1.31.0"]);
        assert_eq!(status(&nodes, ResourceType::Address), "NOT SENT");
        let send = |kind| nodes.sent(&node, kind, 10, Duration::ZERO);
        let measured = |times: u64| {
            let line = format!("pilot_proxy_convergence_time_count {times}\n");
            assert!(metrics.encode().contains(&line), "not measured {times} times");
        };
        send(ResourceType::Address);
        assert_eq!(status(&nodes, ResourceType::Address), "STALE");
        nodes.acked(&node, ResourceType::Address, 1);
        assert_eq!(status(&nodes, ResourceType::Address), "SYNCED", "the newest generation had nothing of it");
        measured(0);
        metrics.published(2);
        send(ResourceType::Address);
        assert_eq!(status(&nodes, ResourceType::Address), "STALE");
        nodes.acked(&node, ResourceType::Address, 2);
        assert_eq!(status(&nodes, ResourceType::Address), "SYNCED");
        measured(1);
        nodes.acked(&node, ResourceType::Address, 2);
        measured(1);
        let rejected = [Rejected { name: "a/b".into(), reason: "odd".into() }];
        nodes.nacked(&node, ResourceType::Authorization, None, &rejected);
        assert_eq!(status(&nodes, ResourceType::Authorization), "REJECTED");
        nodes.gone(&node, "done");
        assert_eq!(nodes.to_json(&store).as_array().map(Vec::len), Some(0));
    }
}
