//! What many requests have in common: all texts but their paths, made ready once.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

use crate::draft::{Draft, Groups, SHARED};
use crate::flows::{Place, RowShape};
use crate::names::Found;
use crate::record::Recorded as _;

/// What the records of requests have in common that differ in their numbers and paths only. What is written of one that has a shape
/// costs a fraction of what its draft would: where its texts and its row were found last is remembered, also those of a few paths.
#[derive(Debug)]
pub struct Shape {
    pub(crate) groups: Groups,
    pub(crate) row: RowShape,
    pub(crate) reason: &'static str,
    pub(crate) remedy: &'static str,
    pub(crate) found: [Found; SHARED],
    paths: [Option<Path>; PATHS],
}

/// Paths that a shape remembers, each at the place that its hash says.
const PATHS: usize = 8;

/// A path of requests of one shape.
#[derive(Debug)]
pub(crate) struct Path {
    text: Box<str>,
    /// Where its text was found last.
    pub(crate) found: Found,
    /// Where its row was.
    pub(crate) place: Option<Place>,
}

impl Shape {
    /// The shape of a draft, whatever its path is. Of its numbers it has the hop, the verdict with its reason, and what identifies a client that has
    /// no name.
    pub fn of(draft: &Draft) -> Self {
        let record = draft.record();
        let (groups, row) = (draft.groups(), RowShape::of(draft));
        let (reason, remedy) = (record.reason, record.remedy);
        Self { groups, row, reason, remedy, found: Default::default(), paths: Default::default() }
    }

    /// What is remembered of the shape's texts and of this path.
    pub(crate) fn remembered(&mut self, path: &str) -> Option<(&Groups, &RowShape, &mut [Found; SHARED], &mut Path)> {
        let Self { groups, row, found, paths, .. } = self;
        let place = usize::try_from(FixedState::default().hash_one(path) % PATHS as u64).ok()?;
        let known = paths.get_mut(place)?;
        if known.as_ref().is_none_or(|known| *known.text != *path) {
            *known = Some(Path { text: path.into(), found: Found::default(), place: None });
        }
        Some((groups, row, found, known.as_mut()?))
    }
}
