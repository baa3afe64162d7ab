//! Who is captured: the enablement rules of ambient (contract 1.1), one code for plugin, agent and controller.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::labels::{self, Labels};

/// Label that says whether a namespace's or pod's traffic goes through the mesh.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Annotation on a pod that says what the agent has done: `enabled` or `pending` (contract 1.1).
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Annotation that a sidecar injector leaves.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// A pair of selectors; a pod is eligible when any pair matches it and its namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnablementSelector {
    /// For the pod's labels; empty matches everything.
    pub pod: LabelSelector,
    /// For its namespace's labels; empty matches everything.
    pub namespace: LabelSelector,
}

/// The rules of enrolment.
#[derive(Clone, Debug, PartialEq)]
pub struct Enrolment {
    /// Any that matches makes a pod eligible.
    pub selectors: Vec<EnablementSelector>,
    /// Namespaces whose pods are never captured.
    pub excluded_namespaces: BTreeSet<String>,
    /// Where the mesh itself runs.
    pub system_namespace: String,
}

impl Default for Enrolment {
    /// Istio's defaults.
    fn default() -> Self {
        let ambient = LabelSelector {
            match_labels: Some([(DATAPLANE_MODE.to_owned(), "ambient".to_owned())].into()),
            match_expressions: None,
        };
        let not_none = LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: DATAPLANE_MODE.to_owned(),
                operator: "NotIn".to_owned(),
                values: Some(vec!["none".to_owned()]),
            }]),
        };
        Self {
            selectors: vec![
                EnablementSelector { pod: ambient.clone(), namespace: LabelSelector::default() },
                EnablementSelector { pod: not_none, namespace: ambient },
            ],
            excluded_namespaces: ["kube-system".to_owned()].into(),
            system_namespace: "istio-system".to_owned(),
        }
    }
}

/// Why a pod is not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotEnrolled {
    /// No label of the pod or its namespace asks for it.
    NotSelected,
    /// It shares its node's network.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// It ran to its end.
    Terminal,
    /// It is a node tunnel.
    NodeTunnel,
    /// A Bypass takes it out for a while.
    Bypassed,
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSelected => "no istio.io/dataplane-mode label selects it",
            Self::HostNetwork => "it uses its node's network",
            Self::Sidecar => "it has a sidecar",
            Self::ExcludedNamespace => "its namespace is excluded",
            Self::Terminal => "it has ended",
            Self::NodeTunnel => "it is a node tunnel",
            Self::Bypassed => "a Bypass takes it out of the mesh for a while",
        })
    }
}

/// Whether a pod is to be captured. An unknown namespace counts as one without labels.
pub fn enrolled(pod: &Pod, namespace: Option<&Namespace>, rules: &Enrolment) -> bool {
    why_not(pod, namespace, rules).is_none()
}

/// Why a pod is not to be captured; `None` where it is.
pub fn why_not(pod: &Pod, namespace: Option<&Namespace>, rules: &Enrolment) -> Option<NotEnrolled> {
    let pod_labels = labels::of(&pod.metadata.labels);
    let namespace_labels = namespace.map_or(labels::of(&None), |namespace| labels::of(&namespace.metadata.labels));
    let name = pod.metadata.namespace.as_deref().unwrap_or(crate::object::DEFAULT_NAMESPACE);
    if name == rules.system_namespace && pod_labels.get("app").is_some_and(|app| app == "ztunnel") {
        return Some(NotEnrolled::NodeTunnel);
    }
    if rules.excluded_namespaces.contains(name) {
        return Some(NotEnrolled::ExcludedNamespace);
    }
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Some(NotEnrolled::HostNetwork);
    }
    if labels::of(&pod.metadata.annotations).contains_key(SIDECAR_STATUS) {
        return Some(NotEnrolled::Sidecar);
    }
    if terminal(pod) {
        return Some(NotEnrolled::Terminal);
    }
    (!selected(pod_labels, namespace_labels, rules)).then_some(NotEnrolled::NotSelected)
}

/// Whether the labels alone ask for capture.
pub fn selected(pod: &Labels, namespace: &Labels, rules: &Enrolment) -> bool {
    rules.selectors.iter().any(|pair| labels::selects(&pair.pod, pod) && labels::selects(&pair.namespace, namespace))
}

/// Whether a pod ran to its end.
pub fn terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests;
