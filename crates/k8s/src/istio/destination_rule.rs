//! Istio's `DestinationRule`, `networking.istio.io/v1` (and `v1beta1`, `v1alpha3`, which are the same).

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Status;

/// Its CustomResourceDefinition. It takes whatever Istio's takes; what is wrong is told by the webhook, and in the status.
pub(super) fn crd() -> Option<CustomResourceDefinition> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let columns = [
        json!({
            "name": "Host", "type": "string", "description": "The name of a service from the service registry.",
            "jsonPath": ".spec.host",
        }),
        json!({
            "name": "Age", "type": "date", "description": "When it was created.",
            "jsonPath": ".metadata.creationTimestamp",
        }),
    ];
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == "v1", "subresources": {"status": {}},
            "additionalPrinterColumns": columns,
            "schema": {"openAPIV3Schema": {
                "type": "object", "title": "DestinationRule", "description": "How the endpoints of a host are treated.",
                "properties": {"spec": anything, "status": anything},
            }},
        })
    };
    let versions = ["v1", "v1beta1", "v1alpha3"].map(version);
    let crd = json!({
        "metadata": {"name": "destinationrules.networking.istio.io"},
        "spec": {
            "group": "networking.istio.io", "scope": "Namespaced",
            "names": {
                "kind": "DestinationRule", "plural": "destinationrules", "singular": "destinationrule",
                "listKind": "DestinationRuleList", "shortNames": ["dr"],
                "categories": ["istio-io", "networking-istio-io"],
            },
            "versions": versions,
        },
    });
    serde_json::from_value(crd).ok()
}

/// How the endpoints of a host are treated.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "DestinationRule",
    plural = "destinationrules",
    doc = "How the endpoints of a host are treated.",
    schema = "disabled",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// The name of a Service, short or whole, or beginning with `*`.
    pub host: String,
    /// For all endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// The namespaces whose waypoints go by it: all where absent; `.` is its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// The clients that it is for, where these have proxies of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<Value>,
}

/// Some of the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// By which routes name it.
    pub name: String,
    /// The labels that their pods have; all endpoints without.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Before what is said for all endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How endpoints are treated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How one is picked.
    pub load_balancer: Option<LoadBalancer>,
    /// How much is sent to them.
    pub connection_pool: Option<ConnectionPool>,
    /// Which are left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the client's own.
    pub tls: Option<Tls>,
    /// For single ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// A tunnel through another proxy.
    pub tunnel: Option<Value>,
    /// The PROXY protocol.
    pub proxy_protocol: Option<Value>,
    /// What share of requests may be retries.
    pub retry_budget: Option<Value>,
}

/// How the endpoints of one port are treated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The Service's port.
    pub port: Option<PortSelector>,
    /// See [`TrafficPolicy`].
    pub load_balancer: Option<LoadBalancer>,
    /// See [`TrafficPolicy`].
    pub connection_pool: Option<ConnectionPool>,
    /// See [`TrafficPolicy`].
    pub outlier_detection: Option<OutlierDetection>,
    /// See [`TrafficPolicy`].
    pub tls: Option<Tls>,
}

/// A port by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PortSelector {
    /// The number.
    pub number: u32,
}

/// TLS of the client's own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tls {
    /// `DISABLE`, `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
    pub mode: String,
    /// A certificate's file.
    pub client_certificate: Option<String>,
    /// Its key's file.
    pub private_key: Option<String>,
    /// A file of trusted certificates.
    pub ca_certificates: Option<String>,
    /// A Secret with all of them.
    pub credential_name: Option<String>,
    /// Names that are accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// The name that is asked for.
    pub sni: Option<String>,
    /// Whether the peer's certificate is not looked at.
    pub insecure_skip_verify: Option<bool>,
    /// A file of revoked certificates.
    pub ca_crl: Option<String>,
}

/// How one endpoint of several is picked.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// `LEAST_REQUEST`, `ROUND_ROBIN`, `RANDOM`, `PASSTHROUGH`.
    pub simple: Option<String>,
    /// By something of the request.
    pub consistent_hash: Option<ConsistentHash>,
    /// By place.
    pub locality_lb_setting: Option<LocalitySetting>,
    /// How long a new endpoint takes to its share; the older of two ways to say it.
    pub warmup_duration_secs: Option<String>,
    /// How a new endpoint comes to its share.
    pub warmup: Option<Warmup>,
}

/// How a new endpoint comes to its share.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Warmup {
    /// How long it takes.
    pub duration: Option<String>,
    /// What it begins with, of a hundred; 10 where absent.
    pub minimum_percent: Option<f64>,
    /// 1 where absent: it grows evenly.
    pub aggression: Option<f64>,
}

/// What decides about a request's endpoint. One of these.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// A header.
    pub http_header_name: Option<String>,
    /// A cookie.
    pub http_cookie: Option<HttpCookie>,
    /// The client's address.
    pub use_source_ip: Option<bool>,
    /// A parameter of the query.
    pub http_query_parameter_name: Option<String>,
    /// Of Envoy's ring; nothing here has a size.
    pub minimum_ring_size: Option<u64>,
    /// Likewise.
    pub ring_hash: Option<Value>,
    /// Likewise.
    pub maglev: Option<Value>,
}

/// A cookie that decides about a request's endpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// The path that it is set for.
    pub path: Option<String>,
    /// How long it lives; none is set where absent.
    pub ttl: Option<String>,
    /// Further attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Value>,
}

/// By place.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalitySetting {
    /// Shares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distribute: Vec<Distribute>,
    /// Regions that stand in for others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Failover>,
    /// What endpoints ought to have in common with the client.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failover_priority: Vec<String>,
    /// Whether place counts; it does where absent.
    pub enabled: Option<bool>,
}

/// How what comes from one place is shared among places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Distribute {
    /// `region/zone/subzone`, with `*`.
    pub from: String,
    /// Of a hundred, by place.
    pub to: BTreeMap<String, u32>,
}

/// A region that stands in for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Failover {
    /// The one that fails.
    pub from: String,
    /// The one that stands in.
    pub to: String,
}

/// How much is sent to the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Of TCP, HTTP's connections included.
    pub tcp: Option<TcpSettings>,
    /// Of HTTP.
    pub http: Option<HttpSettings>,
}

/// Of TCP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// Connections at a time.
    pub max_connections: Option<i64>,
    /// How long connecting may take.
    pub connect_timeout: Option<String>,
    /// Probes of idle connections.
    pub tcp_keepalive: Option<Value>,
    /// How long a connection lives.
    pub max_connection_duration: Option<String>,
    /// How long nothing may pass on one.
    pub idle_timeout: Option<String>,
}

/// Of HTTP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    #[serde(rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: Option<i64>,
    /// Requests at a time.
    #[serde(rename = "http2MaxRequests")]
    pub http2_max_requests: Option<i64>,
    /// Requests of one connection.
    pub max_requests_per_connection: Option<i64>,
    /// Retries at a time.
    pub max_retries: Option<i64>,
    /// How long a connection may be without requests.
    pub idle_timeout: Option<String>,
    /// `DEFAULT`, `DO_NOT_UPGRADE` or `UPGRADE`.
    pub h2_upgrade_policy: Option<String>,
    /// Whether the client's version is spoken.
    pub use_client_protocol: Option<bool>,
    /// Requests at a time on one HTTP/2 connection.
    pub max_concurrent_streams: Option<i64>,
}

/// Which endpoints are left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Whether tries without an answer are counted by themselves.
    pub split_external_local_origin_errors: Option<bool>,
    /// After so many of them; 5 where absent.
    pub consecutive_local_origin_failures: Option<u32>,
    /// After so many answers with 502, 503 or 504.
    pub consecutive_gateway_errors: Option<u32>,
    /// After so many answers with 5xx; 5 where absent.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// The older name for gateway errors.
    pub consecutive_errors: Option<u32>,
    /// 10 s where absent.
    pub interval: Option<String>,
    /// 30 s where absent.
    pub base_ejection_time: Option<String>,
    /// Of a hundred; 10 where absent.
    pub max_ejection_percent: Option<u32>,
    /// Of a hundred; 0 where absent.
    pub min_health_percent: Option<u32>,
}
