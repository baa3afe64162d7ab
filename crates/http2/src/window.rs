//! Credit for what is received (RFC 9113 section 5.2): of a stream, or of the connection.
//!
//! Every byte of a window is in one place: the peer may send it (`credit`), it was received and not released (`unread`), or
//! it was released and the peer was not told yet (`owed`). The peer is told once `owed` is as much as it may still send, and
//! not less than half of the window or [`FEW`]: a WINDOW_UPDATE stands for many bytes. That is looked at whenever one of
//! the parts changes. Nobody waits for ever: while the peer is not told, it may send, or something is unread.

use crate::frame::LARGEST;

/// Credit is not given back in smaller pieces while a reader is behind, bytes.
const FEW: u32 = 16 << 10;

/// A receive window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The sum that the parts ought to be, bytes.
    pub(crate) size: u32,
    /// What the peer may send, bytes. Negative after a smaller SETTINGS_INITIAL_WINDOW_SIZE.
    pub(crate) credit: i32,
    /// Received and not released, bytes.
    pub(crate) unread: u32,
    /// To be given back, bytes. Negative: withheld, because the window was made smaller.
    pub(crate) owed: i32,
}

fn narrow(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX })
}

impl Window {
    /// Whose peer knows its size.
    pub(crate) fn new(size: u32) -> Self {
        Self { size, credit: narrow(size.into()), unread: 0, owed: 0 }
    }

    /// Whether the peer may send a frame of this length.
    pub(crate) fn allows(&self, length: u32) -> bool {
        length == 0 || i64::from(length) <= i64::from(self.credit)
    }

    /// A frame begins, of a length that is allowed.
    pub(crate) fn begin(&mut self, length: u32) {
        self.credit = narrow(i64::from(self.credit) - i64::from(length));
    }

    /// A part of it has come, for a reader.
    pub(crate) fn keep(&mut self, bytes: u32) {
        self.unread = self.unread.saturating_add(bytes);
    }

    /// A part of it has come that nobody reads.
    pub(crate) fn skip(&mut self, bytes: u32) {
        self.owed = narrow(i64::from(self.owed) + i64::from(bytes));
    }

    /// A reader has done with bytes. More than are unread do not count.
    pub(crate) fn release(&mut self, bytes: u32) {
        let bytes = bytes.min(self.unread);
        self.unread -= bytes;
        self.skip(bytes);
    }

    /// Makes the window larger or smaller by credit given or withheld.
    pub(crate) fn resize(&mut self, size: u32) {
        let size = size.min(LARGEST);
        self.owed = narrow(i64::from(self.owed) + i64::from(size) - i64::from(self.size));
        self.size = size;
    }

    /// The peer changes its credit by itself: it acknowledged another SETTINGS_INITIAL_WINDOW_SIZE. A window that was
    /// made smaller than others before stays at what it was, or is `to` at least: credit makes up for it.
    pub(crate) fn shift(&mut self, from: u32, to: u32) {
        let by = i64::from(to) - i64::from(from);
        let (size, least) = (i64::from(self.size) + by, i64::from(self.size.min(to)));
        let ought = size.max(least).min(LARGEST.into());
        self.credit = narrow(i64::from(self.credit) + by);
        self.owed = narrow(i64::from(self.owed) + ought - size);
        self.size = u32::try_from(ought).unwrap_or(0);
    }

    /// Whether the peer is to be told.
    pub(crate) fn is_due(&self) -> bool {
        self.owed > 0 && self.owed >= self.credit && i64::from(self.owed) >= i64::from(FEW.min(self.size / 2))
    }

    /// What the peer is told now: more credit.
    pub(crate) fn tell(&mut self) -> u32 {
        let room = i64::from(LARGEST) - i64::from(self.credit);
        let more = i64::from(self.owed).min(room).max(0);
        self.credit = narrow(i64::from(self.credit) + more);
        self.owed = narrow(i64::from(self.owed) - more);
        u32::try_from(more).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(window: &Window) -> i64 {
        i64::from(window.credit) + i64::from(window.unread) + i64::from(window.owed)
    }

    #[test]
    fn half_a_window_is_given_back_at_once() {
        let mut window = Window::new(100);
        window.begin(100);
        window.keep(100);
        assert!(!window.allows(1) && window.allows(0));
        window.release(49);
        assert!(!window.is_due());
        window.release(1);
        assert!(window.is_due());
        assert_eq!((window.tell(), window.credit, window.owed), (50, 50, 0));
        window.release(1000);
        assert_eq!((window.unread, window.owed, sum(&window)), (0, 50, 100));
    }

    #[test]
    fn nobody_waits_for_ever_whatever_changes() {
        // All that was released before the window shrank is due afterwards.
        let mut window = Window::new(100);
        window.begin(80);
        window.keep(80);
        window.release(40);
        assert!(!window.is_due());
        window.shift(100, 10);
        assert_eq!((window.credit, window.size), (-70, 10));
        assert!(window.is_due());
        assert_eq!(window.tell(), 40);
        window.release(40);
        assert_eq!((window.tell(), window.credit), (40, 10));
        // One that was smaller already keeps what it had.
        window.resize(4);
        window.shift(10, 6);
        assert_eq!((window.size, window.credit, sum(&window)), (4, 6, 4));
        window.shift(6, 10);
        window.resize(10);
        assert_eq!((window.credit, window.owed), (10, 0));
        // Less by withheld credit.
        window.resize(4);
        assert_eq!((window.owed, window.is_due()), (-6, false));
        window.begin(10);
        window.keep(10);
        window.release(10);
        assert!(window.is_due());
        assert_eq!((window.tell(), window.credit, sum(&window)), (4, 4, 4));
        // More, up to the most that there is.
        window.resize(u32::MAX);
        assert!(window.is_due());
        assert_eq!(window.tell(), LARGEST - 4);
        assert_eq!(i64::from(window.credit), i64::from(LARGEST));
    }

    #[test]
    fn what_is_unread_does_not_keep_back_what_was_released() {
        // A slow reader holds all; the window grows by that, and another stream uses the rest again and again.
        let mut window = Window::new(64 << 10);
        window.begin(64 << 10);
        window.keep(64 << 10);
        window.resize(128 << 10);
        assert!(window.is_due());
        assert_eq!(window.tell(), 64 << 10);
        for _ in 0..10 {
            window.begin(32 << 10);
            window.keep(32 << 10);
            window.release(32 << 10);
            assert!(window.is_due());
            assert_eq!(window.tell(), 32 << 10);
        }
        // Nor is a reader that takes a little at a time answered by a little at a time.
        window.begin(64 << 10);
        window.keep(64 << 10);
        window.release(FEW - 1);
        assert!(!window.is_due());
        window.release(1);
        assert!(window.is_due());
    }

    #[test]
    fn padding_and_what_nobody_reads_go_back_as_well() {
        let mut window = Window::new(10);
        window.begin(8);
        window.skip(4);
        window.keep(4);
        assert_eq!((window.unread, window.owed, sum(&window)), (4, 4, 10));
    }
}
