//! What the mesh's configuration says of access logs, traces and metrics: `accessLogFile` and its neighbours,
//! `extensionProviders`, `defaultProviders`, `defaultConfig.tracing.sampling`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};
use stillmesh_core::model::Str;
use stillmesh_core::model::telemetry::{Collector, FileLog, Provider, ProviderKind, TelemetrySettings};
use stillmesh_core::observe::{Layout, Redaction};

use crate::duration;
use crate::translate::Providers;

/// Annotations of the ConfigMap: what is never told, beside or (`-name`) without what usually is not.
pub const HIDDEN_HEADERS: &str = "stillmesh.io/hidden-headers";
/// The same of queries' parameters.
pub const HIDDEN_PARAMETERS: &str = "stillmesh.io/hidden-parameters";

/// Keys that are read here.
pub(super) const KEYS: [&str; 6] = [
    "accessLogFile",
    "accessLogEncoding",
    "accessLogFormat",
    "extensionProviders",
    "defaultProviders",
    "defaultConfig",
];

/// How long one export may take where nobody says it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Something without effect: its path below the key `mesh`, and what is wrong.
pub(super) type Flaw = (String, String);

/// Reads it out of the whole.
pub(super) fn read(root: &Value, settings: &mut TelemetrySettings, flaws: &mut Vec<Flaw>) {
    let mut reading = Reading { flaws };
    let encoding = reading.text(root, "accessLogEncoding");
    let format = reading.text(root, "accessLogFormat").filter(|format| !format.is_empty());
    let layout = match (encoding.as_deref(), format) {
        (None | Some("" | "TEXT"), None) => Layout::text(),
        (None | Some("" | "TEXT"), Some(format)) => Layout::Text(ended(&format)),
        (Some("JSON"), None) => Layout::json(),
        (Some("JSON"), Some(format)) => reading.json(&format),
        (Some(other), _) => {
            reading.flaw("accessLogEncoding", format!("{other:?} is neither TEXT nor JSON"));
            Layout::text()
        }
    };
    reading.check("accessLogFormat", &layout);
    settings.log = reading
        .text(root, "accessLogFile")
        .filter(|path| !path.is_empty())
        .map(|path| FileLog { path: path.into(), layout: layout.clone() });
    settings.layout = layout;
    let providers = root.get("extensionProviders").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, one) in providers.iter().enumerate() {
        settings.providers.extend(reading.provider(&format!("extensionProviders[{index}]"), one));
    }
    let known = of(settings);
    settings.default_logs = reading.defaults(root, "accessLogging", &known.logs);
    settings.default_tracing = reading.defaults(root, "tracing", &known.tracing);
    reading.defaults(root, "metrics", &known.metrics);
    if let Some(config) = root.get("defaultConfig").and_then(Value::as_object) {
        for (key, value) in config {
            match (key.as_str(), value.as_object()) {
                ("tracing", Some(tracing)) => settings.sampling = reading.sampling(tracing),
                _ => reading.flaw(&format!("defaultConfig.{key}"), "not supported: without effect".to_owned()),
            }
        }
    }
}

/// Reads the ConfigMap's annotations.
pub(super) fn redaction(annotations: &BTreeMap<String, String>, flaws: &mut Vec<Flaw>) -> Redaction {
    let mut redaction = Redaction::default();
    for (key, list) in [(HIDDEN_HEADERS, &mut redaction.headers), (HIDDEN_PARAMETERS, &mut redaction.parameters)] {
        if let Some(Err(problem)) = annotations.get(key).map(|written| Redaction::edit(list, written)) {
            flaws.push((format!("metadata.annotations[{key:?}]"), problem));
        }
    }
    redaction
}

/// The providers that Telemetry may name.
pub fn of(settings: &TelemetrySettings) -> Providers {
    let built_in = |name: &str| Str::from(name);
    let named = |wanted: fn(&ProviderKind) -> bool| {
        settings.providers.iter().filter(move |one| wanted(&one.kind)).map(|one| one.name.clone())
    };
    Providers {
        logs: [built_in("envoy")]
            .into_iter()
            .chain(named(|kind| matches!(kind, ProviderKind::File(_) | ProviderKind::LogCollector(_))))
            .collect(),
        tracing: named(|kind| matches!(kind, ProviderKind::TraceCollector(_) | ProviderKind::Zipkin)).collect(),
        metrics: [built_in("prometheus")]
            .into_iter()
            .chain(named(|kind| matches!(kind, ProviderKind::Prometheus)))
            .collect(),
    }
}

struct Reading<'a> {
    flaws: &'a mut Vec<Flaw>,
}

impl Reading<'_> {
    fn flaw(&mut self, path: &str, message: String) {
        self.flaws.push((format!(".{path}"), message));
    }

    fn text(&mut self, root: &Value, key: &str) -> Option<String> {
        match root.get(key)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            _ => {
                self.flaw(key, "wrong type: a text is accepted".to_owned());
                None
            }
        }
    }

    /// What of a layout cannot be carried out.
    fn check(&mut self, path: &str, layout: &Layout) {
        for problem in layout.problems() {
            self.flaw(path, format!("{problem}: it is written as if it were absent"));
        }
    }

    fn json(&mut self, format: &str) -> Layout {
        match serde_json::from_str::<Map<String, Value>>(format) {
            Ok(map) => self.labels("accessLogFormat", &map),
            Err(_) => {
                self.flaw("accessLogFormat", "not a JSON object: Istio's format is written".to_owned());
                Layout::json()
            }
        }
    }

    fn labels(&mut self, path: &str, map: &Map<String, Value>) -> Layout {
        let mut keys: Vec<(Str, Str)> = Vec::new();
        for (key, value) in map {
            match value {
                Value::String(format) => keys.push((key.as_str().into(), format.as_str().into())),
                Value::Number(_) | Value::Bool(_) => keys.push((key.as_str().into(), value.to_string().into())),
                _ => self.flaw(&format!("{path}.{key}"), "only texts are accepted: left out".to_owned()),
            }
        }
        keys.sort();
        Layout::Json(keys)
    }

    /// `logFormat` of a provider; `None` where it says nothing.
    fn layout(&mut self, path: &str, written: &Value) -> Option<Layout> {
        let format = written.get("logFormat").filter(|format| !format.is_null())?;
        let layout = match (format.get("text"), format.get("labels")) {
            (Some(Value::String(text)), None) => Layout::Text(ended(text)),
            (None, Some(Value::Object(labels))) => self.labels(&format!("{path}.logFormat.labels"), labels),
            _ => {
                self.flaw(&format!("{path}.logFormat"), "text or labels is accepted".to_owned());
                return None;
            }
        };
        self.check(&format!("{path}.logFormat"), &layout);
        Some(layout)
    }

    fn provider(&mut self, path: &str, written: &Value) -> Option<Provider> {
        let name = written.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let Some(name) = name else {
            self.flaw(path, "a provider without a name".to_owned());
            return None;
        };
        let kinds = written.as_object().into_iter().flatten().filter(|(key, _)| *key != "name");
        let [(kind, inner)] = kinds.collect::<Vec<_>>()[..] else {
            self.flaw(path, "a provider is one thing".to_owned());
            return None;
        };
        let path = format!("{path}.{kind}");
        let kind = match kind.as_str() {
            "envoyFileAccessLog" => {
                let file = inner.get("path").and_then(Value::as_str).unwrap_or("/dev/stdout");
                let layout = self.layout(&path, inner).unwrap_or_else(Layout::text);
                ProviderKind::File(FileLog { path: file.into(), layout })
            }
            "envoyOtelAls" => {
                let mut collector = self.collector(&path, inner, &["logName", "logFormat"])?;
                collector.layout = self.layout(&path, inner);
                collector.log_name =
                    inner.get("logName").and_then(Value::as_str).unwrap_or("otel_envoy_accesslog").into();
                ProviderKind::LogCollector(collector)
            }
            "opentelemetry" => {
                ProviderKind::TraceCollector(self.collector(&path, inner, &["http", "grpc", "maxTagLength"])?)
            }
            "zipkin" => {
                self.flaw(
                    &path,
                    "B3's headers go on, spans are not sent to Zipkin: OTLP is (opentelemetry)".to_owned(),
                );
                ProviderKind::Zipkin
            }
            "prometheus" => ProviderKind::Prometheus,
            _ => {
                self.flaw(&path, "not supported: without effect".to_owned());
                return None;
            }
        };
        Some(Provider { name: name.into(), kind })
    }

    /// `keys` are those that mean something beside `service` and `port`.
    fn collector(&mut self, path: &str, written: &Value, keys: &[&str]) -> Option<Collector> {
        let host = written.get("service").and_then(Value::as_str).unwrap_or_default();
        // Istio takes `namespace/hostname` too.
        let host = host.rsplit('/').next().unwrap_or_default();
        let port = written.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        let Some(port) = port.filter(|port| *port > 0 && !host.is_empty()) else {
            self.flaw(path, "service (a hostname) and port are needed".to_owned());
            return None;
        };
        let http = written.get("http").filter(|http| !http.is_null() && keys.contains(&"http"));
        let of = http.map_or("grpc", |_| "http");
        let timeout = written.get(of).and_then(|of| of.get("timeout")).and_then(Value::as_str);
        let timeout = timeout.and_then(|text| {
            let read = duration::istio(text).ok().filter(|timeout| !timeout.is_zero());
            if read.is_none() {
                self.flaw(&format!("{path}.{of}.timeout"), format!("{text:?} is not a duration: 10s"));
            }
            read
        });
        for key in written.as_object().into_iter().flat_map(Map::keys) {
            if !["service", "port"].contains(&key.as_str()) && !keys.contains(&key.as_str()) {
                self.flaw(&format!("{path}.{key}"), "not supported: without effect".to_owned());
            }
        }
        for (inner, key) in [("http", "headers"), ("grpc", "initialMetadata")] {
            if written.get(inner).and_then(|of| of.get(key)).is_some() {
                self.flaw(&format!("{path}.{inner}.{key}"), "not supported: without effect".to_owned());
            }
        }
        let http_path = http.map(|http| http.get("path").and_then(Value::as_str).unwrap_or("/v1/traces"));
        Some(Collector {
            host: host.into(),
            port,
            path: http_path.map(Str::from),
            timeout: timeout.unwrap_or(TIMEOUT),
            log_name: "".into(),
            layout: None,
            longest: written.get("maxTagLength").and_then(Value::as_u64).and_then(|most| u32::try_from(most).ok()),
        })
    }

    fn defaults(&mut self, root: &Value, key: &str, known: &[Str]) -> Vec<Str> {
        let written = root.get("defaultProviders").and_then(|all| all.get(key)).and_then(Value::as_array);
        let mut found = Vec::new();
        for name in written.into_iter().flatten().filter_map(Value::as_str) {
            match known.iter().find(|one| ***one == *name) {
                Some(name) => found.push(name.clone()),
                None => {
                    let message = format!("{name:?} is no provider that can be used here");
                    self.flaw(&format!("defaultProviders.{key}"), message);
                }
            }
        }
        found
    }

    fn sampling(&mut self, tracing: &Map<String, Value>) -> Option<u32> {
        for key in tracing.keys().filter(|key| *key != "sampling") {
            self.flaw(&format!("defaultConfig.tracing.{key}"), "not supported: without effect".to_owned());
        }
        let percent = tracing.get("sampling")?.as_f64();
        match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
            Some(percent) => Some((percent * 100.0).round() as u32),
            None => {
                self.flaw("defaultConfig.tracing.sampling", "a number from 0 to 100 is accepted".to_owned());
                None
            }
        }
    }
}

/// Istio ends every line.
fn ended(format: &str) -> Str {
    if format.ends_with('\n') { format.into() } else { format!("{format}\n").into() }
}
