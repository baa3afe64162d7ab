//! What the caller does.

use http::{HeaderMap, StatusCode};

use super::{ANSWERS, Connection, DRAIN, HEADS, Leaving, Role};
use crate::error::{ConnectionError, SendError};
use crate::frame::{self, HEAD, Head, LARGEST, flag, kind, setting};
use crate::head::Block;
use crate::streams::Stream;
use crate::{Reason, Room};

impl Connection {
    // ---- streams ----

    /// Whether a client may open a stream now. Errors say why not; those that pass: [`SendError::Full`] when a stream ends or
    /// with [`crate::Event::Settings`], [`SendError::OutputFull`] when output is taken.
    pub fn may_open(&self) -> Result<(), SendError> {
        let limit = self.most_streams();
        if self.role != Role::Client {
            Err(SendError::Role)
        } else if self.failed.is_some() {
            Err(SendError::Over)
        } else if self.leaving != Leaving::No || self.peer_last.is_some() {
            Err(SendError::GoingAway)
        } else if self.next() > LARGEST {
            Err(SendError::NoIdentifiers)
        } else if self.streams.len() >= limit as usize {
            Err(SendError::Full { limit })
        } else if self.output.len() > HEADS {
            Err(SendError::OutputFull)
        } else {
            Ok(())
        }
    }

    /// How many streams a client may have open at a time: the lesser of both ends' limits.
    pub fn most_streams(&self) -> u32 {
        self.config.max_streams.min(self.peer.max_streams)
    }

    /// The stream that a client opens next.
    pub(super) fn next(&self) -> u32 {
        if self.last == 0 { 1 } else { self.last.saturating_add(2) }
    }

    /// Opens a stream by a CONNECT for `authority` (RFC 9113 section 8.5), and says its identifier. It may carry DATA once it is
    /// answered, or before: see [`Connection::room`].
    pub fn connect(&mut self, authority: &str, headers: &HeaderMap) -> Result<u32, SendError> {
        self.may_open()?;
        let block = Block::connect(!self.block_sent, authority, headers)?;
        let id = self.next();
        self.put_head(id, &block, false)?;
        self.last = id;
        self.streams.push(Stream::new(id, self.peer.initial_window, self.initial_window));
        Ok(id)
    }

    /// Answers a request with a final response; with `end`, nothing follows it. A stream whose request has not ended then
    /// stays open for what the peer sends; who does not want that resets it with [`Reason::NO_ERROR`].
    pub fn respond(
        &mut self,
        stream: u32,
        status: StatusCode,
        headers: &HeaderMap,
        end: bool,
    ) -> Result<(), SendError> {
        if self.failed.is_some() {
            return Err(SendError::Over);
        }
        if self.role != Role::Server {
            return Err(SendError::Role);
        }
        let state = self.streams.get(stream).ok_or(SendError::NoStream(stream))?;
        if state.answered || !state.sends {
            return Err(SendError::State(stream));
        }
        if self.output.len() > HEADS {
            return Err(SendError::OutputFull);
        }
        let block = Block::response(!self.block_sent, status, headers)?;
        self.put_head(stream, &block, end)?;
        if let Some(state) = self.streams.get_mut(stream) {
            state.answered = true;
            state.sends = !end;
        }
        self.forget_if_ended(stream);
        Ok(())
    }

    fn put_head(&mut self, stream: u32, block: &Block, end: bool) -> Result<(), SendError> {
        let (size, limit) = (block.size, self.peer.max_header_list);
        if size > limit as usize {
            return Err(SendError::HeadersTooLarge { size, limit });
        }
        frame::put_block(&mut self.output, stream, end, self.peer.max_frame, &block.bytes);
        self.block_sent = true;
        Ok(())
    }

    /// Ends both directions of a stream. What is not open (any more) is left alone. A peer that reads nothing of it, again and
    /// again, loses the connection.
    pub fn reset(&mut self, stream: u32, reason: Reason) {
        if self.failed.is_none() && self.forget(stream) {
            self.put_reset(stream, reason);
            if self.output.len() > 2 * HEADS {
                self.close(Reason::ENHANCE_YOUR_CALM, "streams are opened, and nothing is read of their ends");
            }
        }
    }

    // ---- DATA ----

    /// What the next DATA frame of a stream may carry: bounded by its window, the connection's, the peer's
    /// SETTINGS_MAX_FRAME_SIZE and [`super::Config::max_data`]. Who is told to wait is told when to go on.
    ///
    /// A client may send before its request is answered, where it knows that the peer takes that.
    pub fn room(&mut self, stream: u32) -> Room {
        match self.allowance(stream) {
            Room::Bytes(window) => Room::Bytes(window.min(self.peer.max_frame).min(self.config.max_data)),
            none => none,
        }
    }

    /// What the next DATA frames of a stream may carry together: bounded by its window and the connection's. As for
    /// [`Connection::room`] else.
    pub fn allowance(&mut self, stream: u32) -> Room {
        let may_send = |stream: &&mut Stream| stream.sends && (stream.answered || self.role == Role::Client);
        let Some(stream) = self.streams.get_mut(stream).filter(may_send).filter(|_| self.failed.is_none()) else {
            return Room::Never;
        };
        if stream.send_window <= 0 {
            stream.waits = true;
            return Room::Stream;
        }
        if self.send_window <= 0 {
            self.waits = true;
            return Room::Connection;
        }
        Room::Bytes(stream.send_window.min(self.send_window).unsigned_abs())
    }

    /// What all streams together may send: the connection's window, bytes.
    pub fn connection_room(&self) -> u32 {
        self.send_window.max(0).unsigned_abs()
    }

    /// The head of a DATA frame of `length` bytes, which are to be written right behind it; with `end`, it is the stream's last.
    /// To be called when [`Connection::output`] is empty. An empty frame needs no room.
    pub fn data(&mut self, stream: u32, length: u32, end: bool) -> Result<[u8; HEAD], SendError> {
        if self.failed.is_some() {
            return Err(SendError::Over);
        }
        if !self.output.is_empty() {
            return Err(SendError::OutputFirst);
        }
        let state = self.streams.get_mut(stream).ok_or(SendError::NoStream(stream))?;
        if !state.sends || (self.role == Role::Server && !state.answered) {
            return Err(SendError::State(stream));
        }
        let window = state.send_window.min(self.send_window).max(0).unsigned_abs();
        if length > window.min(self.peer.max_frame) {
            return Err(SendError::NoRoom);
        }
        let taken = i32::try_from(length).map_err(|_| SendError::NoRoom)?;
        state.send_window -= taken;
        self.send_window -= taken;
        state.sends = !end;
        let flags = if end { flag::END_STREAM } else { 0 };
        self.forget_if_ended(stream);
        Ok(Head { length, kind: kind::DATA, flags, stream }.bytes())
    }

    /// Bytes of [`crate::Event::Data`] were passed on: the peer gets its credit back, at once or together with more. Every byte
    /// is to be released once, also when its stream is over meanwhile.
    pub fn release(&mut self, stream: u32, bytes: u32) {
        self.window.release(bytes);
        if let Some(state) = self.streams.get_mut(stream) {
            state.window.release(bytes);
            state.look(&mut self.due);
        }
    }

    // ---- windows ----

    /// Gives one stream another receive window, bytes: by more credit, or by less being given back.
    pub fn set_stream_window(&mut self, stream: u32, bytes: u32) {
        let shrinks = self.shrinks_by();
        if let Some(state) = self.streams.get_mut(stream) {
            state.window.resize(bytes.saturating_add(shrinks));
            state.look(&mut self.due);
        }
    }

    /// The receive window of a stream, bytes.
    pub fn stream_window(&self, stream: u32) -> Option<u32> {
        self.streams.get(stream).map(|stream| stream.window.size.saturating_sub(self.shrinks_by()))
    }

    /// What all stream windows will lose when the peer acknowledges our SETTINGS, bytes.
    fn shrinks_by(&self) -> u32 {
        self.unacknowledged.map_or(0, |window| self.initial_window.saturating_sub(window))
    }

    /// Gives the connection another receive window, bytes, in the same way. So that readers that do not read never stop their
    /// neighbours: what it ought to be, and [`Connection::unread`] on top of it.
    pub fn set_connection_window(&mut self, bytes: u32) {
        self.window.resize(bytes);
    }

    /// The connection's receive window, bytes.
    pub fn connection_window(&self) -> u32 {
        self.window.size
    }

    /// Gives all streams, and those to come, another receive window, bytes (RFC 9113 section 6.9.2). A smaller one is in
    /// force once the peer has acknowledged it. `false`: not now, an earlier SETTINGS is not acknowledged.
    pub fn set_initial_window(&mut self, bytes: u32) -> bool {
        if self.failed.is_some() || self.unacknowledged.is_some() {
            return false;
        }
        // No window may become larger than the largest: the peer would have to end the connection.
        let most = self.streams.iter().map(|stream| i64::from(LARGEST) - i64::from(stream.window.credit)).min();
        let more = u32::try_from(most.unwrap_or(i64::from(LARGEST))).unwrap_or(0);
        let bytes = bytes.min(self.initial_window.saturating_add(more)).min(LARGEST);
        frame::put_settings(&mut self.output, &[(setting::INITIAL_WINDOW_SIZE, bytes)]);
        self.unacknowledged = Some(bytes);
        if bytes > self.initial_window {
            self.shift_windows(bytes);
        }
        true
    }

    /// Streams have another window from now on.
    pub(super) fn shift_windows(&mut self, to: u32) {
        let from = std::mem::replace(&mut self.initial_window, to);
        for stream in self.streams.iter_mut() {
            stream.window.shift(from, to);
            stream.look(&mut self.due);
        }
    }

    // ---- the connection ----

    /// Sends a PING, whose answer is [`crate::Event::Pong`]. At most a few are to be on their way at a time.
    pub fn ping(&mut self, payload: [u8; 8]) {
        if self.failed.is_none() {
            frame::put(&mut self.output, kind::PING, 0, 0, &payload);
            self.pings = self.pings.saturating_add(1);
        }
    }

    /// Begins to go away: open streams go on. A server announces it first, and takes what the peer opens before it knows; a
    /// PING tells when it knows (RFC 9113 section 6.8). [`Connection::is_done`] says when all streams have ended.
    pub fn go_away(&mut self) {
        if self.failed.is_some() || self.leaving != Leaving::No {
            return;
        }
        if self.role == Role::Client {
            return self.go_away_now();
        }
        frame::put_go_away(&mut self.output, LARGEST, Reason::NO_ERROR);
        self.leaving = Leaving::Announced;
        self.ping(DRAIN);
    }

    /// Takes no new streams from now on, announced or not.
    pub fn go_away_now(&mut self) {
        if self.failed.is_none() && !matches!(self.leaving, Leaving::Last(_)) {
            frame::put_go_away(&mut self.output, self.accepted, Reason::NO_ERROR);
            self.leaving = Leaving::Last(self.accepted);
        }
    }

    /// Ends everything. A GOAWAY that says why is the last output.
    pub fn close(&mut self, reason: Reason, why: &'static str) {
        self.fail(ConnectionError { reason, why });
    }

    // ---- output ----

    /// Whether [`Connection::output`] has something.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || (self.failed.is_none() && (!self.due.is_empty() || self.window.is_due()))
    }

    /// Everything that is to be written but DATA: to be written before the next of it.
    pub fn output(&mut self) -> &[u8] {
        if self.failed.is_none() {
            self.put_credit();
        }
        self.output.get(self.taken..).unwrap_or_default()
    }

    /// So much of [`Connection::output`] was handed on.
    pub fn output_taken(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= self.output.len() {
            // What is seldom needed again is not kept.
            self.output = Vec::new();
            self.taken = 0;
            self.answers = 0;
        }
    }

    /// Tells the peer of credit, unless it does not read what it was told.
    fn put_credit(&mut self) {
        if self.output.len() > ANSWERS {
            return;
        }
        if self.window.is_due() {
            let more = self.window.tell();
            frame::put(&mut self.output, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        for id in std::mem::take(&mut self.due) {
            let Some(stream) = self.streams.get_mut(id) else { continue };
            stream.due = false;
            let more = if stream.receives { stream.window.tell() } else { 0 };
            if more > 0 {
                frame::put(&mut self.output, kind::WINDOW_UPDATE, 0, id, &more.to_be_bytes());
            }
        }
    }
}
