//! Hand-over of pods from node agent to node tunnel (contract 2.5): protobuf messages over a SOCK_SEQPACKET
//! socket, the pod's network namespace as a descriptor beside the message.
//!
//! One request is outstanding at a time and gets exactly one answer. Both ends are strict: what the protocol does
//! not allow is an error that ends the connection.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Longest message.
pub const MAX_MESSAGE_BYTES: usize = 1024;

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

/// Agent side: where tunnels connect.
pub struct Listener {}

impl Listener {
    /// Listens, replacing a stale socket file.
    pub fn bind(_path: &Path) -> Result<Self, ZdsError> {
        todo!()
    }

    /// The next connection, at most 5 per second. Its hello has not been read: do that elsewhere, with
    /// [`Greeting::hello`], so that a silent peer holds nobody up.
    pub async fn accept(&mut self) -> Result<Greeting, ZdsError> {
        todo!()
    }
}

/// Agent side: a connection whose hello is still to come.
pub struct Greeting {}

impl Greeting {
    /// Reads the hello within the deadline.
    pub async fn hello(self) -> Result<ServerConnection, ZdsError> {
        todo!()
    }
}

/// Agent side: a tunnel that takes pods. Any error but [`ZdsError::Refused`] ends it.
pub struct ServerConnection {}

impl ServerConnection {
    /// Hands a pod over.
    pub async fn add(&mut self, _uid: &str, _info: &PodInfo, _netns: BorrowedFd<'_>) -> Result<(), ZdsError> {
        todo!()
    }

    /// Names a pod whose namespace is not at hand.
    pub async fn keep(&mut self, _uid: &str) -> Result<(), ZdsError> {
        todo!()
    }

    /// Takes a pod away.
    pub async fn del(&mut self, _uid: &str) -> Result<(), ZdsError> {
        todo!()
    }

    /// Ends the snapshot.
    pub async fn snapshot_sent(&mut self) -> Result<(), ZdsError> {
        todo!()
    }

    /// Returns when the peer is gone or says something unasked; wait on it while idle. Cancel-safe.
    pub async fn gone(&mut self) -> ZdsError {
        todo!()
    }
}

/// Tunnel side.
pub struct ClientConnection {}

impl ClientConnection {
    /// Connects and says hello.
    pub async fn connect(_path: &Path) -> Result<Self, ZdsError> {
        todo!()
    }

    /// The next request; waits as long as the agent has nothing to say. Answer it with [`Self::answer`] before
    /// asking for the next. Cancel-safe.
    pub async fn next(&mut self) -> Result<Request, ZdsError> {
        todo!()
    }

    /// Answers the outstanding request: done, or why not.
    pub async fn answer(&mut self, _result: Result<(), String>) -> Result<(), ZdsError> {
        todo!()
    }
}
