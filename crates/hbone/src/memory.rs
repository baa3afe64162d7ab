//! The memory that all tunnels of a process may hold together.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;

/// What a process may hold when nobody says otherwise, bytes.
pub const DEFAULT_BYTES: usize = 256 << 20;

/// What each copied connection may hold without counting it, bytes: what one small read brings.
pub(crate) const UNCOUNTED: usize = 2 << 10;

/// Counts the bytes that tunnels carry: received and not yet taken, handed over and not yet sent, read and not yet
/// handed over. A few KiB of each connection are not counted.
///
/// From a quarter of the bound on, windows do not grow. From half of it on, new streams are refused, windows shrink,
/// and each open stream has its share of the other half: more is not sent for it until what it sent has left, and when
/// more arrives than its share while its reader takes nothing, it is broken. A stream within its share goes on, so nothing
/// waits for memory that others hold. Thus the count stays below the bound, but for what one turn of a task brings.
/// Clones share the count.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    held: AtomicUsize,
    /// Streams that have an account.
    streams: AtomicUsize,
    refused: AtomicU64,
    broken: AtomicU64,
}

static PROCESS: LazyLock<Memory> = LazyLock::new(|| Memory::new(DEFAULT_BYTES));

impl Memory {
    /// A budget of its own.
    pub fn new(limit: usize) -> Self {
        let (held, streams) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (refused, broken) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { limit, held, streams, refused, broken }) }
    }

    /// The budget that all tunnels of this process share unless told otherwise.
    pub fn of_process() -> Self {
        PROCESS.clone()
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// The bound, bytes.
    pub fn limit(&self) -> usize {
        self.shared.limit
    }

    /// Streams refused for want of memory.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Streams broken for want of memory, because they held more than their share.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::Relaxed)
    }

    /// Whether one more stream must be refused; counts it when so.
    pub(crate) fn refuses(&self) -> bool {
        let short = self.is_short();
        if short {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        short
    }

    /// Whether every stream is held to its share.
    pub(crate) fn is_short(&self) -> bool {
        self.held() >= self.free_for_all()
    }

    /// Whether windows may grow.
    pub(crate) fn is_ample(&self) -> bool {
        self.held() < self.free_for_all() / 2
    }

    /// An account of one stream, empty.
    pub(crate) fn account(&self) -> Account {
        self.shared.streams.fetch_add(1, Ordering::Relaxed);
        let sent = Arc::new(Sent { memory: self.clone(), bytes: AtomicUsize::new(0), waker: AtomicWaker::new() });
        Account { memory: self.clone(), received: 0, sent }
    }

    /// What a buffer holds; nothing yet.
    pub(crate) fn holding(&self) -> Holding {
        Holding { memory: self.clone(), bytes: 0 }
    }

    /// Up to here nobody is asked what he holds, bytes.
    fn free_for_all(&self) -> usize {
        self.shared.limit / 2
    }

    /// What a stream may hold of each direction when memory is short, bytes. All shares together are what is left.
    fn share(&self) -> usize {
        let streams = self.shared.streams.load(Ordering::Relaxed).max(1);
        ((self.shared.limit - self.free_for_all()) / 2 / streams).max(1)
    }

    /// Adds; says whether that is free for all.
    fn add(&self, bytes: usize) -> bool {
        let before = self.shared.held.fetch_add(bytes, Ordering::Relaxed);
        before.saturating_add(bytes) <= self.free_for_all()
    }

    fn remove(&self, bytes: usize) {
        self.shared.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one stream holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct Account {
    memory: Memory,
    received: usize,
    sent: Arc<Sent>,
}

impl Account {
    /// Bytes have arrived.
    pub(crate) fn receive(&mut self, bytes: usize) {
        self.received += bytes;
        self.memory.add(bytes);
    }

    /// Whether the stream has more than its share unread while memory is short: it must be broken. To be asked when its
    /// reader takes no more. Counts it when so.
    pub(crate) fn is_overdrawn(&self) -> bool {
        let overdrawn = self.memory.is_short() && self.received > self.memory.share();
        if overdrawn {
            self.memory.shared.broken.fetch_add(1, Ordering::Relaxed);
        }
        overdrawn
    }

    /// Received bytes were taken.
    pub(crate) fn take(&mut self, bytes: usize) {
        let bytes = bytes.min(self.received);
        self.received -= bytes;
        self.memory.remove(bytes);
    }

    /// Makes room for `wanted` bytes to be sent, or for some of them; waits while the stream's share is on its way. What
    /// is not used is given back by dropping it.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<Room> {
        let room = |bytes| Poll::Ready(Room { sent: Arc::clone(&self.sent), bytes });
        if self.memory.add(wanted) {
            self.sent.bytes.fetch_add(wanted, Ordering::AcqRel);
            return room(wanted);
        }
        self.memory.remove(wanted);
        let share = self.memory.share();
        let free = || share.saturating_sub(self.sent.bytes.load(Ordering::Acquire));
        let mut bytes = free().min(wanted);
        if bytes == 0 {
            self.sent.waker.register(cx.waker());
            // Looked at again: something may have left before the waker was there.
            bytes = free().min(wanted);
        }
        if bytes == 0 {
            return Poll::Pending;
        }
        self.memory.add(bytes);
        self.sent.bytes.fetch_add(bytes, Ordering::AcqRel);
        room(bytes)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.take(self.received);
        self.memory.shared.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one stream has handed over and the connection has not sent.
#[derive(Debug)]
struct Sent {
    memory: Memory,
    bytes: AtomicUsize,
    waker: AtomicWaker,
}

/// Room for bytes on their way out; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    sent: Arc<Sent>,
    bytes: usize,
}

impl Room {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts bytes into it, at most as many as it has room for.
    pub(crate) fn fill(self, bytes: Bytes) -> Frame {
        Frame { bytes, _room: Some(self) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.sent.memory.remove(self.bytes);
        self.sent.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.sent.waker.wake();
    }
}

/// What a DATA frame carries. The HTTP/2 library drops it once it is written.
#[derive(Debug)]
pub(crate) struct Frame {
    bytes: Bytes,
    _room: Option<Room>,
}

impl Frame {
    /// Carries nothing: for an end.
    pub(crate) fn empty() -> Self {
        Self { bytes: Bytes::new(), _room: None }
    }
}

impl Buf for Frame {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// What a buffer between a socket and its other side holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct Holding {
    memory: Memory,
    bytes: usize,
}

impl Holding {
    /// The buffer holds this much now.
    pub(crate) fn set(&mut self, bytes: usize) {
        let bytes = bytes.saturating_sub(UNCOUNTED);
        if bytes > self.bytes {
            self.memory.add(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.memory.remove(self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// Whether only a small read may follow.
    pub(crate) fn is_short(&self) -> bool {
        self.memory.is_short()
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.memory.remove(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn poll_room(account: &Account, wanted: usize) -> Poll<Room> {
        account.poll_room(&mut Context::from_waker(futures::task::noop_waker_ref()), wanted)
    }

    #[test]
    fn what_a_stream_holds_is_given_back_with_it() {
        let memory = Memory::new(200);
        let mut account = memory.account();
        account.receive(60);
        assert!(!memory.is_ample() && !memory.is_short());
        let Poll::Ready(room) = poll_room(&account, 40) else { panic!("there is room") };
        assert!(memory.is_short() && memory.refuses());
        account.take(10);
        assert_eq!((memory.held(), memory.refused()), (90, 1));
        drop(account);
        assert_eq!(memory.held(), 40);
        drop(room.fill(Bytes::from_static(b"x")));
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn more_than_was_added_is_never_taken_away() {
        let memory = Memory::new(100);
        let (mut one, mut other) = (memory.account(), memory.account());
        one.receive(5);
        other.receive(7);
        one.take(9);
        assert_eq!(memory.held(), 7);
    }

    #[test]
    fn only_who_holds_more_than_his_share_suffers_when_memory_is_short() {
        let memory = Memory::new(1000);
        let (mut greedy, mut modest) = (memory.account(), memory.account());
        greedy.receive(400);
        assert!(!greedy.is_overdrawn(), "memory is not short");
        modest.receive(125);
        assert_eq!((greedy.is_overdrawn(), modest.is_overdrawn()), (true, false));
        assert_eq!((memory.held(), memory.broken()), (525, 1));
        let Poll::Ready(first) = poll_room(&modest, 1000) else { panic!("his share is free") };
        assert_eq!(first.bytes(), 125);
        assert!(poll_room(&modest, 1).is_pending(), "until what he sent has left");
        drop(first);
        assert!(poll_room(&modest, 1).is_ready());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open,
        Close(usize),
        Receive(usize, usize),
        Take(usize, usize),
        Send(usize, usize),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (which, bytes) = (0..100_usize, 1..60_000_usize);
        prop_oneof![
            Just(Step::Open),
            which.clone().prop_map(Step::Close),
            (which.clone(), bytes.clone()).prop_map(|(which, bytes)| Step::Receive(which, bytes)),
            (which.clone(), bytes.clone()).prop_map(|(which, bytes)| Step::Take(which, bytes)),
            (which.clone(), bytes).prop_map(|(which, bytes)| Step::Send(which, bytes)),
            which.prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn whatever_streams_do_the_bound_holds(steps in proptest::collection::vec(step(), 0..300)) {
            let memory = Memory::new(200_000);
            let (mut open, mut frames) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Open if !memory.refuses() => open.push(memory.account()),
                    Step::Close(which) if which < open.len() => drop(open.swap_remove(which)),
                    Step::Receive(which, bytes) if which < open.len() => {
                        open[which].receive(bytes);
                        if open[which].is_overdrawn() {
                            drop(open.swap_remove(which));
                        }
                    }
                    Step::Take(which, bytes) if which < open.len() => open[which].take(bytes),
                    Step::Send(which, bytes) if which < open.len() => {
                        if let Poll::Ready(room) = poll_room(&open[which], bytes) {
                            prop_assert!((1..=bytes).contains(&room.bytes()));
                            frames.push(room);
                        }
                    }
                    Step::Leave(which) if which < frames.len() => drop(frames.swap_remove(which)),
                    _ => {}
                }
                // Frames that outlive their stream are the connection's: dropped with it, or sent.
                prop_assert!(memory.held() <= memory.limit() + frames.iter().map(Room::bytes).sum::<usize>());
            }
            drop((open, frames));
            prop_assert_eq!(memory.held(), 0);
        }
    }
}
