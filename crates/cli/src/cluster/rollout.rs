//! How far a Deployment or DaemonSet is, and what it waits for. Pure.

use serde_json::Value;

use super::value::{condition, holds, label, list, map, name, namespace, text};

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything wanted runs, is of this version and is ready.
    pub(crate) done: bool,
    /// How many of how many, and of what.
    pub(crate) text: String,
    /// Why it is not done: pods with what they wait for.
    pub(crate) waiting: Vec<String>,
}

/// How far a Deployment or DaemonSet is, among the pods of its namespace.
pub(crate) fn progress(object: &Value, pods: &[Value]) -> Progress {
    let status = &object["status"];
    let count = |field: &str| status[field].as_u64().unwrap_or_default();
    let seen = status["observedGeneration"].as_u64().unwrap_or_default()
        >= object["metadata"]["generation"].as_u64().unwrap_or_default();
    let daemon = object["kind"] == "DaemonSet";
    let (wanted, updated, ready, total, unit) = if daemon {
        (
            count("desiredNumberScheduled"),
            count("updatedNumberScheduled"),
            count("numberReady"),
            count("currentNumberScheduled"),
            "nodes",
        )
    } else {
        let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
        (wanted, count("updatedReplicas"), count("readyReplicas"), count("replicas"), "replicas")
    };
    let available = if daemon { count("numberAvailable") } else { count("availableReplicas") };
    let done = seen && updated >= wanted && ready >= wanted && available >= wanted && total <= wanted;
    let mut words = format!("{} of {wanted} {unit} ready", ready.min(wanted));
    if seen && updated < wanted && wanted > 0 {
        words.push_str(&format!(", {updated} of {wanted} updated"));
    } else if seen && !daemon && total > wanted {
        words.push_str(&format!(", {} old ones are ending", total - wanted));
    }
    let mut waiting = Vec::new();
    if !done {
        let mut own: Vec<&Value> = pods.iter().filter(|pod| belongs(object, pod)).collect();
        own.sort_by_key(|pod| name(pod));
        waiting.extend(own.into_iter().filter_map(pod_trouble));
        if let Some(failure) = condition(object, "ReplicaFailure") {
            waiting.push(text(&failure["message"]).to_owned());
        }
    }
    Progress { done, text: words, waiting }
}

/// Whether a pod is one of a Deployment or DaemonSet.
pub(crate) fn belongs(object: &Value, pod: &Value) -> bool {
    let mut wanted = map(&object["spec"]["selector"]["matchLabels"]).peekable();
    namespace(pod) == namespace(object)
        && wanted.peek().is_some()
        && wanted.all(|(key, value)| label(pod, key) == value.as_str())
}

/// What keeps a pod from being ready; `None` when it is.
pub(crate) fn pod_trouble(pod: &Value) -> Option<String> {
    let ending = !pod["metadata"]["deletionTimestamp"].is_null();
    if holds(pod, "Ready") && !ending {
        return None;
    }
    let node = text(&pod["spec"]["nodeName"]);
    let place = if node.is_empty() { String::new() } else { format!(" on {node}") };
    let statuses = list(&pod["status"]["initContainerStatuses"]).chain(list(&pod["status"]["containerStatuses"]));
    let container = statuses.filter(|one| one["ready"] != true).find_map(|one| {
        let waiting = &one["state"]["waiting"];
        let reason = waiting["reason"].as_str()?;
        let last = &one["lastState"]["terminated"];
        Some(match (waiting["message"].as_str(), last["exitCode"].as_i64()) {
            (_, Some(code)) if reason == "CrashLoopBackOff" => {
                let said = last["message"].as_str().and_then(|message| message.trim().lines().last());
                let said = said.map(|said| format!(": {said}")).unwrap_or_default();
                format!("{reason}: it ends with exit code {code}{said}")
            }
            (Some(message), _) => format!("{reason}: {message}"),
            (None, _) => reason.to_owned(),
        })
    });
    let scheduled = condition(pod, "PodScheduled").filter(|one| one["status"] == "False");
    let why = match (scheduled, container) {
        _ if ending => "is ending".to_owned(),
        (Some(scheduled), _) => format!("has no node: {}", text(&scheduled["message"])),
        (None, Some(why)) => why,
        (None, None) if pod["status"]["phase"] == "Running" => "runs and is not ready yet".to_owned(),
        (None, None) => text(&pod["status"]["phase"]).to_owned(),
    };
    Some(format!("{}{place}: {why}", name(pod)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemon_set(updated: u8, ready: u8) -> Value {
        json!({
            "kind": "DaemonSet",
            "metadata": {"name": "ztunnel", "namespace": "m", "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "ztunnel"}}},
            "status": {
                "observedGeneration": 2, "desiredNumberScheduled": 3, "currentNumberScheduled": 3,
                "updatedNumberScheduled": updated, "numberReady": ready, "numberAvailable": ready,
            },
        })
    }

    fn pod(app: &str, status: Value) -> Value {
        json!({
            "metadata": {"name": format!("{app}-1"), "namespace": "m", "labels": {"app": app}},
            "spec": {"nodeName": "n1"}, "status": status,
        })
    }

    #[test]
    fn a_daemon_set_is_done_when_every_node_has_the_new_one_ready() {
        assert!(progress(&daemon_set(3, 3), &[]).done);
        let some = progress(&daemon_set(1, 3), &[]);
        assert_eq!((some.done, some.text.as_str()), (false, "3 of 3 nodes ready, 1 of 3 updated"));
        assert!(!progress(&daemon_set(3, 2), &[]).done);
    }

    #[test]
    fn what_the_server_has_not_looked_at_yet_is_not_done() {
        let mut object = daemon_set(3, 3);
        object["metadata"]["generation"] = json!(3);
        assert!(!progress(&object, &[]).done);
    }

    #[test]
    fn a_deployment_is_done_when_the_old_replicas_are_gone() {
        let deployment = |total: u8| {
            json!({
                "kind": "Deployment", "metadata": {"generation": 1},
                "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "c"}}},
                "status": {"observedGeneration": 1, "replicas": total, "updatedReplicas": 2, "readyReplicas": total,
                    "availableReplicas": total},
            })
        };
        assert!(progress(&deployment(2), &[]).done);
        let old = progress(&deployment(3), &[]);
        assert_eq!((old.done, old.text.as_str()), (false, "2 of 2 replicas ready, 1 old ones are ending"));
    }

    #[test]
    fn it_says_which_pod_waits_for_what() {
        let pull = json!({"phase": "Pending", "containerStatuses": [
            {"ready": false, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
        let waiting = progress(&daemon_set(3, 2), &[pod("ztunnel", pull), pod("other", json!({}))]).waiting;
        assert_eq!(waiting, ["ztunnel-1 on n1: ImagePullBackOff: no such image"]);
        let crash = json!({"containerStatuses": [{"ready": false, "lastState": {"terminated": {"exitCode": 3}},
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}}]});
        assert_eq!(pod_trouble(&pod("a", crash)).unwrap(), "a-1 on n1: CrashLoopBackOff: it ends with exit code 3");
        let said = json!({"containerStatuses": [{"ready": false, "lastState": {"terminated": {"exitCode": 1, "message": "a\nno key\n"}},
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert!(pod_trouble(&pod("a", said)).unwrap().ends_with("exit code 1: no key"));
        let homeless = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]});
        assert_eq!(pod_trouble(&pod("a", homeless)).unwrap(), "a-1 on n1: has no node: 0/2 nodes");
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(pod_trouble(&pod("a", ready)), None);
    }
}
