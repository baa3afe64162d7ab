//! Applying objects, and telling what that changed.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::bundle::{is_global, title};
use crate::cluster::access::causes;
use crate::cluster::objects::{Objects, Resource};
use crate::cluster::value::{annotation, list, map, name, namespace, text};

/// What applying an object did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    /// It was not there.
    Created,
    /// It was another one.
    Changed,
    /// It was as it should be.
    Unchanged,
    /// It is of an older version and not needed any more.
    Removed,
}

impl Change {
    /// In one word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
        }
    }
}

/// An object with what happened to it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Applied {
    /// Its kind.
    pub(crate) kind: String,
    /// Its namespace, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// What happened.
    pub(crate) change: Change,
}

impl Applied {
    /// Of an object.
    pub(crate) fn new(object: &Value, change: Change) -> Self {
        Self {
            kind: text(&object["kind"]).to_owned(),
            namespace: namespace(object).to_owned(),
            name: name(object).to_owned(),
            change,
        }
    }
}

/// A Helm release: its name and namespace.
pub(crate) type Release = (String, String);

/// The Helm releases that are installed, among those that objects say they belong to. What a release that is gone has
/// left (definitions that it was to keep) belongs to nobody.
pub(crate) async fn living<'a>(
    objects: &Objects,
    of: impl Iterator<Item = &'a Value>,
) -> anyhow::Result<BTreeSet<Release>> {
    let named: BTreeSet<Release> = of.filter_map(helm_release).collect();
    let mut living = BTreeSet::new();
    for release in named {
        // Where Helm keeps its releases.
        let labels = format!("owner=helm,name={}", release.0);
        if !objects.list(&Resource::new("v1", "Secret"), &release.1, &labels).await?.is_empty() {
            living.insert(release);
        }
    }
    Ok(living)
}

/// Takes the marks of a release that is gone off an object.
async fn adopt(objects: &Objects, object: &Value) -> anyhow::Result<()> {
    let marks = json!({"meta.helm.sh/release-name": null, "meta.helm.sh/release-namespace": null});
    objects.merge(object, &json!({"metadata": {"annotations": marks}})).await
}

/// How objects are applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Only ask the server what would happen.
    pub(crate) dry_run: bool,
    /// Take over fields that somebody else has set.
    pub(crate) force: bool,
    /// In a dry run: the namespace is not there yet, so the server cannot check what goes into it.
    pub(crate) namespace_absent: bool,
}

/// Applies one object. Errors name it, and what to do.
pub(crate) async fn apply(objects: &Objects, object: &Value, how: How) -> anyhow::Result<Applied> {
    let before = objects.get(&Resource::of(object), namespace(object), name(object)).await?;
    // Whoever asks has made sure that the release is gone.
    let orphan = before.as_ref().and_then(helm_release).is_some();
    if orphan && !how.dry_run {
        adopt(objects, object).await?;
    }
    let how = How { force: how.force || orphan, ..how };
    if how.dry_run && how.namespace_absent && !is_global(text(&object["kind"])) {
        return Ok(Applied::new(object, Change::Created));
    }
    match objects.apply(object, how.dry_run, how.force).await {
        Ok(after) => Ok(Applied::new(object, change(before.as_ref(), &after))),
        Err(kube::Error::Api(status)) if status.code == 409 && !how.force => {
            let fields: Vec<String> = status
                .details
                .iter()
                .flat_map(|details| &details.causes)
                .map(|cause| format!("{} ({})", cause.field, cause.message))
                .collect();
            let what = if fields.is_empty() { status.message.clone() } else { fields.join(", ") };
            anyhow::bail!(
                "{} is also managed by somebody else, who has set other values: {what}; settle who manages it, or take \
                 the fields over with --force",
                title(object)
            )
        }
        Err(kube::Error::Api(status)) => anyhow::bail!("{}: {}", title(object), status.message.trim()),
        Err(error) => anyhow::bail!("{}: {}", title(object), causes(&error)),
    }
}

/// The Helm release that owns an object: its name and namespace.
pub(crate) fn helm_release(object: &Value) -> Option<Release> {
    let release = annotation(object, "meta.helm.sh/release-name")?;
    Some((release.to_owned(), annotation(object, "meta.helm.sh/release-namespace").unwrap_or_default().to_owned()))
}

/// Says that an object belongs to Helm, and what to do.
pub(crate) fn helm_owned(object: &Value, (release, namespace): &Release) -> String {
    format!(
        "{} belongs to the Helm release {release:?} in namespace {namespace:?} and is not touched: use `helm upgrade \
         {release} CHART -n {namespace}`, or `helm uninstall {release} -n {namespace}` first",
        title(object)
    )
}

/// What has changed from one state of an object to the next.
pub(crate) fn change(before: Option<&Value>, after: &Value) -> Change {
    match before {
        None => Change::Created,
        Some(before) if wished(before) == wished(after) => Change::Unchanged,
        Some(_) => Change::Changed,
    }
}

/// An object without what the server keeps for itself.
fn wished(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels" | "annotations"));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| !key.starts_with("deployment.kubernetes.io/"));
            annotations.remove("deprecated.daemonset.template.generation");
        }
    }
    object
}

/// Whether we applied an object, by its managed fields.
pub(crate) fn applied_by(object: &Value, manager: &str) -> bool {
    list(&object["metadata"]["managedFields"]).any(|entry| {
        entry["manager"] == manager && entry["operation"] == "Apply" && map(&entry["fieldsV1"]).next().is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(replicas: u8, generation: u8) -> Value {
        json!({
            "kind": "Deployment",
            "metadata": {
                "name": "a",
                "generation": generation,
                "resourceVersion": generation.to_string(),
                "annotations": {"deployment.kubernetes.io/revision": generation.to_string()},
                "managedFields": [{"manager": "stillmesh", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {"replicas": replicas},
            "status": {"replicas": generation},
        })
    }

    #[test]
    fn only_what_was_wished_for_counts_as_a_change() {
        assert_eq!(change(None, &object(1, 1)), Change::Created);
        assert_eq!(change(Some(&object(1, 1)), &object(1, 2)), Change::Unchanged);
        assert_eq!(change(Some(&object(1, 1)), &object(2, 2)), Change::Changed);
    }

    #[test]
    fn whose_an_object_is_stands_in_its_managed_fields() {
        assert!(applied_by(&object(1, 1), "stillmesh"));
        assert!(!applied_by(&object(1, 1), "helm"));
        assert!(!applied_by(&json!({}), "stillmesh"));
    }

    #[test]
    fn an_object_of_helm_is_named_with_its_release() {
        let owned = json!({
            "kind": "Service",
            "metadata": {"name": "a", "namespace": "n", "annotations": {
                "meta.helm.sh/release-name": "mesh", "meta.helm.sh/release-namespace": "n"}},
        });
        let text = helm_owned(&owned, &helm_release(&owned).unwrap());
        assert!(text.contains("Service n/a") && text.contains("helm uninstall mesh -n n"), "{text}");
        assert_eq!(helm_release(&object(1, 1)), None);
    }
}
