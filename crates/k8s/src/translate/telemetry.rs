//! Istio's Telemetry to what waypoints tell of requests (contract 9.2, 9.4). It decides nothing: a part that cannot be carried
//! out is left out and named in the status, and the rest holds.

use stillmesh_core::model::telemetry::{
    LogRule, MetricName, MetricOverride, MetricRule, SpanTag, TagValue, Telemetry as Model, TelemetryScope, TraceRule,
};
use stillmesh_core::model::{PolicyKey, Str};
use stillmesh_core::observe::Expression;

use super::Mesh;
use super::targets::{ACCEPTED, Found, Target, Targets, targets};
use crate::istio::Provider;
use crate::istio::telemetry::{AccessLogging, CustomTag, Metrics, Override, Telemetry, Tracing};
use crate::object::DEFAULT_NAMESPACE;
use crate::status::Condition;

/// What one is attached to; empty where it is for a namespace or the mesh.
pub fn telemetry_targets(written: &Telemetry, mesh: &Mesh) -> Vec<Result<Target, String>> {
    let refs = written.spec.target_ref.iter().chain(&written.spec.target_refs);
    targets(refs, namespace(written), mesh)
}

fn namespace(written: &Telemetry) -> &str {
    written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}

/// Translates one, and says what its status says. `providers` are the names that may be used, and for what.
pub fn telemetry(
    written: &Telemetry,
    known: &dyn Targets,
    providers: &Providers,
    mesh: &Mesh,
) -> (Option<Model>, Condition) {
    let spec = &written.spec;
    if spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty()) {
        let message = "a selector is for sidecars: attach it to a Service, Gateway or GatewayClass by targetRefs";
        return (None, Found::refused(message.to_owned()));
    }
    let mut notes = Vec::new();
    let namespace = namespace(written);
    let refs = telemetry_targets(written, mesh);
    let found = (!refs.is_empty()).then(|| Found::new(&refs, known, mesh));
    let mut reading = Reading { providers, notes: &mut notes };
    let model = Model {
        key: PolicyKey::new(namespace, written.metadata.name.as_deref().unwrap_or_default()),
        scope: match &found {
            Some(found) => TelemetryScope::To(found.services.clone()),
            None if namespace == &*mesh.root_namespace => TelemetryScope::Mesh,
            None => TelemetryScope::Namespace,
        },
        created: written.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        logs: reading.all("accessLogging", &spec.access_logging, Reading::log),
        metrics: reading.all("metrics", &spec.metrics, Reading::metric),
        tracing: reading.all("tracing", &spec.tracing, Reading::trace),
    };
    let condition = match found {
        Some(found) => found.condition(&notes),
        None => {
            let of = match model.scope {
                TelemetryScope::Mesh => "holds at all waypoints",
                _ => "holds at the waypoints of its namespace",
            };
            let (reason, message) = match notes.is_empty() {
                true => ("Accepted", of.to_owned()),
                false => ("PartiallyInvalid", format!("{of}; {}", notes.join("; "))),
            };
            Condition { type_: ACCEPTED, status: "True", reason, message }
        }
    };
    (Some(model), condition)
}

/// The providers that may be named, by what they take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Providers {
    /// Access logs.
    pub logs: Vec<Str>,
    /// Traces.
    pub tracing: Vec<Str>,
    /// Metrics.
    pub metrics: Vec<Str>,
}

struct Reading<'a> {
    providers: &'a Providers,
    notes: &'a mut Vec<String>,
}

impl Reading<'_> {
    fn all<T, R>(&mut self, list: &str, written: &[T], read: fn(&mut Self, &str, &T) -> Option<R>) -> Vec<R> {
        let all = written.iter().enumerate();
        all.filter_map(|(index, one)| read(self, &format!("{list}[{index}]"), one)).collect()
    }

    /// The named providers of a kind, and whether the rule is to be left out: all that it names are unknown.
    fn named(&mut self, place: &str, written: &[Provider], known: &[Str]) -> (Vec<Str>, bool) {
        let (mut found, mut unknown) = (Vec::new(), false);
        for provider in written {
            match known.iter().find(|name| ***name == *provider.name) {
                Some(name) => found.push(name.clone()),
                None => {
                    unknown = true;
                    self.notes.push(format!(
                        "{place}.providers: {:?} is no provider of the mesh's configuration that can be used here",
                        provider.name
                    ));
                }
            }
        }
        let is_lost = unknown && found.is_empty();
        (found, is_lost)
    }

    /// Whether something is for waypoints: they are on the server's side.
    fn is_here(&mut self, place: &str, mode: Option<&str>) -> bool {
        let here = mode != Some("CLIENT");
        if !here {
            self.notes.push(format!("{place}: mode CLIENT is for sidecars; waypoints are on the server's side"));
        }
        here
    }

    fn expression(&mut self, place: &str, text: &str) -> Option<Expression> {
        let read = Expression::read(text);
        read.map_err(|problem| self.notes.push(format!("{place}: without effect: {problem}"))).ok()
    }

    fn log(&mut self, place: &str, written: &AccessLogging) -> Option<LogRule> {
        if !self.is_here(place, written.matched.as_ref().and_then(|side| side.mode.as_deref())) {
            return None;
        }
        let known = &self.providers.logs;
        let (providers, is_lost) = self.named(place, &written.providers, known);
        let filter = match written.filter.as_ref().filter(|filter| !filter.expression.is_empty()) {
            Some(filter) => Some(self.expression(&format!("{place}.filter"), &filter.expression)?),
            None => None,
        };
        (!is_lost).then_some(LogRule { providers, is_disabled: written.disabled.unwrap_or(false), filter })
    }

    fn metric(&mut self, place: &str, written: &Metrics) -> Option<MetricRule> {
        if written.reporting_interval.is_some() {
            self.notes
                .push(format!("{place}.reportingInterval: without effect: bytes are counted when they are asked for"));
        }
        let known = &self.providers.metrics;
        let (providers, is_lost) = self.named(place, &written.providers, known);
        let overrides = written.overrides.iter().enumerate();
        let overrides: Vec<_> =
            overrides.filter_map(|(index, one)| self.change(&format!("{place}.overrides[{index}]"), one)).collect();
        (!is_lost).then_some(MetricRule { providers, overrides })
    }

    fn change(&mut self, place: &str, written: &Override) -> Option<MetricOverride> {
        let matched = written.matched.as_ref();
        if !self.is_here(place, matched.and_then(|one| one.mode.as_deref())) {
            return None;
        }
        if let Some(custom) = matched.and_then(|one| one.custom_metric.as_deref()) {
            self.notes.push(format!("{place}.match.customMetric: {custom:?} is not served here"));
            return None;
        }
        let metric = match matched.and_then(|one| one.metric.as_deref()) {
            None | Some("" | "ALL_METRICS") => None,
            Some(name) => match MetricName::named(name) {
                Some(metric) => Some(metric),
                None => {
                    self.notes.push(format!("{place}.match.metric: {name:?} is not known"));
                    return None;
                }
            },
        };
        let mut tags = Vec::new();
        for (name, tag) in &written.tag_overrides {
            let place = format!("{place}.tagOverrides.{name}");
            if !is_label(name) {
                self.notes.push(format!("{place}: no name of a label: letters, digits and _"));
                continue;
            }
            match (tag.operation.as_deref(), tag.value.as_deref()) {
                (Some("REMOVE"), _) => tags.push((Str::from(name.as_str()), None)),
                (_, None | Some("")) => self.notes.push(format!("{place}: UPSERT needs a value")),
                (_, Some(text)) => {
                    let value = self.expression(&place, text);
                    tags.extend(value.map(|value| (Str::from(name.as_str()), Some(value))));
                }
            }
        }
        Some(MetricOverride { metric, is_disabled: written.disabled, tags })
    }

    fn trace(&mut self, place: &str, written: &Tracing) -> Option<TraceRule> {
        if !self.is_here(place, written.matched.as_ref().and_then(|side| side.mode.as_deref())) {
            return None;
        }
        let known = &self.providers.tracing;
        let (providers, is_lost) = self.named(place, &written.providers, known);
        if written.use_request_id_for_trace_sampling.is_some() {
            self.notes
                .push(format!("{place}.useRequestIdForTraceSampling: without effect: request ids say nothing here"));
        }
        if written.enable_istio_tags.is_some() {
            self.notes.push(format!("{place}.enableIstioTags: without effect"));
        }
        let percent = written.random_sampling_percentage;
        let sampling = percent.map(|percent| (percent.clamp(0.0, 100.0) * 100.0).round() as u32);
        let tags = written.custom_tags.iter();
        let tags = tags.filter_map(|(name, tag)| self.tag(&format!("{place}.customTags.{name}"), name, tag)).collect();
        (!is_lost).then_some(TraceRule { providers, is_disabled: written.disable_span_reporting, sampling, tags })
    }

    fn tag(&mut self, place: &str, name: &str, written: &CustomTag) -> Option<SpanTag> {
        let text = |text: &str| Str::from(text);
        let default = |value: &Option<String>| text(value.as_deref().unwrap_or_default());
        let value = match (&written.literal, &written.header, &written.environment) {
            (Some(one), ..) => TagValue::Literal(text(&one.value)),
            (_, Some(one), _) => TagValue::Header(text(&one.name.to_ascii_lowercase()), default(&one.default_value)),
            (.., Some(one)) => {
                let default = one.default_value.as_deref().unwrap_or_default();
                let message = "a waypoint's environment is not told: the default value is";
                self.notes.push(format!("{place}.environment: {message} ({default:?})"));
                (!default.is_empty()).then(|| TagValue::Literal(text(default)))?
            }
            _ => {
                self.notes.push(format!("{place}: literal and header are supported"));
                return None;
            }
        };
        Some(SpanTag { name: text(name), value })
    }
}

/// Whether Prometheus takes it as a label's name.
fn is_label(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
    first && !name.starts_with("__") && bytes.all(|next| next.is_ascii_alphanumeric() || next == b'_')
}

#[cfg(test)]
mod tests;
