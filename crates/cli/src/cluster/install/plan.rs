//! What must be known before anything is applied: what is installed, whose it is, what is not needed any more.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use serde_json::{Value, json};

use super::apply::{Release, applied_by, helm_owned, helm_release};
use super::bundle::{Bundle, Group, PART_OF, VERSION_LABEL, title};
use super::options::{self, Setting};
use crate::cluster::foreign::Parts;
use crate::cluster::objects::{MANAGER, Objects, Resource};
use crate::cluster::skew::{Version, refused};
use crate::cluster::value::{annotation, label, namespace};

/// Annotation of a namespace that was made here, so that it goes again with the mesh.
pub(crate) const MADE: &str = "stillmesh.io/made-by";
/// Labels of the mesh's own objects, as a selector.
pub(crate) fn own_labels() -> String {
    format!("{}={}", PART_OF.0, PART_OF.1)
}

/// What is installed.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    /// Its version.
    pub(crate) version: String,
    /// What was set.
    pub(crate) settings: Vec<Setting>,
}

/// The workloads of a mesh: what runs of it.
pub(crate) fn workload_kinds() -> [Resource; 2] {
    [Resource::new("apps/v1", "Deployment"), Resource::new("apps/v1", "DaemonSet")]
}

/// What is installed in a namespace: the controller's word counts before the nodes'.
pub(crate) async fn installed(objects: &Objects, at: &str, revision: &str) -> anyhow::Result<Option<Installed>> {
    for kind in workload_kinds() {
        for object in objects.list(&kind, at, &own_labels()).await? {
            let other = label(&object, "istio.io/rev").is_some_and(|rev| rev != revision);
            let Some(version) = label(&object, VERSION_LABEL).filter(|_| !other) else { continue };
            let settings = annotation(&object, options::SETTINGS).map(options::recall).unwrap_or_default();
            return Ok(Some(Installed { version: version.to_owned(), settings }));
        }
    }
    Ok(None)
}

/// Whether a version may follow another.
pub(super) fn may_follow(from: &str, to: &str, force: bool) -> anyhow::Result<()> {
    match (Version::parse(from), Version::parse(to)) {
        (Some(from), Some(to)) => match refused(&from, &to, force) {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        },
        (None, _) => bail!("what is installed is labelled with version {from:?}, which is none; it is not upgraded"),
        (_, None) => bail!("the manifest is labelled with version {to:?}, which is none"),
    }
}

/// Refuses objects that a Helm release owns, all at once.
pub(super) fn refuse_helm(before: &BTreeMap<String, Value>, living: &BTreeSet<Release>) -> anyhow::Result<()> {
    let owned = before.values().filter_map(|object| Some((object, helm_release(object)?)));
    let owned: Vec<(&Value, Release)> = owned.filter(|(_, release)| living.contains(release)).collect();
    match owned.as_slice() {
        [] => Ok(()),
        [(object, release)] => bail!("{}", helm_owned(object, release)),
        [(object, release), rest @ ..] => bail!("{} (and {} objects more)", helm_owned(object, release), rest.len()),
    }
}

/// Refuses objects for the Prometheus operator where its kinds are not there.
pub(super) async fn refuse_without_operator(objects: &Objects, bundle: &Bundle) -> anyhow::Result<()> {
    let definitions = Resource::new("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    for (kind, key) in [("PodMonitor", "telemetry.podMonitor"), ("PrometheusRule", "telemetry.prometheusRule")] {
        let name = format!("{}s.monitoring.coreos.com", kind.to_lowercase());
        if bundle.objects.iter().any(|object| object["kind"] == kind)
            && objects.get(&definitions, "", &name).await?.is_none()
        {
            bail!(
                "{key}: this cluster has no kind {kind} ({name}); install the Prometheus operator first, or set {key}=false"
            );
        }
    }
    Ok(())
}

/// Refuses a second mesh of ours in another namespace: nodes and kinds are there once.
pub(super) async fn refuse_second(objects: &Objects, at: &str, parts: Parts) -> anyhow::Result<()> {
    if !parts.agent && !parts.tunnel {
        return Ok(());
    }
    let daemons = objects.list(&Resource::new("apps/v1", "DaemonSet"), "", &own_labels()).await?;
    match daemons.iter().find(|object| namespace(object) != at) {
        Some(other) => bail!(
            "Stillmesh runs already in namespace {ns} ({}); work on that one with -i {ns}",
            title(other),
            ns = namespace(other)
        ),
        None => Ok(()),
    }
}

/// Notes at a namespace that is made here that it was; one that was there before stays its maker's.
pub(super) fn mark_namespace(bundle: &mut Bundle, before: &BTreeMap<String, Value>) {
    for object in &mut bundle.objects {
        if object["kind"] == "Namespace" {
            let ours = before.get(&title(object)).is_none_or(|there| annotation(there, MADE).is_some());
            if ours {
                object["metadata"]["annotations"][MADE] = json!("stillmesh install");
            }
        }
    }
}

/// Objects that we once applied and that are not in the bundle. Definitions hold users' policies, namespaces all kinds
/// of things: neither is ever among them; nor is anything while several revisions share the cluster.
pub(super) async fn surplus(objects: &Objects, bundle: &Bundle, at: &str) -> anyhow::Result<Vec<Value>> {
    let wanted: Vec<String> = bundle.objects.iter().map(title).collect();
    let mut kinds: Vec<Resource> = Vec::new();
    for kind in own_kinds() {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut surplus = Vec::new();
    let mut revisions: Vec<String> = Vec::new();
    for kind in kinds {
        for object in objects.list(&kind, "", &own_labels()).await? {
            if let Some(revision) = label(&object, "istio.io/rev")
                && object["kind"] == "Deployment"
                && !revisions.iter().any(|one| one == revision)
            {
                revisions.push(revision.to_owned());
            }
            let elsewhere = !matches!(namespace(&object), "") && namespace(&object) != at;
            if !elsewhere && !wanted.contains(&title(&object)) && applied_by(&object, MANAGER) {
                surplus.push(object);
            }
        }
    }
    let own = bundle.group(Group::Controller).find_map(|object| label(object, "istio.io/rev"));
    let alone = revisions.iter().all(|revision| Some(revision.as_str()) == own) || revisions.is_empty();
    if !alone {
        surplus.clear();
    }
    super::bundle::sort(&mut surplus);
    surplus.reverse();
    Ok(surplus)
}

/// Kinds of which the mesh has had objects of its own, but for definitions and namespaces.
pub(crate) fn own_kinds() -> Vec<Resource> {
    let kinds = [
        ("apps/v1", "Deployment"),
        ("apps/v1", "DaemonSet"),
        ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
        ("policy/v1", "PodDisruptionBudget"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("v1", "Service"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
        ("rbac.authorization.k8s.io/v1", "ClusterRole"),
        ("v1", "ServiceAccount"),
        ("v1", "ResourceQuota"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
        ("monitoring.coreos.com/v1", "PrometheusRule"),
    ];
    kinds.map(|(api_version, kind)| Resource::new(api_version, kind)).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace_object(annotations: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "stillmesh-system", "annotations": annotations}})
    }

    #[test]
    fn a_namespace_that_was_there_before_stays_its_makers() {
        let made = |before: Option<Value>| {
            let mut bundle = Bundle::own().unwrap();
            mark_namespace(&mut bundle, &before.into_iter().map(|object| (title(&object), object)).collect());
            annotation(&bundle.objects[0], MADE).is_some()
        };
        assert!(made(None));
        assert!(!made(Some(namespace_object(json!({})))));
        assert!(made(Some(namespace_object(json!({"stillmesh.io/made-by": "stillmesh install"})))));
    }

    #[test]
    fn objects_of_helm_are_refused_together() {
        let annotations = json!({"meta.helm.sh/release-name": "r", "meta.helm.sh/release-namespace": "n"});
        let before: BTreeMap<_, _> =
            [("a".to_owned(), namespace_object(annotations.clone())), ("b".to_owned(), namespace_object(annotations))]
                .into();
        let living = [("r".to_owned(), "n".to_owned())].into();
        let text = refuse_helm(&before, &living).unwrap_err().to_string();
        assert!(text.contains("helm upgrade r") && text.contains("1 objects more"), "{text}");
        assert!(refuse_helm(&BTreeMap::new(), &living).is_ok());
        // What a release has left that is gone is nobody's.
        assert!(refuse_helm(&before, &BTreeSet::new()).is_ok());
    }

    #[test]
    fn every_kind_of_the_bundle_is_looked_through_when_it_goes() {
        let kinds = own_kinds();
        for object in Bundle::own().unwrap().objects.iter().chain(&Bundle::of_operator().unwrap()) {
            let kind = Resource::of(object);
            let kept = matches!(kind.kind(), "Namespace" | "CustomResourceDefinition");
            assert!(kept || kinds.contains(&kind), "{}", title(object));
        }
    }
}
