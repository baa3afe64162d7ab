//! How far the capture of a pod has come that is to be captured, as the agent says it in annotations: one judgement for the
//! controller's receipts and for the command.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::labels;
use crate::select::REDIRECTION;
use crate::steering::{OutReceipt, RECEIPT};

/// How far a pod's capture has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// It is captured, and has the agent's receipt.
    Done {
        /// Connections from before that are still open, and are not in the mesh.
        older: u64,
        /// It was captured before any of its containers ran.
        at_start: bool,
    },
    /// It has no address yet, and nothing to capture.
    Starting,
    /// It is marked as captured, without a receipt that says so.
    Unproved,
    /// It has rules and nobody who serves it; what the annotation says.
    Pending(String),
    /// A Bypass has taken it out: `namespace/name`.
    Bypassed(String),
    /// Nothing is said.
    Missing,
}

impl Capture {
    /// What a pod's annotations say. Whether it is to be captured is another question: [`crate::select::why_not`].
    pub fn of(pod: &Pod) -> Self {
        let annotations = labels::of(&pod.metadata.annotations);
        let state = annotations.get(REDIRECTION).map(String::as_str);
        let out = OutReceipt::of(&pod.metadata);
        let receipt = || serde_json::from_str::<Value>(annotations.get(RECEIPT)?).ok().filter(Value::is_object);
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
        match (state, out) {
            (Some("enabled"), None) if let Some(receipt) = receipt() => {
                let older = receipt["olderConnections"].as_u64().unwrap_or_default();
                Self::Done { older, at_start: receipt["atStart"].as_bool().unwrap_or_default() }
            }
            _ if address.is_empty() => Self::Starting,
            (Some("enabled"), _) => Self::Unproved,
            (Some(state), _) => Self::Pending(state.to_owned()),
            (None, Some(out)) => Self::Bypassed(out.bypass),
            (None, None) => Self::Missing,
        }
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { .. } => f.write_str("it is captured"),
            Self::Starting => f.write_str("it is starting"),
            Self::Unproved => f.write_str("it is marked as captured, and has no receipt"),
            Self::Pending(state) => {
                write!(f, "its capture is {state}: its rules are in place, and no ztunnel has taken it")
            }
            Self::Bypassed(order) => write!(f, "Bypass {order} keeps it out for a while"),
            Self::Missing => f.write_str("it is not captured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OUT: &str = r#"{"bypass":"shop/b","order":"u","time":"t","tookMs":1,"carried":0}"#;

    fn capture(annotations: Value, address: &str) -> Capture {
        let pod = json!({"metadata": {"annotations": annotations}, "status": {"podIP": address}});
        Capture::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn only_a_receipt_proves_capture() {
        let receipt = "{\"olderConnections\": 2}";
        let done = |older, at_start| Capture::Done { older, at_start };
        for (annotations, address, expected) in [
            (json!({REDIRECTION: "enabled", RECEIPT: receipt}), "10.0.0.1", done(2, false)),
            // The agent may be quicker than the kubelet.
            (json!({REDIRECTION: "enabled", RECEIPT: receipt}), "", done(2, false)),
            (json!({REDIRECTION: "enabled", RECEIPT: "{\"atStart\": true}"}), "10.0.0.1", done(0, true)),
            (json!({REDIRECTION: "enabled"}), "10.0.0.1", Capture::Unproved),
            (json!({REDIRECTION: "enabled", RECEIPT: "7"}), "10.0.0.1", Capture::Unproved),
            (json!({REDIRECTION: "enabled", RECEIPT: OUT}), "10.0.0.1", Capture::Unproved),
            (json!({REDIRECTION: "pending", RECEIPT: receipt}), "10.0.0.1", Capture::Pending("pending".into())),
            (json!({RECEIPT: OUT}), "10.0.0.1", Capture::Bypassed("shop/b".into())),
            (json!({RECEIPT: receipt}), "10.0.0.1", Capture::Missing),
            (json!({}), "10.0.0.1", Capture::Missing),
            (json!({}), "", Capture::Starting),
        ] {
            assert_eq!(capture(annotations.clone(), address), expected, "{annotations} {address}");
        }
    }
}
