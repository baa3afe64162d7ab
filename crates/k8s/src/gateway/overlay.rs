//! What users want different in the objects that run a Gateway (contract 7.2): a ConfigMap that the Gateway names in
//! `spec.infrastructure.parametersRef`, laid over one for all Gateways of its class. Each key is a kind of object, each value
//! what is different in it, merged as Kubernetes' strategic merge does. Pure.
//!
//! What an object is found by, belongs to and proves itself with cannot be changed: an overlay that tries to is refused as a
//! whole, and says so in the Gateway's status.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::binding::MANAGED;
use super::generate::{CLASS_NAME, CONTAINER, GATEWAY_NAME};
use super::{Gateway, merge};
use crate::labels;
use crate::object::{DEFAULT_NAMESPACE, Kind, ObjectKey};
use crate::{parse, select};

/// Label of a ConfigMap in the system namespace: it is for all Gateways of this class.
pub const DEFAULTS_FOR: &str = "gateway.istio.io/defaults-for-class";

/// The keys of an overlay, and what each is about.
pub const PARTS: [(&str, Kind); 5] = [
    ("deployment", Kind::Deployment),
    ("service", Kind::Service),
    ("serviceAccount", Kind::ServiceAccount),
    ("horizontalPodAutoscaler", Kind::HorizontalPodAutoscaler),
    ("podDisruptionBudget", Kind::PodDisruptionBudget),
];

/// What is to be different in a Gateway's objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlay {
    /// Where it is written.
    from: ObjectKey,
    /// Whether it is for the whole class.
    of_class: bool,
    parts: BTreeMap<Kind, Value>,
}

impl Overlay {
    fn read(map: &ConfigMap, of_class: bool) -> Result<Self, String> {
        let from = key_of(&map.metadata);
        let mut parts = BTreeMap::new();
        if let Some(key) = map.binary_data.iter().flatten().map(|(key, _)| key).next() {
            return Err(format!("{from}: {key}: binary data is not accepted"));
        }
        for (key, text) in map.data.iter().flatten() {
            let Some((_, kind)) = PARTS.iter().find(|(part, _)| part == key) else {
                let known = PARTS.map(|(part, _)| part).join(", ");
                return Err(format!("{from}: unknown key {key:?}: {known} are accepted"));
            };
            let part = match text.trim() {
                "" => Value::Object(serde_json::Map::new()),
                text => parse::map(text).map_err(|problem| format!("{from}: {key}: {problem}"))?,
            };
            parts.insert(*kind, part);
        }
        Ok(Self { from, of_class, parts })
    }

    /// Whether it says something about a kind of object.
    pub fn has(&self, kind: Kind) -> bool {
        self.parts.contains_key(&kind)
    }
}

fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    ObjectKey::new(Kind::ConfigMap, namespace, metadata.name.as_deref().unwrap_or_default())
}

/// The ConfigMap that a Gateway names.
pub fn named(gateway: &Gateway) -> Result<Option<ObjectKey>, String> {
    let reference = gateway.spec.infrastructure.as_ref().and_then(|one| one.parameters_ref.as_ref());
    let Some(reference) = reference.filter(|reference| !reference.is_null()) else { return Ok(None) };
    let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, kind, name) = (text("group"), text("kind"), text("name"));
    if (group, kind) != ("", "ConfigMap") || name.is_empty() {
        let what = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        return Err(format!(
            "spec.infrastructure.parametersRef: the name of a ConfigMap is accepted, not {what} {name:?}"
        ));
    }
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    Ok(Some(ObjectKey::new(Kind::ConfigMap, namespace, name)))
}

/// The overlays of a Gateway, the stronger one last. `own` is the ConfigMap that it names, where it is there; `defaults` are
/// ConfigMaps of the system namespace, of which the oldest for its class counts.
pub fn of<'a>(
    gateway: &Gateway,
    own: Option<&ConfigMap>,
    defaults: impl Iterator<Item = &'a ConfigMap>,
) -> Result<Vec<Overlay>, String> {
    let class = gateway.spec.gateway_class_name.as_str();
    let for_class =
        |map: &&ConfigMap| labels::of(&map.metadata.labels).get(DEFAULTS_FOR).is_some_and(|one| one == class);
    let age = |map: &ConfigMap| (map.metadata.creation_timestamp.as_ref().map(|at| at.0), map.metadata.name.clone());
    let defaults = defaults.filter(for_class).min_by_key(|map| age(map));
    let own = match (named(gateway)?, own) {
        (None, _) => None,
        (Some(_), Some(map)) => Some(map),
        (Some(key), None) => return Err(format!("spec.infrastructure.parametersRef: there is no {key}")),
    };
    let read = |map: Option<&ConfigMap>, of_class| map.map(|map| Overlay::read(map, of_class));
    read(defaults, true).into_iter().chain(read(own, false)).collect()
}

/// What becomes of an object.
pub(super) fn lay(kind: Kind, mut base: Value, overlays: &[Overlay]) -> Result<Value, String> {
    if let Some(base) = base.as_object_mut() {
        base.insert("apiVersion".to_owned(), kind.api_versions().first().copied().into());
        base.insert("kind".to_owned(), kind.as_str().into());
    }
    let mut object = base.clone();
    let mut last = None;
    for overlay in overlays {
        let Some(part) = overlay.parts.get(&kind) else { continue };
        let place = |problem: String| format!("{}: {}: {problem}", overlay.from, part_of(kind));
        object = merge::merge(object, part).map_err(place)?;
        if let Some(path) = changed(kind, &base, &object) {
            return Err(place(format!("{path} cannot be changed{}", advice(&path))));
        }
        last = Some(overlay);
    }
    // Whether it is an object at all is known when all has been said.
    let place = |problem: String| match last {
        Some(overlay) => format!("{}: {}: {problem}", overlay.from, part_of(kind)),
        None => problem,
    };
    let most = object.pointer("/spec/maxReplicas");
    if kind == Kind::HorizontalPodAutoscaler && most.and_then(Value::as_i64).is_none_or(|most| most <= 0) {
        return Err(place("spec.maxReplicas: a number of pods is needed".to_owned()));
    }
    let checked = parse::object(&object).map_err(place)?;
    serde_json::to_value(checked).map_err(|error| place(error.to_string()))
}

/// Refuses what is said of an object that is not made.
pub(super) fn without(kind: Kind, overlays: &[Overlay], why: &str) -> Result<(), String> {
    // What holds for a class need not fit each of its Gateways.
    let said = overlays.iter().find(|overlay| !overlay.of_class && overlay.has(kind));
    said.map_or(Ok(()), |overlay| Err(format!("{}: {}: {why}", overlay.from, part_of(kind))))
}

fn part_of(kind: Kind) -> &'static str {
    PARTS.iter().find(|(_, one)| *one == kind).map_or("", |(part, _)| part)
}

/// What identifies an object, whose it is, and what finds its pods.
fn changed(kind: Kind, before: &Value, after: &Value) -> Option<String> {
    const ALL: [&[&str]; 8] = [
        &["apiVersion"],
        &["kind"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "ownerReferences"],
        &["metadata", "labels", GATEWAY_NAME],
        &["metadata", "labels", CLASS_NAME],
        &["metadata", "labels", MANAGED],
    ];
    const DEPLOYMENT: [&[&str]; 6] = [
        &["spec", "selector"],
        &["spec", "template", "metadata", "labels", GATEWAY_NAME],
        &["spec", "template", "metadata", "labels", CLASS_NAME],
        &["spec", "template", "metadata", "labels", MANAGED],
        // A waypoint that is captured itself reaches nobody.
        &["spec", "template", "metadata", "labels", select::DATAPLANE_MODE],
        &["spec", "template", "spec", "serviceAccountName"],
    ];
    let more: &[&[&str]] = match kind {
        Kind::Deployment => &DEPLOYMENT,
        Kind::Service | Kind::PodDisruptionBudget => &[&["spec", "selector"]],
        Kind::HorizontalPodAutoscaler => &[&["spec", "scaleTargetRef"]],
        _ => &[],
    };
    let differs = |path: &&&[&str]| at(before, path) != at(after, path);
    if let Some(path) = ALL.iter().chain(more).find(differs) {
        return Some(path.join("."));
    }
    // The waypoint itself, and the ports of its tunnels.
    let items = |value: &Value, path: &[&str]| at(value, path).and_then(Value::as_array).cloned().unwrap_or_default();
    let (path, key): (&[&str], &str) = match kind {
        Kind::Deployment => (&["spec", "template", "spec", "containers"], "name"),
        Kind::Service => (&["spec", "ports"], "port"),
        _ => return None,
    };
    let there = items(after, path);
    let kept = |item: &Value| kind == Kind::Service || item.get(key).and_then(Value::as_str) == Some(CONTAINER);
    let gone =
        items(before, path).into_iter().filter(kept).any(|item| !there.iter().any(|one| one.get(key) == item.get(key)));
    gone.then(|| path.join("."))
}

fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

fn advice(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("serviceAccountName") => {
            " (annotation gateway.istio.io/service-account of the Gateway chooses the account)"
        }
        Some("name") => " (annotation gateway.istio.io/name-override of the Gateway chooses the name)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
