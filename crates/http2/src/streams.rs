//! The streams that are open in either direction, in the order of their identifiers.
//!
//! A stream that is closed in both directions is not kept: what can be known of it later, it is known from its identifier
//! (RFC 9113 section 5.1.1). Those that we reset are remembered for as long as there is room: frames for them may be on
//! their way.

use std::collections::VecDeque;

use crate::window::Window;

/// How many streams that we reset are remembered; what comes for older ones is ignored without asking.
pub(crate) const REMEMBERED: usize = 128;

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    /// What we may send, bytes. Negative after the peer made its initial window smaller (RFC 9113 section 6.9.2).
    pub(crate) send_window: i32,
    pub(crate) window: Window,
    /// What a content-length says is still to come, bytes; `None` where none binds.
    pub(crate) content: Option<u64>,
    /// The peer has not ended its direction.
    pub(crate) receives: bool,
    /// We have not ended ours.
    pub(crate) sends: bool,
    /// The response's head was sent, or received.
    pub(crate) answered: bool,
    /// It waits for its window to have room.
    pub(crate) waits: bool,
    /// It is among those whose peer is to be told of credit.
    pub(crate) due: bool,
    /// Informational responses received.
    pub(crate) informational: u8,
}

impl Stream {
    pub(crate) fn new(id: u32, send_window: u32, window: u32) -> Self {
        Self {
            id,
            send_window: i32::try_from(send_window).unwrap_or(i32::MAX),
            window: Window::new(window),
            content: None,
            receives: true,
            sends: true,
            answered: false,
            waits: false,
            due: false,
            informational: 0,
        }
    }

    /// Puts it among those whose peer is to be told of credit, when it is one.
    pub(crate) fn look(&mut self, due: &mut Vec<u32>) {
        if self.receives && !self.due && self.window.is_due() {
            self.due = true;
            due.push(self.id);
        }
    }
}

/// All of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    /// By identifier, ascending: one side opens all of them, so that a new one is always the last.
    open: Vec<Stream>,
    /// Reset by us, the oldest first.
    reset: VecDeque<u32>,
    /// The largest that was reset by us and is not remembered any more.
    forgotten: u32,
}

impl Streams {
    pub(crate) fn restore(open: Vec<Stream>, reset: VecDeque<u32>, forgotten: u32) -> Self {
        Self { open, reset, forgotten }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    fn place(&self, id: u32) -> Result<usize, usize> {
        self.open.binary_search_by_key(&id, |stream| stream.id)
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Stream> {
        self.open.get(self.place(id).ok()?)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let place = self.place(id).ok()?;
        self.open.get_mut(place)
    }

    /// Its identifier is larger than all others.
    pub(crate) fn push(&mut self, stream: Stream) {
        self.open.push(stream);
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<Stream> {
        let place = self.place(id).ok()?;
        let stream = self.open.remove(place);
        if self.open.is_empty() {
            self.open = Vec::new();
        }
        Some(stream)
    }

    /// Takes all above an identifier away, and says which they were.
    pub(crate) fn remove_above(&mut self, id: u32) -> Vec<u32> {
        let first = self.open.partition_point(|stream| stream.id <= id);
        self.open.drain(first..).map(|stream| stream.id).collect()
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Stream> {
        self.open.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.iter_mut()
    }

    /// We reset a stream.
    pub(crate) fn remember(&mut self, id: u32) {
        if self.reset.len() == REMEMBERED
            && let Some(oldest) = self.reset.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.reset.push_back(id);
    }

    /// Whether frames for this stream, which is not open, are to be ignored.
    pub(crate) fn ignores(&self, id: u32) -> bool {
        id <= self.forgotten || self.reset.contains(&id)
    }

    pub(crate) fn reset(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.reset.iter().copied()
    }

    pub(crate) fn forgotten(&self) -> u32 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_is_small() {
        assert_eq!(size_of::<Stream>(), 48);
    }

    #[test]
    fn streams_are_found_by_identifier() {
        let mut streams = Streams::default();
        for id in [1, 3, 7, 9] {
            streams.push(Stream::new(id, 10, 20));
        }
        assert_eq!(streams.get(7).map(|stream| stream.id), Some(7));
        assert!(streams.get(5).is_none() && streams.get_mut(11).is_none());
        assert_eq!(streams.remove(3).map(|stream| stream.id), Some(3));
        assert_eq!(streams.remove_above(1), [7, 9]);
        assert_eq!(streams.len(), 1);
    }

    #[test]
    fn of_many_that_were_reset_the_last_are_remembered_and_the_rest_is_ignored() {
        let mut streams = Streams::default();
        for id in (1..=2 * 200).step_by(2) {
            streams.remember(id);
        }
        assert_eq!(streams.reset().len(), REMEMBERED);
        assert!(streams.ignores(1) && streams.ignores(399));
        assert!(!streams.ignores(401));
    }
}
