//! Istio's `Telemetry`, `telemetry.istio.io/v1` (and `v1alpha1`, which is the same).

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{PolicyTargetReference, Provider, Status, WorkloadSelector};

/// Its CustomResourceDefinition. It takes whatever Istio's takes; what is wrong is told by the webhook, and in the status.
pub(super) fn crd() -> Option<CustomResourceDefinition> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let age = json!({
        "name": "Age", "type": "date", "description": "When it was created.",
        "jsonPath": ".metadata.creationTimestamp",
    });
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == "v1", "subresources": {"status": {}},
            "additionalPrinterColumns": [age],
            "schema": {"openAPIV3Schema": {
                "type": "object", "title": "Telemetry", "description": "What is told of requests, and to whom.",
                "properties": {"spec": anything, "status": anything},
            }},
        })
    };
    let versions = ["v1", "v1alpha1"].map(version);
    let crd = json!({
        "metadata": {"name": "telemetries.telemetry.istio.io"},
        "spec": {
            "group": "telemetry.istio.io", "scope": "Namespaced",
            "names": {
                "kind": "Telemetry", "plural": "telemetries", "singular": "telemetry",
                "listKind": "TelemetryList", "shortNames": ["telemetry"],
                "categories": ["istio-io", "telemetry-istio-io"],
            },
            "versions": versions,
        },
    });
    serde_json::from_value(crd).ok()
}

/// What is told of requests, and to whom.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "telemetry.istio.io",
    version = "v1",
    kind = "Telemetry",
    plural = "telemetries",
    doc = "What is told of requests, and to whom.",
    schema = "disabled",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetrySpec {
    /// Workloads; without effect here: only waypoints see requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The one resource it is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTargetReference>,
    /// The resources it is attached to; none: all waypoints of its namespace, or of the mesh in the root namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Traces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tracing: Vec<Tracing>,
    /// Metrics.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metrics>,
    /// Access logs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_logging: Vec<AccessLogging>,
}

/// Which requests are traced.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// On which side.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matched: Option<Side>,
    /// To whom.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<Provider>,
    /// Of a hundred requests whose clients do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_sampling_percentage: Option<f64>,
    /// Spans are not reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_span_reporting: Option<bool>,
    /// Further attributes of spans.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Of the sidecar's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Whether spans have Istio's own attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_istio_tags: Option<bool>,
}

/// Which side of a connection something is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Side {
    /// `CLIENT`, `SERVER` or `CLIENT_AND_SERVER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// An attribute of spans: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CustomTag {
    /// A value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub literal: Option<Literal>,
    /// A variable of the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Named>,
    /// A header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Named>,
    /// One of Envoy's formats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formatter: Option<Literal>,
}

/// A value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Literal {
    /// As written.
    pub value: String,
}

/// Something that has a value by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The value where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_value: Option<String>,
}

/// What of metrics is otherwise.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// Whose.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<Provider>,
    /// In order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// How often TCP is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reporting_interval: Option<String>,
}

/// What of one metric, or of all, is otherwise.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Override {
    /// Which.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matched: Option<MetricMatch>,
    /// Whether it is not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricMatch {
    /// One of Istio's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// One of somebody else's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_metric: Option<String>,
    /// On which side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// What becomes of a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct TagOverride {
    /// `UPSERT` or `REMOVE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// An expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Where requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct AccessLogging {
    /// On which side.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matched: Option<Side>,
    /// To whom.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<Provider>,
    /// Not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Only these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
}

/// Which requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Filter {
    /// CEL.
    pub expression: String,
}
