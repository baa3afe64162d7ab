//! One connection: its state, and how it begins. `receive` takes what comes, `frames` understands it, `send` is what the caller
//! does, `export` is the state as bytes.

mod export;
mod frames;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::error::{ConnectionError, Fault};
use crate::frame::{self, DEFAULT_WINDOW, LARGEST, LARGEST_MAX_FRAME, PREFACE, SMALLEST_MAX_FRAME, setting};
use crate::hpack::Decoder;
use crate::streams::Streams;
use crate::window::Window;
use crate::{EARLY_DATA, Event, Reason};

use receive::Reading;

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// What a connection is to be like. Values out of bounds are taken as the nearest within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Receive window that streams begin with, bytes: SETTINGS_INITIAL_WINDOW_SIZE.
    pub initial_window: u32,
    /// Receive window of the connection, bytes.
    pub connection_window: u32,
    /// Largest frame that is taken, bytes: SETTINGS_MAX_FRAME_SIZE, 2^14 to 2^24 - 1. DATA is never collected, so that it costs
    /// nothing to take large ones.
    pub max_frame: u32,
    /// Streams that a server takes at a time: SETTINGS_MAX_CONCURRENT_STREAMS; that a client opens at most.
    pub max_streams: u32,
    /// Largest header list that is taken, bytes: SETTINGS_MAX_HEADER_LIST_SIZE; also the largest header block.
    pub max_header_list: u32,
    /// Largest DATA frame that is sent, without its head, bytes.
    pub max_data: u32,
    /// What a server takes of a stream's DATA before it has answered, and keeps until then, bytes; told by [`EARLY_DATA`]. 0: it says
    /// nothing of it.
    pub early_data: u32,
}

impl Config {
    /// The bounds of contract 3.3; a DATA frame that fits, with its head, into one TLS record.
    pub const fn client() -> Self {
        Self {
            initial_window: 256 << 10,
            connection_window: 16 << 20,
            max_frame: 1 << 20,
            max_streams: 100,
            max_header_list: 16 << 10,
            max_data: (1 << 14) - 9,
            early_data: 0,
        }
    }

    /// The same for a server.
    pub const fn server() -> Self {
        Self { max_streams: 200, max_header_list: 64 << 10, ..Self::client() }
    }

    fn checked(self) -> Self {
        Self {
            initial_window: self.initial_window.min(LARGEST),
            connection_window: self.connection_window.min(LARGEST),
            max_frame: self.max_frame.clamp(SMALLEST_MAX_FRAME, LARGEST_MAX_FRAME),
            max_streams: self.max_streams,
            max_header_list: self.max_header_list,
            max_data: self.max_data.clamp(1, LARGEST_MAX_FRAME),
            early_data: self.early_data.min(LARGEST),
        }
    }
}

/// The peer's settings, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Peer {
    initial_window: u32,
    max_frame: u32,
    max_streams: u32,
    max_header_list: u32,
    early_data: u32,
}

/// How far a GOAWAY of ours has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The peer was told that there will be one; streams that it opened before it knew are still taken.
    Announced,
    /// Streams above this one are not taken.
    Last(u32),
}

/// A header block that is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    stream: u32,
    end_stream: bool,
    /// CONTINUATION frames so far.
    frames: u8,
    bytes: Vec<u8>,
}

/// One end of a connection.
///
/// What [`Connection::receive`] tells and what the caller sends are bound by one rule: [`Connection::output`] and DATA leave in the
/// order in which they were handed out. Nothing here waits or knows the time.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    failed: Option<ConnectionError>,
    // What comes.
    reading: Reading,
    /// The beginning of a frame's head, or of a payload.
    partial: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    told: VecDeque<Event<'static>>,
    /// Frames that brought nothing, since one that did.
    empty_frames: u16,
    /// What the peer may still make us throw away.
    patience: u32,
    // Settings.
    peer: Peer,
    /// The peer's first SETTINGS came.
    greeted: bool,
    /// Receive window that streams are held to.
    initial_window: u32,
    /// That of the SETTINGS that the peer has not acknowledged.
    unacknowledged: Option<u32>,
    // Flow control.
    window: Window,
    send_window: i32,
    /// Somebody waits for the connection's window to have room.
    waits: bool,
    /// Streams whose peer is to be told of credit.
    due: Vec<u32>,
    // Streams.
    streams: Streams,
    /// The last one opened: by us as a client, by the peer as a server.
    last: u32,
    /// The last one that was told to the caller of a server.
    accepted: u32,
    leaving: Leaving,
    /// The last stream that the peer, going away, processes.
    peer_last: Option<u32>,
    // What goes.
    output: Vec<u8>,
    /// Of `output`, taken already.
    taken: usize,
    /// Answers within `output`, bytes.
    answers: usize,
    /// A header block was sent.
    block_sent: bool,
    /// PINGs of ours that are not answered.
    pings: u32,
}

/// What a client may still make a server throw away when nothing is taken from it: requests that it reset before they
/// were answered, and streams that it broke.
pub(crate) const PATIENCE: u32 = 1000;

/// How much of [`PATIENCE`] comes back in a second.
const PATIENCE_PER_SECOND: u32 = 100;

/// What the peer may make us answer while it does not read, bytes of [`Connection::output`].
pub(crate) const ANSWERS: usize = 16 << 10;

/// Heads that wait to be written, bytes of [`Connection::output`].
pub(crate) const HEADS: usize = 256 << 10;

/// What the PING of a graceful end carries.
const DRAIN: [u8; 8] = *b"draining";

impl Connection {
    /// A client's end. Its preface and SETTINGS are in [`Connection::output`]; streams may be opened at once.
    pub fn client(config: Config) -> Self {
        let mut connection = Self::new(Role::Client, config);
        connection.output.extend_from_slice(PREFACE);
        connection.greet(&[(setting::ENABLE_PUSH, 0)]);
        connection
    }

    /// A server's end. Its SETTINGS are in [`Connection::output`].
    pub fn server(config: Config) -> Self {
        let mut connection = Self::new(Role::Server, config);
        let Config { max_streams, early_data, .. } = connection.config;
        let early = (early_data > 0).then_some((EARLY_DATA, early_data));
        let settings = [(setting::MAX_CONCURRENT_STREAMS, max_streams)].into_iter().chain(early);
        connection.greet(&settings.collect::<Vec<_>>());
        connection
    }

    fn new(role: Role, config: Config) -> Self {
        let config = config.checked();
        let mut window = Window::new(DEFAULT_WINDOW);
        window.resize(config.connection_window);
        Self {
            role,
            config,
            failed: None,
            reading: if role == Role::Server { Reading::Preface } else { Reading::Head },
            partial: Vec::new(),
            block: None,
            decoder: Decoder::new(),
            told: VecDeque::new(),
            empty_frames: 0,
            patience: PATIENCE,
            peer: Peer {
                initial_window: DEFAULT_WINDOW,
                max_frame: SMALLEST_MAX_FRAME,
                // Until it says otherwise: what it ought to allow at least (RFC 9113 section 6.5.2).
                max_streams: 100,
                max_header_list: u32::MAX,
                early_data: 0,
            },
            greeted: false,
            initial_window: config.initial_window.max(DEFAULT_WINDOW),
            unacknowledged: Some(config.initial_window),
            window,
            send_window: i32::try_from(DEFAULT_WINDOW).unwrap_or(i32::MAX),
            waits: false,
            due: Vec::new(),
            streams: Streams::default(),
            last: 0,
            accepted: 0,
            leaving: Leaving::No,
            peer_last: None,
            output: Vec::new(),
            taken: 0,
            answers: 0,
            block_sent: false,
            pings: 0,
        }
    }

    fn greet(&mut self, of_role: &[(u16, u32)]) {
        let mut settings = vec![
            (setting::HEADER_TABLE_SIZE, 0),
            (setting::INITIAL_WINDOW_SIZE, self.config.initial_window),
            (setting::MAX_FRAME_SIZE, self.config.max_frame),
            (setting::MAX_HEADER_LIST_SIZE, self.config.max_header_list),
        ];
        settings.extend_from_slice(of_role);
        frame::put_settings(&mut self.output, &settings);
    }

    // ---- questions ----

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Streams that are open in one direction or both.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The identifiers of those.
    pub fn open(&self) -> impl ExactSizeIterator<Item = u32> {
        self.streams.iter().map(|stream| stream.id)
    }

    /// Received, told as [`Event::Data`] and not released, of all streams, bytes.
    pub fn unread(&self) -> u32 {
        self.window.unread
    }

    /// Whether the peer's own SETTINGS, the first thing that it sends, have come.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// What the peer says that it takes of a stream's DATA before it has answered, bytes; 0 where it says nothing.
    pub fn early_data(&self) -> u32 {
        self.peer.early_data
    }

    /// Whether nothing can happen any more but what is in [`Connection::output`]: it failed or was closed, or one end goes
    /// away and all streams have ended.
    pub fn is_done(&self) -> bool {
        let leaves = self.peer_last.is_some() || matches!(self.leaving, Leaving::Last(_));
        self.failed.is_some() || (leaves && self.streams.len() == 0)
    }

    /// Why it is over, if it failed or was closed.
    pub fn failure(&self) -> Option<ConnectionError> {
        self.failed
    }

    /// Time has passed, seconds: the peer's misdeeds are forgotten, in time. Rounded down by the caller, called now and then.
    pub fn elapsed(&mut self, seconds: u32) {
        self.patience = seconds.saturating_mul(PATIENCE_PER_SECOND).saturating_add(self.patience).min(PATIENCE);
    }

    // ---- helpers ----

    /// The connection is over: the peer is told why.
    fn fail(&mut self, error: ConnectionError) {
        if self.failed.is_none() {
            frame::put_go_away(&mut self.output, self.accepted, error.reason);
            self.failed = Some(error);
            self.partial = Vec::new();
            self.block = None;
            self.told.clear();
        }
    }

    /// The peer made us throw something away.
    fn lose_patience(&mut self) -> Result<(), Fault> {
        let left = self.patience.checked_sub(1);
        self.patience = left.ok_or(Fault::calm("more streams were reset or broken than anybody needs"))?;
        Ok(())
    }

    /// An answer to the peer, which has to read it some time.
    fn answer(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Fault> {
        let before = self.output.len();
        frame::put(&mut self.output, kind, flags, stream, payload);
        self.answers += self.output.len() - before;
        if self.answers > ANSWERS { Err(Fault::calm("answers are asked for and not read")) } else { Ok(()) }
    }

    /// Resets a stream and keeps that in mind.
    fn put_reset(&mut self, stream: u32, reason: Reason) {
        frame::put(&mut self.output, frame::kind::RST_STREAM, 0, stream, &reason.0.to_be_bytes());
        self.streams.remember(stream);
    }

    /// Takes a stream out of all that knows it.
    fn forget(&mut self, stream: u32) -> bool {
        let removed = self.streams.remove(stream);
        if removed.as_ref().is_some_and(|stream| stream.due) {
            self.due.retain(|due| *due != stream);
        }
        removed.is_some()
    }

    /// Forgets a stream whose both directions have ended.
    fn forget_if_ended(&mut self, stream: u32) {
        if self.streams.get(stream).is_some_and(|stream| !stream.receives && !stream.sends) {
            self.forget(stream);
            self.patience = (self.patience + 1).min(PATIENCE);
        }
    }
}
