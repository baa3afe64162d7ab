//! The node agent's end.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use stillmesh_runtime::Backoff;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use super::protocol;
use super::{DEADLINE, PodInfo, ZdsError};
use crate::packets::{receive, receive_within, send};

/// Where tunnels connect.
pub struct Listener {
    listener: UnixSeqpacketListener,
    next: Instant,
}

/// Connections are accepted at most this often (contract 2.5: 5 per second).
const ACCEPT_EVERY: Duration = Duration::from_millis(200);

impl Listener {
    /// Listens, replacing the socket file of a listener that is gone; only this user may connect. `AddrInUse` when
    /// somebody still listens.
    pub fn bind(path: &Path) -> Result<Self, ZdsError> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file is not a socket").into());
            }
            Ok(_) => match UnixSeqpacket::connect_blocking(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(io::Error::from(io::ErrorKind::AddrInUse).into()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let listener = UnixSeqpacketListener::bind_with_backlog(path, 16)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, next: Instant::now() })
    }

    /// The next connection, at most 5 per second; errors are waited out. Its hello has not been read: do that
    /// elsewhere, with [`Greeting::hello`], so that a silent peer holds nobody up. Cancel-safe.
    pub async fn accept(&mut self) -> Greeting {
        sleep_until(self.next).await;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            match self.listener.accept().await {
                Ok(socket) => {
                    self.next = Instant::now() + ACCEPT_EVERY;
                    return Greeting { socket };
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a ZDS connection");
                    sleep(backoff.next(1.0)).await;
                }
            }
        }
    }
}

/// A connection whose hello is still to come.
pub struct Greeting {
    socket: UnixSeqpacket,
}

impl Greeting {
    /// Reads the hello within the deadline.
    pub async fn hello(self) -> Result<ServerConnection, ZdsError> {
        let packet = receive_within(&self.socket, "say hello", DEADLINE).await?;
        protocol::read_hello(&packet)?;
        Ok(ServerConnection { socket: self.socket, outstanding: false })
    }
}

/// A tunnel that takes pods. Any error but [`ZdsError::Refused`] and [`ZdsError::TooLong`] ends its use.
pub struct ServerConnection {
    socket: UnixSeqpacket,
    /// A request was sent and its answer not read; stays set when a call is cancelled half-way.
    outstanding: bool,
}

impl ServerConnection {
    /// Hands a pod over.
    pub async fn add(&mut self, uid: &str, info: &PodInfo, netns: BorrowedFd<'_>) -> Result<(), ZdsError> {
        self.ask(protocol::add(uid, info)?, Some(netns)).await
    }

    /// Names a pod whose namespace is not at hand.
    pub async fn keep(&mut self, uid: &str) -> Result<(), ZdsError> {
        self.ask(protocol::keep(uid)?, None).await
    }

    /// Takes a pod away.
    pub async fn del(&mut self, uid: &str) -> Result<(), ZdsError> {
        self.ask(protocol::del(uid)?, None).await
    }

    /// Ends the snapshot.
    pub async fn snapshot_sent(&mut self) -> Result<(), ZdsError> {
        self.ask(protocol::snapshot_sent()?, None).await
    }

    async fn ask(&mut self, bytes: Vec<u8>, fd: Option<BorrowedFd<'_>>) -> Result<(), ZdsError> {
        if self.outstanding {
            return Err(protocol::protocol("an earlier request was given up before its answer"));
        }
        self.outstanding = true;
        send(&self.socket, &bytes, fd.as_slice(), DEADLINE).await?;
        let packet = receive_within(&self.socket, "answer", DEADLINE).await?;
        let answer = protocol::read_answer(&packet);
        self.outstanding = false;
        answer
    }

    /// Returns when the peer is gone or says something unasked; wait on it while idle. Cancel-safe.
    pub async fn gone(&mut self) -> ZdsError {
        match receive(&self.socket).await {
            Ok(_) => protocol::protocol("a message that nobody asked for"),
            Err(error) => error.into(),
        }
    }
}
