//! What many requests have in common: all texts but their paths, made ready once.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;

use crate::draft::{Draft, Groups};
use crate::flows::{Place, RowShape};
use crate::held::Found;
use crate::record::{Address, Kind, Record, Recorded as _};

/// What the records of requests have in common that differ in their numbers and paths only. What is written of one that has a shape
/// costs a fraction of what its draft would: where its texts and its row were found last is remembered, also those of a few paths.
#[derive(Debug)]
pub struct Shape {
    row: RowShape,
    reason: &'static str,
    remedy: &'static str,
    upstream: Address,
    shared: Shared,
    paths: [Option<Path>; PATHS],
}

/// The texts of a shape, and where the ring had them last.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) groups: Groups,
    /// The client's.
    pub(crate) client: Found<str>,
    /// All others, with the verdict.
    pub(crate) kind: Found<Kind>,
}

/// Paths that a shape remembers, each at the place that its hash says.
const PATHS: usize = 8;

/// A path of requests of one shape.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) text: Box<str>,
    /// Where its text was found last.
    pub(crate) found: Found<str>,
    /// Where its row was.
    pub(crate) place: Option<Place>,
}

impl Shape {
    /// The shape of a draft, whatever its path is. Of its numbers it has the hop, the verdict with its reason, where it was carried, and what
    /// identifies a client that has no name.
    pub fn of(draft: &Draft) -> Self {
        let &Record { reason, remedy, upstream, .. } = draft.record();
        let shared = Shared { groups: draft.groups(), client: Found::default(), kind: Found::default() };
        Self { row: RowShape::of(draft), reason, remedy, upstream, shared, paths: Default::default() }
    }

    /// Gives a record what it has of the shape.
    pub(crate) fn complete(&self, record: &mut Record) {
        (record.reason, record.remedy, record.upstream) = (self.reason, self.remedy, self.upstream);
    }

    /// What is remembered of the shape's texts and of this path.
    pub(crate) fn remembered(&mut self, path: &str) -> Option<(&RowShape, &mut Shared, &mut Path)> {
        let Self { row, shared, paths, .. } = self;
        let place = usize::try_from(FixedState::default().hash_one(path) % PATHS as u64).ok()?;
        let known = paths.get_mut(place)?;
        if known.as_ref().is_none_or(|known| *known.text != *path) {
            *known = Some(Path { text: path.into(), found: Found::default(), place: None });
        }
        Some((row, shared, known.as_mut()?))
    }
}
