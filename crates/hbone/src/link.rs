//! What a connection and its streams tell each other: how many streams there are, how large their windows are and ought
//! to be.
//!
//! A stream's window grows only while its reader keeps up with it, and becomes smaller with more streams, so that all of
//! them fit into the connection's. What is unread all the same does not count towards the connection's window: readers
//! that do not read never stop their neighbours.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use futures::task::AtomicWaker;
use h2::FlowControl;
use parking_lot::Mutex;

use crate::{Limits, Memory};

/// No window is made smaller than this, bytes.
const SMALLEST_WINDOW: u32 = 64 << 10;

/// RFC 9113 section 6.9.1, bytes.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// Shared by a connection's task and its streams.
#[derive(Debug)]
pub(crate) struct Link {
    memory: Memory,
    ceiling: u32,
    connection_window: u32,
    streams: AtomicUsize,
    /// The stream window that the peer has been told.
    window: AtomicU32,
    /// Received by all streams and not yet taken, bytes.
    unread: AtomicUsize,
    /// The connection window in force.
    connection: AtomicU32,
    /// Counts the round trips that are measured.
    round: AtomicU32,
    measuring: AtomicBool,
    wanted: AtomicBool,
    /// The most that one stream's reader took during the current round trip, bytes.
    most_taken: AtomicUsize,
    /// The peer was told a smaller window, and credit was not looked at since.
    shrunk: AtomicBool,
    /// The receiving directions of the open streams, by stream number.
    receivers: Mutex<HashMap<u32, FlowControl>>,
    /// Wakes the connection's task.
    pub(crate) waker: AtomicWaker,
}

impl Link {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory: limits.memory.clone(),
            ceiling: limits.stream_window,
            connection_window: limits.connection_window,
            streams: AtomicUsize::new(0),
            window: AtomicU32::new(limits.first_window()),
            unread: AtomicUsize::new(0),
            connection: AtomicU32::new(limits.connection_window),
            round: AtomicU32::new(0),
            measuring: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            most_taken: AtomicUsize::new(0),
            shrunk: AtomicBool::new(false),
            receivers: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Streams open or being opened.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    pub(crate) fn stream_opened(&self) {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.waker.wake();
    }

    pub(crate) fn stream_closed(&self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
        self.waker.wake();
    }

    // ---- windows ----

    /// The window in force, bytes.
    pub(crate) fn window(&self) -> u32 {
        self.window.load(Ordering::Relaxed)
    }

    /// The peer was told another window.
    pub(crate) fn window_changed(&self, window: u32) {
        if self.window.swap(window, Ordering::Relaxed) > window {
            self.shrunk.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the window became smaller since this was asked last.
    pub(crate) fn has_shrunk(&self) -> bool {
        self.shrunk.swap(false, Ordering::Relaxed)
    }

    /// A stream receives until [`Link::receives_no_more`].
    pub(crate) fn receives(&self, flow: FlowControl) {
        self.receivers.lock().insert(flow.stream_id().as_u32(), flow);
    }

    pub(crate) fn receives_no_more(&self, stream: u32) {
        let removed = self.receivers.lock().remove(&stream);
        // Not under the lock: it may be the stream's last handle.
        drop(removed);
    }

    /// Has every stream tell its peer what it may send. To be called now and then, and when the peer has acknowledged a smaller
    /// window: what a stream has sent may then be more than that window, and while credit given back for it was too little to be
    /// told before, the library does not look at it again by itself. Without this, such a stream waits for ever.
    pub(crate) fn tell_credit(&self) {
        for flow in self.receivers.lock().values_mut() {
            // A stream that has ended receives nothing.
            let _ = flow.release_capacity(0);
        }
    }

    /// What a stream's window may be at most with this many streams: all of them fit into the connection's.
    fn share(&self) -> u32 {
        let streams = u32::try_from(self.streams()).unwrap_or(u32::MAX).max(1);
        let share = (self.connection_window / streams).max(SMALLEST_WINDOW);
        // A power of two, so that a stream more or less seldom changes it.
        let share = 1 << (31 - share.leading_zeros());
        if self.memory.is_short() { SMALLEST_WINDOW } else { share }
    }

    /// The window that is too large now, made smaller; `None` when it is not.
    pub(crate) fn smaller(&self) -> Option<u32> {
        let (window, share) = (self.window(), self.share());
        (window > share).then_some(share)
    }

    /// Bytes arrived that nobody has taken yet.
    pub(crate) fn arrived(&self, bytes: usize) {
        self.unread.fetch_add(bytes, Ordering::Relaxed);
        self.look_at_unread();
    }

    /// Bytes that had arrived were taken, or will never be.
    pub(crate) fn gone(&self, bytes: usize) {
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
        self.look_at_unread();
    }

    fn look_at_unread(&self) {
        if self.other_connection_window().is_some() {
            self.waker.wake();
        }
    }

    /// The connection window that there ought to be, if another one is in force: large enough for what is unread and as
    /// much again as an empty connection has. Changes in steps.
    pub(crate) fn other_connection_window(&self) -> Option<u32> {
        let step = (self.connection_window / 4).max(1) as usize;
        let unread = self.unread.load(Ordering::Relaxed) / step * step;
        let unread = u32::try_from(unread).unwrap_or(u32::MAX);
        let ought = self.connection_window.saturating_add(unread).min(LARGEST_WINDOW);
        (ought != self.connection.load(Ordering::Relaxed)).then_some(ought)
    }

    /// Another connection window is in force.
    pub(crate) fn connection_window_changed(&self, window: u32) {
        self.connection.store(window, Ordering::Relaxed);
    }

    /// A reader took bytes. Asks for a measurement once that was a whole window since the last one.
    pub(crate) fn taken(&self, reader: &mut Taken, bytes: usize) {
        let round = self.round.load(Ordering::Relaxed);
        if reader.round != round {
            *reader = Taken { round, bytes: 0 };
        }
        reader.bytes += bytes;
        if self.measuring.load(Ordering::Relaxed) {
            self.most_taken.fetch_max(reader.bytes, Ordering::Relaxed);
            return;
        }
        let window = self.window();
        let may_grow = window < self.ceiling.min(self.share()) && self.memory.is_ample();
        if reader.bytes >= window as usize && may_grow && !self.wanted.swap(true, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    /// Whether a round trip ought to be measured.
    pub(crate) fn measurement_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// A PING leaves.
    pub(crate) fn round_begins(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        self.round.fetch_add(1, Ordering::Relaxed);
        self.most_taken.store(0, Ordering::Relaxed);
        self.measuring.store(true, Ordering::Relaxed);
    }

    /// Its answer is here. A larger window, if one reader took most of its window in that round trip.
    pub(crate) fn round_ends(&self) -> Option<u32> {
        self.measuring.store(false, Ordering::Relaxed);
        self.round.fetch_add(1, Ordering::Relaxed);
        let window = self.window();
        let larger = window.saturating_mul(2).min(self.ceiling).min(self.share());
        let kept_up = self.most_taken.load(Ordering::Relaxed) >= window as usize / 3 * 2;
        (kept_up && larger > window && self.memory.is_ample()).then_some(larger)
    }
}

/// What one reader took in the current round trip.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    round: u32,
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link::new(&Limits { memory: Memory::new(1 << 20), ..Limits::default() })
    }

    fn round_with(link: &Link, bytes: usize) -> Option<u32> {
        let mut reader = Taken::default();
        link.taken(&mut reader, link.window() as usize);
        assert!(link.measurement_wanted() || link.window() == 4 << 20);
        link.round_begins();
        link.taken(&mut reader, bytes);
        let larger = link.round_ends();
        if let Some(window) = larger {
            link.window_changed(window);
        }
        larger
    }

    #[test]
    fn a_window_doubles_to_its_ceiling_while_the_reader_keeps_up() {
        let link = link();
        link.stream_opened();
        assert_eq!(round_with(&link, 100 << 10), None, "less than two thirds in a round trip");
        for window in [512 << 10, 1 << 20, 2 << 20, 4 << 20] {
            assert_eq!(round_with(&link, link.window() as usize), Some(window));
        }
        assert_eq!(round_with(&link, 64 << 20), None);
    }

    #[test]
    fn all_streams_together_fit_into_the_connection() {
        let link = link();
        link.window_changed(4 << 20);
        for streams in 1_u32..=200 {
            link.stream_opened();
            while let Some(window) = link.smaller() {
                link.window_changed(window);
            }
            assert!(link.window() * streams <= 16 << 20, "{streams}: {}", link.window());
        }
        assert_eq!(link.window(), 64 << 10);
        let mut reader = Taken::default();
        link.taken(&mut reader, 1 << 20);
        assert!(!link.measurement_wanted(), "no room to grow, nothing to measure");
    }

    #[test]
    fn without_memory_windows_do_not_grow_and_then_shrink() {
        let link = link();
        link.stream_opened();
        let mut account = link.memory().account();
        account.receive(256 << 10);
        link.round_begins();
        link.taken(&mut Taken { round: 1, bytes: 0 }, 1 << 20);
        assert_eq!((link.round_ends(), link.smaller()), (None, None));
        account.receive(256 << 10);
        assert_eq!(link.smaller(), Some(64 << 10));
    }

    #[test]
    fn what_is_unread_leaves_the_connection_as_much_as_an_empty_one_has() {
        let link = link();
        assert_eq!(link.other_connection_window(), None);
        link.arrived(1 << 20);
        assert_eq!(link.other_connection_window(), None, "in steps");
        link.arrived(15 << 20);
        assert_eq!(link.other_connection_window(), Some(32 << 20));
        link.connection_window_changed(32 << 20);
        assert_eq!(link.other_connection_window(), None);
        link.gone(16 << 20);
        assert_eq!(link.other_connection_window(), Some(16 << 20));
        link.arrived(usize::MAX >> 1);
        assert_eq!(link.other_connection_window(), Some(LARGEST_WINDOW));
    }
}
