//! Which pods may be connected without a tunnel where both ends are on one node: those whose namespace asks for it, or the mesh,
//! and which no NetworkPolicy selects. Their packets never cross the pods' interfaces, where NetworkPolicies filter.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::labels;
use crate::network_policy::{self, Direction, End};

/// Label of a namespace, and annotation of ConfigMap `istio` for all that have no such label: [`DIRECT`] or [`TUNNEL`].
pub const SAME_NODE: &str = "stillmesh.io/same-node";
/// Without a tunnel.
pub const DIRECT: &str = "direct";
/// In a tunnel, as between nodes. Also the meaning of every value that is not known.
pub const TUNNEL: &str = "tunnel";

/// Whether the pods of a namespace are to be connected without a tunnel; `by_mesh` is what the mesh says.
pub fn is_wanted(namespace: Option<&Namespace>, by_mesh: bool) -> bool {
    match namespace.and_then(|one| labels::of(&one.metadata.labels).get(SAME_NODE)) {
        Some(said) => said == DIRECT,
        None => by_mesh,
    }
}

/// Whether a NetworkPolicy is about a pod, whichever way it filters and whatever it lets pass.
pub fn is_filtered(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let end = End::pod(pod, None);
    [Direction::Ingress, Direction::Egress]
        .into_iter()
        .any(|direction| network_policy::selects(policy, direction, &end))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespace(labels: Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    }

    #[test]
    fn a_namespace_says_it_for_itself_and_the_mesh_for_those_that_say_nothing() {
        for (labels, by_mesh, expected) in [
            (json!({}), false, false),
            (json!({}), true, true),
            (json!({SAME_NODE: "direct"}), false, true),
            (json!({SAME_NODE: "tunnel"}), true, false),
            (json!({SAME_NODE: "Direct"}), true, false),
        ] {
            assert_eq!(is_wanted(Some(&namespace(labels.clone())), by_mesh), expected, "{labels} {by_mesh}");
        }
        assert!(is_wanted(None, true) && !is_wanted(None, false));
    }

    #[test]
    fn any_policy_that_selects_a_pod_is_about_it_whatever_it_admits() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "shop", "labels": {"app": "a"}}}))
                .unwrap();
        let policy = |namespace: &str, spec: Value| -> NetworkPolicy {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec})).unwrap()
        };
        let everybody = json!({"podSelector": {}, "ingress": [{}]});
        let out = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"], "egress": [{}]});
        let other = json!({"podSelector": {"matchLabels": {"app": "b"}}});
        assert!(is_filtered(&policy("shop", everybody.clone()), &pod) && is_filtered(&policy("shop", out), &pod));
        assert!(!is_filtered(&policy("shop", other), &pod) && !is_filtered(&policy("web", everybody), &pod));
    }
}
