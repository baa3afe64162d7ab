//! How the agent ends in a cluster: replaced, and everything stays for its successor, or taken out, and nothing does.
//!
//! Whether it is taken out is asked of its own DaemonSet: gone, going (or its namespace is), or no longer meant for this node. The DaemonSet is
//! watched all the time, because at the end the account that could ask may be gone with it. No answer counts as
//! «replaced»: traffic must not leave the mesh because the API server is away.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use stillmesh_runtime::Backoff;
use tokio::sync::watch;
use tokio::time::timeout;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long the API server has for the last question.
const LAST_QUESTION: Duration = Duration::from_secs(2);

/// What is known of the agent's own DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Not seen, or no answer.
    Unknown,
    /// It is there and means this node.
    Stays,
    /// It is gone, or going, or means other nodes.
    Leaves,
}

/// Follows the DaemonSet until dropped.
pub async fn follow(client: Client, namespace: String, name: String, node: String, own: watch::Sender<Own>) {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let mut stream = std::pin::pin!(watch_object(api, &name));
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    while let Some(event) = stream.next().await {
        match event {
            Ok(set) => {
                backoff.reset();
                // An agent that was started by hand has no DaemonSet: only one that was there can go.
                let was = *own.borrow();
                let now = match (&set, was) {
                    (None, Own::Unknown) => Own::Unknown,
                    _ => judge(set.as_ref(), &client, &node).await,
                };
                if now != was {
                    tracing::debug!(?now, "the agent's own DaemonSet");
                }
                own.send_replace(now);
            }
            Err(error) => {
                tracing::debug!(%error, "the agent's own DaemonSet cannot be watched");
                tokio::time::sleep(backoff.next(1.0)).await;
            }
        }
    }
}

/// Asks one last time.
pub async fn ask(client: Client, namespace: &str, name: &str, node: &str, known: Own) -> Own {
    if known != Own::Stays {
        return known;
    }
    let (sets, namespaces) =
        (Api::<DaemonSet>::namespaced(client.clone(), namespace), Api::<Namespace>::all(client.clone()));
    let both = async { tokio::try_join!(sets.get_opt(name), namespaces.get_opt(namespace)) };
    match timeout(LAST_QUESTION, both).await {
        // A namespace that is deleted may lose its pods first.
        Ok(Ok((_, Some(namespace)))) if namespace.metadata.deletion_timestamp.is_some() => Own::Leaves,
        Ok(Ok((set, _))) => judge(set.as_ref(), &client, node).await,
        Ok(Err(_)) | Err(_) => Own::Unknown,
    }
}

async fn judge(set: Option<&DaemonSet>, client: &Client, node: &str) -> Own {
    let Some(set) = set.filter(|set| set.metadata.deletion_timestamp.is_none()) else { return Own::Leaves };
    let Some(pod) = set.spec.template.spec.as_ref() else { return Own::Stays };
    if pod.node_selector.as_ref().is_none_or(|selector| selector.is_empty()) && pod.affinity.is_none() {
        return Own::Stays;
    }
    let nodes: Api<Node> = Api::all(client.clone());
    match timeout(LAST_QUESTION, nodes.get_opt(node)).await {
        Ok(Ok(Some(node))) => {
            if selects(pod, &node) {
                Own::Stays
            } else {
                Own::Leaves
            }
        }
        // A node that is deleted ends with all that is on it.
        Ok(Ok(None)) => Own::Stays,
        Ok(Err(_)) | Err(_) => Own::Unknown,
    }
}

/// Whether a pod's placement, as the DaemonSet's template gives it, allows this node.
fn selects(pod: &PodSpec, node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let chosen = pod.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
    let affinity = pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref();
    chosen
        && required
            .is_none_or(|selector| selector.node_selector_terms.iter().any(|term| term_holds(term, &label, name)))
}

/// A term without conditions selects nothing.
fn term_holds<'a>(term: &NodeSelectorTerm, label: &impl Fn(&str) -> Option<&'a str>, name: Option<&str>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(name).flatten();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|it| requirement_holds(it, label(&it.key)))
        && fields.iter().all(|it| requirement_holds(it, field(&it.key)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|text| number(text));
    let compared = value.and_then(number).zip(bound);
    match requirement.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared.is_some_and(|(value, bound)| value > bound),
        "Lt" => compared.is_some_and(|(value, bound)| value < bound),
        // A later version's operator: nothing is taken out because of it.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn allowed(pod: serde_json::Value) -> bool {
        let node = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/os": "linux", "size": "7"}}});
        let mut pod = pod;
        pod["containers"] = json!([]);
        selects(&serde_json::from_value(pod).unwrap(), &serde_json::from_value(node).unwrap())
    }

    fn affinity(term: serde_json::Value) -> serde_json::Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{}, term]}}}})
    }

    #[test]
    fn a_node_is_meant_as_the_scheduler_would_say() {
        assert!(allowed(json!({})));
        assert!(allowed(json!({"nodeSelector": {"kubernetes.io/os": "linux"}})));
        assert!(!allowed(json!({"nodeSelector": {"kubernetes.io/os": "linux", "mesh": "yes"}})));
        for (key, operator, values, holds) in [
            ("size", "In", json!(["7", "8"]), true),
            ("size", "NotIn", json!(["7"]), false),
            ("none", "NotIn", json!(["7"]), true),
            ("size", "Exists", json!([]), true),
            ("none", "Exists", json!([]), false),
            ("none", "DoesNotExist", json!([]), true),
            ("size", "Gt", json!(["6"]), true),
            ("size", "Lt", json!(["7"]), false),
        ] {
            let term = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
            assert_eq!(allowed(affinity(term)), holds, "{key} {operator}");
        }
        let named = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        assert!(allowed(affinity(named("n1"))) && !allowed(affinity(named("n2"))));
        assert!(!allowed(affinity(json!({}))));
    }
}
