//! Receipts of enrolments: of how many of a namespace's pods the capture is done, how long it took, and who lags.
//!
//! A pod counts as captured where its agent's annotation says so with its receipt, and the node still has an agent that keeps
//! what it has said. Nothing is expected of pods on nodes that are not ready, as with everything else.

use std::collections::BTreeMap;

use serde::Serialize;
use stillmesh_core::model::Str;
use stillmesh_k8s::capture::Capture;

use super::flight::{Durations, Took};
use super::judge::{Count, Lagging, NAMED};
use crate::build::{Agent, Enrolments, Member, Members, OutBy, Running};

/// How a namespace's enrolment stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Enrolled {
    kind: &'static str,
    name: Str,
    /// Pods that are captured.
    in_force: usize,
    /// Pods that ought to be.
    expected: usize,
    /// Nodes with such pods, and on how many of them all are captured.
    nodes: Count,
    /// Who is not captured, the first of them.
    lagging: Vec<Lagging>,
    /// How long pods ran before they were captured, of those that did.
    #[serde(skip_serializing_if = "Option::is_none")]
    took: Option<Took>,
    /// Connections from before that are still open, and are not in the mesh.
    older_connections: u64,
}

/// All of them, by name. Costs a look at each pod that is to be captured.
pub(super) fn receipts(enrolments: &Enrolments, running: &Running) -> Vec<Enrolled> {
    enrolments.look(|state| {
        let agent = |node: &str| state.agent(node);
        state.namespaces.iter().map(|(name, members)| receipt(name, members, &agent, running)).collect()
    })
}

fn receipt(name: &Str, members: &Members, agent: &impl Fn(&str) -> Agent, running: &Running) -> Enrolled {
    let (mut in_force, mut expected, mut older, mut lagging) = (0, 0, 0_u64, Vec::new());
    let (mut durations, mut nodes) = (Durations::default(), BTreeMap::new());
    for (pod, member) in members.pods.iter().filter(|(_, member)| running.is_ready(&member.node)) {
        expected += 1;
        let is_whole = nodes.entry(&member.node).or_insert(true);
        if let Capture::Done { older: open, .. } = member.capture {
            older = older.saturating_add(open);
        }
        match lacks(member, agent(&member.node)) {
            None => {
                in_force += 1;
                if let Some(took) = member.took {
                    durations.add(u32::try_from(took.as_millis()).unwrap_or(u32::MAX));
                }
            }
            Some(reason) => {
                *is_whole = false;
                if lagging.len() < NAMED {
                    lagging.push(Lagging { name: format!("{name}/{pod}").into(), reason });
                }
            }
        }
    }
    let nodes = Count { in_force: nodes.values().filter(|whole| **whole).count(), expected: nodes.len() };
    let took = durations.took();
    Enrolled {
        kind: "Namespace",
        name: name.clone(),
        in_force,
        expected,
        nodes,
        lagging,
        took,
        older_connections: older,
    }
}

/// Why a pod does not count as captured.
fn lacks(member: &Member, agent: Agent) -> Option<String> {
    let said = match &member.capture {
        Capture::Done { .. } if agent != Agent::None => return None,
        Capture::Done { .. } => "it is marked as captured".to_owned(),
        Capture::Bypassed(order) => match &member.bypass {
            OutBy::Holds => member.capture.to_string(),
            OutBy::Over => format!("Bypass {order} is over, and it is not back yet"),
            OutBy::Overridden(quarantine) => format!(
                "Bypass {order} is overridden by Quarantine {quarantine} and goes on after it; it is not captured yet"
            ),
        },
        capture => capture.to_string(),
    };
    let node = &member.node;
    Some(match agent {
        Agent::Ready => said,
        Agent::Unready => format!("{said}; the agent of its node {node} is not ready"),
        Agent::None => format!("{said}; its node {node} has no agent"),
    })
}

#[cfg(test)]
mod tests;
