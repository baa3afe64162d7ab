//! What users ask to be told of requests and connections at waypoints: Istio's Telemetry resources, and the providers that
//! the mesh's configuration names. They decide nothing.

use serde::Serialize;

use super::{PolicyKey, ServiceKey, Str};
use crate::observe::{Expression, Layout, Redaction};

/// One Telemetry resource, as far as waypoints carry it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// Primary key.
    pub key: PolicyKey,
    /// For what.
    pub scope: TelemetryScope,
    /// Seconds since 1970: of several for the same the oldest holds.
    pub created: i64,
    /// Access logs, in order: what comes later holds.
    pub logs: Vec<LogRule>,
    /// Metrics, likewise.
    pub metrics: Vec<MetricRule>,
    /// Traces, likewise.
    pub tracing: Vec<TraceRule>,
}

/// What a Telemetry is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TelemetryScope {
    /// All waypoints.
    Mesh,
    /// Waypoints of its namespace.
    Namespace,
    /// These services; that of a waypoint itself stands for all that it carries.
    To(Vec<ServiceKey>),
}

/// Where requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRule {
    /// By name; none: those that hold already.
    pub providers: Vec<Str>,
    /// Nothing is written there.
    pub is_disabled: bool,
    /// Only what this holds for.
    pub filter: Option<Expression>,
}

/// What of metrics is otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricRule {
    /// By name; none: those that hold already.
    pub providers: Vec<Str>,
    /// In order: what comes later holds.
    pub overrides: Vec<MetricOverride>,
}

/// What of one metric, or of all, is otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricOverride {
    /// Which; `None`: all.
    pub metric: Option<MetricName>,
    /// Whether it is not counted; `None`: as it was.
    pub is_disabled: Option<bool>,
    /// Labels that have another value; without one they are left out.
    pub tags: Vec<(Str, Option<Expression>)>,
}

macro_rules! metrics {
    ($($name:ident $text:literal $metric:literal)+) => {
        /// A standard metric, by Istio's name for it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum MetricName {
            $(#[doc = $metric] $name,)+
        }

        impl MetricName {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As Telemetry names it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// As it is served.
            pub const fn served(self) -> &'static str {
                match self { $(Self::$name => $metric),+ }
            }
        }
    };
}

metrics! {
    RequestCount "REQUEST_COUNT" "istio_requests_total"
    RequestDuration "REQUEST_DURATION" "istio_request_duration_milliseconds"
    RequestSize "REQUEST_SIZE" "istio_request_bytes"
    ResponseSize "RESPONSE_SIZE" "istio_response_bytes"
    TcpOpenedConnections "TCP_OPENED_CONNECTIONS" "istio_tcp_connections_opened_total"
    TcpClosedConnections "TCP_CLOSED_CONNECTIONS" "istio_tcp_connections_closed_total"
    TcpSentBytes "TCP_SENT_BYTES" "istio_tcp_sent_bytes_total"
    TcpReceivedBytes "TCP_RECEIVED_BYTES" "istio_tcp_received_bytes_total"
    GrpcRequestMessages "GRPC_REQUEST_MESSAGES" "istio_request_messages_total"
    GrpcResponseMessages "GRPC_RESPONSE_MESSAGES" "istio_response_messages_total"
}

impl MetricName {
    /// The metric of this name.
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.as_str() == text)
    }
}

/// Which requests are traced, and what their spans have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceRule {
    /// By name; none: those that hold already.
    pub providers: Vec<Str>,
    /// Spans are not reported; headers go on all the same. `None`: as it was.
    pub is_disabled: Option<bool>,
    /// Of ten thousand requests whose clients do not say whether they are traced; `None`: as it was.
    pub sampling: Option<u32>,
    /// What spans have beside their usual attributes.
    pub tags: Vec<SpanTag>,
}

/// One attribute of spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpanTag {
    /// Its name.
    pub name: Str,
    /// Its value.
    pub value: TagValue,
}

/// Where an attribute's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TagValue {
    /// As written.
    Literal(Str),
    /// A header of the request, else this.
    Header(Str, Str),
}

/// What the mesh's configuration says of telemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetrySettings {
    /// Where it is written.
    pub key: PolicyKey,
    /// What Telemetry may name. Istio's own, `envoy` and `prometheus`, are there without being written.
    pub providers: Vec<Provider>,
    /// Providers of access logs where no Telemetry says it.
    pub default_logs: Vec<Str>,
    /// Providers of traces, likewise.
    pub default_tracing: Vec<Str>,
    /// `accessLogFile`: where requests are logged if nobody says anything else.
    pub log: Option<FileLog>,
    /// How `envoy`, the provider that need not be written, writes.
    pub layout: Layout,
    /// Of ten thousand requests, those that are traced where no Telemetry says it; `None`: Istio's 100.
    pub sampling: Option<u32>,
    /// What is never told.
    pub redaction: Redaction,
}

impl TelemetrySettings {
    /// What holds where nothing is written.
    pub fn new(key: PolicyKey) -> Self {
        Self {
            key,
            providers: Vec::new(),
            default_logs: Vec::new(),
            default_tracing: Vec::new(),
            log: None,
            layout: Layout::text(),
            sampling: None,
            redaction: Redaction::default(),
        }
    }
}

/// Something that Telemetry may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// Its name.
    pub name: Str,
    /// What it is.
    pub kind: ProviderKind,
}

/// What a provider is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProviderKind {
    /// Lines in a file.
    File(FileLog),
    /// Records of logs over OTLP.
    LogCollector(Collector),
    /// Spans over OTLP; W3C's headers, where clients send none.
    TraceCollector(Collector),
    /// B3's headers, where clients send none; spans are not reported.
    Zipkin,
    /// Metrics.
    Prometheus,
}

/// A file of access logs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileLog {
    /// `/dev/stdout`, `/dev/stderr` or a file of the waypoint's.
    pub path: Str,
    /// How a line is written.
    pub layout: Layout,
}

/// Who takes spans or records of logs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collector {
    /// A service's hostname, or another name or address.
    pub host: Str,
    /// Its port.
    pub port: u16,
    /// HTTP's path; `None`: gRPC.
    pub path: Option<Str>,
    /// How long one export may take.
    pub timeout: std::time::Duration,
    /// Name of the log; empty for traces.
    pub log_name: Str,
    /// A log record's body and attributes; `None` for traces, and where nothing is written.
    pub layout: Option<Layout>,
    /// The longest path that is told of, bytes.
    pub longest: Option<u32>,
}
