//! What goes wrong: by the peer's fault, or by the caller's.

use crate::Reason;

/// The connection is over. The GOAWAY that says so is the last of [`crate::Connection::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} ({reason})")]
pub struct ConnectionError {
    /// What the peer is told.
    pub reason: Reason,
    /// What was wrong.
    pub why: &'static str,
}

/// Something cannot be sent, now or at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection is over.
    #[error("the connection is over")]
    Over,
    /// A GOAWAY was sent or received: no new streams.
    #[error("the connection takes no new streams")]
    GoingAway,
    /// As many streams are open as may be.
    #[error("as many streams are open as may be: {limit}")]
    Full {
        /// The lesser of both ends' limits.
        limit: u32,
    },
    /// All stream identifiers were used: another connection is needed.
    #[error("all stream identifiers of the connection were used")]
    NoIdentifiers,
    /// Only a client opens streams, only a server answers.
    #[error("this is for the other role")]
    Role,
    /// An authority has other than visible ASCII characters, or none.
    #[error("the authority is not visible ASCII")]
    Authority,
    /// A header is none that HTTP/2 carries (RFC 9113 section 8.2.2), or an informational status.
    #[error("the head is not one that HTTP/2 carries")]
    Head,
    /// The headers are more than the peer takes.
    #[error("headers of {size} bytes are more than the peer takes: {limit}")]
    HeadersTooLarge {
        /// Their size, counted as RFC 9113 section 6.5.2 does, bytes.
        size: usize,
        /// The peer's SETTINGS_MAX_HEADER_LIST_SIZE, bytes.
        limit: u32,
    },
    /// Too much waits to be written already: to be tried again after [`crate::Connection::output`] was taken.
    #[error("too much waits to be written")]
    OutputFull,
    /// [`crate::Connection::output`] has bytes that go first.
    #[error("other output goes first")]
    OutputFirst,
    /// There is no such stream (any more).
    #[error("there is no stream {0}")]
    NoStream(u32),
    /// The stream's state does not allow it: it was ended, or not answered yet, or answered already.
    #[error("the state of stream {0} does not allow it")]
    State(u32),
    /// More than [`crate::Connection::room`] said.
    #[error("more than there is room for")]
    NoRoom,
}

/// What is wrong with a state that was to be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// A version that this one cannot read.
    #[error("a connection's state of version {0} cannot be read by this version")]
    Version(u8),
    /// It ends too early.
    #[error("a connection's state is cut off")]
    Short,
    /// There is more than there should be.
    #[error("a connection's state is followed by other bytes")]
    Long,
    /// A value that cannot be.
    #[error("a connection's state is not one that can be: {0}")]
    Value(&'static str),
}

/// Why a state cannot be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// It is over: there is nothing to go on with.
    #[error("the connection is over")]
    Over,
    /// [`crate::Connection::receive`] has events to tell: it is to be called until it has none.
    #[error("events wait to be told")]
    Events,
}

/// Whom something wrong concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Connection(ConnectionError),
    Stream { stream: u32, reason: Reason, why: &'static str },
}

impl Fault {
    pub(crate) fn connection(reason: Reason, why: &'static str) -> Self {
        Self::Connection(ConnectionError { reason, why })
    }

    pub(crate) fn protocol(why: &'static str) -> Self {
        Self::connection(Reason::PROTOCOL_ERROR, why)
    }

    pub(crate) fn size(why: &'static str) -> Self {
        Self::connection(Reason::FRAME_SIZE_ERROR, why)
    }

    pub(crate) fn calm(why: &'static str) -> Self {
        Self::connection(Reason::ENHANCE_YOUR_CALM, why)
    }
}

impl From<ConnectionError> for Fault {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}
