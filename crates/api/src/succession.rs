//! The hand-over of listening sockets from a node tunnel to its successor, so that an upgrade fails no connection.
//!
//! The successor connects at its start, asks for each pod's sockets before it would make its own, and says when it
//! serves the pod; from then on the predecessor accepts nothing there. Both hold the same sockets, so nothing that
//! waits in them is lost. One question is outstanding at a time and gets exactly one answer. The successor keeps
//! the connection: when it breaks, the predecessor serves again what it gave away.
//!
//! Messages are packets of protobuf of at most [`crate::packets::MOST_BYTES`], sockets are beside them. Fields and
//! questions that a later version adds are skipped or refused, so that a version more or less apart understand each
//! other.

pub mod protocol;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stillmesh_core::{Diagnose, Fault};
use stillmesh_runtime::Backoff;
use tokio::time::sleep;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use crate::packets::{self, PacketError};

/// How long the other end may take for an answer, or to take a message off the socket.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP listener.
    Tcp,
    /// A UDP socket.
    Udp,
}

/// Which socket it is: its kind and the address that it is bound to in the pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its kind.
    pub kind: Kind,
    /// Its address.
    pub address: SocketAddr,
}

/// What the successor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// First: which version it speaks.
    Hello {
        /// The version.
        version: u32,
    },
    /// Give the sockets of a pod. They are still served by the one who gives.
    Take {
        /// Pod UID.
        uid: String,
        /// Inode of its network namespace: another one under the same UID is another pod.
        inode: u64,
    },
    /// The pod is served here now: accept nothing more for it, and drain.
    Serving {
        /// Pod UID.
        uid: String,
    },
    /// The pod is no longer served anywhere: close what was kept of it.
    Forget {
        /// Pod UID.
        uid: String,
    },
    /// All pods are served here. The next successor is to ask here.
    Ready,
}

/// Why a hand-over does not go on.
#[derive(Debug, thiserror::Error)]
pub enum SuccessionError {
    /// The connection failed.
    #[error("listener hand-over: {0}")]
    Packet(#[from] PacketError),
    /// The other end runs as somebody else.
    #[error("listener hand-over: the other end runs as user {user}, not as {own}")]
    Stranger {
        /// Its user.
        user: u32,
        /// Ours.
        own: u32,
    },
    /// The other end said what it must not.
    #[error("listener hand-over: {0}")]
    Protocol(String),
    /// The predecessor does not do what it was asked; the connection goes on.
    #[error("the predecessor refuses: {0}")]
    Refused(String),
}

impl Diagnose for SuccessionError {
    fn code(&self) -> &'static str {
        match self {
            Self::Packet(_) => "SUC001",
            Self::Stranger { .. } => "SUC002",
            Self::Protocol(_) => "SUC003",
            Self::Refused(_) => "SUC004",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Packet(PacketError::Io(_)) => Fault::Internal,
            Self::Packet(_) | Self::Protocol(_) | Self::Refused(_) => Fault::Upstream,
            Self::Stranger { .. } => Fault::Config,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Packet(_) | Self::Refused(_) => "none: the new tunnel listens beside the old one (SO_REUSEPORT)",
            Self::Stranger { .. } => "run both tunnels as the same user, and let nobody else use their directory",
            Self::Protocol(_) => "compare the versions of both tunnels",
        }
    }
}

/// The successor's end: somebody who serves this node's pods already.
pub struct Predecessor {
    socket: UnixSeqpacket,
}

impl std::fmt::Debug for Predecessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Predecessor")
    }
}

impl Predecessor {
    /// Connects; `None` when there is nobody.
    pub async fn connect(path: &Path) -> Result<Option<Self>, SuccessionError> {
        let socket = match packets::connect(path, DEADLINE).await {
            Ok(socket) => socket,
            Err(PacketError::Io(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        check_user(&socket)?;
        let mut predecessor = Self { socket };
        predecessor.ask(&Ask::Hello { version: protocol::VERSION }).await?;
        Ok(Some(predecessor))
    }

    /// A pod's sockets. They are as the other end says only if the caller finds so: it checks that each is what its
    /// place says, and in the pod's namespace.
    pub async fn take(&mut self, uid: &str, inode: u64) -> Result<Vec<(Place, OwnedFd)>, SuccessionError> {
        self.ask(&Ask::Take { uid: uid.to_owned(), inode }).await
    }

    /// Says that a pod is served here.
    pub async fn serving(&mut self, uid: &str) -> Result<(), SuccessionError> {
        self.tell(&Ask::Serving { uid: uid.to_owned() }).await
    }

    /// Says that a pod is not served any more.
    pub async fn forget(&mut self, uid: &str) -> Result<(), SuccessionError> {
        self.tell(&Ask::Forget { uid: uid.to_owned() }).await
    }

    /// Says that all pods are served here.
    pub async fn ready(&mut self) -> Result<(), SuccessionError> {
        self.tell(&Ask::Ready).await
    }

    async fn tell(&mut self, ask: &Ask) -> Result<(), SuccessionError> {
        match self.ask(ask).await?.is_empty() {
            true => Ok(()),
            false => Err(SuccessionError::Protocol("sockets that nobody asked for".to_owned())),
        }
    }

    async fn ask(&mut self, ask: &Ask) -> Result<Vec<(Place, OwnedFd)>, SuccessionError> {
        packets::send(&self.socket, &protocol::write_ask(ask)?, &[], DEADLINE).await?;
        protocol::read_answer(packets::receive_within(&self.socket, "answer", DEADLINE).await?)
    }
}

/// Where a successor connects.
pub struct Listener {
    listener: UnixSeqpacketListener,
    path: PathBuf,
    inode: u64,
}

impl Drop for Listener {
    /// Nothing is left where nobody has taken the path over.
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens at a path from now on, instead of whoever did.
    pub fn take_over(path: &Path) -> io::Result<Self> {
        let listener = packets::take_over(path)?;
        Ok(Self { listener, path: path.to_owned(), inode: std::fs::symlink_metadata(path)?.ino() })
    }

    /// The next successor of the same user; errors are waited out. Cancel-safe.
    pub async fn accept(&mut self) -> Successor {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            let accepted = self.listener.accept().await;
            match accepted.map_err(|error| PacketError::Io(error).into()).and_then(|socket| {
                check_user(&socket)?;
                Ok::<_, SuccessionError>(Successor { socket, outstanding: false })
            }) {
                Ok(successor) => return successor,
                Err(error) => {
                    tracing::warn!(error.code = error.code(), %error, "a successor is not accepted");
                    sleep(backoff.next(1.0)).await;
                }
            }
        }
    }
}

/// The predecessor's end. Every error ends its use.
pub struct Successor {
    socket: UnixSeqpacket,
    outstanding: bool,
}

impl Successor {
    /// What it says next; waits as long as it has nothing to say. Cancel-safe.
    pub async fn next(&mut self) -> Result<Ask, SuccessionError> {
        if self.outstanding {
            return Err(SuccessionError::Protocol("the question before is not answered".to_owned()));
        }
        let ask = protocol::read_ask(&packets::receive(&self.socket).await?)?;
        self.outstanding = true;
        Ok(ask)
    }

    /// Answers: done, with sockets where they were asked for, or why not.
    pub async fn answer(&mut self, answer: Result<&[(Place, BorrowedFd<'_>)], String>) -> Result<(), SuccessionError> {
        if !std::mem::take(&mut self.outstanding) {
            return Err(SuccessionError::Protocol("an answer to no question".to_owned()));
        }
        let sockets = answer.as_deref().unwrap_or_default();
        let fds: Vec<_> = sockets.iter().map(|(_, fd)| *fd).collect();
        let places = answer.map(|sockets| sockets.iter().map(|(place, _)| *place).collect::<Vec<_>>());
        Ok(packets::send(&self.socket, &protocol::write_answer(places)?, &fds, DEADLINE).await?)
    }
}

/// Who may hand over and take over: the same user.
fn check_user(socket: &UnixSeqpacket) -> Result<(), SuccessionError> {
    let own = tokio_seqpacket::UCred::from_current_process().uid();
    match packets::peer_user(socket)? {
        user if user == own => Ok(()),
        user => Err(SuccessionError::Stranger { user, own }),
    }
}
