//! The records of a waypoint. Who has ended takes a place in a queue: a thread writes records many at once, where each finds
//! the code and the tables of texts as the one before left them, which costs a fraction of what it costs between other work, and
//! holds up nobody's answer unless the thread is more than [`WAITING`] behind. Who reads is told everything.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::{Mutex, MutexGuard};
use stillmesh_proxy::decisions::now_us;
use stillmesh_records::{Draft, Record, Recorder, Shape};

use super::decision::{Clock, Ended, Texts};
use crate::config::Config;

/// As many wait until the writer is woken: waking it costs as much as writing several.
const BATCH: usize = 256;

/// As many are written at a time by the writer, who then lets those pass that wait for its CPU: a few microseconds.
const STEP: usize = 32;

/// Places of shapes; two that come by one place take turns there.
const SHAPES: usize = 256;

/// How long shapes are kept when nothing ends, and what few have ended wait to be written.
const IDLE: Duration = Duration::from_secs(60);

/// As many may wait, the writer having no time; then who comes next writes them all.
const WAITING: usize = 2048;

/// What most requests' hosts and paths take, bytes.
const USUAL: usize = 64;

/// What was decided about what has ended.
#[derive(Debug)]
pub struct Records {
    kept: Arc<Kept>,
    /// Wakes the writer, which ends with it. `None` where nothing is kept.
    wake: Option<SyncSender<()>>,
}

#[derive(Debug)]
struct Kept {
    recorder: Recorder,
    /// Not written yet.
    ended: Mutex<Queue>,
    /// Held by who writes, and taken before `ended` is: nothing is on its way unseen.
    writing: Mutex<Writing>,
}

/// What has ended, at most [`WAITING`].
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Hosts and paths of requests, in order: one buffer, so that nobody gives back what another thread has allocated.
    texts: String,
}

/// What has ended.
#[derive(Debug)]
enum Waiting {
    /// A request.
    Request(Ended),
    /// What there are few of, drafted already.
    Drafted(Box<Draft>),
}

#[derive(Debug)]
struct Writing {
    shapes: Shapes,
    /// What is written now; kept for its room.
    batch: Queue,
}

/// The shapes of requests that came lately, each at the place that its hash says.
#[derive(Debug)]
struct Shapes {
    known: Box<[Option<Box<Known>>]>,
    hasher: RandomState,
    draft: Draft,
}

/// A request that had a shape first.
#[derive(Debug)]
struct Known {
    like: Ended,
    host: Box<str>,
    shape: Shape,
}

impl Records {
    /// None yet, within the budgets that are configured.
    pub fn new(config: &Config) -> Self {
        let recorder = Recorder::with_flows(config.records_bytes, config.flows_bytes, now_us());
        let writing = Mutex::new(Writing { shapes: Shapes::default(), batch: Queue::default() });
        let kept = Arc::new(Kept { recorder, ended: Mutex::default(), writing });
        let wake = kept.recorder.has_budget().then(|| {
            let (wake, woken) = sync_channel(1);
            let own = kept.clone();
            let started = std::thread::Builder::new().name("records".to_owned()).spawn(move || run(&own, &woken));
            if let Err(error) = started {
                tracing::warn!(%error, "no thread for records: requests write them");
            }
            wake
        });
        Self { kept, wake }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.kept.recorder.is_on()
    }

    /// All that has ended until now.
    pub fn up_to_date(&self) -> &Recorder {
        self.kept.write(|| ());
        &self.kept.recorder
    }

    /// Keeps a request that has ended, sooner or later.
    pub(super) fn later(&self, mut request: Ended, texts: Texts<'_>) {
        let mut ended = self.kept.ended.lock();
        request.put_texts(texts, &mut ended.texts);
        ended.waiting.push(Waiting::Request(request));
        self.look(ended);
    }

    /// Likewise, what there are few of.
    pub(super) fn later_drafted(&self, draft: Draft) {
        let mut ended = self.kept.ended.lock();
        ended.waiting.push(Waiting::Drafted(Box::new(draft)));
        self.look(ended);
    }

    /// Has what waits written if that is much.
    fn look(&self, ended: MutexGuard<'_, Queue>) {
        let waiting = ended.waiting.len();
        drop(ended);
        if waiting >= WAITING {
            self.kept.write(|| ());
        } else if waiting.is_multiple_of(BATCH) {
            // One that is awake looks again.
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }
}

impl Kept {
    /// Writes all that waits, with `pause` after each [`STEP`].
    fn write(&self, pause: fn()) {
        let mut writing = self.writing.lock();
        let Writing { shapes, batch } = &mut *writing;
        std::mem::swap(&mut *self.ended.lock(), batch);
        let Queue { waiting, texts } = batch;
        let clock = Clock::now();
        let mut left = texts.as_str();
        for (written, what) in waiting.drain(..).enumerate() {
            if written % STEP == STEP - 1 {
                pause();
            }
            match what {
                Waiting::Request(request) => {
                    let texts = request.take_texts(&mut left);
                    shapes.keep(request, texts, clock, &self.recorder);
                }
                Waiting::Drafted(draft) => self.recorder.put(&draft),
            }
        }
        texts.clear();
        waiting.shrink_to(2 * BATCH);
        texts.shrink_to(2 * BATCH * USUAL);
    }
}

impl Default for Shapes {
    fn default() -> Self {
        Self {
            known: (0..SHAPES).map(|_| None).collect(),
            hasher: RandomState::default(),
            draft: Draft::new(Record::default()),
        }
    }
}

impl Shapes {
    /// Writes a request down.
    fn keep(&mut self, request: Ended, Texts { host, path }: Texts<'_>, clock: Clock, records: &Recorder) {
        let place = usize::try_from(self.hasher.hash_one((&request, host)) % SHAPES as u64).unwrap_or_default();
        let Some(place) = self.known.get_mut(place) else { return };
        let record = request.record(clock);
        match place {
            Some(known) if *known.host == *host && known.like.is_like(&request) => {
                records.put_shaped(record, path, &mut known.shape);
            }
            _ => {
                let mut shape = request.shape(record, host, &mut self.draft);
                records.put_shaped(record, path, &mut shape);
                if request.is_usual() {
                    *place = Some(Box::new(Known { like: request, host: host.into(), shape }));
                }
            }
        }
    }
}

fn run(kept: &Kept, woken: &Receiver<()>) {
    let write = || kept.write(std::thread::yield_now);
    while woken.recv().is_ok() {
        write();
        loop {
            match woken.recv_timeout(IDLE) {
                Ok(()) => write(),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        write();
        kept.writing.lock().shapes = Shapes::default();
    }
}
