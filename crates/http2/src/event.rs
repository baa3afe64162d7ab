//! What a connection tells its caller.

use http::{HeaderMap, Method, StatusCode};

use crate::Reason;

/// Told by [`crate::Connection::receive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A client wants a tunnel, or something else that is well-formed: that is to be answered, with 400 if need be. To a server.
    Request {
        /// The stream.
        stream: u32,
        /// What is wanted.
        request: Request,
    },
    /// The final response to a request. To a client.
    Response {
        /// The stream.
        stream: u32,
        /// Its status.
        status: StatusCode,
        /// Its headers.
        headers: HeaderMap,
    },
    /// A piece of DATA, at least one byte, as it lies in the input. To be given back by [`crate::Connection::release`].
    Data {
        /// The stream.
        stream: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The peer has ended its direction of a stream.
    End {
        /// The stream.
        stream: u32,
    },
    /// The peer has reset a stream: both directions are over.
    Reset {
        /// The stream.
        stream: u32,
        /// What the peer says of it.
        reason: Reason,
    },
    /// The peer has broken the protocol on a stream, which was reset: both directions are over.
    Failed {
        /// The stream.
        stream: u32,
        /// What the peer was told.
        reason: Reason,
        /// What was wrong.
        why: &'static str,
    },
    /// A stream for which [`crate::Connection::room`] said [`crate::Room::Stream`] has room in its window.
    StreamRoom {
        /// The stream.
        stream: u32,
    },
    /// The connection, for which [`crate::Connection::room`] said [`crate::Room::Connection`], has room in its window.
    ConnectionRoom,
    /// The peer has answered a PING of ours.
    Pong {
        /// What was sent.
        payload: [u8; 8],
    },
    /// The peer takes no new streams.
    GoAway {
        /// The last stream that it processes.
        last_stream: u32,
        /// Why.
        reason: Reason,
        /// What it says for people, at most [`crate::DEBUG`] bytes, visible ASCII.
        debug: String,
    },
    /// A stream of ours that the peer, going away, has not looked at: over, and safe to be tried elsewhere.
    NotProcessed {
        /// The stream.
        stream: u32,
    },
    /// The peer has other settings now: [`crate::Connection::may_open`] may have changed.
    Settings,
    /// The peer has acknowledged our SETTINGS.
    SettingsAcknowledged,
}

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// CONNECT, if it is for us.
    pub method: Method,
    /// Of a CONNECT always, visible ASCII.
    pub authority: Option<String>,
    /// All other fields.
    pub headers: HeaderMap,
}

/// What may be sent as DATA on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes in the next frame, at least one.
    Bytes(u32),
    /// None before [`Event::StreamRoom`].
    Stream,
    /// None before [`Event::ConnectionRoom`].
    Connection,
    /// None ever: the stream is over, its sending direction ended, or not open yet.
    Never,
}
