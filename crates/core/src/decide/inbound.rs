//! Where an inbound CONNECT leads (contract 3.4).

use super::{InboundPlan, Refusal};
use crate::attrs::ConnectAttrs;
use crate::snapshot::Snapshot;

/// Resolves an inbound CONNECT to the application's address.
pub fn inbound(_snapshot: &Snapshot, _attrs: &ConnectAttrs<'_>) -> Result<InboundPlan, Refusal> {
    todo!()
}
