//! Why a stream, or all of a connection, is over.

use std::io;
use std::sync::Arc;

use stillmesh_http2::{ConnectionError, Reason, SendError};
use stillmesh_tls::SessionError;

/// Why nothing can be sent or received any more. Cheap to clone: all streams of a connection learn the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Ending {
    /// The peer reset the stream.
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    /// The peer, going away, did not look at the stream.
    #[error("the peer goes away and did not look at the stream")]
    NotProcessed,
    /// The peer broke HTTP/2 on this stream alone.
    #[error("the peer broke the protocol on the stream: {why} ({reason})")]
    Misused {
        /// What the peer was told.
        reason: Reason,
        /// What was wrong.
        why: &'static str,
    },
    /// The peer went away while the stream was open.
    #[error("the peer went away: {reason} {debug}")]
    GoneAway {
        /// What it said.
        reason: Reason,
        /// What it said for people.
        debug: String,
    },
    /// The peer broke HTTP/2.
    #[error("the peer broke HTTP/2: {0}")]
    Http2(#[source] ConnectionError),
    /// TLS failed, or the peer refused it.
    #[error("TLS failed: {0}")]
    Tls(#[source] SessionError),
    /// The transport broke or ended.
    #[error("the connection broke")]
    Io(#[source] Arc<io::Error>),
    /// Nothing can be sent.
    #[error(transparent)]
    Send(SendError),
    /// Ended at this end.
    #[error("the connection was closed here")]
    Here,
}

impl Ending {
    /// Whether a shared connection had just ended and the peer did not look at the request: it may be tried anew.
    pub fn is_stale(&self) -> bool {
        match self {
            Self::NotProcessed | Self::GoneAway { .. } | Self::Tls(_) | Self::Io(_) | Self::Here => true,
            Self::Send(error) => matches!(
                error,
                SendError::Over | SendError::GoingAway | SendError::NoIdentifiers | SendError::Full { .. }
            ),
            Self::Reset(reason) => *reason == Reason::REFUSED_STREAM,
            Self::Misused { .. } | Self::Http2(_) => false,
        }
    }

    /// Whether the peer surely did not look at the request.
    pub(crate) fn is_unseen(&self) -> bool {
        matches!(self, Self::NotProcessed | Self::Send(_) | Self::Reset(Reason::REFUSED_STREAM))
    }

    /// A reset without a complaint is an end (contract 3.2).
    pub(crate) fn is_calm(&self) -> bool {
        matches!(self, Self::Reset(Reason::NO_ERROR | Reason::CANCEL))
    }
}

impl From<Ending> for io::Error {
    fn from(ending: Ending) -> Self {
        let kind = match &ending {
            Ending::Reset(_) | Ending::Misused { .. } => io::ErrorKind::ConnectionReset,
            Ending::Io(error) => error.kind(),
            Ending::Here => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, ending)
    }
}
