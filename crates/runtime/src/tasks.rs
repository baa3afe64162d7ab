//! Who owns which task. A task is spawned into a [`Tasks`], which counts it, ends it and catches its panic.
//!
//! A panicking task ends alone: the panic is logged with the task's name, counted ([`panics`]), and the process
//! goes on. Dropping the last clone of a [`Tasks`] cuts what still runs in it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks with one owner. Clones share the group.
#[derive(Clone, Debug)]
pub struct Tasks {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    tracker: TaskTracker,
    /// Asks tasks to end; they see it through [`Tasks::cancelled`].
    cancel: CancellationToken,
    /// Drops tasks where they are.
    cut: CancellationToken,
    panics: AtomicU64,
    parent: Option<Tasks>,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

/// How a shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Every task ended by itself.
    Clean,
    /// The deadline passed and this many tasks were cut.
    Cut {
        /// Tasks cut.
        tasks: usize,
    },
}

impl Tasks {
    /// An empty group. The name appears in logs.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self::with(name.into(), CancellationToken::new(), CancellationToken::new(), None)
    }

    fn with(name: Arc<str>, cancel: CancellationToken, cut: CancellationToken, parent: Option<Tasks>) -> Self {
        let tracker = TaskTracker::new();
        Self { group: Arc::new(Group { name, tracker, cancel, cut, panics: AtomicU64::new(0), parent }) }
    }

    /// A group that ends with this one: cancelled and cut with it, and counted among its tasks.
    #[must_use]
    pub fn child(&self, name: impl Into<Arc<str>>) -> Self {
        Self::with(name.into(), self.group.cancel.child_token(), self.group.cut.child_token(), Some(self.clone()))
    }

    /// Runs a future on the current runtime. Its panic is caught and counted.
    ///
    /// Panics outside a runtime, as tokio's own spawn does.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_on(&Handle::current(), name, future)
    }

    /// Runs a future on another runtime.
    pub fn spawn_on<F>(&self, runtime: &Handle, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Task { handle: runtime.spawn(self.wrap(name, future)) }
    }

    /// Runs a future that is not `Send` on the current thread's [`tokio::task::LocalSet`].
    ///
    /// Panics outside a `LocalSet`, as tokio's own spawn does.
    pub fn spawn_local<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        Task { handle: tokio::task::spawn_local(self.wrap(name, future)) }
    }

    /// Everything that surrounds a task: counting here and in all parents, cancellation, catching its panic.
    fn wrap<F: Future>(&self, name: &'static str, future: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        // Not within: what an async block captures keeps its place there, beside the box.
        let future = CatchPanic(Box::pin(future));
        let cut = self.group.cut.clone();
        // The tokens keep the groups waiting; the groups themselves are held weakly, so that a task that never ends
        // does not keep its own owner alive.
        let groups = std::iter::successors(Some(self), |tasks| tasks.group.parent.as_ref());
        let tokens: Box<[_]> = groups.map(|tasks| tasks.group.tracker.token()).collect();
        let owner = Arc::downgrade(&self.group);
        async move {
            let outcome = tokio::select! {
                biased;
                () = cut.cancelled() => return None,
                outcome = future => outcome,
            };
            let outcome = outcome
                .inspect_err(|message| {
                    PANICS.fetch_add(1, Ordering::Relaxed);
                    let group = owner.upgrade();
                    let owner = group.as_ref().map_or("one that is gone", |group| {
                        group.panics.fetch_add(1, Ordering::Relaxed);
                        &*group.name
                    });
                    tracing::error!(task = name, owner, panic = %message, "task panicked");
                })
                .ok();
            // Held until here, in the one place that what is captured has.
            drop(tokens);
            outcome
        }
    }

    /// Asks all tasks to end: those that watch [`Tasks::cancelled`] do.
    pub fn cancel(&self) {
        self.group.cancel.cancel();
    }

    /// Returns when the group is asked to end. Cancel-safe.
    pub async fn cancelled(&self) {
        self.group.cancel.cancelled().await;
    }

    /// The token that asks tasks to end, to pass into them. It does not keep the group alive.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.group.cancel.clone()
    }

    /// Asks all tasks to end, waits for them, cuts the rest when the deadline is over.
    ///
    /// Tasks spawned meanwhile are waited for and cut alike. A cut task is dropped at its next await point; one that
    /// never yields is not waited for.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        self.cancel();
        self.group.tracker.close();
        let ended = tokio::time::timeout(deadline, self.group.tracker.wait()).await;
        let shutdown = match ended {
            Ok(()) => Shutdown::Clean,
            Err(_) => Shutdown::Cut { tasks: self.running() },
        };
        self.group.cut.cancel();
        if shutdown != Shutdown::Clean {
            tracing::warn!(owner = %self.group.name, ?shutdown, "tasks were cut at the deadline");
            let _ = tokio::time::timeout(AFTER_CUT, self.group.tracker.wait()).await;
        }
        shutdown
    }

    /// Tasks that have not ended, those of children included.
    #[must_use]
    pub fn running(&self) -> usize {
        self.group.tracker.len()
    }

    /// Tasks of this group (not of its children) that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.group.panics.load(Ordering::Relaxed)
    }
}

/// How long a shutdown waits for the drops of the tasks it has cut.
const AFTER_CUT: Duration = Duration::from_secs(1);

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Tasks of this process that panicked.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// A running task. Dropping it leaves the task to its group.
#[derive(Debug)]
pub struct Task<T> {
    handle: JoinHandle<Option<T>>,
}

impl<T> Task<T> {
    /// Drops the task at its next await point.
    pub fn cut(&self) {
        self.handle.abort();
    }

    /// Cuts the task when what is returned is dropped.
    #[must_use]
    pub fn cut_on_drop(&self) -> CutOnDrop {
        CutOnDrop(self.handle.abort_handle())
    }

    /// Waits for the value; `None` when the task panicked or was cut. Cancel-safe; not to be called again after it has returned.
    pub async fn join(&mut self) -> Option<T> {
        (&mut self.handle).await.ok().flatten()
    }

    /// Whether the task has ended, in whatever way.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// Cuts a task when dropped.
#[derive(Debug)]
pub struct CutOnDrop(AbortHandle);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Polls a future and turns its panic into its message.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Unwind safety: the future is dropped after a panic and never polled again.
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(panic_message(payload.as_ref()))),
        }
    }
}

/// What a panic said, as far as it is text.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not text".to_owned())
}

#[cfg(test)]
mod tests;
