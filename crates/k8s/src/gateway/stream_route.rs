//! The Gateway API's `TLSRoute` and `TCPRoute`, `gateway.networking.k8s.io/v1` (and their earlier versions, which are the
//! same). Their parents and backends are those of [`super::http_route`].

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use super::http_route::{BackendRef, ParentRef, RouteStatus};

/// Where connections of TLS go that is passed through.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "TLSRoute",
    root = "TlsRoute",
    plural = "tlsroutes",
    doc = "Where connections of TLS go that is passed through.",
    schema = "disabled",
    namespaced,
    status = "RouteStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRouteSpec {
    /// What it is attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentRef>,
    /// Names that clients ask for; whatever they ask for where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// The rules, of which the first takes every connection.
    pub rules: Vec<StreamRule>,
    /// Whether it chooses Gateways without naming them; without meaning for Services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<String>,
}

/// Where connections go.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "TCPRoute",
    root = "TcpRoute",
    plural = "tcproutes",
    doc = "Where connections go.",
    schema = "disabled",
    namespaced,
    status = "RouteStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRouteSpec {
    /// What it is attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentRef>,
    /// The rules, of which the first takes every connection.
    pub rules: Vec<StreamRule>,
    /// Whether it chooses Gateways without naming them; without meaning for Services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<String>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRule {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The backends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<StreamBackendRef>,
}

/// A backend with its share.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StreamBackendRef {
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendRef,
    /// Its share; 1 where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}
