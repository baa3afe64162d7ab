//! What many requests have in common: all texts but their paths, made ready once.

use crate::draft::{Draft, Groups};
use crate::flows::RowShape;
use crate::record::Recorded as _;

/// What the records of requests have in common that differ in their numbers and paths only. What is written of one that has a shape
/// costs a fraction of what its draft would.
#[derive(Debug)]
pub struct Shape {
    pub(crate) groups: Groups,
    pub(crate) row: RowShape,
    pub(crate) reason: &'static str,
    pub(crate) remedy: &'static str,
}

impl Shape {
    /// The shape of a draft, whatever its path is. Of its numbers it has the hop, the verdict with its reason, and what identifies a client that has
    /// no name.
    pub fn of(draft: &Draft) -> Self {
        let record = draft.record();
        Self { groups: draft.groups(), row: RowShape::of(draft), reason: record.reason, remedy: record.remedy }
    }
}
