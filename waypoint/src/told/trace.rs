//! Spans: which trace a request belongs to, and what is told of it. Attributes have the names of OpenTelemetry's semantic
//! conventions for HTTP servers, and beside them those that Istio's users know.

use std::sync::Arc;

use http::HeaderMap;
use stillmesh_core::decide::telemetry::Traced;
use stillmesh_core::model::Workload;
use stillmesh_core::model::telemetry::{Collector, ProviderKind, SpanTag, TagValue};
use stillmesh_core::observe::{Facts, Field, Value as Fact};
use stillmesh_otlp::message::{AnyValue, ERROR, KeyValue, LogRecord, SERVER, Span, Status, Value};
use stillmesh_otlp::{Context, Headers, Told};

use super::collector::Kept;
use crate::config::Config;

/// Longest address that is told of where nobody says it, characters (Envoy's `max_path_tag_length`).
const LONGEST: usize = 256;

/// A span's flags: it is known whether its parent is somebody else's, and it is (OTLP, `SpanFlags`).
const REMOTE_PARENT: u32 = 0x300;

/// The span of a request that begins; it is written into the headers that go on.
pub(super) fn begin(traced: &Traced, headers: &mut HeaderMap) -> Context {
    let own = match traced.provider.kind {
        ProviderKind::Zipkin => Headers::B3,
        _ => Headers::W3c,
    };
    let sample = || rand::random_range(0..10_000) < traced.sampling;
    let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    let context = Context::of(headers, own, trace, span, sample);
    context.write(headers, own);
    context
}

/// Who takes spans, and what all of them have.
#[derive(Debug)]
pub(super) struct Spans {
    taker: Arc<Kept>,
    longest: usize,
    /// What is the same for all.
    fixed: Vec<KeyValue>,
    /// Attributes, headers of the request and what is told where those are absent.
    headers: Vec<(String, String, String)>,
}

impl Spans {
    pub fn new(taker: Arc<Kept>, collector: &Collector, tags: &[SpanTag], own: &Workload, config: &Config) -> Self {
        let mut fixed = vec![
            KeyValue::text("component", "proxy"),
            KeyValue::text("node_id", config.pod_name.as_str()),
            KeyValue::text("istio.canonical_service", &*own.canonical_name),
            KeyValue::text("istio.canonical_revision", &*own.canonical_revision),
            KeyValue::text("istio.namespace", &*own.namespace),
            KeyValue::text("istio.cluster_id", config.cluster_id.as_str()),
            KeyValue::text("istio.mesh_id", config.identity.trust_domain.to_string()),
        ];
        let mut headers = Vec::new();
        for tag in tags {
            match &tag.value {
                TagValue::Literal(text) => fixed.push(KeyValue::text(&tag.name, &**text)),
                TagValue::Header(name, default) => {
                    headers.push((tag.name.to_string(), name.to_string(), default.to_string()));
                }
            }
        }
        let longest = collector.longest.and_then(|most| usize::try_from(most).ok()).unwrap_or(LONGEST);
        Self { taker, longest, fixed, headers }
    }

    /// Tells of a request that has ended.
    pub fn tell(&self, context: &Context, facts: &Facts<'_>) {
        self.taker.0.tell(Told::Span(Box::new(self.span(context, facts))));
    }

    fn span(&self, context: &Context, facts: &Facts<'_>) -> Span {
        let mut attributes = self.fixed.clone();
        attributes.extend(self.conventional(facts));
        attributes.extend(self.istio(facts));
        for (key, name, default) in &self.headers {
            let value = facts.request.and_then(|headers| headers.get(name)).unwrap_or(default);
            // As Envoy does it: what is empty is not told.
            if !value.is_empty() {
                attributes.push(KeyValue::text(key, value));
            }
        }
        let is_error = is_error(facts);
        let state = facts.request.and_then(|headers| headers.get("tracestate")).unwrap_or_default();
        let parent = (context.parent != 0).then_some(context.parent);
        Span {
            trace_id: context.trace.to_be_bytes().to_vec(),
            span_id: context.span.to_be_bytes().to_vec(),
            parent_span_id: parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            trace_state: state.to_owned(),
            name: operation(facts),
            kind: SERVER,
            start_time_unix_nano: nanos(facts.began_us),
            end_time_unix_nano: nanos(facts.began_us.saturating_add(facts.duration_us)),
            attributes,
            status: is_error.then(|| Status { message: String::new(), code: ERROR }),
            flags: u32::from(context.is_sampled) | parent.map_or(0, |_| REMOTE_PARENT),
        }
    }

    /// Semantic conventions 1.23 and later, HTTP servers' spans.
    fn conventional(&self, facts: &Facts<'_>) -> Vec<KeyValue> {
        let mut found = vec![
            KeyValue::text("http.request.method", method(facts.method.unwrap_or_default())),
            KeyValue::text("url.scheme", "http"),
            KeyValue::text("network.protocol.name", "http"),
            KeyValue::text("network.protocol.version", if facts.protocol == Some("HTTP/2") { "2" } else { "1.1" }),
            KeyValue::number("http.request.body.size", facts.received),
            KeyValue::number("http.response.body.size", facts.sent),
        ];
        let (path, query) =
            facts.target.map(|target| target.split_once('?').unwrap_or((target, ""))).unwrap_or_default();
        found.push(KeyValue::text("url.path", self.short(path)));
        if !query.is_empty() {
            found.push(KeyValue::text("url.query", self.short(query)));
        }
        let (host, port) = parted(facts.host.unwrap_or_default());
        found.push(KeyValue::text("server.address", host));
        if let Some(port) = port.or(facts.local.map(|local| local.port())) {
            found.push(KeyValue::number("server.port", port.into()));
        }
        if let Some(client) = facts.client {
            found.push(KeyValue::text("client.address", client.ip().to_string()));
        }
        if let Some(agent) = facts.request.and_then(|headers| headers.get("user-agent")) {
            found.push(KeyValue::text("user_agent.original", agent));
        }
        if facts.code != 0 {
            found.push(KeyValue::number("http.response.status_code", facts.code.into()));
        }
        if let Some(code) = facts.grpc {
            found.push(KeyValue::number("rpc.grpc.status_code", code.into()));
        }
        if is_error(facts) {
            let kind = if facts.code == 0 { facts.flags.to_string() } else { facts.code.to_string() };
            found.push(KeyValue::text("error.type", kind));
        }
        found
    }

    /// What Envoy tells, and Istio's dashboards look for.
    fn istio(&self, facts: &Facts<'_>) -> Vec<KeyValue> {
        let text = |key: &str, field| match facts.field(field) {
            Fact::Absent => KeyValue::text(key, "-"),
            value => KeyValue::text(key, value.text().unwrap_or_default()),
        };
        let (host, target) = (facts.host.unwrap_or_default(), facts.target.unwrap_or_default());
        let mut found = vec![
            KeyValue::text("http.url", self.short(&format!("http://{host}{target}"))),
            text("http.method", Field::Method),
            text("http.protocol", Field::Protocol),
            text("http.status_code", Field::Code),
            text("response_flags", Field::Flags),
            text("guid:x-request-id", Field::Id),
            text("user_agent", Field::UserAgent),
            text("request_size", Field::Received),
            text("response_size", Field::Sent),
            text("upstream_cluster", Field::Cluster),
            text("upstream_cluster.name", Field::Cluster),
            text("upstream_address", Field::Upstream),
            text("peer.address", Field::ClientIp),
            text("istio.source_principal", Field::Peer),
        ];
        if facts.grpc.is_some() {
            found.push(text("grpc.status_code", Field::GrpcNumber));
        }
        if is_error(facts) {
            found.push(KeyValue::text("error", "true"));
        }
        found
    }

    fn short(&self, text: &str) -> String {
        text.chars().take(self.longest).collect()
    }
}

/// A server's error; a client's is none of its own.
fn is_error(facts: &Facts<'_>) -> bool {
    facts.code >= 500 || facts.code == 0
}

/// What is not one of HTTP's own methods (RFC 9110, RFC 5789) is told as one word.
fn method(name: &str) -> &str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    if known.contains(&name) { name } else { "_OTHER" }
}

/// The host and the port of an authority.
fn parted(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

/// What Istio calls a service's requests: `host:port/*`.
fn operation(facts: &Facts<'_>) -> String {
    let parts = facts.cluster.as_deref().map(|cluster| cluster.split('|').collect::<Vec<_>>());
    match parts.as_deref() {
        Some([_, port, _, host]) => format!("{host}:{port}/*"),
        _ => facts.host.unwrap_or("unknown").to_owned(),
    }
}

/// A record of a log.
pub(super) fn record(
    body: String,
    attributes: Vec<(String, String)>,
    context: Option<&Context>,
    facts: &Facts<'_>,
) -> LogRecord {
    let attributes = attributes.into_iter().map(|(key, value)| KeyValue::text(&key, value));
    LogRecord {
        time_unix_nano: nanos(facts.began_us),
        observed_time_unix_nano: nanos(facts.began_us.saturating_add(facts.duration_us)),
        body: Some(AnyValue { value: Some(Value::Text(body)) }),
        attributes: attributes.collect(),
        flags: context.map_or(0, |context| u32::from(context.is_sampled)),
        trace_id: context.map(|context| context.trace.to_be_bytes().to_vec()).unwrap_or_default(),
        span_id: context.map(|context| context.span.to_be_bytes().to_vec()).unwrap_or_default(),
    }
}

fn nanos(micros: i64) -> u64 {
    u64::try_from(micros).unwrap_or_default().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_have_a_host_and_may_have_a_port() {
        assert_eq!(parted("a.example"), ("a.example", None));
        assert_eq!(parted("a.example:80"), ("a.example", Some(80)));
        assert_eq!(parted("[fd00::1]:80"), ("[fd00::1]", Some(80)));
        assert_eq!(parted("[fd00::1]"), ("[fd00::1]", None));
        assert_eq!(parted("fd00::1"), ("fd00::1", None));
    }

    #[test]
    fn spans_are_named_by_service_and_port_and_methods_are_few() {
        let cluster = Facts { cluster: Some("inbound-vip|80|http|web.shop.svc".into()), ..Facts::default() };
        assert_eq!(operation(&cluster), "web.shop.svc:80/*");
        assert_eq!(operation(&Facts { host: Some("web"), ..Facts::default() }), "web");
        assert_eq!((method("PATCH"), method("patch")), ("PATCH", "_OTHER"));
    }
}
