//! `/config_dump` (contract 9.5): the whole state, in the shape that istioctl reads.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::model;
use crate::capture::pods::Table;
use crate::node::Node;
use crate::record::{Direction, Live};

/// Everything that this node knows.
pub fn config_dump(node: &Node, pods: &Table) -> Value {
    let snapshot = node.snapshots.load();
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.key.cmp(&b.key));
    let mut policies: Vec<_> = snapshot.policies().collect();
    policies.sort_by(|a, b| a.key.cmp(&b.key));
    json!({
        "workloads": workloads.into_iter().map(|workload| model::workload(workload)).collect::<Vec<_>>(),
        "services": services.into_iter().map(|service| model::service(&snapshot, service)).collect::<Vec<_>>(),
        "policies": policies.into_iter().map(|policy| model::policy(policy)).collect::<Vec<_>>(),
        "stagedServices": {},
        "staticConfig": {},
        "version": {
            "version": env!("CARGO_PKG_VERSION"),
            "gitRevision": "",
            "rustVersion": "",
            "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "buildStatus": "",
            "istioVersion": node.config.version,
            "cryptoProvider": "aws-lc",
        },
        "config": &node.config,
        "certificates": node.identities.dump(),
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
