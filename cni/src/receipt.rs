//! What a pod's annotations say of its capture.

use serde::{Deserialize, Serialize};
use stillmesh_k8s::select::REDIRECTION;
use stillmesh_k8s::steering::{CutReceipt, OutReceipt, QUARANTINE};

use crate::enroll::steps::Told;
use crate::writeback::Annotations;

pub use stillmesh_k8s::steering::RECEIPT;

/// Proof of a pod's capture, kept current as JSON in [`RECEIPT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// When the pod was captured (RFC 3339).
    pub time: String,
    /// Fingerprint of the rules in force.
    pub rules: String,
    /// Inode of the network namespace that they are in.
    pub netns: u64,
    /// Connections that were open before capture, still are, and are not in the mesh.
    pub older_connections: usize,
    /// It was captured before any of its containers ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_start: bool,
}

/// The annotations for a state; the receipt goes with `Enabled` only.
pub fn annotations(told: Told, receipt: Option<&Receipt>) -> Annotations {
    let state = match told {
        Told::Enabled => Some("enabled".to_owned()),
        Told::Pending => Some("pending".to_owned()),
        Told::Nothing | Told::Unknown => None,
    };
    // A receipt is plain data and always serializes.
    let receipt = receipt.and_then(|receipt| serde_json::to_string(receipt).ok());
    [(REDIRECTION, state), (RECEIPT, receipt)].into()
}

/// The annotations of a pod that a Bypass keeps out.
pub fn out(receipt: &OutReceipt) -> Annotations {
    // A receipt is plain data and always serializes.
    [(REDIRECTION, None), (RECEIPT, serde_json::to_string(receipt).ok())].into()
}

/// The annotation of a pod that is cut off, or is so no more.
pub fn cut_off(receipt: Option<&CutReceipt>) -> Annotations {
    [(QUARANTINE, receipt.and_then(|receipt| serde_json::to_string(receipt).ok()))].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_reads_as_promised() {
        let receipt = Receipt {
            time: "2026-01-02T03:04:05Z".into(),
            rules: "00000000000000aa".into(),
            netns: 4_026_532_000,
            older_connections: 2,
            at_start: false,
        };
        let annotations = annotations(Told::Enabled, Some(&receipt));
        assert_eq!(annotations[REDIRECTION].as_deref(), Some("enabled"));
        assert_eq!(
            annotations[RECEIPT].as_deref(),
            Some(
                r#"{"time":"2026-01-02T03:04:05Z","rules":"00000000000000aa","netns":4026532000,"olderConnections":2}"#
            )
        );
    }

    #[test]
    fn leaving_removes_both_annotations() {
        assert_eq!(annotations(Told::Nothing, None), [(REDIRECTION, None), (RECEIPT, None)].into());
    }
}
