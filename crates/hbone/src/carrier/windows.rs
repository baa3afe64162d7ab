//! How large the receive windows of a connection and its streams ought to be.
//!
//! A stream's window grows only while its reader keeps up with it, and becomes smaller with more streams, so that all of
//! them fit into the connection's. What is unread all the same does not count towards the connection's window: readers
//! that do not read never stop their neighbours.
//!
//! How much a round trip needs is measured. Where it is short, more than that is of use to a quick reader: both ends and the
//! applications may share CPUs, and who has his turn ought to find something to do. All streams together have [`AHEAD`] for that,
//! not more, because what others send waits behind it.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Limits, Memory};

/// No window is made smaller than this, bytes.
const SMALLEST_WINDOW: u32 = 64 << 10;

/// RFC 9113 section 6.9.1, bytes.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// What all streams of a connection may have on their way together however short the round trip is, bytes.
const AHEAD: u32 = 1 << 20;

/// A reader is quick that takes its window in this time.
const QUICK: Duration = Duration::from_millis(10);

/// The first pause after a measurement that changed nothing; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The windows of one connection.
#[derive(Debug)]
pub(super) struct Windows {
    memory: Memory,
    ceiling: u32,
    connection_window: u32,
    /// Places for streams that are taken.
    pub(super) places: usize,
    /// The stream window that the peer has been told.
    pub(super) window: u32,
    /// The connection window in force.
    pub(super) connection: u32,
    /// Counts the round trips that are measured.
    round: u32,
    /// When that began which is counted.
    began: Instant,
    measuring: bool,
    wanted: bool,
    /// The reader that wants a larger window is quick.
    quick: bool,
    /// What a round trip is known to need, bytes.
    needed: u32,
    /// The most that one stream's reader took during the current round trip, bytes.
    most_taken: usize,
    /// No measurement before.
    measure_from: Option<Instant>,
    /// How long the next one waits if the last one changed nothing.
    pause: Duration,
}

impl Windows {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory: limits.memory.clone(),
            ceiling: limits.stream_window,
            connection_window: limits.connection_window,
            places: 0,
            window: limits.first_window(),
            connection: limits.connection_window,
            round: 0,
            began: Instant::now(),
            measuring: false,
            wanted: false,
            quick: false,
            needed: limits.first_window(),
            most_taken: 0,
            measure_from: None,
            pause: SHORTEST_PAUSE,
        }
    }

    /// What a stream's window may be at most with this many streams: all of them fit into the connection's.
    fn share(&self) -> u32 {
        if self.memory.is_short() {
            return SMALLEST_WINDOW;
        }
        self.part(self.connection_window).max(SMALLEST_WINDOW)
    }

    /// A stream's part of what is for all: a power of two, so that a stream more or less seldom changes it.
    fn part(&self, all: u32) -> u32 {
        let streams = u32::try_from(self.places).unwrap_or(u32::MAX).max(1);
        (all / streams).checked_ilog2().map_or(0, |power| 1 << power)
    }

    /// What it may be at most: what a round trip is known to need, or a part of what may be ahead.
    fn most(&self) -> u32 {
        self.part(AHEAD).max(self.needed).min(self.share())
    }

    /// The window that is too large now, made smaller; `None` when it is not.
    pub(super) fn smaller(&self) -> Option<u32> {
        if self.window == SMALLEST_WINDOW {
            return None;
        }
        let most = self.most();
        (self.window > most).then_some(most)
    }

    /// The connection window that there ought to be, if another one is in force: large enough for what is unread and as
    /// much again as an empty connection has. Changes in steps.
    pub(super) fn other_connection(&self, unread: u32) -> Option<u32> {
        let step = (self.connection_window / 4).max(1);
        let unread = unread / step * step;
        let ought = self.connection_window.saturating_add(unread).min(LARGEST_WINDOW);
        (ought != self.connection).then_some(ought)
    }

    /// A reader took bytes. Asks for a measurement once that was a whole window since the last one.
    pub(super) fn taken(&mut self, reader: &mut Taken, bytes: usize) {
        if reader.round != self.round {
            *reader = Taken { round: self.round, bytes: 0 };
        }
        reader.bytes += bytes;
        if self.measuring {
            self.most_taken = self.most_taken.max(reader.bytes);
        } else if !self.wanted && self.window < self.ceiling && reader.bytes >= self.window as usize {
            self.wanted = self.window < self.share() && self.memory.is_ample();
            self.quick = self.wanted && self.began.elapsed() <= QUICK;
        }
    }

    /// Counts anew.
    fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.began = Instant::now();
    }

    /// Whether a round trip is to be measured now: a PING is to leave.
    pub(super) fn measures(&mut self) -> bool {
        if !self.wanted || self.measure_from.is_some_and(|from| from > Instant::now()) {
            return false;
        }
        self.wanted = false;
        self.begin();
        self.most_taken = 0;
        self.measuring = true;
        true
    }

    /// The PING's answer is here. A larger window, if one reader took most of its window in that round trip, or is quick and may
    /// have so much ahead.
    pub(super) fn measured(&mut self) -> Option<u32> {
        if !std::mem::take(&mut self.measuring) {
            return None;
        }
        self.begin();
        let larger = self.window.saturating_mul(2).min(self.ceiling).min(self.share());
        let kept_up = self.most_taken >= self.window as usize / 3 * 2;
        if kept_up {
            self.needed = self.needed.max(larger);
        }
        let larger = (kept_up || (self.quick && larger <= self.most()))
            .then_some(larger)
            .filter(|larger| *larger > self.window && self.memory.is_ample());
        if larger.is_some() {
            self.pause = SHORTEST_PAUSE;
            self.measure_from = None;
        } else {
            self.measure_from = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        larger
    }
}

/// What one reader took in the current round trip.
#[derive(Debug, Default)]
pub(super) struct Taken {
    round: u32,
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows() -> Windows {
        Windows::new(&Limits { memory: Memory::new(1 << 20), ..Limits::default() })
    }

    async fn round_with(windows: &mut Windows, bytes: usize) -> Option<u32> {
        let mut reader = Taken::default();
        let full = windows.window == 4 << 20;
        tokio::time::advance(LONGEST_PAUSE).await;
        windows.taken(&mut reader, windows.window as usize);
        assert_eq!(windows.measures(), !full);
        windows.taken(&mut reader, bytes);
        let larger = windows.measured();
        windows.window = larger.unwrap_or(windows.window);
        larger
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_doubles_to_its_ceiling_while_the_reader_keeps_up() {
        let mut windows = windows();
        windows.places = 1;
        assert_eq!(round_with(&mut windows, 100 << 10).await, None, "less than two thirds in a round trip");
        for window in [512 << 10, 1 << 20, 2 << 20, 4 << 20] {
            let bytes = windows.window as usize;
            assert_eq!(round_with(&mut windows, bytes).await, Some(window));
        }
        assert_eq!(round_with(&mut windows, 64 << 20).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_quick_streams_have_a_megabyte_ahead_between_them() {
        let mut windows = windows();
        windows.places = 1;
        for window in [512 << 10, 1 << 20] {
            windows.taken(&mut Taken::default(), windows.window as usize);
            assert!(windows.measures());
            assert_eq!(windows.measured(), Some(window), "nothing was taken in a round trip that short");
            windows.window = window;
        }
        windows.taken(&mut Taken { round: windows.round, bytes: 0 }, 1 << 20);
        assert!(windows.measures());
        assert_eq!((windows.measured(), windows.smaller()), (None, None));
        // Neighbours do not wait behind more than that.
        for (places, window) in [(2, Some(512 << 10)), (4, Some(256 << 10)), (16, None), (1, None)] {
            windows.places = places;
            assert_eq!(windows.smaller(), window, "{places}");
            windows.window = window.unwrap_or(windows.window);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_round_trip_needs_stays_with_neighbours() {
        let mut windows = windows();
        windows.places = 1;
        for window in [512 << 10, 1 << 20, 2 << 20] {
            let bytes = windows.window as usize;
            assert_eq!(round_with(&mut windows, bytes).await, Some(window));
        }
        windows.places = 8;
        assert_eq!(windows.smaller(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_nothing_is_not_measured_again_at_once() {
        let mut windows = windows();
        windows.places = 4;
        windows.taken(&mut Taken::default(), 1 << 20);
        assert!(windows.measures());
        assert_eq!(windows.measured(), None);
        windows.taken(&mut Taken::default(), 1 << 20);
        assert!(!windows.measures());
        tokio::time::advance(SHORTEST_PAUSE).await;
        assert!(windows.measures());
    }

    #[test]
    fn all_streams_together_fit_into_the_connection() {
        let mut windows = windows();
        windows.window = 4 << 20;
        for streams in 1_u32..=200 {
            windows.places += 1;
            while let Some(window) = windows.smaller() {
                windows.window = window;
            }
            assert!(windows.window * streams <= 16 << 20, "{streams}: {}", windows.window);
        }
        assert_eq!(windows.window, 64 << 10);
        windows.taken(&mut Taken::default(), 1 << 20);
        assert!(!windows.wanted, "no room to grow, nothing to measure");
    }

    #[tokio::test(start_paused = true)]
    async fn without_memory_windows_do_not_grow_and_then_shrink() {
        let mut windows = windows();
        windows.places = 1;
        windows.taken(&mut Taken::default(), 1 << 20);
        let mut account = windows.memory.account();
        account.receive(256 << 10);
        assert!(windows.measures());
        windows.taken(&mut Taken { round: 1, bytes: 0 }, 1 << 20);
        assert_eq!((windows.measured(), windows.smaller()), (None, None));
        account.receive(256 << 10);
        assert_eq!(windows.smaller(), Some(64 << 10));
    }

    #[test]
    fn what_is_unread_leaves_the_connection_as_much_as_an_empty_one_has() {
        let mut windows = windows();
        assert_eq!(windows.other_connection(0), None);
        assert_eq!(windows.other_connection(1 << 20), None, "in steps");
        assert_eq!(windows.other_connection(16 << 20), Some(32 << 20));
        windows.connection = 32 << 20;
        assert_eq!(windows.other_connection(16 << 20), None);
        assert_eq!(windows.other_connection(0), Some(16 << 20));
        assert_eq!(windows.other_connection(u32::MAX >> 1), Some(LARGEST_WINDOW));
    }
}
