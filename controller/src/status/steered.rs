//! What becomes of orders, told: as status, as one line of the audit log, as an Event of Kubernetes.

use std::time::Duration;

use kube::Client;
use kube::Resource as _;
use kube::api::{ApiResource, DynamicObject, ObjectMeta};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};
use stillmesh_k8s::ObjectKey;
use stillmesh_k8s::steering::SteeringStatus;
use tokio::time::timeout;
use tracing::{info, warn};

use super::DEADLINE;
use crate::build::{Steered, Verdict};

/// What a status waits for each node in it, and at most.
const EACH_NODE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What of its status an order should have; `None` where it has it.
pub(super) fn status(steered: &Steered) -> Option<Value> {
    if steered.forget.is_some() {
        return Some(Value::Null);
    }
    if steered.status == steered.before {
        return None;
    }
    let mut status = serde_json::to_value(&steered.status).ok()?;
    // What is left out stays as it is in a merge.
    status["nodes"] = json!(steered.status.nodes);
    Some(status)
}

/// How long a status waits for more to be said: every agent of the mesh reads each version of it.
pub(super) fn pause(steered: &Steered) -> Duration {
    if steered.status.phase != steered.before.phase {
        return Duration::ZERO;
    }
    let nodes = u32::try_from(steered.status.nodes.len()).unwrap_or(u32::MAX);
    EACH_NODE.saturating_mul(nodes).min(LONGEST_PAUSE)
}

/// What is new about an order: one word.
fn news(steered: &Steered) -> Option<&'static str> {
    let Steered { status, before, forget, .. } = steered;
    if forget.is_some() {
        return None;
    }
    let is_done =
        |status: &SteeringStatus| status.conditions.iter().any(|one| one.type_ == "Done" && one.status == "True");
    match (status.phase.as_str(), before.phase == status.phase) {
        ("Active", false) => Some("Started"),
        ("Ended", false) => Some("Ended"),
        (_, false) => Some("Refused"),
        (_, true) if is_done(status) && !is_done(before) => Some("Done"),
        _ => None,
    }
}

/// One line of the audit log for what is new.
pub(super) fn audit(verdict: &Verdict) {
    let Some(steered) = &verdict.steered else { return };
    let Some(what) = news(steered) else { return };
    let status = &steered.status;
    let nodes: Vec<&str> = status.nodes.iter().map(|node| node.node.as_str()).collect();
    info!(
        target: "audit",
        order = %verdict.object,
        what,
        by = status.requested_by,
        ended_by = status.ended_by,
        reason = steered.reason,
        since = status.since,
        until = status.until,
        pods = status.pods,
        done = status.done,
        connections = status.connections,
        nodes = nodes.join(","),
        "{}",
        status.summary
    );
}

/// An Event for what is new. One that cannot be written is logged: the status says it, too.
pub(super) async fn publish(client: Client, resource: &ApiResource, verdict: &Verdict) {
    let Some((steered, what)) = verdict.steered.as_ref().and_then(|one| Some((one, news(one)?))) else { return };
    let ObjectKey { namespace, name, .. } = &verdict.object;
    let object = DynamicObject {
        types: None,
        metadata: ObjectMeta {
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            ..ObjectMeta::default()
        },
        data: Value::Null,
    };
    let status = &steered.status;
    let note = format!("{}; by {}: {}", status.summary, status.requested_by, steered.reason);
    let event = Event {
        type_: if what == "Refused" { EventType::Warning } else { EventType::Normal },
        reason: what.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: verdict.object.kind.as_str().to_owned(),
        secondary: None,
    };
    let recorder = Recorder::new(client, Reporter { controller: crate::cluster::MANAGER.to_owned(), instance: None });
    let written = timeout(DEADLINE, recorder.publish(&event, &object.object_ref(resource))).await;
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(object = %verdict.object, %error, "no Event could be written"),
        Err(_) => warn!(object = %verdict.object, "no Event could be written: no answer within {DEADLINE:?}"),
    }
}
