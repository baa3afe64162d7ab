//! What is told of a request, as Istio merges it: mesh, then the waypoint's namespace, then what is attached to its service,
//! to the waypoint or to its class. Of several at one level the oldest holds; later levels hold over earlier ones, part by
//! part.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::telemetry::{
    FileLog, LogRule, MetricName, Provider, ProviderKind, SpanTag, Telemetry, TelemetryScope, TraceRule,
};
use crate::model::{ServiceKey, Str, Workload};
use crate::observe::{Expression, Layout, Redaction};
use crate::snapshot::Snapshot;

/// What is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Access logs; `None` where nobody says anything of them.
    pub logs: Option<Vec<Logged>>,
    /// What of metrics is otherwise than usual.
    pub metrics: Metered,
    /// Traces; `None`: none.
    pub tracing: Option<Traced>,
    /// What is never told.
    pub redaction: Redaction,
}

/// One access log.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// Who takes it.
    pub provider: Provider,
    /// Only what this holds for.
    pub filter: Option<Expression>,
}

/// What of metrics is otherwise than usual.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metered {
    /// Those that are not counted.
    pub disabled: BTreeSet<MetricName>,
    /// Labels with another value, or (`None`) without one.
    pub tags: BTreeMap<MetricName, BTreeMap<Str, Option<Expression>>>,
}

/// How requests are traced.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced {
    /// Who takes spans.
    pub provider: Provider,
    /// Spans are not reported; headers go on all the same.
    pub is_silent: bool,
    /// Of ten thousand requests whose clients do not say it.
    pub sampling: u32,
    /// What spans have beside their usual attributes.
    pub tags: Vec<SpanTag>,
}

/// Istio's: one of a hundred.
const SAMPLING: u32 = 100;

/// What is told of requests for `service` at a waypoint; `None`: of what is for no service.
pub fn telemetry(snapshot: &Snapshot, waypoint: &Workload, service: Option<&ServiceKey>) -> Told {
    let oldest = |matches: &dyn Fn(&Telemetry) -> bool| {
        let found = snapshot.telemetry().filter(|one| matches(one));
        found.min_by(|one, other| (one.created, &one.key).cmp(&(other.created, &other.key)))
    };
    let is_attached = |one: &Telemetry| match &one.scope {
        TelemetryScope::To(services) => {
            services.iter().any(|key| Some(key) == service || waypoint.services.iter().any(|(own, _)| own == key))
        }
        TelemetryScope::Mesh | TelemetryScope::Namespace => false,
    };
    let levels: Vec<&Telemetry> = [
        oldest(&|one| one.scope == TelemetryScope::Mesh),
        oldest(&|one| one.scope == TelemetryScope::Namespace && one.key.namespace == waypoint.namespace),
        oldest(&is_attached),
    ]
    .into_iter()
    .flatten()
    .collect();
    let known = Known(snapshot);
    Told {
        logs: logs(&levels, &known),
        metrics: metrics(&levels),
        tracing: tracing(&levels, &known),
        redaction: snapshot.telemetry_settings().map(|one| one.redaction.clone()).unwrap_or_default(),
    }
}

/// The providers of a mesh.
struct Known<'a>(&'a Snapshot);

impl Known<'_> {
    fn get(&self, name: &Str) -> Option<Provider> {
        let settings = self.0.telemetry_settings();
        let written = settings.and_then(|settings| settings.providers.iter().find(|one| one.name == *name));
        if let Some(provider) = written {
            return Some(provider.clone());
        }
        let kind = match &**name {
            "envoy" => {
                let layout = settings.map_or_else(Layout::text, |settings| settings.layout.clone());
                ProviderKind::File(FileLog { path: "/dev/stdout".into(), layout })
            }
            "prometheus" => ProviderKind::Prometheus,
            _ => return None,
        };
        Some(Provider { name: name.clone(), kind })
    }
}

fn logs(levels: &[&Telemetry], known: &Known<'_>) -> Option<Vec<Logged>> {
    let settings = known.0.telemetry_settings();
    let defaults = settings.map(|settings| settings.default_logs.clone()).unwrap_or_default();
    let rules: Vec<&[LogRule]> = levels.iter().map(|one| one.logs.as_slice()).filter(|all| !all.is_empty()).collect();
    if rules.is_empty() {
        if defaults.is_empty() {
            let log = settings?.log.clone()?;
            let provider = Provider { name: "accessLogFile".into(), kind: ProviderKind::File(log) };
            return Some(vec![Logged { provider, filter: None }]);
        }
        let all = defaults.iter().filter_map(|name| known.get(name));
        return Some(all.map(|provider| Logged { provider, filter: None }).collect());
    }
    // The last level that names providers says which there are; rules of earlier ones hold for these alone.
    let named = |rules: &&&[LogRule]| rules.iter().any(|rule| !rule.providers.is_empty());
    let in_scope: BTreeSet<&Str> = match rules.iter().rev().find(named) {
        Some(rules) => rules.iter().flat_map(|rule| &rule.providers).collect(),
        None => defaults.iter().collect(),
    };
    let mut parents: Vec<&Str> = defaults.iter().collect();
    let mut found: BTreeMap<&Str, Option<Option<&Expression>>> = BTreeMap::new();
    for rule in rules.iter().copied().flatten() {
        if !rule.providers.is_empty() {
            parents = rule.providers.iter().collect();
        }
        for provider in parents.iter().filter(|provider| in_scope.contains(*provider)) {
            found.insert(provider, (!rule.is_disabled).then_some(rule.filter.as_ref()));
        }
    }
    let logged = found
        .into_iter()
        .filter_map(|(name, filter)| Some(Logged { filter: filter?.cloned(), provider: known.get(name)? }));
    Some(logged.collect())
}

fn metrics(levels: &[&Telemetry]) -> Metered {
    let mut found = Metered::default();
    let mut counts = true;
    for rule in levels.iter().flat_map(|one| &one.metrics) {
        if !rule.providers.is_empty() {
            counts = rule.providers.iter().any(|name| &**name == "prometheus");
        }
        // What is said of other providers is nothing that is served here.
        for change in rule.overrides.iter().filter(|_| counts) {
            let concerned = match &change.metric {
                Some(metric) => std::slice::from_ref(metric),
                None => MetricName::ALL,
            };
            for metric in concerned {
                match change.is_disabled {
                    Some(true) => drop(found.disabled.insert(*metric)),
                    Some(false) => drop(found.disabled.remove(metric)),
                    None => {}
                }
                let tags = change.tags.iter().cloned();
                if !change.tags.is_empty() {
                    found.tags.entry(*metric).or_default().extend(tags);
                }
            }
        }
    }
    found
}

fn tracing(levels: &[&Telemetry], known: &Known<'_>) -> Option<Traced> {
    let settings = known.0.telemetry_settings();
    let mut providers = settings.map(|settings| settings.default_tracing.clone()).unwrap_or_default();
    let mut found = TraceRule { sampling: settings.and_then(|settings| settings.sampling), ..TraceRule::default() };
    for rule in levels.iter().flat_map(|one| &one.tracing) {
        if !rule.providers.is_empty() {
            providers.clone_from(&rule.providers);
        }
        found.is_disabled = rule.is_disabled.or(found.is_disabled);
        found.sampling = rule.sampling.or(found.sampling);
        if !rule.tags.is_empty() {
            found.tags.clone_from(&rule.tags);
        }
    }
    // Istio takes one provider, the first.
    let provider = known.get(providers.first()?)?;
    matches!(provider.kind, ProviderKind::TraceCollector(_) | ProviderKind::Zipkin).then(|| Traced {
        provider,
        is_silent: found.is_disabled.unwrap_or(false),
        sampling: found.sampling.unwrap_or(SAMPLING).min(10_000),
        tags: found.tags,
    })
}

#[cfg(test)]
mod tests;
