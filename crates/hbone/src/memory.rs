//! The memory that all tunnels of a process may hold together.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// What a process may hold when nobody says otherwise, bytes.
pub const DEFAULT_BYTES: usize = 256 << 20;

/// What each copied connection may hold without counting it, bytes: what one small read brings.
pub(crate) const UNCOUNTED: usize = 2 << 10;

/// Counts the bytes that tunnels carry: received and not yet taken, handed over and not yet sent, read and not yet
/// handed over. A few KiB of each connection are not counted.
///
/// From a quarter of the bound on, windows do not grow. From half of it on, new streams are refused, windows shrink,
/// connections take little to be sent, and only when nothing waits, and each open stream has its share of the other half:
/// when more arrives than that while its reader takes nothing, it is broken. A stream within its share goes on, so nothing
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
        Account { memory: self.clone(), received: 0 }
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

    fn add(&self, bytes: usize) {
        self.shared.held.fetch_add(bytes, Ordering::Relaxed);
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
}

impl Drop for Account {
    fn drop(&mut self) {
        self.take(self.received);
        self.memory.shared.streams.fetch_sub(1, Ordering::Relaxed);
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

    #[test]
    fn what_a_stream_holds_is_given_back_with_it() {
        let memory = Memory::new(200);
        let (mut account, mut holding) = (memory.account(), memory.holding());
        account.receive(60);
        assert!(!memory.is_ample() && !memory.is_short());
        holding.set(UNCOUNTED + 40);
        assert!(memory.is_short() && memory.refuses());
        account.take(10);
        assert_eq!((memory.held(), memory.refused()), (90, 1));
        drop(account);
        assert_eq!(memory.held(), 40);
        drop(holding);
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
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open,
        Close(usize),
        Receive(usize, usize),
        Take(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (which, bytes) = (0..100_usize, 1..60_000_usize);
        prop_oneof![
            Just(Step::Open),
            which.clone().prop_map(Step::Close),
            (which.clone(), bytes.clone()).prop_map(|(which, bytes)| Step::Receive(which, bytes)),
            (which, bytes).prop_map(|(which, bytes)| Step::Take(which, bytes)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_streams_do_the_bound_holds(steps in proptest::collection::vec(step(), 0..300)) {
            let memory = Memory::new(200_000);
            let mut open = Vec::new();
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
                    _ => {}
                }
                prop_assert!(memory.held() <= memory.limit());
            }
            drop(open);
            prop_assert_eq!(memory.held(), 0);
        }
    }
}
