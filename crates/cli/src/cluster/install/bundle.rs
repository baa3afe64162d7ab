//! The mesh's own objects, as the chart renders them, in the order in which they are applied. Pure.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::cluster::value::{label, name, namespace, text};

/// What the chart renders with its default values.
const RENDERED: &str = include_str!("../../../../../deploy/stillmesh.yaml");
/// What it renders besides, with both, for the Prometheus operator.
const OPERATOR: &str = include_str!("../../../../../deploy/telemetry/operator.yaml");
/// The namespace that it is rendered for.
pub(super) const RENDERED_NAMESPACE: &str = "stillmesh-system";
/// Label that all of the mesh's own objects carry.
pub(crate) const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "stillmesh");
/// Label with the version.
pub(crate) const VERSION_LABEL: &str = "app.kubernetes.io/version";
/// Label with who manages an object.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Objects that go together, and what they are called while they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// The namespace, with what limits it.
    Namespace,
    /// Kinds of policies.
    Definitions,
    /// Who may do what.
    Access,
    /// Services, network policies, budgets.
    Network,
    /// The controller.
    Controller,
    /// What asks the controller when policies are written.
    Webhook,
    /// The node agent.
    Agent,
    /// The node tunnel.
    Tunnel,
}

impl Group {
    /// What it is called.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Definitions => "custom resource definitions",
            Self::Access => "accounts and roles",
            Self::Network => "services and network policies",
            Self::Controller => "controller",
            Self::Webhook => "webhook",
            Self::Agent => "node agent",
            Self::Tunnel => "ztunnel",
        }
    }

    /// The group of an object.
    pub(crate) fn of(object: &Value) -> Self {
        match (text(&object["kind"]), name(object)) {
            ("Namespace" | "ResourceQuota" | "LimitRange" | "PriorityClass", _) => Self::Namespace,
            ("CustomResourceDefinition", _) => Self::Definitions,
            (
                "ServiceAccount"
                | "ClusterRole"
                | "ClusterRoleBinding"
                | "Role"
                | "RoleBinding"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding",
                _,
            ) => Self::Access,
            ("ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration", _) => Self::Webhook,
            ("DaemonSet", "ztunnel") => Self::Tunnel,
            ("DaemonSet", _) => Self::Agent,
            ("Deployment", _) => Self::Controller,
            _ => Self::Network,
        }
    }
}

/// All objects.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    /// In the order in which they are applied.
    pub(crate) objects: Vec<Value>,
    /// The version that they are of.
    pub(crate) version: String,
}

impl Bundle {
    /// What this command brings along.
    pub(crate) fn own() -> anyhow::Result<Self> {
        Self::parse("the manifest in this command", RENDERED)
    }

    /// What the Prometheus operator finds the mesh by, and its rules.
    pub(super) fn of_operator() -> anyhow::Result<Vec<Value>> {
        Ok(Self::parse("the manifest in this command", OPERATOR)?.objects)
    }

    /// Reads a rendered manifest.
    pub(crate) fn parse(file: &str, manifest: &str) -> anyhow::Result<Self> {
        let documents: Vec<Option<Value>> =
            serde_saphyr::from_multiple(manifest).map_err(|error| anyhow::anyhow!("{file}: not YAML: {error}"))?;
        let mut objects: Vec<Value> = documents.into_iter().flatten().filter(|document| !document.is_null()).collect();
        for object in &objects {
            let whole = !text(&object["kind"]).is_empty() && !text(&object["apiVersion"]).is_empty();
            ensure!(whole && !name(object).is_empty(), "{file}: a document has no kind, apiVersion or metadata.name");
            if label(object, PART_OF.0) != Some(PART_OF.1) {
                bail!(
                    "{file}: {} is not labelled {}={}; is this a manifest that `deploy/render` or `helm template` made \
                     from Stillmesh's chart?",
                    title(object),
                    PART_OF.0,
                    PART_OF.1
                );
            }
        }
        ensure!(!objects.is_empty(), "{file}: there is no object in it");
        let version = objects.iter().find_map(|object| label(object, VERSION_LABEL));
        let version = version.with_context(|| format!("{file}: no object is labelled {VERSION_LABEL}"))?.to_owned();
        sort(&mut objects);
        Ok(Self { objects, version })
    }

    /// The objects of a group, in order.
    pub(crate) fn group(&self, group: Group) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| Group::of(object) == group)
    }

    /// The groups that have objects, in the order in which they are applied.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.objects.iter().map(Group::of).collect();
        groups.sort();
        groups.dedup();
        groups
    }
}

/// Puts objects in the order in which they are applied; the reverse is the order in which they go.
pub(crate) fn sort(objects: &mut [Value]) {
    objects.sort_by(|a, b| {
        let key = |object: &Value| {
            // A namespace before what is in it, a role before its binding.
            let within = match text(&object["kind"]) {
                "Namespace" => 0,
                "ClusterRoleBinding" | "RoleBinding" | "ValidatingAdmissionPolicyBinding" => 2,
                _ => 1,
            };
            (Group::of(object), within)
        };
        key(a).cmp(&key(b)).then_with(|| title(a).cmp(&title(b)))
    });
}

/// Kinds that are in no namespace.
pub(crate) fn is_global(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "CustomResourceDefinition"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "ValidatingWebhookConfiguration"
            | "MutatingWebhookConfiguration"
            | "ValidatingAdmissionPolicy"
            | "ValidatingAdmissionPolicyBinding"
            | "PriorityClass"
    )
}

/// An object as messages name it: `Kind namespace/name`.
pub(crate) fn title(object: &Value) -> String {
    let (kind, name) = (text(&object["kind"]), name(object));
    match namespace(object) {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_in_the_command_is_whole_and_of_this_version() {
        let bundle = Bundle::own().unwrap();
        assert_eq!(bundle.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(
            bundle.groups(),
            [
                Group::Namespace,
                Group::Definitions,
                Group::Access,
                Group::Network,
                Group::Controller,
                Group::Webhook,
                Group::Agent,
                Group::Tunnel
            ]
        );
    }

    #[test]
    fn what_is_needed_comes_before_what_needs_it() {
        let bundle = Bundle::own().unwrap();
        let place = |kind: &str, name: &str| {
            bundle.objects.iter().position(|one| one["kind"] == kind && one["metadata"]["name"] == name).unwrap()
        };
        assert_eq!(place("Namespace", "stillmesh-system"), 0);
        for [before, after] in [
            [("ClusterRole", "stillmesh-cni"), ("ClusterRoleBinding", "stillmesh-cni")],
            [("ServiceAccount", "stillmesh-controller"), ("Deployment", "stillmesh-controller")],
            [("ClusterRoleBinding", "stillmesh-cni"), ("DaemonSet", "stillmesh-cni")],
            [("Service", "stillmesh-controller"), ("Deployment", "stillmesh-controller")],
            [("Deployment", "stillmesh-controller"), ("ValidatingWebhookConfiguration", "stillmesh-validator")],
            [("DaemonSet", "stillmesh-cni"), ("DaemonSet", "ztunnel")],
        ] {
            assert!(place(before.0, before.1) < place(after.0, after.1), "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_foreign_manifest_is_refused_with_the_object_that_gave_it_away() {
        let foreign = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: thing, namespace: place}\n";
        let error = Bundle::parse("f.yaml", foreign).unwrap_err().to_string();
        assert!(error.contains("f.yaml: ConfigMap place/thing"), "{error}");
        assert!(Bundle::parse("f.yaml", "a: [").unwrap_err().to_string().contains("not YAML"));
        assert!(Bundle::parse("f.yaml", "---\n").unwrap_err().to_string().contains("no object"));
    }
}
