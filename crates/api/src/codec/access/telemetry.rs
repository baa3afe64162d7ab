//! What is told of requests, both ways.

use std::time::Duration;

use stillmesh_core::model::telemetry::{
    Collector, FileLog, LogRule, MetricName, MetricOverride, MetricRule, Provider, ProviderKind, SpanTag, TagValue,
    Telemetry, TelemetryScope, TelemetrySettings, TraceRule,
};
use stillmesh_core::model::{PolicyKey, ServiceKey, Str};
use stillmesh_core::observe::{Expression, Layout, Redaction};

use super::super::route::{duration, needed};
use super::super::{FieldError, fields};
use super::write;
use crate::proto::stillmesh::config::v1 as wire;

/// How long one export may take where nobody says it.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn read(key: PolicyKey, wire: wire::Telemetry) -> Result<Telemetry, FieldError> {
    let service = |one: &wire::Service| fields::service_key("services", &one.namespace, &one.hostname);
    let services: Vec<ServiceKey> = wire.services.iter().map(service).collect::<Result<_, _>>()?;
    let scope = match wire::TelemetryScope::try_from(wire.scope) {
        Ok(wire::TelemetryScope::Mesh) => TelemetryScope::Mesh,
        Ok(wire::TelemetryScope::Namespace) => TelemetryScope::Namespace,
        Ok(wire::TelemetryScope::Services) => TelemetryScope::To(services),
        Err(_) => return Err(FieldError::new("scope", format!("{}: 0 to 2 are known", wire.scope))),
    };
    Ok(Telemetry {
        key,
        scope,
        created: wire.created,
        logs: wire.logs.into_iter().map(log).collect::<Result<_, _>>()?,
        metrics: wire.metrics.into_iter().map(metric).collect::<Result<_, _>>()?,
        tracing: wire.tracing.into_iter().map(trace).collect::<Result<_, _>>()?,
    })
}

fn strs(texts: Vec<String>) -> Vec<Str> {
    texts.into_iter().map(Str::from).collect()
}

fn expression(field: &'static str, text: &str) -> Result<Expression, FieldError> {
    Expression::read(text).map_err(|problem| FieldError::new(field, problem))
}

fn log(wire: wire::LogRule) -> Result<LogRule, FieldError> {
    let filter = (!wire.filter.is_empty()).then(|| expression("logs.filter", &wire.filter)).transpose()?;
    Ok(LogRule { providers: strs(wire.providers), is_disabled: wire.disabled, filter })
}

fn metric(wire: wire::MetricRule) -> Result<MetricRule, FieldError> {
    let tag = |one: wire::TagRule| {
        let value = one.value.as_deref().map(|text| expression("metrics.tags", text)).transpose()?;
        Ok((Str::from(one.name), value))
    };
    let change = |one: wire::MetricOverride| {
        let unknown = || FieldError::new("metrics.metric", format!("{:?} is not known", one.metric));
        let metric = match one.metric.as_str() {
            "" => None,
            name => Some(MetricName::named(name).ok_or_else(unknown)?),
        };
        let tags = one.tags.into_iter().map(tag).collect::<Result<_, FieldError>>()?;
        Ok(MetricOverride { metric, is_disabled: one.disabled, tags })
    };
    let overrides = wire.overrides.into_iter().map(change).collect::<Result<_, FieldError>>()?;
    Ok(MetricRule { providers: strs(wire.providers), overrides })
}

fn trace(wire: wire::TraceRule) -> Result<TraceRule, FieldError> {
    use wire::span_tag::Source;
    let tag = |one: wire::SpanTag| {
        let value = match needed("tracing.tags", one.source)? {
            Source::Literal(text) => TagValue::Literal(text.into()),
            Source::Header(named) => TagValue::Header(named.name.into(), named.default.into()),
        };
        Ok(SpanTag { name: one.name.into(), value })
    };
    let tags = wire.tags.into_iter().map(tag).collect::<Result<_, FieldError>>()?;
    Ok(TraceRule { providers: strs(wire.providers), is_disabled: wire.disabled, sampling: wire.sampling, tags })
}

pub(super) fn read_settings(key: PolicyKey, wire: wire::TelemetrySettings) -> Result<TelemetrySettings, FieldError> {
    Ok(TelemetrySettings {
        key,
        providers: wire.providers.into_iter().map(provider).collect::<Result<_, _>>()?,
        default_logs: strs(wire.default_logs),
        default_tracing: strs(wire.default_tracing),
        log: wire.log.map(file).transpose()?,
        layout: layout(wire.layout)?,
        sampling: wire.sampling,
        redaction: Redaction { headers: strs(wire.hidden_headers), parameters: strs(wire.hidden_parameters) },
    })
}

fn provider(wire: wire::TelemetryProvider) -> Result<Provider, FieldError> {
    use wire::telemetry_provider::Kind;
    let kind = match needed("providers.kind", wire.kind)? {
        Kind::File(one) => ProviderKind::File(file(one)?),
        Kind::LogCollector(one) => ProviderKind::LogCollector(collector(one)?),
        Kind::TraceCollector(one) => ProviderKind::TraceCollector(collector(one)?),
        Kind::Zipkin(true) => ProviderKind::Zipkin,
        Kind::Prometheus(true) => ProviderKind::Prometheus,
        Kind::Zipkin(false) | Kind::Prometheus(false) => {
            return Err(FieldError::new("providers.kind", "true, or another kind is set"));
        }
    };
    Ok(Provider { name: wire.name.into(), kind })
}

fn file(wire: wire::FileLog) -> Result<FileLog, FieldError> {
    Ok(FileLog { path: wire.path.into(), layout: layout(wire.layout)? })
}

fn layout(wire: Option<wire::LogLayout>) -> Result<Layout, FieldError> {
    use wire::log_layout::Layout as Wire;
    Ok(match needed("layout", needed("layout", wire)?.layout)? {
        Wire::Text(text) => Layout::Text(text.into()),
        Wire::Json(all) => {
            Layout::Json(all.keys.into_iter().map(|key| (Str::from(key.name), Str::from(key.format))).collect())
        }
    })
}

fn collector(wire: wire::Collector) -> Result<Collector, FieldError> {
    let port = u16::try_from(wire.port).map_err(|_| FieldError::new("port", "0 to 65535 are accepted"))?;
    Ok(Collector {
        host: wire.host.into(),
        port,
        path: wire.path.map(Str::from),
        timeout: duration("timeout", wire.timeout)?.unwrap_or(TIMEOUT),
        log_name: wire.log_name.into(),
        layout: wire.layout.map(|one| layout(Some(one))).transpose()?,
        longest: wire.longest,
    })
}

pub(super) fn write(one: &Telemetry) -> wire::Telemetry {
    let services = match &one.scope {
        TelemetryScope::To(services) => services.as_slice(),
        TelemetryScope::Mesh | TelemetryScope::Namespace => &[],
    };
    let service =
        |key: &ServiceKey| wire::Service { namespace: key.namespace.to_string(), hostname: key.hostname.to_string() };
    let text = |expression: &Expression| expression.as_str().to_owned();
    let log = |rule: &LogRule| wire::LogRule {
        providers: write::strings(&rule.providers),
        disabled: rule.is_disabled,
        filter: rule.filter.as_ref().map(text).unwrap_or_default(),
    };
    let tag = |(name, value): &(Str, Option<Expression>)| wire::TagRule {
        name: name.to_string(),
        value: value.as_ref().map(text),
    };
    let change = |one: &MetricOverride| wire::MetricOverride {
        metric: one.metric.map(|metric| metric.as_str().to_owned()).unwrap_or_default(),
        disabled: one.is_disabled,
        tags: one.tags.iter().map(tag).collect(),
    };
    let metric = |rule: &MetricRule| wire::MetricRule {
        providers: write::strings(&rule.providers),
        overrides: rule.overrides.iter().map(change).collect(),
    };
    wire::Telemetry {
        scope: match one.scope {
            TelemetryScope::Mesh => wire::TelemetryScope::Mesh,
            TelemetryScope::Namespace => wire::TelemetryScope::Namespace,
            TelemetryScope::To(_) => wire::TelemetryScope::Services,
        }
        .into(),
        services: services.iter().map(service).collect(),
        created: one.created,
        logs: one.logs.iter().map(log).collect(),
        metrics: one.metrics.iter().map(metric).collect(),
        tracing: one.tracing.iter().map(write_trace).collect(),
    }
}

fn write_trace(rule: &TraceRule) -> wire::TraceRule {
    use wire::span_tag::Source;
    let named = |name: &Str, default: &Str| wire::NamedValue { name: name.to_string(), default: default.to_string() };
    let tag = |one: &SpanTag| wire::SpanTag {
        name: one.name.to_string(),
        source: Some(match &one.value {
            TagValue::Literal(text) => Source::Literal(text.to_string()),
            TagValue::Header(name, default) => Source::Header(named(name, default)),
        }),
    };
    wire::TraceRule {
        providers: write::strings(&rule.providers),
        disabled: rule.is_disabled,
        sampling: rule.sampling,
        tags: rule.tags.iter().map(tag).collect(),
    }
}

pub(super) fn write_settings(one: &TelemetrySettings) -> wire::TelemetrySettings {
    wire::TelemetrySettings {
        providers: one.providers.iter().map(write_provider).collect(),
        default_logs: write::strings(&one.default_logs),
        default_tracing: write::strings(&one.default_tracing),
        log: one.log.as_ref().map(write_file),
        layout: Some(write_layout(&one.layout)),
        sampling: one.sampling,
        hidden_headers: write::strings(&one.redaction.headers),
        hidden_parameters: write::strings(&one.redaction.parameters),
    }
}

fn write_provider(one: &Provider) -> wire::TelemetryProvider {
    use wire::telemetry_provider::Kind;
    let kind = match &one.kind {
        ProviderKind::File(file) => Kind::File(write_file(file)),
        ProviderKind::LogCollector(collector) => Kind::LogCollector(write_collector(collector)),
        ProviderKind::TraceCollector(collector) => Kind::TraceCollector(write_collector(collector)),
        ProviderKind::Zipkin => Kind::Zipkin(true),
        ProviderKind::Prometheus => Kind::Prometheus(true),
    };
    wire::TelemetryProvider { name: one.name.to_string(), kind: Some(kind) }
}

fn write_file(file: &FileLog) -> wire::FileLog {
    wire::FileLog { path: file.path.to_string(), layout: Some(write_layout(&file.layout)) }
}

fn write_layout(layout: &Layout) -> wire::LogLayout {
    use wire::log_layout::Layout as Wire;
    let key = |(name, format): &(Str, Str)| wire::LogKey { name: name.to_string(), format: format.to_string() };
    let layout = match layout {
        Layout::Text(text) => Wire::Text(text.to_string()),
        Layout::Json(keys) => Wire::Json(wire::LogKeys { keys: keys.iter().map(key).collect() }),
    };
    wire::LogLayout { layout: Some(layout) }
}

fn write_collector(one: &Collector) -> wire::Collector {
    wire::Collector {
        host: one.host.to_string(),
        port: one.port.into(),
        path: one.path.as_ref().map(ToString::to_string),
        timeout: Some(write::duration(one.timeout)),
        log_name: one.log_name.to_string(),
        layout: one.layout.as_ref().map(write_layout),
        longest: one.longest,
    }
}
