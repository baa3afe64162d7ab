//! Istio's `VirtualService`, `networking.istio.io/v1` (and `v1beta1`, `v1alpha3`, which are the same).

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Status;

/// Its CustomResourceDefinition. It takes whatever Istio's takes; what is wrong is told by the webhook, and in the status.
pub(super) fn crd() -> Option<CustomResourceDefinition> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let column = |name: &str, kind: &str, description: &str, path: &str| json!({"name": name, "type": kind, "description": description, "jsonPath": path});
    let columns = [
        column(
            "Gateways",
            "string",
            "The names of gateways and sidecars that should apply these routes.",
            ".spec.gateways",
        ),
        column("Hosts", "string", "The destination hosts to which traffic is being sent.", ".spec.hosts"),
        column("Age", "date", "When it was created.", ".metadata.creationTimestamp"),
    ];
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == "v1", "subresources": {"status": {}},
            "additionalPrinterColumns": columns,
            "schema": {"openAPIV3Schema": {
                "type": "object", "title": "VirtualService", "description": "What becomes of requests to hosts.",
                "properties": {"spec": anything, "status": anything},
            }},
        })
    };
    let versions = ["v1", "v1beta1", "v1alpha3"].map(version);
    let crd = json!({
        "metadata": {"name": "virtualservices.networking.istio.io"},
        "spec": {
            "group": "networking.istio.io", "scope": "Namespaced",
            "names": {
                "kind": "VirtualService", "plural": "virtualservices", "singular": "virtualservice",
                "listKind": "VirtualServiceList", "shortNames": ["vs"], "categories": ["istio-io", "networking-istio-io"],
            },
            "versions": versions,
        },
    });
    serde_json::from_value(crd).ok()
}

/// What becomes of requests to hosts.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "VirtualService",
    plural = "virtualservices",
    doc = "What becomes of requests to hosts.",
    schema = "disabled",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualServiceSpec {
    /// The hosts: names of Services, short or whole, or beginning with `*`. One without any is there for others to delegate to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Where it holds; at waypoints where absent or `mesh` is among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// For HTTP, the first that matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
    /// For TLS that is passed through.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsRoute>,
    /// For TCP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<TcpRoute>,
    /// The namespaces that see it: `*` (where absent), `.` or names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
}

/// What becomes of the requests that one of its matches describes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// Its name.
    pub name: String,
    /// Any of them; every request where there is none.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where requests go.
    pub route: Vec<HttpDestination>,
    /// The client is sent elsewhere.
    pub redirect: Option<Redirect>,
    /// An answer without a backend.
    pub direct_response: Option<DirectResponse>,
    /// Another VirtualService, whose rules come in place of this one.
    pub delegate: Option<Delegate>,
    /// What is written anew.
    pub rewrite: Option<Rewrite>,
    /// How long a request may take.
    pub timeout: Option<String>,
    /// When it is tried again.
    pub retries: Option<Retries>,
    /// Failures on purpose.
    pub fault: Option<Fault>,
    /// Who gets a copy.
    pub mirror: Option<Destination>,
    /// Who else gets a copy.
    pub mirrors: Vec<Mirror>,
    /// Of how many requests; the older of two ways to say it.
    pub mirror_percent: Option<u32>,
    /// Of how many requests.
    pub mirror_percentage: Option<Percent>,
    /// What browsers are told.
    pub cors_policy: Option<CorsPolicy>,
    /// Changes of headers.
    pub headers: Option<Headers>,
}

/// Another VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; the own one where absent.
    pub namespace: String,
}

/// What is asked of a request: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Its name; for telemetry of others.
    pub name: String,
    /// The path.
    pub uri: Option<StringMatch>,
    /// The scheme.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The host.
    pub authority: Option<StringMatch>,
    /// Headers.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that must not be so.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    pub query_params: BTreeMap<String, StringMatch>,
    /// The port that was dialled.
    pub port: Option<u16>,
    /// Labels of the client; a match with them is left out at waypoints.
    pub source_labels: BTreeMap<String, String>,
    /// The client's namespace; a match with it is left out at waypoints.
    pub source_namespace: String,
    /// Where it holds.
    pub gateways: Vec<String>,
    /// Case of a path that is equal or a beginning does not count.
    pub ignore_uri_case: bool,
    /// For telemetry of others.
    pub stat_prefix: String,
}

/// Where connections of TLS go that is passed through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// Any of them.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where connections go.
    pub route: Vec<TcpDestination>,
}

/// What is asked of a connection of TLS: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Names that clients ask for; `*.example` for all that end so.
    pub sni_hosts: Vec<String>,
    /// Addresses that are dialled; not supported.
    pub destination_subnets: Vec<String>,
    /// The port that was dialled.
    pub port: Option<u16>,
    /// Labels of the client; a match with them is left out at waypoints.
    pub source_labels: BTreeMap<String, String>,
    /// The client's namespace; a match with it is left out at waypoints.
    pub source_namespace: String,
    /// Where it holds.
    pub gateways: Vec<String>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Any of them; every connection where there is none.
    #[serde(rename = "match")]
    pub matches: Vec<TcpMatch>,
    /// Where connections go.
    pub route: Vec<TcpDestination>,
}

/// What is asked of a connection: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpMatch {
    /// Addresses that are dialled; not supported.
    pub destination_subnets: Vec<String>,
    /// Addresses of clients; not supported.
    pub source_subnet: String,
    /// The port that was dialled.
    pub port: Option<u16>,
    /// Labels of the client; a match with them is left out at waypoints.
    pub source_labels: BTreeMap<String, String>,
    /// The client's namespace; a match with it is left out at waypoints.
    pub source_namespace: String,
    /// Where it holds.
    pub gateways: Vec<String>,
}

/// A destination with its share of the connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct TcpDestination {
    /// The destination.
    pub destination: Destination,
    /// Its share, beside the others' weights.
    pub weight: Option<u32>,
}

/// How a text is compared; with nothing set, it must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct StringMatch {
    /// Equal.
    pub exact: Option<String>,
    /// Begins with.
    pub prefix: Option<String>,
    /// All of it is described.
    pub regex: Option<String>,
}

/// A destination with its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct HttpDestination {
    /// The destination.
    pub destination: Destination,
    /// Its share, beside the others' weights.
    pub weight: Option<u32>,
    /// Changes of headers.
    pub headers: Option<Headers>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Destination {
    /// A Service, by its short or whole name.
    pub host: String,
    /// Only these endpoints, as a DestinationRule names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PortSelector {
    /// Its number.
    pub number: u16,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Headers {
    /// Of requests.
    pub request: HeaderOperations,
    /// Of responses.
    pub response: HeaderOperations,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct HeaderOperations {
    /// In place of what is there.
    pub set: BTreeMap<String, String>,
    /// Beside what is there.
    pub add: BTreeMap<String, String>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// The client is sent elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// Path.
    pub uri: String,
    /// Host.
    pub authority: String,
    /// Port.
    pub port: Option<u16>,
    /// `FROM_PROTOCOL_DEFAULT` or `FROM_REQUEST_PORT`.
    pub derive_port: Option<String>,
    /// Scheme.
    pub scheme: String,
    /// 301 where absent.
    pub redirect_code: Option<u16>,
}

/// An answer without a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct DirectResponse {
    /// Status code.
    pub status: u16,
    /// Its body.
    pub body: Option<Body>,
}

/// The body of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Body {
    /// As text.
    pub string: Option<String>,
    /// In Base64.
    pub bytes: Option<String>,
}

/// What is written anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// The part of the path that the match names.
    pub uri: String,
    /// Host.
    pub authority: String,
    /// What an expression describes of the path.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// What an expression describes is written anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct RegexRewrite {
    /// The expression.
    #[serde(rename = "match")]
    pub pattern: String,
    /// What comes in its place.
    pub rewrite: String,
}

/// When a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retries {
    /// So often; 0 is never.
    pub attempts: u32,
    /// How long one try may take.
    pub per_try_timeout: Option<String>,
    /// After what, separated by commas.
    pub retry_on: String,
    /// Whether endpoints of other places may be tried.
    pub retry_remote_localities: Option<bool>,
    /// Whether endpoints that failed are avoided.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// After so long at least.
    pub backoff: Option<String>,
}

/// Failures on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Fault {
    /// Requests wait.
    pub delay: Option<Delay>,
    /// Requests fail.
    pub abort: Option<Abort>,
}

/// Requests wait.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// So long.
    pub fixed_delay: Option<String>,
    /// Not supported.
    pub exponential_delay: Option<String>,
    /// So many requests; the older of two ways to say it.
    pub percent: Option<u32>,
    /// So many requests; none where absent.
    pub percentage: Option<Percent>,
}

/// Requests fail.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// With this status.
    pub http_status: Option<u16>,
    /// With this gRPC status, by name.
    pub grpc_status: Option<String>,
    /// Not supported.
    pub http2_error: Option<String>,
    /// So many requests; none where absent.
    pub percentage: Option<Percent>,
}

/// Parts of a hundred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Percent {
    /// From 0 to 100.
    pub value: f64,
}

/// Who gets a copy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Mirror {
    /// Who.
    pub destination: Destination,
    /// Of how many requests; of all where absent.
    pub percentage: Option<Percent>,
}

/// What browsers are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Origins that may; the older of two ways to say it.
    pub allow_origin: Vec<String>,
    /// Origins that may.
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Headers that they may send.
    pub allow_headers: Vec<String>,
    /// Headers that they may read.
    pub expose_headers: Vec<String>,
    /// How long the answer holds.
    pub max_age: Option<String>,
    /// Whether with credentials.
    pub allow_credentials: Option<bool>,
    /// What becomes of questions that no origin matches: `FORWARD` (where absent) or `IGNORE`.
    pub unmatched_preflights: Option<String>,
}
