//! The records of one process, newest last, with their names, within a budget.

use std::collections::VecDeque;

use crate::draft::{Draft, Groups, SHARED, held};
use crate::names::{Found, Handle, Names};
use crate::record::{Entry, Field, Kept, Record, Recorded as _};

/// Records of one chunk: what is allocated, and given back, at once.
const CHUNK: usize = 64;

/// Bytes of one chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK * size_of::<Entry>();

/// Records and their names. Grows by chunks as it fills; then the oldest make room.
#[derive(Debug)]
pub struct Ring {
    /// All but the last are full.
    chunks: VecDeque<Vec<Entry>>,
    /// Of the first chunk so many have left.
    gone: usize,
    /// The number of the next record.
    next: u64,
    names: Names,
    budget: usize,
}

impl Ring {
    /// An empty one that takes at most `budget` bytes, and at least what its newest record takes.
    pub fn new(budget: usize) -> Self {
        Self { chunks: VecDeque::new(), gone: 0, next: 0, names: Names::default(), budget }
    }

    /// Keeps a record. The oldest leave until everything fits.
    pub fn push(&mut self, draft: &Draft) {
        self.push_ready(draft.record, &held(draft.text(Field::Path)), &draft.groups());
    }

    /// Likewise, of texts that were joined before and a path as it is held.
    pub(crate) fn push_ready(&mut self, record: Record, path: &str, groups: &Groups) {
        let names = groups.texts(path).map(|text| self.names.hold(text));
        self.add(Entry { record, names });
    }

    /// Likewise, where it is known where the texts were found last: those of the groups, and the path.
    pub(crate) fn push_again(
        &mut self,
        record: Record,
        (path, groups): (&str, &Groups),
        (found, path_found): (&mut [Found; SHARED], &mut Found),
    ) {
        let mut names = [Handle::NONE; Field::GROUPS.len()];
        let found = found.iter_mut().chain([path_found]);
        for ((name, text), found) in names.iter_mut().zip(groups.texts(path)).zip(found) {
            *name = self.names.hold_again(text, found);
        }
        self.add(Entry { record, names });
    }

    fn add(&mut self, entry: Entry) {
        match self.chunks.back_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => chunk.push(entry),
            None => {
                let mut chunk = self.room();
                chunk.push(entry);
                self.chunks.push_back(chunk);
            }
        }
        self.next += 1;
        while self.bytes() > self.budget && self.len() > 1 {
            self.pop();
        }
    }

    /// An empty chunk. Where the budget has none left, it is the oldest one's: a ring that is full seldom allocates.
    fn room(&mut self) -> Vec<Entry> {
        while self.bytes() + CHUNK_BYTES > self.budget && self.len() > 1 {
            if let Some(mut chunk) = self.pop() {
                chunk.clear();
                return chunk;
            }
        }
        Vec::with_capacity(CHUNK)
    }

    /// Lets go of the oldest record and of its names; and of its chunk with the last one there.
    fn pop(&mut self) -> Option<Vec<Entry>> {
        let chunk = self.chunks.front()?;
        let names = chunk.get(self.gone).map(|record| record.names);
        let is_last = self.gone + 1 >= chunk.len();
        self.gone += 1;
        names.into_iter().flatten().for_each(|handle| self.names.release(handle));
        if !is_last {
            return None;
        }
        self.gone = 0;
        self.chunks.pop_front()
    }

    /// How many records are kept.
    pub fn len(&self) -> usize {
        let last = self.chunks.back().map_or(0, Vec::len);
        (self.chunks.len().saturating_sub(1) * CHUNK + last).saturating_sub(self.gone)
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is held, bytes.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES + self.names.bytes()
    }

    /// How many were ever kept: the number of the next record.
    pub fn written(&self) -> u64 {
        self.next
    }

    /// The texts.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Records with numbers below `before`, newest first, with their numbers.
    pub fn before(&self, before: u64) -> impl Iterator<Item = (u64, Kept<'_>)> {
        let oldest = self.next - self.len() as u64;
        (oldest..before.min(self.next)).rev().filter_map(move |number| {
            let place = usize::try_from(number - oldest).ok()? + self.gone;
            let entry = self.chunks.get(place / CHUNK)?.get(place % CHUNK)?;
            Some((number, Kept { entry, names: &self.names }))
        })
    }
}
