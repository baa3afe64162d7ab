//! Kubernetes' strategic merge: an overlay that says only what is to be different. Maps are merged, lists of things that
//! have names are merged by those names, other lists are replaced, and `null` takes a field away. Pure.

use serde_json::{Map, Value};

/// What an item of a list is known by (`patchMergeKey` of Kubernetes' types), for the lists that the objects of a Gateway
/// have. The lists that are not here are replaced as a whole.
const KEYS: [(&str, &str); 16] = [
    ("containers", "name"),
    ("env", "name"),
    ("ephemeralContainers", "name"),
    ("hostAliases", "ip"),
    ("imagePullSecrets", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("resourceClaims", "name"),
    ("schedulingGates", "name"),
    ("secrets", "name"),
    ("topologySpreadConstraints", "topologyKey"),
    ("volumeDevices", "devicePath"),
    ("volumeMounts", "mountPath"),
    ("volumes", "name"),
    // As Kubernetes has it: the protocol does not count.
    ("ports", "containerPort"),
    ("ports", "port"),
];
const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const FROM_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
/// The one list of plain words that is added to.
const PRIMITIVES: &str = "finalizers";

/// What `base` becomes with `overlay` laid over it. Errors name the place in the overlay.
pub(super) fn merge(base: Value, overlay: &Value) -> Result<Value, String> {
    merged(base, overlay, "")
}

fn merged(base: Value, overlay: &Value, path: &str) -> Result<Value, String> {
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => map(base, overlay, path).map(Value::Object),
        // There was nothing: what only directs a merge is taken out.
        (_, Value::Object(overlay)) => map(Map::new(), overlay, path).map(Value::Object),
        (base, Value::Array(items)) => list(base, items, path),
        (_, plain) => Ok(plain.clone()),
    }
}

fn map(mut base: Map<String, Value>, overlay: &Map<String, Value>, path: &str) -> Result<Map<String, Value>, String> {
    match directive(overlay, path)? {
        Some("replace") => base.clear(),
        Some("delete") => return Ok(Map::new()),
        _ => {}
    }
    if let Some(kept) = overlay.get(RETAIN) {
        let kept = words(kept, &join(path, RETAIN))?;
        base.retain(|key, _| kept.contains(&key.as_str()));
    }
    for (key, value) in overlay {
        let path = join(path, key);
        if let Some(list) = key.strip_prefix(FROM_PRIMITIVES) {
            let gone = words(value, &path)?;
            if let Some(Value::Array(items)) = base.get_mut(list) {
                items.retain(|item| !item.as_str().is_some_and(|item| gone.contains(&item)));
            }
        } else if key == DIRECTIVE || key == RETAIN {
        } else if key.starts_with('$') {
            return Err(format!("{path}: this directive is not known"));
        } else if value.is_null() || is_deletion(value) {
            base.remove(key);
        } else {
            let before = base.remove(key).unwrap_or_default();
            base.insert(key.clone(), merged(before, value, &path)?);
        }
    }
    Ok(base)
}

/// A map that stands for its own end.
fn is_deletion(value: &Value) -> bool {
    value.get(DIRECTIVE).and_then(Value::as_str) == Some("delete")
}

fn list(base: Value, overlay: &[Value], path: &str) -> Result<Value, String> {
    let field = path.rsplit('.').next().unwrap_or_default();
    let Some(key) = key_of(field, overlay) else {
        let mut before = match base {
            Value::Array(items) if field == PRIMITIVES => items,
            _ => Vec::new(),
        };
        before.extend(
            overlay.iter().filter(|item| field != PRIMITIVES || !before.contains(item)).cloned().collect::<Vec<_>>(),
        );
        return Ok(Value::Array(before));
    };
    let replaces = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace");
    let mut items = match base {
        Value::Array(items) if !overlay.iter().any(replaces) => items,
        _ => Vec::new(),
    };
    for (index, item) in overlay.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Value::Object(item) = item else { return Err(format!("{path}: not a map")) };
        let directed = directive(item, &path)?;
        let Some(name) = item.get(key) else {
            // The list itself is replaced.
            match directed {
                Some("replace") if item.len() == 1 => continue,
                _ => return Err(format!("{path}: {key} is missing, by which it would be found")),
            }
        };
        let at = items.iter().position(|one| one.get(key) == Some(name));
        match (directed, at) {
            (Some("delete"), Some(at)) => drop(items.remove(at)),
            (Some("delete"), None) => {}
            (_, Some(at)) => {
                let before = items.get_mut(at).map(Value::take).unwrap_or_default();
                let after = merged(before, &Value::Object(item.clone()), &path)?;
                if let Some(slot) = items.get_mut(at) {
                    *slot = after;
                }
            }
            (_, None) => items.push(merged(Value::Null, &Value::Object(item.clone()), &path)?),
        }
    }
    Ok(Value::Array(items))
}

/// What the items of a list are known by: of several possibilities the one that they have.
fn key_of(field: &str, items: &[Value]) -> Option<&'static str> {
    let mut known = KEYS.iter().filter(|(list, _)| *list == field).map(|(_, key)| *key);
    let first = known.next()?;
    let had = |key: &str| items.iter().any(|item| item.get(key).is_some());
    if had(first) { Some(first) } else { known.find(|key| had(key)).or(Some(first)) }
}

fn directive<'a>(map: &'a Map<String, Value>, path: &str) -> Result<Option<&'a str>, String> {
    match map.get(DIRECTIVE).map(Value::as_str) {
        None => Ok(None),
        Some(Some(word @ ("merge" | "replace" | "delete"))) => Ok(Some(word)),
        Some(_) => Err(format!("{}: merge, replace and delete are accepted", join(path, DIRECTIVE))),
    }
}

fn words<'a>(value: &'a Value, path: &str) -> Result<Vec<&'a str>, String> {
    let items = value.as_array().map(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    items.flatten().ok_or_else(|| format!("{path}: a list of words is accepted"))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests;
