//! The mesh's own configuration: ConfigMap `istio`, key `mesh`, in the root namespace, as Istio's users write it.
//! Three of its keys mean something here; every other one is named, so that nobody believes in it.

use k8s_openapi::api::core::v1::ConfigMap;
use stillmesh_core::model::access::PathNormalization;
use stillmesh_core::model::{Str, TrustDomain};

use crate::finding::{Finding, Position, Severity};
use crate::parse;

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "istio";
/// Key in it.
pub const KEY: &str = "mesh";

/// What the mesh's configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    /// The trust domain of this cluster's identities.
    pub trust_domain: Option<TrustDomain>,
    /// The namespace whose policies hold for the whole mesh.
    pub root_namespace: Option<Str>,
    /// What waypoints do to paths before anything is decided by them.
    pub path_normalization: PathNormalization,
    /// What has no effect, or cannot be read, and why.
    pub findings: Vec<Finding>,
}

/// Reads it. Never fails: what cannot be read is told and has no effect.
pub fn read(map: &ConfigMap, at: &Position) -> MeshConfig {
    let mut config = MeshConfig::default();
    let namespace = map.metadata.namespace.as_deref().unwrap_or_default();
    let object = format!("ConfigMap {namespace}/{CONFIG_MAP}");
    let finding = |severity, path: &str, message: String, hint: &str| Finding {
        at: at.clone(),
        severity,
        code: "MAN014",
        object: object.clone(),
        path: format!("data.{KEY}{path}"),
        message,
        hint: hint.to_owned(),
    };
    let Some(text) = map.data.as_ref().and_then(|data| data.get(KEY)) else { return config };
    let entries = match parse::top_level(text) {
        Ok(entries) => entries,
        Err(message) => {
            let hint = "a map is accepted; all of it is without effect";
            config.findings.push(finding(Severity::Error, "", message, hint));
            return config;
        }
    };
    for (key, value) in entries {
        let path = format!(".{key}");
        match (key.as_str(), value) {
            ("trustDomain", Some(text)) => match TrustDomain::new(&text) {
                Ok(domain) => config.trust_domain = Some(domain),
                Err(error) => config.findings.push(finding(Severity::Error, &path, error.to_string(), "")),
            },
            ("rootNamespace", Some(text)) if !text.is_empty() => config.root_namespace = Some(text.as_str().into()),
            ("pathNormalization", _) => {
                let named = parse::inner_text(text, &["pathNormalization", "normalization"]);
                match named.as_deref().map_or(Some(PathNormalization::default()), PathNormalization::named) {
                    Some(level) => config.path_normalization = level,
                    None => {
                        let message = format!("unknown value {:?}: as BASE", named.unwrap_or_default());
                        let hint = "normalization is DEFAULT, NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES";
                        config.findings.push(finding(Severity::Error, &path, message, hint));
                    }
                }
            }
            ("trustDomain" | "rootNamespace", _) => {
                config.findings.push(finding(Severity::Error, &path, "wrong type".to_owned(), "a text is accepted"));
            }
            _ => {
                let hint = "trustDomain, rootNamespace and pathNormalization are supported";
                config.findings.push(finding(
                    Severity::Warning,
                    &path,
                    "not supported: without effect".to_owned(),
                    hint,
                ));
            }
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(mesh: &str) -> ConfigMap {
        let mut map = ConfigMap { data: Some([(KEY.to_owned(), mesh.to_owned())].into()), ..ConfigMap::default() };
        map.metadata.namespace = Some("istio-system".to_owned());
        map
    }

    fn told(config: &MeshConfig) -> Vec<String> {
        config.findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn supported_keys_are_read_and_every_other_one_is_named() {
        let config = read(
            &map("trustDomain: td.example\nrootNamespace: root\naccessLogFile: /dev/stdout\ndefaultConfig: {a: 1}\n"),
            &Position::file("m"),
        );
        assert_eq!(config.trust_domain, TrustDomain::new("td.example").ok());
        assert_eq!(config.root_namespace.as_deref(), Some("root"));
        assert_eq!(
            told(&config),
            [
                "m: ConfigMap istio-system/istio: data.mesh.accessLogFile: not supported: without effect; trustDomain, rootNamespace and pathNormalization are supported",
                "m: ConfigMap istio-system/istio: data.mesh.defaultConfig: not supported: without effect; trustDomain, rootNamespace and pathNormalization are supported",
            ]
        );
    }

    #[test]
    fn paths_are_normalized_as_it_says_and_else_as_base() {
        let level = |mesh: &str| {
            let config = read(&map(mesh), &Position::file("m"));
            (config.path_normalization, config.findings.len())
        };
        assert_eq!(level("trustDomain: td"), (PathNormalization::Base, 0));
        assert_eq!(level("pathNormalization: {normalization: NONE}"), (PathNormalization::None, 0));
        assert_eq!(level("pathNormalization: {normalization: DEFAULT}"), (PathNormalization::Base, 0));
        assert_eq!(
            level("pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}"),
            (PathNormalization::DecodeAndMergeSlashes, 0)
        );
        assert_eq!(level("pathNormalization: {normalization: none}"), (PathNormalization::Base, 1));
        assert_eq!(level("pathNormalization: {}"), (PathNormalization::Base, 0));
    }

    #[test]
    fn what_cannot_be_read_has_no_effect_and_is_told() {
        for bad in ["[", "- a\n", "trustDomain: [a]\n", "trustDomain: A B\n", "rootNamespace: ''\n"] {
            let config = read(&map(bad), &Position::file("m"));
            assert_eq!((config.trust_domain, config.root_namespace, config.findings.len()), (None, None, 1), "{bad}");
        }
        assert_eq!(read(&map(""), &Position::file("m")), MeshConfig::default());
        assert_eq!(read(&ConfigMap::default(), &Position::file("m")), MeshConfig::default());
    }
}
