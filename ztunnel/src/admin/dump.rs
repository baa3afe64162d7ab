//! `/config_dump` (contract 9.5): the whole state, in the shape that istioctl reads.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use stillmesh_proxy::dump;

use crate::capture::pods::Table;
use crate::node::Node;
use crate::record::{Direction, Live};

/// Everything that this node knows.
pub fn config_dump(node: &Node, pods: &Table) -> Value {
    let snapshot = node.snapshots.load();
    json!({
        "workloads": dump::workloads(&snapshot),
        "services": dump::services(&snapshot),
        "policies": dump::policies(&snapshot),
        "stagedServices": {},
        "staticConfig": {},
        "version": dump::version(&node.config.version),
        "config": &node.config,
        "certificates": dump::certificates(node.identities.secrets()),
        "workloadState": workload_state(node, pods),
    })
}

/// Pods with their open connections, by UID.
fn workload_state(node: &Node, pods: &Table) -> Map<String, Value> {
    let mut by_pod: BTreeMap<(String, String), [Vec<Value>; 2]> = BTreeMap::new();
    for live in node.ledger.all() {
        let facts = &live.facts;
        let (own, index) = match facts.direction {
            Direction::Inbound => (&facts.destination, 0),
            Direction::Outbound => (&facts.source, 1),
        };
        let Some(own) = own else { continue };
        let lists = by_pod.entry((own.namespace.to_string(), own.name.to_string())).or_default();
        if let Some(list) = lists.get_mut(index) {
            list.push(connection(&live));
        }
    }
    let state = pods.all().into_iter().map(|pod| {
        let key = (pod.info.namespace.clone(), pod.info.name.clone());
        let [inbound, outbound] = by_pod.remove(&key).unwrap_or_default();
        let value = json!({
            "state": "Up",
            "connections": { "inbound": inbound, "outbound": outbound },
            "info": {
                "name": pod.info.name,
                "namespace": pod.info.namespace,
                "serviceAccount": pod.info.service_account,
            },
        });
        (pod.uid.clone(), value)
    });
    state.collect()
}

fn connection(live: &Live) -> Value {
    let facts = &live.facts;
    let actual = match facts.direction {
        Direction::Inbound => facts.upstream.unwrap_or(facts.destination_addr),
        Direction::Outbound => facts.destination_addr,
    };
    json!({
        "src": facts.source_addr.to_string(),
        "originalDst": facts.original.to_string(),
        "actualDst": actual.to_string(),
        "protocol": facts.protocol.as_str(),
    })
}
