//! Steering: orders that take pods out of the mesh for a while ([`Bypass`], `stillmesh.io/v1alpha1`), or cut them off from
//! everybody ([`Quarantine`]).
//!
//! An order holds from the moment it is there until its object says that it is over: its user has ended it
//! (`spec.ended`), or the controller's leader, whose clock alone counts, has written `status.phase: Ended`. Agents and
//! controllers judge by the object and by nothing else, so one that restarts in between keeps to it.

mod orders;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::istio::{StatusCondition, WorkloadSelector};

pub use orders::{DEFAULT_DURATION, KEPT, LONGEST, Order, Orders};

/// API group of the mesh's own kinds.
pub const GROUP: &str = "stillmesh.io";
/// Annotation of a pod with what the agent has done with it; see [`OutReceipt`].
pub const RECEIPT: &str = "stillmesh.io/receipt";
/// Annotation of a pod that a Quarantine cuts off; see [`CutReceipt`].
pub const QUARANTINE: &str = "stillmesh.io/quarantine";

/// Takes pods out of the mesh for a while: their traffic goes as if there were no mesh.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "stillmesh.io",
    version = "v1alpha1",
    kind = "Bypass",
    doc = "Takes pods out of the mesh for a while.",
    plural = "bypasses",
    singular = "bypass",
    category = "stillmesh",
    namespaced,
    status = "SteeringStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Phase","type":"string","description":"Active, Ended or Refused.","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Done","type":"string","description":"What has been done, on how many nodes.","jsonPath":".status.summary"}"#,
    printcolumn = r#"{"name":"Until","type":"string","description":"When it ends by itself.","jsonPath":".status.until"}"#,
    printcolumn = r#"{"name":"By","type":"string","description":"Who asked for it.","jsonPath":".spec.requestedBy"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","description":"Why.","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","description":"Since when it holds.","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BypassSpec {
    /// Names of pods of the order's namespace; with `selector`, pods that either means.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub pods: Vec<String>,
    /// Pods of the order's namespace with these labels. Without it and without `pods`: every pod of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The whole mesh; only in the mesh's own namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mesh: bool,
    /// How long, such as `30m`, at most `168h`; 30 minutes where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub duration: Option<String>,
    /// Why, for those who find it.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Who asks for it. In a cluster the API server takes the name of whoever writes, and no other.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub requested_by: String,
    /// It is over, before its time. It cannot be taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Who has ended it; as with `requestedBy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub ended_by: Option<String>,
}

/// Cuts pods off for a while: nothing is carried to or from them, and what is open is closed.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "stillmesh.io",
    version = "v1alpha1",
    kind = "Quarantine",
    doc = "Cuts pods of the mesh off from everybody for a while.",
    plural = "quarantines",
    singular = "quarantine",
    category = "stillmesh",
    namespaced,
    status = "SteeringStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Phase","type":"string","description":"Active, Ended or Refused.","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Done","type":"string","description":"What has been done, on how many nodes.","jsonPath":".status.summary"}"#,
    printcolumn = r#"{"name":"Cut","type":"integer","description":"How many open connections were closed.","jsonPath":".status.connections"}"#,
    printcolumn = r#"{"name":"Until","type":"string","description":"When it ends by itself.","jsonPath":".status.until"}"#,
    printcolumn = r#"{"name":"By","type":"string","description":"Who asked for it.","jsonPath":".spec.requestedBy"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","description":"Why.","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","description":"Since when it holds.","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineSpec {
    /// Names of pods of the order's namespace; with `selector`, pods that either means.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub pods: Vec<String>,
    /// Pods of the order's namespace with these labels. Without it and without `pods`: every pod of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// How long, such as `30m`, at most `168h`; 30 minutes where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub duration: Option<String>,
    /// Why, for those who find it.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Who asks for it. In a cluster the API server takes the name of whoever writes, and no other.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub requested_by: String,
    /// It is over, before its time. It cannot be taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Who has ended it; as with `requestedBy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub ended_by: Option<String>,
}

/// What has become of an order. The controller's leader writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SteeringStatus {
    /// `Active`, `Ended`, or `Refused` where the order cannot be carried out as it is written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// What has been done, in a few words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Who asked for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub requested_by: String,
    /// Who has ended it before its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// Since when it holds (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When it ends by itself (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// When it ended (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// How many pods of the mesh it means.
    pub pods: u32,
    /// On how many of them it is carried out.
    pub done: u32,
    /// Of the pods, how many are as they were before it: after the end, those that are back.
    pub returned: u32,
    /// How many connections it found open. A Bypass lets them go on, a Quarantine has cut them.
    pub connections: u32,
    /// Each node with such pods, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeSteering>,
    /// The conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<StatusCondition>,
    /// The generation that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// An order on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSteering {
    /// The node.
    pub node: String,
    /// Pods that are meant.
    pub pods: u32,
    /// Of these, where it is carried out.
    pub done: u32,
    /// When it was on the last of them (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The longest that it took on a pod, from the moment that the node heard of it. Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Connections that were open in the tunnel: a Bypass lets them go on, a Quarantine has cut them.
    pub connections: u32,
}

/// What the agent writes on a pod that it has taken out for a Bypass, in annotation [`RECEIPT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutReceipt {
    /// The order, as `namespace/name`.
    pub bypass: String,
    /// The order's UID.
    pub order: String,
    /// When capture was out (RFC 3339).
    pub time: String,
    /// How long that took from the moment that the agent heard of the order. Milliseconds.
    pub took_ms: u64,
    /// Connections that the tunnel carried then, and goes on to carry until they end.
    pub carried: usize,
}

impl OutReceipt {
    /// What a pod's annotation says; `None` where it says something else.
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        serde_json::from_str(metadata.annotations.as_ref()?.get(RECEIPT)?).ok()
    }
}

/// What the agent writes on a pod that its node's tunnel has cut off for a Quarantine, in annotation [`QUARANTINE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CutReceipt {
    /// The order, as `namespace/name`.
    pub quarantine: String,
    /// The order's UID; empty where an agent of the version before wrote it.
    #[serde(default)]
    pub order: String,
    /// When the tunnel had cut it off (RFC 3339).
    pub time: String,
    /// How long that took from the moment that the tunnel heard of the order. Milliseconds.
    pub took_ms: u64,
    /// Connections of the pod that it has closed.
    pub cut: u64,
}

impl CutReceipt {
    /// What a pod's annotation says; `None` where it says something else.
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        serde_json::from_str(metadata.annotations.as_ref()?.get(QUARANTINE)?).ok()
    }

    /// Whether it is about this order, and not about one that had its name before.
    pub fn is_of(&self, order: &Order) -> bool {
        self.quarantine == order.name() && (self.order.is_empty() || self.order == order.uid)
    }
}

/// The CustomResourceDefinitions of orders.
pub fn crds() -> [CustomResourceDefinition; 2] {
    [Bypass::crd(), Quarantine::crd()]
}
