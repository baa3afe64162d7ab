//! The records of a waypoint. Those of requests are written many at once: each then finds the code and the tables of texts where
//! the one before left them, which costs a fraction of what it costs between other work. Who reads is told everything.

use std::mem;

use parking_lot::{Mutex, MutexGuard};
use stillmesh_proxy::decisions::now_us;
use stillmesh_records::{Draft, Record, Recorder};

use super::decision::Ended;
use crate::config::Config;

/// As many are written at once: enough to gain most, and few enough that who writes them is not late.
const BATCH: usize = 16;

/// What was decided about what has ended.
#[derive(Debug)]
pub struct Records {
    recorder: Recorder,
    /// Ended and not written yet, fewer than [`BATCH`].
    ended: Mutex<Vec<Ended>>,
    /// Held by who writes; taken before `ended` is let go, so that nothing is on its way unseen.
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    draft: Draft,
    /// What is written; empty between.
    batch: Vec<Ended>,
}

impl Records {
    /// None yet, within the budgets that are configured.
    pub fn new(config: &Config) -> Self {
        let recorder = Recorder::with_flows(config.records_bytes, config.flows_bytes, now_us());
        let writer = Writer { draft: Draft::new(Record::default()), batch: Vec::new() };
        Self { recorder, ended: Mutex::default(), writer: Mutex::new(writer) }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.recorder.is_on()
    }

    /// All that has ended until now.
    pub fn up_to_date(&self) -> &Recorder {
        self.write(self.ended.lock());
        &self.recorder
    }

    /// Keeps a request, sooner or later.
    pub(super) fn later(&self, request: Ended) {
        let mut ended = self.ended.lock();
        ended.push(request);
        if ended.len() >= BATCH {
            self.write(ended);
        }
    }

    /// Writes what has ended.
    fn write(&self, mut ended: MutexGuard<'_, Vec<Ended>>) {
        let mut writer = self.writer.lock();
        let Writer { draft, batch } = &mut *writer;
        mem::swap(&mut *ended, batch);
        // Others end meanwhile.
        drop(ended);
        for request in batch.drain(..) {
            request.keep(draft, &self.recorder);
        }
    }
}
