//! The records of a waypoint. Those of requests are written many at once: each then finds the code and the tables of texts where
//! the one before left them, which costs a fraction of what it costs between other work. Who reads is told everything.

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
    draft: Mutex<Draft>,
}

impl Records {
    /// None yet, within the budgets that are configured.
    pub fn new(config: &Config) -> Self {
        let recorder = Recorder::with_flows(config.records_bytes, config.flows_bytes, now_us());
        Self { recorder, ended: Mutex::default(), draft: Mutex::new(Draft::new(Record::default())) }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.recorder.is_on()
    }

    /// All that has ended until now.
    pub fn up_to_date(&self) -> &Recorder {
        let mut ended = self.ended.lock();
        let draft = self.draft.lock();
        let rest = std::mem::take(&mut *ended);
        drop(ended);
        self.write(&rest, draft);
        &self.recorder
    }

    /// Keeps a request, sooner or later.
    pub(super) fn later(&self, request: Ended) {
        let mut ended = self.ended.lock();
        ended.push(request);
        if ended.len() >= BATCH {
            let draft = self.draft.lock();
            let full = std::mem::replace(&mut *ended, Vec::with_capacity(BATCH));
            // Others end meanwhile.
            drop(ended);
            self.write(&full, draft);
        }
    }

    fn write(&self, ended: &[Ended], mut draft: MutexGuard<'_, Draft>) {
        for request in ended {
            request.keep(&mut draft, &self.recorder);
        }
    }
}
