//! Where an outbound connection goes (contract 4.5).

use super::{OutboundPlan, Refusal};
use crate::attrs::OutboundAttrs;
use crate::snapshot::Snapshot;

/// Plans an outbound connection.
pub fn outbound(_snapshot: &Snapshot, _attrs: &OutboundAttrs<'_>) -> Result<OutboundPlan, Refusal> {
    todo!()
}
