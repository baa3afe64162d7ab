//! The mesh's own configuration: ConfigMap `istio`, key `mesh`, in the root namespace, as Istio's users write it.
//! Some of its keys mean something here; every other one is named, so that nobody believes in it.

mod telemetry;

use k8s_openapi::api::core::v1::ConfigMap;
use stillmesh_core::model::access::PathNormalization;
use stillmesh_core::model::telemetry::TelemetrySettings;
use stillmesh_core::model::{PolicyKey, Str, TrustDomain};
pub use telemetry::{HIDDEN_HEADERS, HIDDEN_PARAMETERS, of as providers};

use crate::finding::{Finding, Position, Severity};
use crate::parse;
use crate::same_node::{DIRECT, SAME_NODE, TUNNEL};

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
    /// What is told of requests, and by whom; `None` where nothing is said of it. Its key is set by who publishes it.
    pub telemetry: Option<TelemetrySettings>,
    /// Whether pods are connected without a tunnel where both ends are on one node: annotation [`SAME_NODE`].
    pub same_node: bool,
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
    let mut flaws = Vec::new();
    let none = TelemetrySettings::new(PolicyKey::new(namespace, CONFIG_MAP));
    let mut told = none.clone();
    if let Some(annotations) = &map.metadata.annotations {
        told.redaction = telemetry::redaction(annotations, &mut flaws);
        let wrong = |(path, message): (String, String)| Finding {
            path,
            ..finding(Severity::Error, "", message, "names with commas between them are accepted, -name leaves one out")
        };
        config.findings.extend(flaws.drain(..).map(wrong));
    }
    let same_node = map.metadata.annotations.as_ref().and_then(|all| all.get(SAME_NODE)).map(String::as_str);
    config.same_node = same_node == Some(DIRECT);
    if let Some(odd) = same_node.filter(|said| ![DIRECT, TUNNEL].contains(said)) {
        let message = format!("unknown value {odd:?}: as {TUNNEL}");
        let path = format!("metadata.annotations[{SAME_NODE:?}]");
        let hint = format!("{DIRECT} and {TUNNEL} are accepted");
        config.findings.push(Finding { path, ..finding(Severity::Error, "", message, &hint) });
    }
    config.telemetry = (told != none).then(|| told.clone());
    let Some(text) = map.data.as_ref().and_then(|data| data.get(KEY)) else { return config };
    let entries = match parse::top_level(text) {
        Ok(entries) => entries,
        Err(message) => {
            let hint = "a map is accepted; all of it is without effect";
            config.findings.push(finding(Severity::Error, "", message, hint));
            return config;
        }
    };
    if let Ok(root) = parse::map(text) {
        telemetry::read(&root, &mut told, &mut flaws);
        let hint = "docs/telemetry.md says what is supported";
        config
            .findings
            .extend(flaws.into_iter().map(|(path, message)| finding(Severity::Warning, &path, message, hint)));
        config.telemetry = (told != none).then_some(told);
    }
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
            (key, _) if telemetry::KEYS.contains(&key) => {}
            ("trustDomain" | "rootNamespace", _) => {
                config.findings.push(finding(Severity::Error, &path, "wrong type".to_owned(), "a text is accepted"));
            }
            _ => {
                let hint =
                    "trustDomain, rootNamespace, pathNormalization and what docs/telemetry.md names are supported";
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
    use stillmesh_core::model::telemetry::ProviderKind;
    use stillmesh_core::observe::Layout;

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
            &map("trustDomain: td.example\nrootNamespace: root\nenableTracing: true\ndefaultConfig: {a: 1}\n"),
            &Position::file("m"),
        );
        assert_eq!(config.trust_domain, TrustDomain::new("td.example").ok());
        assert_eq!(config.root_namespace.as_deref(), Some("root"));
        assert_eq!(
            told(&config),
            [
                "m: ConfigMap istio-system/istio: data.mesh.defaultConfig.a: not supported: without effect; docs/telemetry.md says what is supported",
                "m: ConfigMap istio-system/istio: data.mesh.enableTracing: not supported: without effect; trustDomain, rootNamespace, pathNormalization and what docs/telemetry.md names are supported",
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

    #[test]
    fn access_logs_and_providers_are_read_and_what_is_not_supported_is_named() {
        let mesh = "accessLogFile: /dev/stdout\naccessLogEncoding: JSON\naccessLogFormat: '{\"b\": \"%PROTOCOL%\", \"a\": \"%X%\"}'\n\
                    defaultProviders: {accessLogging: [file], tracing: [otel, odd]}\n\
                    defaultConfig: {tracing: {sampling: 12.5, zipkin: {}}}\n\
                    extensionProviders:\n\
                    - {name: file, envoyFileAccessLog: {path: /tmp/log, logFormat: {text: '%DURATION%'}}}\n\
                    - {name: otel, opentelemetry: {service: obs/otel.obs.svc.cluster.local, port: 4318, http: {path: /v1/traces, timeout: 3s}}}\n\
                    - {name: als, envoyOtelAls: {service: otel.obs.svc.cluster.local, port: 4317}}\n\
                    - {name: b3, zipkin: {service: zipkin, port: 9411}}\n\
                    - {name: ask, envoyExtAuthzGrpc: {service: x, port: 1}}\n\
                    - {name: bad, opentelemetry: {service: x}}\n";
        let config = read(&map(mesh), &Position::file("m"));
        let told_of = config.telemetry.clone().unwrap();
        let keys = |layout: &Layout| match layout {
            Layout::Json(keys) => keys.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(),
            Layout::Text(text) => vec![text.to_string()],
        };
        assert_eq!(
            told_of.log.map(|log| (log.path.to_string(), keys(&log.layout))),
            Some(("/dev/stdout".into(), vec!["a".into(), "b".into()]))
        );
        assert_eq!(
            (told_of.sampling, &*told_of.default_logs[0], &*told_of.default_tracing[0]),
            (Some(1250), "file", "otel")
        );
        let names: Vec<&str> = told_of.providers.iter().map(|one| &*one.name).collect();
        assert_eq!(names, ["file", "otel", "als", "b3"]);
        match &told_of.providers[1].kind {
            ProviderKind::TraceCollector(one) => {
                assert_eq!(
                    (&*one.host, one.port, one.path.as_deref()),
                    ("otel.obs.svc.cluster.local", 4318, Some("/v1/traces"))
                );
                assert_eq!(one.timeout.as_secs(), 3);
            }
            other => panic!("{other:?}"),
        }
        let told = told(&config).join("\n");
        for part in [
            "accessLogFormat: a: %X%: not supported",
            "extensionProviders[3].zipkin: B3",
            "extensionProviders[4].envoyExtAuthzGrpc: not supported",
            "extensionProviders[5].opentelemetry: service",
            "defaultProviders.tracing: \"odd\"",
            "defaultConfig.tracing.zipkin: not supported",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        assert_eq!(config.findings.len(), 6, "{told}");
    }

    #[test]
    fn what_is_on_one_node_does_without_a_tunnel_where_an_annotation_says_so() {
        let said = |value: &str| {
            let mut map = map("");
            map.metadata.annotations = Some([(SAME_NODE.to_owned(), value.to_owned())].into());
            let config = read(&map, &Position::file("m"));
            (config.same_node, told(&config))
        };
        assert_eq!((said("direct"), said("tunnel")), ((true, Vec::new()), (false, Vec::new())));
        let (wanted, told) = said("yes");
        assert!(!wanted && told[0].contains("direct and tunnel are accepted"), "{told:?}");
    }

    #[test]
    fn what_is_never_told_is_changed_by_annotations() {
        let mut map = map("");
        map.metadata.annotations = Some(
            [
                (HIDDEN_HEADERS.to_owned(), "x-session, -cookie".to_owned()),
                (HIDDEN_PARAMETERS.to_owned(), "a b".to_owned()),
            ]
            .into(),
        );
        let config = read(&map, &Position::file("m"));
        let redaction = config.telemetry.unwrap().redaction;
        assert!(redaction.hides_header("x-session") && !redaction.hides_header("cookie"));
        assert_eq!(config.findings.len(), 1);
    }
}
