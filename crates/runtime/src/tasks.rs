//! Who owns which task. A task is spawned into a [`Tasks`], which counts it, ends it and catches its panic.
//!
//! A panicking task ends alone: the panic is logged with the task's name, counted ([`panics`]), and the process
//! goes on. Dropping the last clone of a [`Tasks`] cuts what still runs in it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::bell::{Bell, Place};

/// A group of tasks with one owner. Clones share the group.
#[derive(Clone, Debug)]
pub struct Tasks {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    members: Arc<Members>,
    /// Asks tasks to end; they see it through [`Tasks::cancelled`].
    cancel: CancellationToken,
    _parent: Option<Tasks>,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.members.cut();
    }
}

/// What the tasks of a group hold of it, which does not keep the group alive.
#[derive(Debug)]
struct Members {
    name: Arc<str>,
    /// Tasks that have not ended, those of children included.
    running: AtomicUsize,
    /// Told when there are none left.
    none_left: Notify,
    /// Rung, it drops tasks where they are.
    cut: Bell,
    panics: AtomicU64,
    parent: Option<Arc<Members>>,
    children: Mutex<Vec<Weak<Members>>>,
}

impl Members {
    fn new(name: Arc<str>, parent: Option<Arc<Self>>) -> Arc<Self> {
        let members = Arc::new(Self {
            name,
            running: AtomicUsize::new(0),
            none_left: Notify::new(),
            cut: Bell::default(),
            panics: AtomicU64::new(0),
            parent,
            children: Mutex::default(),
        });
        if let Some(parent) = &members.parent {
            let mut children = parent.children.lock();
            children.retain(|child| child.strong_count() > 0);
            children.push(Arc::downgrade(&members));
            drop(children);
            if parent.cut.is_rung() {
                members.cut();
            }
        }
        members
    }

    /// Itself, its parent, and so on.
    fn and_parents(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |members| members.parent.as_deref())
    }

    fn cut(&self) {
        self.cut.ring();
        let children = self.children.lock().clone();
        for child in children.iter().filter_map(Weak::upgrade) {
            child.cut();
        }
    }

    /// Waits until none is running.
    async fn none_left(&self) {
        loop {
            let mut told = pin!(self.none_left.notified());
            told.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            told.await;
        }
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
        Self::with(Members::new(name.into(), None), CancellationToken::new(), None)
    }

    fn with(members: Arc<Members>, cancel: CancellationToken, parent: Option<Tasks>) -> Self {
        Self { group: Arc::new(Group { members, cancel, _parent: parent }) }
    }

    /// A group that ends with this one: cancelled and cut with it, and counted among its tasks.
    #[must_use]
    pub fn child(&self, name: impl Into<Arc<str>>) -> Self {
        let members = Members::new(name.into(), Some(self.group.members.clone()));
        Self::with(members, self.group.cancel.child_token(), Some(self.clone()))
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

    /// Everything that surrounds a task: counting here and in all parents, cutting it, catching its panic.
    fn wrap<F: Future>(&self, name: &'static str, future: F) -> Member<F> {
        Member { future, name, membership: Membership::of(&self.group.members) }
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
        let members = &self.group.members;
        let ended = tokio::time::timeout(deadline, members.none_left()).await;
        let shutdown = match ended {
            Ok(()) => Shutdown::Clean,
            Err(_) => Shutdown::Cut { tasks: self.running() },
        };
        members.cut();
        if shutdown != Shutdown::Clean {
            tracing::warn!(owner = %members.name, ?shutdown, "tasks were cut at the deadline");
            let _ = tokio::time::timeout(AFTER_CUT, members.none_left()).await;
        }
        shutdown
    }

    /// Tasks that have not ended, those of children included.
    #[must_use]
    pub fn running(&self) -> usize {
        self.group.members.running.load(Ordering::Acquire)
    }

    /// Tasks of this group (not of its children) that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.group.members.panics.load(Ordering::Relaxed)
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

/// A task's place in its group, given back when dropped.
struct Membership {
    members: Arc<Members>,
    cut: Place,
}

impl Membership {
    fn of(members: &Arc<Members>) -> Self {
        for members in members.and_parents() {
            members.running.fetch_add(1, Ordering::Relaxed);
        }
        Self { members: members.clone(), cut: Place::NONE }
    }

    fn is_cut(&mut self, cx: &Context<'_>) -> bool {
        // A task has the same waker all its life: it is told once.
        if self.cut == Place::NONE {
            self.members.cut.poll(cx, &mut self.cut).is_ready()
        } else {
            self.members.cut.is_rung()
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.members.cut.leave(&mut self.cut);
        for members in self.members.and_parents() {
            if members.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                members.none_left.notify_waiters();
            }
        }
    }
}

pin_project! {
    /// A future that ends when its group is cut or when it panics.
    struct Member<F> {
        #[pin]
        future: F,
        name: &'static str,
        // Dropped last.
        membership: Membership,
    }
}

impl<F: Future> Future for Member<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.membership.is_cut(cx) {
            return Poll::Ready(None);
        }
        // Unwind safety: the future is dropped after a panic and never polled again.
        match std::panic::catch_unwind(AssertUnwindSafe(|| this.future.poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(payload) => {
                PANICS.fetch_add(1, Ordering::Relaxed);
                let members = &this.membership.members;
                members.panics.fetch_add(1, Ordering::Relaxed);
                let (panic, owner) = (panic_message(payload.as_ref()), &*members.name);
                tracing::error!(task = *this.name, owner, %panic, "task panicked");
                Poll::Ready(None)
            }
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
