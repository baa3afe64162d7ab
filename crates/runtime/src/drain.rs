//! Ending in order: one [`Trigger`] says that it is time, every [`Watch`] is somebody who still has work to end.
//!
//! The trigger waits until all watches are dropped or the deadline has passed. Whoever holds a watch stops taking
//! new work when [`Watch::signaled`] returns, finishes what it has before the deadline and then drops the watch.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bell::{Bell, Place};

/// How to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Take nothing new, finish what is open before the deadline.
    Graceful,
    /// Stop now.
    Immediate,
}

/// What a watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// How to end.
    pub mode: Mode,
    /// When the rest is cut.
    pub deadline: Instant,
}

impl Signal {
    fn now() -> Self {
        Self { mode: Mode::Immediate, deadline: Instant::now() }
    }

    /// Time left until the deadline.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Whether all watchers were gone in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every watch was dropped before the deadline.
    Clean,
    /// The deadline passed first; this many watches were still held.
    Late {
        /// Watches still held.
        held: usize,
    },
}

/// Makes a connected pair.
#[must_use]
pub fn channel() -> (Trigger, Watch) {
    let (sender, receiver) = watch::channel(State::default());
    (Trigger { sender }, Watch { receiver })
}

/// What all watches see.
#[derive(Debug, Default)]
struct State {
    signal: Option<Signal>,
    /// Rung when the drain is immediate. Every connection waits for that.
    immediate: Arc<Bell>,
}

/// Starts the drain. Dropping it unused tells every watcher to stop at once.
#[derive(Debug)]
pub struct Trigger {
    sender: watch::Sender<State>,
}

impl Trigger {
    /// One more watcher.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { receiver: self.sender.subscribe() }
    }

    /// Tells all watchers; may be called again to shorten the time (a second SIGTERM).
    pub fn start(&self, mode: Mode, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.sender.send_modify(|state| state.signal = Some(Signal { mode, deadline }));
        if mode == Mode::Immediate {
            self.ring();
        }
    }

    /// Waits until all watches are dropped, at most to the deadline set by the last [`Trigger::start`].
    ///
    /// Cancel-safe: to shorten the time, drop the future, call [`Trigger::start`] again and wait again.
    pub async fn finished(&self) -> Drained {
        let started = self.sender.borrow().signal;
        let signal = started.unwrap_or_else(Signal::now);
        match tokio::time::timeout_at(signal.deadline, self.sender.closed()).await {
            Ok(()) => Drained::Clean,
            Err(_) => Drained::Late { held: self.sender.receiver_count() },
        }
    }

    /// [`Trigger::start`] gracefully, then [`Trigger::finished`].
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.start(Mode::Graceful, grace);
        self.finished().await
    }
}

impl Trigger {
    fn ring(&self) {
        let immediate = self.sender.borrow().immediate.clone();
        immediate.ring();
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.ring();
    }
}

/// Somebody who holds the drain back until dropped.
#[derive(Clone, Debug)]
pub struct Watch {
    receiver: watch::Receiver<State>,
}

impl Watch {
    /// Returns when the drain starts, at once if it has started. Cancel-safe.
    pub async fn signaled(&self) -> Signal {
        let mut receiver = self.receiver.clone();
        let started = receiver.wait_for(|state| state.signal.is_some()).await;
        started.ok().and_then(|state| state.signal).unwrap_or_else(Signal::now)
    }

    /// Returns when the drain is immediate, whether from the start or by a later call. Cancel-safe.
    pub async fn immediate(&self) {
        self.to_immediate().await;
    }

    /// As [`Watch::immediate`], as a value that is kept. It does not hold the drain back.
    #[must_use]
    pub fn to_immediate(&self) -> Immediate {
        Immediate { bell: self.receiver.borrow().immediate.clone(), place: Place::NONE }
    }

    /// The signal, if the drain has started.
    #[must_use]
    pub fn started(&self) -> Option<Signal> {
        self.receiver.borrow().signal
    }
}

/// Ready when the drain is immediate.
#[derive(Debug)]
pub struct Immediate {
    bell: Arc<Bell>,
    place: Place,
}

impl Future for Immediate {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.bell.poll(cx, &mut this.place)
    }
}

impl Drop for Immediate {
    fn drop(&mut self) {
        self.bell.leave(&mut self.place);
    }
}

/// Runs a part as a process does: until it ends by itself, or until SIGTERM or SIGINT starts its drain, for which it has
/// `grace`. Errors: the part's own, or signals cannot be waited for.
pub async fn until_signalled<F, E>(grace: Duration, part: impl FnOnce(Watch) -> F) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
    E: From<io::Error>,
{
    let wait = |kind, name| {
        signal(kind).map_err(|error| io::Error::new(error.kind(), format!("cannot wait for {name}: {error}")))
    };
    let mut terminate = wait(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = wait(SignalKind::interrupt(), "SIGINT")?;
    let (trigger, watch) = channel();
    let mut running = std::pin::pin!(part(watch));
    tokio::select! {
        ended = &mut running => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    trigger.start(Mode::Graceful, grace);
    running.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_ends_when_the_last_watch_is_dropped() {
        let (trigger, watch) = channel();
        let other = trigger.watch();
        let worker = async move {
            let signal = watch.signaled().await;
            assert_eq!(signal.mode, Mode::Graceful);
            assert_eq!(signal.left(), Duration::from_secs(10));
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop((watch, other));
        };
        let begin = Instant::now();
        let (drained, ()) = tokio::join!(trigger.drain(Duration::from_secs(10)), worker);
        assert_eq!((drained, begin.elapsed()), (Drained::Clean, Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_ends_at_the_deadline_and_counts_who_is_late() {
        let (trigger, watch) = channel();
        let second = watch.clone();
        assert_eq!(trigger.drain(Duration::from_secs(5)).await, Drained::Late { held: 2 });
        trigger.start(Mode::Immediate, Duration::ZERO);
        second.immediate().await;
        assert_eq!(second.started().map(|signal| signal.mode), Some(Mode::Immediate));
        drop(watch);
    }

    #[tokio::test]
    async fn a_trigger_dropped_unused_means_stop_now() {
        let (trigger, watch) = channel();
        assert_eq!(watch.started(), None);
        drop(trigger);
        watch.immediate().await;
        assert_eq!(watch.signaled().await.mode, Mode::Immediate);
    }
}
