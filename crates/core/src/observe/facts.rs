//! The facts, and the names that formats and expressions have for them.

use std::borrow::Cow;

use crate::model::Str;

/// What is known of a request or TCP connection that has ended. What is unknown is `None`.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// Headers of the request that somebody asked for.
    pub request: Option<&'a Captured>,
    /// The same of the response.
    pub response: Option<&'a Captured>,
    /// When it began, microseconds since 1970.
    pub began_us: i64,
    /// How long it took, microseconds.
    pub duration_us: i64,
    /// Until the endpoint's answer began, microseconds.
    pub answered_us: Option<i64>,
    /// What the endpoint took for its answer, milliseconds.
    pub upstream_ms: Option<i64>,
    /// `GET`.
    pub method: Option<&'a str>,
    /// Path and query; what is hidden of the query is left out already.
    pub target: Option<&'a str>,
    /// The host that was asked for.
    pub host: Option<&'a str>,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: Option<&'static str>,
    /// The request's id.
    pub id: Option<&'a str>,
    /// The answer's code; 0: none.
    pub code: u16,
    /// Why it was answered so, in Envoy's words.
    pub code_details: Option<Cow<'a, str>>,
    /// Why its connection was ended.
    pub termination: Option<&'a str>,
    /// Why the endpoint was not reached.
    pub upstream_failure: Option<&'a str>,
    /// How it ended, in Envoy's short codes; `-` where it went well.
    pub flags: Cow<'a, str>,
    /// gRPC's code.
    pub grpc: Option<u8>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// How often it was sent to an endpoint.
    pub attempts: u16,
    /// The rule that took it.
    pub route: Option<Cow<'a, str>>,
    /// The endpoint, `ip:port`.
    pub upstream: Option<std::net::SocketAddr>,
    /// The service behind, as Istio names its cluster.
    pub cluster: Option<Cow<'a, str>>,
    /// The client.
    pub client: Option<std::net::SocketAddr>,
    /// What the client dialled.
    pub local: Option<std::net::SocketAddr>,
    /// The client's identity.
    pub peer: Option<Cow<'a, str>>,
    /// The name that a client of TLS asked for.
    pub server_name: Option<&'a str>,
    /// The waypoint's own pod.
    pub hostname: Option<&'a str>,
    /// The trace that it is part of.
    pub trace: Option<Cow<'a, str>>,
}

/// Headers that were kept, by their names in lower case; hidden ones already read [`super::HIDDEN`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured(Vec<(Str, String)>);

impl Captured {
    /// Keeps one; a second value of the same name is put behind the first.
    pub fn keep(&mut self, name: &Str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, text)) => {
                text.push(',');
                text.push_str(value);
            }
            None => self.0.push((name.clone(), value.to_owned())),
        }
    }

    /// The value of a header; its name in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, text)| text.as_str())
    }
}

/// One fact's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// It is not known.
    Absent,
    /// Whether.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// Time, microseconds.
    Duration(i64),
}

macro_rules! fields {
    ($($name:ident: $doc:literal, $operator:expr, $attribute:expr;)+) => {
        /// One fact, whoever asks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field {
            $(#[doc = $doc] $name,)+
        }

        impl Field {
            /// Every one, with its name in formats and in expressions; empty where it has none.
            pub(super) const ALL: &[(Self, &'static str, &'static str)] = &[$((Self::$name, $operator, $attribute)),+];
        }
    };
}

fields! {
    Method: "What is done.", "", "request.method";
    Target: "Path and query.", "", "request.path";
    UrlPath: "The path alone.", "", "request.url_path";
    Query: "The query alone.", "", "request.query";
    Host: "The host that was asked for.", "", "request.host";
    Scheme: "Always http.", "", "request.scheme";
    Protocol: "HTTP's version.", "PROTOCOL", "request.protocol";
    Id: "The request's id.", "", "request.id";
    UserAgent: "The client's program.", "", "request.useragent";
    Referer: "Where the client comes from.", "", "request.referer";
    Code: "The answer's code.", "RESPONSE_CODE", "response.code";
    CodeDetails: "Why it was answered so.", "RESPONSE_CODE_DETAILS", "response.code_details";
    Termination: "Why its connection was ended.", "CONNECTION_TERMINATION_DETAILS", "connection.termination_details";
    Flags: "How it ended.", "RESPONSE_FLAGS", "";
    Grpc: "gRPC's code, by name.", "GRPC_STATUS", "";
    GrpcNumber: "gRPC's code.", "GRPC_STATUS_NUMBER", "response.grpc_status";
    Received: "Bytes of the request's body.", "BYTES_RECEIVED", "request.size";
    Sent: "Bytes of the answer's body.", "BYTES_SENT", "response.size";
    Duration: "How long it took.", "DURATION", "request.duration";
    Answered: "Until the answer began.", "RESPONSE_DURATION", "";
    Route: "The rule that took it.", "ROUTE_NAME", "xds.route_name";
    Attempts: "How often it was sent.", "UPSTREAM_REQUEST_ATTEMPT_COUNT", "upstream.request_attempt_count";
    Upstream: "The endpoint.", "UPSTREAM_HOST", "upstream.address";
    UpstreamRemote: "The endpoint.", "UPSTREAM_REMOTE_ADDRESS", "";
    UpstreamIp: "The endpoint's address.", "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "";
    UpstreamPort: "The endpoint's port.", "UPSTREAM_REMOTE_PORT", "upstream.port";
    UpstreamLocal: "Not known here.", "UPSTREAM_LOCAL_ADDRESS", "";
    Cluster: "The service behind.", "UPSTREAM_CLUSTER", "xds.cluster_name";
    ClusterRaw: "The service behind.", "UPSTREAM_CLUSTER_RAW", "";
    UpstreamFailure: "Why the endpoint was not reached.", "UPSTREAM_TRANSPORT_FAILURE_REASON", "upstream.transport_failure_reason";
    Client: "The client.", "DOWNSTREAM_REMOTE_ADDRESS", "source.address";
    ClientDirect: "The client.", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "";
    ClientIp: "The client's address.", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "";
    ClientDirectIp: "The client's address.", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "";
    ClientPort: "The client's port.", "DOWNSTREAM_REMOTE_PORT", "source.port";
    Local: "What the client dialled.", "DOWNSTREAM_LOCAL_ADDRESS", "destination.address";
    LocalIp: "The address that the client dialled.", "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "";
    LocalPort: "The port that the client dialled.", "DOWNSTREAM_LOCAL_PORT", "destination.port";
    Peer: "The client's identity.", "DOWNSTREAM_PEER_URI_SAN", "connection.uri_san_peer_certificate";
    Tls: "Always true: clients come by mutual TLS.", "", "connection.mtls";
    ServerName: "The name that a client of TLS asked for.", "REQUESTED_SERVER_NAME", "connection.requested_server_name";
    Hostname: "The waypoint's own pod.", "HOSTNAME", "";
    Trace: "The trace that it is part of.", "TRACE_ID", "";
}

/// gRPC's codes, as Envoy writes them.
const GRPC: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

impl<'a> Facts<'a> {
    /// The value of a field.
    pub fn field(&self, field: Field) -> Value<'_> {
        let text = |text: Option<&'a str>| text.map_or(Value::Absent, |text| Value::Text(text.into()));
        let parted = self.target.map(|target| target.split_once('?').unwrap_or((target, "")));
        let header = |name| self.request.and_then(|headers| headers.get(name)).map_or(Value::Absent, Value::from);
        let shown = |one: Option<std::net::SocketAddr>| {
            one.map_or(Value::Absent, |address| Value::Text(address.to_string().into()))
        };
        let ip = |one: Option<std::net::SocketAddr>| {
            one.map_or(Value::Absent, |address| Value::Text(address.ip().to_string().into()))
        };
        let port = |one: Option<std::net::SocketAddr>| {
            one.map_or(Value::Absent, |address| Value::Number(f64::from(address.port())))
        };
        match field {
            Field::Method => text(self.method),
            Field::Target => text(self.target),
            Field::UrlPath => text(parted.map(|(path, _)| path)),
            Field::Query => text(parted.map(|(_, query)| query)),
            Field::Host => text(self.host),
            Field::Scheme => text(self.method.map(|_| "http")),
            Field::Protocol => text(self.protocol),
            Field::Id => text(self.id),
            Field::UserAgent => header("user-agent"),
            Field::Referer => header("referer"),
            Field::Code => Value::Number(f64::from(self.code)),
            Field::CodeDetails => borrowed(self.code_details.as_deref()),
            Field::Termination => text(self.termination),
            Field::Flags => Value::Text(if self.flags.is_empty() { "-".into() } else { self.flags.as_ref().into() }),
            Field::Grpc => text(self.grpc.and_then(|code| GRPC.get(usize::from(code)).copied())),
            Field::GrpcNumber => self.grpc.map_or(Value::Absent, |code| Value::Number(f64::from(code))),
            Field::Received => Value::Number(self.received as f64),
            Field::Sent => Value::Number(self.sent as f64),
            Field::Duration => Value::Duration(self.duration_us),
            Field::Answered => self.answered_us.map_or(Value::Absent, Value::Duration),
            Field::Route => borrowed(self.route.as_deref()),
            Field::Attempts => Value::Number(f64::from(self.attempts)),
            Field::Upstream | Field::UpstreamRemote => shown(self.upstream),
            Field::UpstreamIp => ip(self.upstream),
            Field::UpstreamPort => port(self.upstream),
            Field::UpstreamLocal => Value::Absent,
            Field::Cluster | Field::ClusterRaw => borrowed(self.cluster.as_deref()),
            Field::UpstreamFailure => text(self.upstream_failure),
            Field::Client | Field::ClientDirect => shown(self.client),
            Field::ClientIp | Field::ClientDirectIp => ip(self.client),
            Field::ClientPort => port(self.client),
            Field::Local => shown(self.local),
            Field::LocalIp => ip(self.local),
            Field::LocalPort => port(self.local),
            Field::Peer => borrowed(self.peer.as_deref()),
            Field::Tls => Value::Bool(true),
            Field::ServerName => text(self.server_name),
            Field::Hostname => text(self.hostname),
            Field::Trace => borrowed(self.trace.as_deref()),
        }
    }

    /// A header of the request, or what formats call so: `:method`, `:path`, `:authority`, `:scheme`.
    pub(super) fn request_header(&self, name: &str) -> Option<&str> {
        match name {
            ":method" => self.method,
            ":path" => self.target,
            ":authority" | "host" => self.host,
            ":scheme" => self.method.map(|_| "http"),
            "x-request-id" => self.id,
            name => self.request?.get(name),
        }
    }

    /// A header of the response.
    pub(super) fn response_header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":status" => (self.code > 0).then(|| self.code.to_string().into()),
            // Envoy writes it into the response; nobody else needs it there.
            "x-envoy-upstream-service-time" => self.upstream_ms.map(|millis| millis.to_string().into()),
            name => self.response?.get(name).map(Cow::Borrowed),
        }
    }
}

fn borrowed(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Absent, Value::from)
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

impl Value<'_> {
    /// As formats write it; `None` where it is absent.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Absent => None,
            Self::Bool(value) => Some(value.to_string().into()),
            Self::Number(number) => Some(number.to_string().into()),
            Self::Text(text) => Some(text.as_ref().into()),
            Self::Duration(micros) => Some((micros / 1000).to_string().into()),
        }
    }
}
