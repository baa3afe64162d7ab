//! Hand-over of pods from node agent to node tunnel (contract 2.5): protobuf messages over a SOCK_SEQPACKET
//! socket, the pod's network namespace as a descriptor beside the message.
//!
//! One request is outstanding at a time and gets exactly one answer. Both ends are strict: what the protocol does
//! not allow is an error that ends the connection.

mod agent;
pub mod protocol;
#[cfg(test)]
mod tests;
mod tunnel;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use agent::{Greeting, Listener, ServerConnection};
use stillmesh_core::{Diagnose, Fault};
pub use tunnel::ClientConnection;

use crate::packets::PacketError;

/// Longest message.
pub const MAX_MESSAGE_BYTES: usize = crate::packets::MOST_BYTES;

/// How long the peer may take for a hello, an answer, or to take a message off the socket.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Which pod it is; equal to name, namespace and account of its workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// What the agent asks of the tunnel.
#[derive(Debug)]
pub enum Request {
    /// Take this pod: its UID, its facts, its network namespace.
    Add {
        /// Pod UID.
        uid: String,
        /// Its facts.
        info: PodInfo,
        /// Its network namespace.
        netns: OwnedFd,
    },
    /// Keep what you have of this pod; only before the snapshot's end.
    Keep {
        /// Pod UID.
        uid: String,
    },
    /// Let this pod go.
    Del {
        /// Pod UID.
        uid: String,
    },
    /// Every pod has been named: drop what has not.
    SnapshotSent,
}

/// Why a connection ends, or a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ZdsError {
    /// The socket failed.
    #[error("ZDS socket")]
    Io(#[from] io::Error),
    /// The peer closed the connection.
    #[error("the ZDS peer closed the connection")]
    Closed,
    /// The peer broke the protocol: the connection is of no use any more.
    #[error("ZDS protocol error: {0}")]
    Protocol(String),
    /// The peer did not answer or read in time.
    #[error("the ZDS peer did not {what} within {limit:?}")]
    Slow {
        /// What it should have done.
        what: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The tunnel refused the request; the connection goes on.
    #[error("ztunnel refused: {0}")]
    Refused(String),
    /// A message does not fit.
    #[error("a ZDS message of {bytes} bytes: at most 1024 are accepted")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
}

impl From<PacketError> for ZdsError {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::Io(error) => Self::Io(error),
            PacketError::Closed => Self::Closed,
            PacketError::Bad(what) => protocol::protocol(what),
            PacketError::Slow { what, limit } => Self::Slow { what, limit },
        }
    }
}

impl Diagnose for ZdsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "ZDS001",
            Self::Closed => "ZDS002",
            Self::Protocol(_) => "ZDS003",
            Self::Slow { .. } => "ZDS004",
            Self::Refused(_) => "ZDS005",
            Self::TooLong { .. } => "ZDS006",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Io(_) | Self::TooLong { .. } => Fault::Internal,
            Self::Closed | Self::Protocol(_) | Self::Slow { .. } | Self::Refused(_) => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Io(_) => "check the ZDS socket's directory and its permissions",
            Self::Closed => "none: the other end has restarted, and is connected to again",
            Self::Protocol(_) => "compare the versions of node agent and node tunnel",
            Self::Slow { .. } => "check the load of this node",
            Self::Refused(_) => "see the node tunnel's log for why it could not take the pod; it is tried again",
            Self::TooLong { .. } => "shorten the names of pod, namespace or service account",
        }
    }
}
