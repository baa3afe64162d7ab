//! Other meshes in the cluster: two must not own one pod, or one root certificate.

use serde_json::Value;

use super::install::bundle::{PART_OF, title};
use super::objects::{Objects, Resource};
use super::value::{label, list, name, text};

/// What an object of another mesh does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is a control plane: a revision of ours may run beside it.
    ControlPlane,
    /// It captures pods on nodes.
    Agent,
    /// It carries pods' connections on nodes.
    Tunnel,
    /// It checks or changes objects when they are written.
    Webhook,
}

/// An object of another mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// What it does.
    pub(crate) role: Role,
    /// The object, as messages name it.
    pub(crate) object: String,
}

/// Kinds among which other meshes are looked for.
pub(crate) fn kinds() -> [Resource; 4] {
    [
        Resource::new("apps/v1", "Deployment"),
        Resource::new("apps/v1", "DaemonSet"),
        Resource::new("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
        Resource::new("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ]
}

/// Looks for other meshes.
pub(crate) async fn look(objects: &Objects) -> anyhow::Result<Vec<Foreign>> {
    let mut found = Vec::new();
    for kind in kinds() {
        found.extend(objects.list(&kind, "", "").await?.iter().filter_map(foreign));
    }
    Ok(found)
}

/// Whether an object is of another mesh.
pub(crate) fn foreign(object: &Value) -> Option<Foreign> {
    if label(object, PART_OF.0) == Some(PART_OF.1) {
        return None;
    }
    let app = label(object, "app").unwrap_or_default();
    let agent = label(object, "k8s-app") == Some("istio-cni-node") || name(object) == "istio-cni-node";
    let role = match text(&object["kind"]) {
        "Deployment" if app == "istiod" => Role::ControlPlane,
        "DaemonSet" if agent => Role::Agent,
        "DaemonSet" if app == "ztunnel" || name(object) == "ztunnel" => Role::Tunnel,
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            let service = |webhook: &Value| text(&webhook["clientConfig"]["service"]["name"]).to_owned();
            let istiod =
                list(&object["webhooks"]).map(service).any(|name| name == "istiod" || name.starts_with("istiod-"));
            istiod.then_some(Role::Webhook)?
        }
        _ => return None,
    };
    Some(Foreign { role, object: title(object) })
}

/// Which parts are about to be installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    /// A revision other than the default one is chosen.
    pub(crate) revision: bool,
    /// The node agent is among them.
    pub(crate) agent: bool,
    /// The node tunnel is among them.
    pub(crate) tunnel: bool,
    /// The controller is among them.
    pub(crate) controller: bool,
}

/// Why these parts must not be installed beside what is there; nothing where they may.
pub(crate) fn refusals(found: &[Foreign], parts: Parts) -> Vec<String> {
    let refusal = |foreign: &Foreign| match foreign.role {
        Role::ControlPlane if parts.controller && !parts.revision => Some(format!(
            "{} is another control plane: two would own the same policies and root certificate. Uninstall it, or choose \
             a revision of ours beside it (--revision NAME), or install only the node parts under it (--set \
             controller.enabled=false --set ztunnel.xdsAddress=https://istiod.NAMESPACE.svc:15012)",
            foreign.object
        )),
        Role::Agent if parts.agent => Some(format!(
            "{} captures pods already: no pod may have two owners. Uninstall it, or leave ours out (--set \
             cni.enabled=false)",
            foreign.object
        )),
        Role::Tunnel if parts.tunnel => Some(format!(
            "{} carries pods' connections already. Uninstall it, or leave ours out (--set ztunnel.enabled=false)",
            foreign.object
        )),
        Role::Webhook if parts.controller && !parts.revision => Some(format!(
            "{} still asks another control plane when objects are written; delete it, or choose a revision of ours \
             beside it (--revision NAME)",
            foreign.object
        )),
        _ => None,
    };
    found.iter().filter_map(refusal).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn istio() -> Vec<Foreign> {
        let objects = [
            json!({"kind": "Deployment", "metadata": {"name": "istiod", "namespace": "istio-system", "labels": {"app": "istiod"}}}),
            json!({"kind": "DaemonSet", "metadata": {"name": "istio-cni-node", "namespace": "istio-system"}}),
            json!({"kind": "DaemonSet", "metadata": {"name": "ztunnel", "namespace": "istio-system", "labels": {"app": "ztunnel"}}}),
            json!({"kind": "ValidatingWebhookConfiguration", "metadata": {"name": "istio-validator-istio-system"},
                "webhooks": [{"clientConfig": {"service": {"name": "istiod"}}}]}),
        ];
        objects.iter().filter_map(foreign).collect()
    }

    const ALL: Parts = Parts { revision: false, agent: true, tunnel: true, controller: true };

    #[test]
    fn every_part_of_a_running_istio_is_refused_by_name() {
        let refused = refusals(&istio(), ALL);
        assert_eq!(refused.len(), 4);
        for (text, object) in refused.iter().zip([
            "Deployment istio-system/istiod",
            "DaemonSet istio-system/istio-cni-node",
            "DaemonSet istio-system/ztunnel",
            "ValidatingWebhookConfiguration istio-validator-istio-system",
        ]) {
            assert!(text.starts_with(object), "{text}");
        }
    }

    #[test]
    fn a_revision_may_stand_beside_a_control_plane_and_no_pod_has_two_owners() {
        let refused = refusals(&istio(), Parts { revision: true, ..ALL });
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(|text| text.starts_with("DaemonSet")));
        assert!(refusals(&istio(), Parts { revision: true, agent: false, tunnel: false, controller: true }).is_empty());
    }

    #[test]
    fn our_own_objects_with_istios_names_are_none_of_another_mesh() {
        let labels = json!({"app": "istiod", "app.kubernetes.io/part-of": "stillmesh"});
        assert_eq!(foreign(&json!({"kind": "Deployment", "metadata": {"name": "c", "labels": labels}})), None);
        assert_eq!(foreign(&json!({"kind": "Deployment", "metadata": {"name": "istiod-like"}})), None);
    }
}
