//! What a collector was told, by the lines of OTLP/JSON that it wrote.

use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A span or a record of a log.
pub struct Told {
    /// Attributes of who tells it.
    pub resource: Value,
    /// The program that tells it.
    pub scope: Value,
    /// The span or record itself.
    pub told: Value,
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} of {}", self.told, self.scope, self.resource)
    }
}

impl Told {
    /// A text of the span or record; empty where there is none.
    pub fn text(&self, key: &str) -> &str {
        self.told[key].as_str().unwrap_or_default()
    }

    /// An attribute, numbers in digits; empty where there is none.
    pub fn attribute(&self, key: &str) -> &str {
        attribute(&self.told["attributes"], key)
    }

    /// An attribute of who tells it.
    pub fn of_resource(&self, key: &str) -> &str {
        attribute(&self.resource, key)
    }
}

fn attribute<'a>(attributes: &'a Value, key: &str) -> &'a str {
    let found = attributes.as_array().into_iter().flatten().find(|one| one["key"] == key);
    let value = found.map_or(&Value::Null, |one| &one["value"]);
    value["stringValue"].as_str().or(value["intValue"].as_str()).unwrap_or_default()
}

/// All spans.
pub fn spans(dir: &Path) -> Result<Vec<Told>> {
    all(&dir.join("traces.json"), ["resourceSpans", "scopeSpans", "spans"])
}

/// Spans that the collector had no time for.
pub fn refusals(dir: &Path) -> Result<Vec<Told>> {
    all(&dir.join("refusals.json"), ["resourceSpans", "scopeSpans", "spans"])
}

/// All records of logs.
pub fn records(dir: &Path) -> Result<Vec<Told>> {
    all(&dir.join("logs.json"), ["resourceLogs", "scopeLogs", "logRecords"])
}

fn all(file: &Path, [resources, scopes, things]: [&str; 3]) -> Result<Vec<Told>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    // The last line may be half written.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let message: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()))?;
        for of_resource in list(&message, resources) {
            for of_scope in list(&of_resource, scopes) {
                found.extend(list(&of_scope, things).into_iter().map(|told| Told {
                    resource: of_resource["resource"]["attributes"].clone(),
                    scope: of_scope["scope"].clone(),
                    told,
                }));
            }
        }
    }
    Ok(found)
}
