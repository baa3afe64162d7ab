//! What is to be told: a bounded queue that whoever has something to tell never waits for, and batches on its other side.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::message::{LogRecord, Span};

/// One thing that is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A span.
    Span(Box<Span>),
    /// A record of a log.
    Record(Box<LogRecord>),
}

impl Told {
    /// Bytes on the wire.
    fn length(&self) -> usize {
        match self {
            Self::Span(span) => span.encoded_len(),
            Self::Record(record) => record.encoded_len(),
        }
    }
}

/// What waits.
#[derive(Debug)]
enum Item {
    Told(Told),
    /// Dropped when everything before was dealt with.
    Mark(oneshot::Sender<()>),
}

/// Where what is to be told goes. Clones are the same one.
#[derive(Clone)]
pub struct Exporter {
    queue: Sender<Item>,
    /// Called when something was dropped.
    lost: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").field("room", &self.queue.capacity()).finish_non_exhaustive()
    }
}

/// What may wait.
const WAITING: usize = 2048;

/// The most that is told at once.
const BATCH: usize = 512;

/// How long a batch may become before it is sent, bytes. Collectors take 4 MiB if nobody says anything else.
const LONGEST: usize = 1 << 20;

/// How long the first of a batch waits for others.
const PAUSE: Duration = Duration::from_secs(1);

/// A queue; `lost` is called for each thing that finds no room there.
pub fn queue(lost: impl Fn() + Send + Sync + 'static) -> (Exporter, Batches) {
    let (queue, waiting) = mpsc::channel(WAITING);
    (Exporter { queue, lost: Arc::new(lost) }, Batches(waiting))
}

impl Exporter {
    /// Tells something, soon. When the queue is full it is dropped and counted.
    pub fn tell(&self, told: Told) {
        if self.queue.try_send(Item::Told(told)).is_err() {
            (self.lost)();
        }
    }

    /// Waits until everything that was told before was dealt with, however long that takes.
    pub async fn flush(&self) {
        let (mark, passed) = oneshot::channel();
        if self.queue.send(Item::Mark(mark)).await.is_ok() {
            // It is never sent, only dropped.
            drop(passed.await);
        }
    }
}

/// What is told at once; whoever waits for it hears when this is dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    /// In the order in which it was told; may be empty.
    pub told: Vec<Told>,
    _mark: Option<oneshot::Sender<()>>,
}

/// The other side of a queue.
#[derive(Debug)]
pub struct Batches(Receiver<Item>);

impl Batches {
    /// The next batch; `None` when nobody can tell anything any more.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch { told: Vec::new(), _mark: None };
        let mut length = 0;
        let mut item = self.0.recv().await?;
        let end = Instant::now() + PAUSE;
        loop {
            match item {
                Item::Told(told) => {
                    length += told.length();
                    batch.told.push(told);
                }
                Item::Mark(mark) => {
                    batch._mark = Some(mark);
                    return Some(batch);
                }
            }
            if batch.told.len() >= BATCH || length >= LONGEST {
                return Some(batch);
            }
            match timeout_at(end, self.0.recv()).await {
                Ok(Some(next)) => item = next,
                Ok(None) | Err(_) => return Some(batch),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_dropped_and_counted_and_batches_are_bounded() {
        let lost = Arc::new(AtomicUsize::new(0));
        let counted = lost.clone();
        let (exporter, mut batches) = queue(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        for _ in 0..WAITING + 3 {
            exporter.tell(Told::Span(Box::default()));
        }
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        assert_eq!(batches.next().await.map(|batch| batch.told.len()), Some(BATCH));
        exporter.tell(Told::Span(Box::default()));
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        drop(exporter);
        let mut rest = Vec::new();
        while let Some(batch) = batches.next().await {
            rest.push(batch.told.len());
        }
        assert_eq!(rest, [BATCH, BATCH, BATCH, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_alone_is_told_after_a_while() {
        let (exporter, mut batches) = queue(|| {});
        exporter.tell(Told::Record(Box::default()));
        let began = Instant::now();
        assert_eq!(batches.next().await.map(|batch| batch.told.len()), Some(1));
        assert_eq!(began.elapsed(), PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn long_things_are_told_by_few() {
        let (exporter, mut batches) = queue(|| {});
        for _ in 0..3 {
            exporter.tell(Told::Span(Box::new(Span { name: "x".repeat(LONGEST / 2), ..Span::default() })));
        }
        assert_eq!(batches.next().await.map(|batch| batch.told.len()), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_flushes_waits_until_a_batch_is_dealt_with_and_not_for_others() {
        let (exporter, mut batches) = queue(|| {});
        exporter.tell(Told::Span(Box::default()));
        let began = Instant::now();
        let (_, batch) = tokio::join!(
            async {
                exporter.flush().await;
                assert_eq!(began.elapsed(), Duration::from_millis(7));
            },
            async {
                let batch = batches.next().await;
                tokio::time::sleep(Duration::from_millis(7)).await;
                batch.map(|batch| batch.told.len())
            }
        );
        assert_eq!(batch, Some(1));
        drop(batches);
        exporter.flush().await;
    }
}
