//! The ring and the flows behind their lock: what a proxy holds.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::draft::{Draft, held};
use crate::flows::{Flows, Moment, RowShape};
use crate::query::Query;
use crate::record::{Field, Record, Recorded as _};
use crate::ring::{CHUNK_BYTES, Ring};
use crate::shape::Shape;
use crate::told::Told;

/// What the records of one process may take where nothing else is said, bytes.
pub const DEFAULT_BUDGET: usize = 16 << 20;

/// The smallest budget that is of use, bytes.
pub const SMALLEST_BUDGET: usize = 256 << 10;

const _: () = assert!(SMALLEST_BUDGET > 4 * CHUNK_BYTES);

/// How many records a reader looks at under one hold of the lock.
const LOOK: usize = 128;

static IS_PAUSED: AtomicBool = AtomicBool::new(false);

/// Whether recorders of this process are asked for nothing more for now, as if they kept nothing: for who measures what keeping costs.
pub fn pause(is_paused: bool) {
    IS_PAUSED.store(is_paused, Ordering::Relaxed);
}

/// Keeps records, and adds them up. One short lock per record for both, and readers hold it for few records at a time.
#[derive(Debug)]
pub struct Recorder {
    kept: Option<Mutex<Kept>>,
    has_records: bool,
    has_flows: bool,
}

#[derive(Debug)]
struct Kept {
    ring: Option<Ring>,
    flows: Option<Flows>,
}

impl Recorder {
    /// Of at most `budget` bytes; 0: it keeps nothing. It adds nothing up.
    pub fn new(budget: usize) -> Self {
        Self::with_flows(budget, 0, 0)
    }

    /// With records of at most `records` bytes and flows of at most `flows` bytes; 0: none of these. `now_us` is the time.
    pub fn with_flows(records: usize, flows: usize, now_us: u64) -> Self {
        let ring = (records > 0).then(|| Ring::new(records.max(SMALLEST_BUDGET)));
        let flows = (flows > 0).then(|| Flows::new(flows, now_us));
        let (has_records, has_flows) = (ring.is_some(), flows.is_some());
        Self { kept: (has_records || has_flows).then(|| Mutex::new(Kept { ring, flows })), has_records, has_flows }
    }

    /// Whether anything is ever kept.
    pub fn has_budget(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether anything is kept now: else nobody need write drafts.
    pub fn is_on(&self) -> bool {
        self.has_budget() && !IS_PAUSED.load(Ordering::Relaxed)
    }

    /// Whether records are kept one by one.
    pub fn has_records(&self) -> bool {
        self.has_records
    }

    /// Keeps a record, and counts it.
    pub fn put(&self, draft: &Draft) {
        let Some(kept) = &self.kept else { return };
        let (path, groups) = (held(draft.text(Field::Path)), draft.groups());
        let row = self.has_flows.then(|| RowShape::of(draft).row(&path, draft.record.at_us));
        let mut kept = kept.lock();
        if let Some(ring) = &mut kept.ring {
            ring.push_ready(&draft.record, &path, &groups);
        }
        if let (Some(flows), Some(row)) = (&mut kept.flows, &row) {
            flows.count(row);
        }
    }

    /// Likewise, of a request that has this shape: it has the numbers of `record` and the shape's verdict and upstream.
    pub fn put_shaped(&self, mut record: Record, path: &str, shape: &mut Shape) {
        let Some(kept) = &self.kept else { return };
        shape.complete(&mut record);
        let path = &*held(path);
        let Some((of_shape, shared, of_path)) = shape.remembered(path) else { return };
        let is_known = of_path.place.as_ref().is_some_and(|place| place.is_of(record.at_us));
        let row = (self.has_flows && !is_known).then(|| of_shape.row(path, record.at_us));
        let mut kept = kept.lock();
        if let Some(ring) = &mut kept.ring {
            ring.push_again(&record, shared, of_path);
        }
        if let Some(flows) = &mut kept.flows {
            let is_counted =
                is_known && of_path.place.as_ref().is_some_and(|place| flows.count_at(place, record.at_us));
            if !is_counted {
                of_path.place = flows.count(&row.unwrap_or_else(|| of_shape.row(path, record.at_us)));
            }
        }
    }

    /// What was added up; `None` where nothing is.
    pub fn flows(&self) -> Option<Moment> {
        self.kept.as_ref()?.lock().flows.as_ref().map(Flows::moment)
    }

    /// Adds what was added up before this process.
    ///
    /// Errors: it is not what [`Moment::save`] writes.
    pub fn restore_flows(&self, bytes: &[u8], now_us: u64) -> Result<(), serde_json::Error> {
        let Some(kept) = &self.kept else { return Ok(()) };
        kept.lock().flows.as_mut().map_or(Ok(()), |flows| flows.restore(bytes, now_us))
    }

    /// What of the records a question takes, newest first, at most as many as it wants. `now_us` is the time.
    pub fn find(&self, query: &Query, now_us: u64) -> Vec<Told> {
        let Some(all) = &self.kept else { return Vec::new() };
        let (mut found, mut before) = (Vec::new(), u64::MAX);
        loop {
            let held = all.lock();
            let Some(ring) = &held.ring else { return found };
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
        let held = self.kept.as_ref().map(Mutex::lock);
        let ring = held.as_ref().and_then(|held| held.ring.as_ref());
        ring.map_or((0, 0, 0), |ring| (ring.len(), ring.written(), ring.bytes()))
    }

    /// When the oldest record was written, microseconds since 1970.
    pub fn oldest_us(&self) -> Option<u64> {
        let held = self.kept.as_ref()?.lock();
        let ring = held.ring.as_ref()?;
        let oldest = ring.written() - ring.len() as u64;
        ring.before(oldest + 1).next().map(|(_, kept)| kept.record.at_us)
    }
}
