//! The dynamic table (RFC 7541 sections 2.3 and 4), and its index space together with the static one.

use std::collections::VecDeque;

use super::{Error, fixed};

/// The size that every decoder begins with, bytes (RFC 9113 section 6.5.2).
const DEFAULT_SIZE: usize = 4096;

/// What a field counts more than its name and value, bytes (RFC 7541 section 4.1).
pub(crate) const OVERHEAD: usize = 32;

/// A name and a value.
pub(crate) type Entry = (Box<[u8]>, Box<[u8]>);

/// Never larger than [`DEFAULT_SIZE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    /// Of all entries, bytes.
    size: usize,
    /// The size that the peer has chosen, bytes.
    max: usize,
    /// The most that it may choose, bytes.
    limit: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, max: DEFAULT_SIZE, limit: DEFAULT_SIZE }
    }

    /// From index 1 on: the static table, then the newest entry and those before it.
    pub(super) fn at(&self, index: usize) -> Result<(&[u8], &[u8]), Error> {
        let place = index.checked_sub(1).ok_or(Error("a field of index 0"))?;
        if let Some((name, value)) = fixed::TABLE.get(place) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(place - fixed::TABLE.len());
        entry.map(|(name, value)| (&**name, &**value)).ok_or(Error("a field of an index that there is not"))
    }

    /// One that is larger than the whole table leaves it empty.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(self.max.saturating_sub(size));
        if size <= self.max {
            self.size += size;
            self.entries.push_front((name.into(), value.into()));
        }
    }

    fn evict(&mut self, until: usize) {
        while self.size > until
            && let Some((name, value)) = self.entries.pop_back()
        {
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }

    /// The peer chooses a size.
    pub(super) fn resize(&mut self, max: usize) -> Result<(), Error> {
        if max > self.limit {
            return Err(Error("a table larger than SETTINGS_HEADER_TABLE_SIZE"));
        }
        self.max = max;
        self.evict(max);
        Ok(())
    }

    /// The peer has acknowledged a SETTINGS_HEADER_TABLE_SIZE of 0.
    pub(super) fn forbid(&mut self) {
        self.limit = 0;
        self.max = 0;
        self.evict(0);
        self.entries = VecDeque::new();
    }

    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn is_forbidden(&self) -> bool {
        self.limit == 0
    }

    /// A table with these entries, the newest first. `None`: they do not fit.
    pub(crate) fn restore(max: usize, forbidden: bool, entries: VecDeque<Entry>) -> Option<Self> {
        let limit = if forbidden { 0 } else { DEFAULT_SIZE };
        let size = entries.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum();
        (max <= limit && size <= max).then_some(Self { entries, size, max, limit })
    }
}
