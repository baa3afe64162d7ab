//! The Gateway API's `Gateway` and `GatewayClass`, `gateway.networking.k8s.io/v1` (and `v1beta1`, which is the same), as
//! far as waypoints need them. Their CustomResourceDefinitions are the user's own.
//!
//! [`class`] says which gateways are ours, [`binding`] who is bound to which of them and why, [`generate`] what runs one,
//! [`overlay`] what is to be different in that, [`condition`] what is said about it.

pub mod binding;
pub mod class;
pub mod condition;
pub mod generate;
pub mod grpc_route;
pub mod http_route;
mod merge;
pub mod overlay;
pub mod revision;
pub mod stream_route;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::istio::StatusCondition;

/// Port on which a waypoint takes tunnels.
pub const HBONE_PORT: u16 = 15008;
/// Protocol of the listener for tunnels.
pub const HBONE: &str = "HBONE";

/// Where traffic enters: here, a waypoint.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "Gateway",
    doc = "Where traffic enters: here, a waypoint.",
    schema = "disabled",
    namespaced,
    status = "GatewayStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Name of its class.
    pub gateway_class_name: String,
    /// What it listens for.
    pub listeners: Vec<Listener>,
    /// Addresses that are asked for; waypoints have their Service's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Value>,
    /// What the objects that run it get besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
    /// Who may add listeners; without meaning for waypoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_listeners: Option<Value>,
    /// TLS of the gateway; without meaning for waypoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Value>,
    /// Whether routes may choose it without naming it; without meaning for waypoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_scope: Option<String>,
}

/// One port with what it speaks.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Its name, unique in the Gateway.
    pub name: String,
    /// The host that it is for; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its port.
    pub port: u16,
    /// What it speaks.
    pub protocol: String,
    /// How it ends TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Value>,
    /// Who may attach to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// Who may attach to a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct AllowedRoutes {
    /// From where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Which kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Value>,
}

/// Namespaces that may attach.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// `Same` (where absent), `All`, `Selector` or `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// For `Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// What the objects that run a Gateway get besides.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// An object with more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<Value>,
}

/// What a controller says about a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// Where it can be reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// The conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<StatusCondition>,
    /// What is said about each listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
}

/// One address of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Address {
    /// `Hostname` or `IPAddress`.
    #[serde(rename = "type")]
    pub type_: String,
    /// The address.
    pub value: String,
}

/// What is said about a listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Kinds of routes that may attach.
    pub supported_kinds: Vec<RouteKind>,
    /// How many routes have attached.
    pub attached_routes: i32,
    /// The conditions.
    pub conditions: Vec<StatusCondition>,
}

/// A kind of routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct RouteKind {
    /// Its API group.
    pub group: String,
    /// Its kind.
    pub kind: String,
}

/// A class of Gateways: who runs them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "GatewayClass",
    plural = "gatewayclasses",
    doc = "A class of Gateways: who runs them.",
    schema = "disabled",
    status = "GatewayClassStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// Who runs its Gateways.
    pub controller_name: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An object with more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<Value>,
}

/// What a controller says about a GatewayClass.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassStatus {
    /// The conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<StatusCondition>,
    /// What it can do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supported_features: Vec<Feature>,
}

/// Something that the Gateway API names and its conformance tests try.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Feature {
    /// Its name.
    pub name: String,
}

impl Gateway {
    /// The listener that takes tunnels.
    pub fn tunnel_listener(&self) -> Option<&Listener> {
        self.spec.listeners.iter().find(|one| one.protocol == HBONE && one.port == HBONE_PORT)
    }
}
