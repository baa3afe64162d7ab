//! The ring behind its lock: what a proxy holds.

use parking_lot::Mutex;

use crate::draft::Draft;
use crate::query::Query;
use crate::ring::{CHUNK_BYTES, Ring};
use crate::told::Told;

/// What the records of one process may take where nothing else is said, bytes.
pub const DEFAULT_BUDGET: usize = 16 << 20;

/// The smallest budget that is of use, bytes.
pub const SMALLEST_BUDGET: usize = 256 << 10;

const _: () = assert!(SMALLEST_BUDGET > 4 * CHUNK_BYTES);

/// How many records a reader looks at under one hold of the lock.
const LOOK: usize = 128;

/// Keeps records. One short lock per record, and readers hold it for few records at a time.
#[derive(Debug)]
pub struct Recorder {
    ring: Option<Mutex<Ring>>,
}

impl Recorder {
    /// Of at most `budget` bytes; 0: it keeps nothing.
    pub fn new(budget: usize) -> Self {
        Self { ring: (budget > 0).then(|| Mutex::new(Ring::new(budget.max(SMALLEST_BUDGET)))) }
    }

    /// Whether anything is kept: else nobody need write drafts.
    pub fn is_on(&self) -> bool {
        self.ring.is_some()
    }

    /// Keeps a record.
    pub fn put(&self, draft: &Draft) {
        if let Some(ring) = &self.ring {
            let groups = draft.groups();
            ring.lock().push_ready(draft.record, &groups);
        }
    }

    /// What of the records a question takes, newest first, at most as many as it wants. `now_us` is the time.
    pub fn find(&self, query: &Query, now_us: u64) -> Vec<Told> {
        let Some(ring) = &self.ring else { return Vec::new() };
        let (mut found, mut before) = (Vec::new(), u64::MAX);
        loop {
            let ring = ring.lock();
            let (mut looked, start) = (0, before);
            for (number, kept) in ring.before(before).take(LOOK) {
                (before, looked) = (number, looked + 1);
                if query.takes(&kept, now_us) {
                    found.push(Told::of(&kept));
                    if found.len() >= query.limit {
                        return found;
                    }
                }
            }
            if looked < LOOK || before == start {
                return found;
            }
        }
    }

    /// How many records are kept, how many ever were, and what they take in bytes.
    pub fn size(&self) -> (usize, u64, usize) {
        self.ring.as_ref().map_or((0, 0, 0), |ring| {
            let ring = ring.lock();
            (ring.len(), ring.written(), ring.bytes())
        })
    }

    /// When the oldest record was written, microseconds since 1970.
    pub fn oldest_us(&self) -> Option<u64> {
        let ring = self.ring.as_ref()?.lock();
        let oldest = ring.written() - ring.len() as u64;
        ring.before(oldest + 1).next().map(|(_, kept)| kept.entry.record.at_us)
    }
}
