//! The node tunnel's end.

use std::path::Path;

use tokio_seqpacket::UnixSeqpacket;

use super::protocol::{self, Tunnel};
use super::{DEADLINE, Request, ZdsError};
use crate::packets::{connect, receive, send};

/// A connection to the agent. Any error ends its use: drop it and connect again.
pub struct ClientConnection {
    socket: UnixSeqpacket,
    protocol: Tunnel,
}

impl ClientConnection {
    /// Connects and says hello.
    pub async fn connect(path: &Path) -> Result<Self, ZdsError> {
        let socket = connect(path, DEADLINE).await?;
        send(&socket, &protocol::hello()?, &[], DEADLINE).await?;
        Ok(Self { socket, protocol: Tunnel::default() })
    }

    /// The next request; waits as long as the agent has nothing to say. Answer it with [`Self::answer`] before
    /// asking for the next. Cancel-safe.
    pub async fn next(&mut self) -> Result<Request, ZdsError> {
        self.protocol.idle()?;
        let packet = receive(&self.socket).await?;
        self.protocol.request(packet)
    }

    /// Answers the outstanding request: done, or why not.
    pub async fn answer(&mut self, result: Result<(), String>) -> Result<(), ZdsError> {
        let bytes = self.protocol.answer(result)?;
        Ok(send(&self.socket, &bytes, &[], DEADLINE).await?)
    }
}
