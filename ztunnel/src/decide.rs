//! Asks core, and turns its answers into what the paths go on with. Nothing is decided here.

use std::net::SocketAddr;

use stillmesh_core::attrs::{ConnectAttrs, InboundAttrs, OutboundAttrs};
use stillmesh_core::decide::{self, InboundPlan, OutboundPlan, Refusal};
use stillmesh_core::explain::Reason;
use stillmesh_core::snapshot::Snapshot;

use crate::node::Node;
use crate::path::PathError;

/// Where an outbound connection goes.
pub fn outbound(snapshot: &Snapshot, attrs: &OutboundAttrs<'_>) -> Result<OutboundPlan, PathError> {
    decide::outbound(snapshot, attrs).map_err(|refusal| PathError::refused(attrs.destination, refusal))
}

/// Where an inbound CONNECT leads. The refusal decides the status of the answer.
pub fn inbound(snapshot: &Snapshot, attrs: &ConnectAttrs<'_>) -> Result<InboundPlan, Refusal> {
    decide::inbound(snapshot, attrs)
}

/// Whether a plaintext connection may be for this port at all.
pub fn inbound_plaintext(destination: SocketAddr) -> Result<(), PathError> {
    decide::inbound_plaintext(destination).map_err(|refusal| PathError::refused(destination, refusal))
}

/// Whether policies let an inbound connection pass, and why. What dry-run policies would have done is logged, policies that
/// could not be asked are counted.
pub fn authorize(snapshot: &Snapshot, attrs: &InboundAttrs<'_>, node: &Node) -> Result<Reason, PathError> {
    let verdict = decide::authorize(snapshot, attrs);
    for reason in &verdict.dry_run {
        tracing::info!(
            target: "policy",
            %reason,
            destination = %attrs.destination.uid,
            source = %attrs.source_ip,
            "a dry-run policy would have decided otherwise"
        );
    }
    for policy in &verdict.skipped {
        node.metrics.policy_skipped.inc();
        tracing::warn!(target: "policy", %policy, destination = %attrs.destination.uid, "policy not known: skipped");
    }
    if verdict.allowed { Ok(verdict.reason) } else { Err(PathError::Denied { reason: verdict.reason }) }
}
