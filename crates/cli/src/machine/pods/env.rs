//! The environment of a container, as Kubernetes makes it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Secret};

/// What variables can refer to.
pub trait Lookup {
    /// A ConfigMap of the pod's namespace.
    fn config_map(&self, name: &str) -> Option<ConfigMap>;
    /// A Secret of the pod's namespace.
    fn secret(&self, name: &str) -> Option<Secret>;
    /// A field of the pod, such as `status.podIP`.
    fn field(&self, path: &str) -> Option<String>;
}

/// Why a container's environment cannot be made (yet).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// The object that it refers to is not there.
    #[error("{kind} {name:?} is not there")]
    NoObject {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("{kind} {name:?} has no key {key:?}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The value is not text.
    #[error("key {key:?} of {name:?} is not text, so it cannot be a variable")]
    NotText {
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
    /// No such field.
    #[error(
        "field {path:?} cannot be a variable; accepted are metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, spec.serviceAccountName, status.podIP, status.podIPs, status.hostIP"
    )]
    NoField {
        /// As written.
        path: String,
    },
}

/// The variables of a container, in order; later ones of the same name have replaced earlier ones.
pub fn variables(container: &Container, base: &[(String, String)], lookup: &impl Lookup) -> Result<Vars, EnvError> {
    let mut vars = Vars::default();
    for (name, value) in base {
        vars.set(name, value.clone());
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (entries, missing) = if let Some(from) = &source.config_map_ref {
            (lookup.config_map(&from.name).map(config_entries), (from.optional, "ConfigMap", &from.name))
        } else if let Some(from) = &source.secret_ref {
            (lookup.secret(&from.name).map(secret_entries), (from.optional, "Secret", &from.name))
        } else {
            continue;
        };
        let Some(entries) = entries else {
            let (optional, kind, name) = missing;
            if optional == Some(true) {
                continue;
            }
            return Err(EnvError::NoObject { kind, name: name.clone() });
        };
        // Keys that are no variable names are left out, as the kubelet does.
        for (key, value) in entries {
            if let Ok(value) = String::from_utf8(value) {
                vars.set(&format!("{prefix}{key}"), value);
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(variable, &vars, lookup)? {
            vars.set(&variable.name, value);
        }
    }
    Ok(vars)
}

/// Variables in the order of their first definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vars {
    entries: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Vars {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name).and_then(|place| self.entries.get_mut(*place)) {
            Some(entry) => entry.1 = value,
            None => {
                self.index.insert(name.to_owned(), self.entries.len());
                self.entries.push((name.to_owned(), value));
            }
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).and_then(|place| self.entries.get(*place)).map(|(_, value)| value.as_str())
    }

    /// All of them.
    pub fn into_entries(self) -> Vec<(String, String)> {
        self.entries
    }

    /// Replaces `$(NAME)` by the variable's value and `$$` by `$`; what names no variable stays as written.
    pub fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let after = from.get(1..).unwrap_or_default();
            if let Some(tail) = after.strip_prefix('$') {
                out.push('$');
                rest = tail;
            } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
                match self.get(name) {
                    Some(value) => out.push_str(value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = tail;
            } else {
                out.push('$');
                rest = after;
            }
        }
        out.push_str(rest);
        out
    }
}

fn value_of(variable: &EnvVar, vars: &Vars, lookup: &impl Lookup) -> Result<Option<String>, EnvError> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(vars.expand(variable.value.as_deref().unwrap_or_default())));
    };
    if let Some(key) = &from.config_map_key_ref {
        return keyed("ConfigMap", &key.name, &key.key, key.optional, lookup.config_map(&key.name).map(config_entries));
    }
    if let Some(key) = &from.secret_key_ref {
        return keyed("Secret", &key.name, &key.key, key.optional, lookup.secret(&key.name).map(secret_entries));
    }
    if let Some(field) = &from.field_ref {
        let path = &field.field_path;
        return lookup.field(path).map(Some).ok_or_else(|| EnvError::NoField { path: path.clone() });
    }
    Ok(None)
}

fn keyed(
    kind: &'static str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    entries: Option<BTreeMap<String, Vec<u8>>>,
) -> Result<Option<String>, EnvError> {
    let optional = optional == Some(true);
    let Some(mut entries) = entries else {
        return if optional { Ok(None) } else { Err(EnvError::NoObject { kind, name: name.to_owned() }) };
    };
    let Some(value) = entries.remove(key) else {
        let missing = EnvError::NoKey { kind, name: name.to_owned(), key: key.to_owned() };
        return if optional { Ok(None) } else { Err(missing) };
    };
    let not_text = |_| EnvError::NotText { name: name.to_owned(), key: key.to_owned() };
    String::from_utf8(value).map(Some).map_err(not_text)
}

fn config_entries(map: ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    text.chain(binary).collect()
}

fn secret_entries(secret: Secret) -> BTreeMap<String, Vec<u8>> {
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    let text = secret.string_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    data.chain(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World;

    impl Lookup for World {
        fn config_map(&self, name: &str) -> Option<ConfigMap> {
            let map = json!({"metadata": {"name": "settings"}, "data": {"colour": "blue", "size": "9"}});
            (name == "settings").then(|| serde_json::from_value(map).unwrap())
        }
        fn secret(&self, name: &str) -> Option<Secret> {
            let secret = json!({"metadata": {"name": "keys"}, "data": {"raw": "/w=="}, "stringData": {"pin": "1234"}});
            (name == "keys").then(|| serde_json::from_value(secret).unwrap())
        }
        fn field(&self, path: &str) -> Option<String> {
            (path == "status.podIP").then(|| "10.244.1.9".to_owned())
        }
    }

    fn resolve(container: serde_json::Value) -> Result<Vec<(String, String)>, EnvError> {
        let base = [("PATH".to_owned(), "/bin".to_owned())];
        variables(&serde_json::from_value(container).unwrap(), &base, &World).map(Vars::into_entries)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_come_from_values_maps_secrets_and_fields() {
        let found =
            resolve(json!({"name": "c", "envFrom": [{"prefix": "S_", "configMapRef": {"name": "settings"}}], "env": [
                {"name": "A", "value": "1"},
                {"name": "PIN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "pin"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "B", "value": "$(A)-$(S_colour)-$(NOPE)-$$(A)"},
                {"name": "A", "value": "2"},
            ]}));
        let expected = [
            ("PATH", "/bin"),
            ("S_colour", "blue"),
            ("S_size", "9"),
            ("A", "2"),
            ("PIN", "1234"),
            ("IP", "10.244.1.9"),
            ("B", "1-blue-$(NOPE)-$(A)"),
        ];
        assert_eq!(found.unwrap(), pairs(&expected));
    }

    #[test]
    fn what_is_missing_is_named_unless_optional() {
        let refer = |reference: serde_json::Value| {
            resolve(json!({"name": "c", "env": [{"name": "X", "valueFrom": reference}]}))
        };
        let absent = refer(json!({"configMapKeyRef": {"name": "other", "key": "k"}})).unwrap_err();
        assert_eq!(absent.to_string(), "ConfigMap \"other\" is not there");
        let key = refer(json!({"secretKeyRef": {"name": "keys", "key": "k"}})).unwrap_err();
        assert_eq!(key.to_string(), "Secret \"keys\" has no key \"k\"");
        let binary = refer(json!({"secretKeyRef": {"name": "keys", "key": "raw"}})).unwrap_err();
        assert!(matches!(binary, EnvError::NotText { .. }));
        let optional = refer(json!({"configMapKeyRef": {"name": "other", "key": "k", "optional": true}}));
        assert_eq!(optional.unwrap(), pairs(&[("PATH", "/bin")]));
    }

    #[test]
    fn expansion_leaves_alone_what_it_does_not_know() {
        let vars = Vars::default();
        for text in ["$", "$x", "$(", "a$(b", "100%", "$(NOPE)"] {
            assert_eq!(vars.expand(text), text);
        }
        assert_eq!(vars.expand("$$$$"), "$$");
    }
}
