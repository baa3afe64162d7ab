//! The records of one process, newest last, with what they share, within a budget.

use std::collections::VecDeque;

use crate::connects::{Connect, Connects};
use crate::counted::Handle;
use crate::draft::{Draft, Groups, held};
use crate::held::{Held, Names};
use crate::record::{Entry, Field, Kept, Kind, Record, Recorded as _};
use crate::shape::{Path, Shared};

/// Records of one chunk: what is allocated, and given back, at once.
const CHUNK: usize = 64;

/// Bytes of one chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK * size_of::<Entry>();

/// Records and what they share. Grows by chunks as it fills; then the oldest make room.
#[derive(Debug)]
pub struct Ring {
    /// All but the last are full.
    chunks: VecDeque<Vec<Entry>>,
    /// Of the first chunk so many have left.
    gone: usize,
    /// The number of the next record.
    next: u64,
    connects: Connects,
    kinds: Held<Kind>,
    names: Names,
    budget: usize,
}

impl Ring {
    /// An empty one that takes at most `budget` bytes, and at least what its newest record takes.
    pub fn new(budget: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            gone: 0,
            next: 0,
            connects: Connects::default(),
            kinds: Held::default(),
            names: Names::default(),
            budget,
        }
    }

    /// Keeps a record. The oldest leave until everything fits.
    pub fn push(&mut self, draft: &Draft) {
        self.push_ready(&draft.record, &held(draft.text(Field::Path)), &draft.groups());
    }

    /// Likewise, of texts that were joined before and a path as it is held.
    pub(crate) fn push_ready(&mut self, record: &Record, path: &str, groups: &Groups) {
        let [client, decided, asked] = groups.texts().map(|text| self.names.hold(text));
        let connect = self.connect(record, client);
        let kind = self.kind(record, [decided, asked]);
        let path = self.names.hold(path);
        self.add(Entry::of(record, connect, kind, path));
    }

    /// Likewise, of a shape, whose verdict and upstream the record has.
    pub(crate) fn push_again(&mut self, record: &Record, shared: &mut Shared, path: &mut Path) {
        let client = self.names.at(&shared.client);
        let connect = client.and_then(|client| self.connects.again(Connect::of(record, client)));
        let connect = connect.unwrap_or_else(|| {
            let [client, ..] = shared.groups.texts();
            let client = self.names.hold_again(client, &mut shared.client);
            self.connect(record, client)
        });
        let kind = self.kinds.again_at(&shared.kind).unwrap_or_else(|| {
            let [_, decided, asked] = shared.groups.texts();
            let names = [decided, asked].map(|text| self.names.hold(text));
            let kind = self.kind(record, names);
            shared.kind = self.kinds.found(kind);
            kind
        });
        let path = self.names.hold_again(&path.text, &mut path.found);
        self.add(Entry::of(record, connect, kind, path));
    }

    /// Holds the CONNECT of a record for it. The client's texts were held for the record; now they are for the CONNECT.
    fn connect(&mut self, record: &Record, client: Handle) -> Handle {
        let connect = Connect::of(record, client);
        let known = self.connects.again(connect);
        if known.is_some() {
            self.names.release(client);
        }
        known.unwrap_or_else(|| self.connects.add(connect))
    }

    /// Likewise, its kind, with the other texts but the path.
    fn kind(&mut self, record: &Record, names: [Handle; 2]) -> Handle {
        let kind = Kind::of(record, names);
        let known = self.kinds.again(&kind);
        if known.is_some() {
            self.release(names);
        }
        known.unwrap_or_else(|| self.kinds.hold(kind))
    }

    fn release(&mut self, names: [Handle; 2]) {
        names.into_iter().for_each(|name| drop(self.names.release(name)));
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

    /// Lets go of the oldest record and of what it shared; and of its chunk with the last one there.
    fn pop(&mut self) -> Option<Vec<Entry>> {
        let chunk = self.chunks.front()?;
        let oldest = chunk.get(self.gone).map(|oldest| (oldest.connect, oldest.kind, oldest.path));
        let is_last = self.gone + 1 >= chunk.len();
        self.gone += 1;
        if let Some((connect, kind, path)) = oldest {
            self.names.release(path);
            if let Some(gone) = self.connects.release(connect) {
                self.names.release(gone.client);
            }
            if let Some(gone) = self.kinds.release(kind) {
                self.release(gone.names);
            }
        }
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
        self.chunks.len() * CHUNK_BYTES + self.connects.bytes() + self.kinds.bytes() + self.names.bytes()
    }

    /// How many were ever kept: the number of the next record.
    pub fn written(&self) -> u64 {
        self.next
    }

    /// The texts.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The kinds of records, and how often they and CONNECTs are held.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> (usize, [usize; 2]) {
        (self.kinds.len(), [self.kinds.uses(), self.connects.uses()])
    }

    /// Records with numbers below `before`, newest first, with their numbers.
    pub fn before(&self, before: u64) -> impl Iterator<Item = (u64, Kept<'_>)> {
        let oldest = self.next - self.len() as u64;
        (oldest..before.min(self.next)).rev().filter_map(move |number| {
            let place = usize::try_from(number - oldest).ok()? + self.gone;
            let entry = self.chunks.get(place / CHUNK)?.get(place % CHUNK)?;
            let (connect, kind) = (self.connects.get(entry.connect)?, self.kinds.get(entry.kind)?);
            let [decided, asked] = kind.names;
            let groups = [connect.client, decided, asked, entry.path];
            Some((number, Kept { record: entry.record(connect, kind), groups, names: &self.names }))
        })
    }
}
