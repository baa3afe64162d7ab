//! L4 authorization (contract 5.2).

use super::Verdict;
use crate::attrs::InboundAttrs;
use crate::snapshot::Snapshot;

/// Whether `attrs` may pass under the policies of `snapshot`.
pub fn authorize(_snapshot: &Snapshot, _attrs: &InboundAttrs<'_>) -> Verdict {
    todo!()
}
