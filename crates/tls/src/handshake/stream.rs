//! A [`Handshake`] on a stream: what is to be sent is sent, then what comes is read.

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Established, Handshake, HandshakeError};

/// How much is read at once, bytes.
const READ: usize = 8 * 1024;

/// Does a client's handshake on `io`. Cancelled by a drop; `io` is of no use then.
pub async fn connect<IO>(
    io: &mut IO,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Established, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    run(io, Handshake::client(config, name)?).await
}

/// Does a server's handshake on `io`. Cancelled by a drop; `io` is of no use then.
pub async fn accept<IO>(io: &mut IO, config: Arc<ServerConfig>) -> Result<Established, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    run(io, Handshake::server(config)?).await
}

async fn run<IO>(io: &mut IO, mut handshake: Handshake) -> Result<Established, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut bytes = vec![0; READ];
    loop {
        send(io, handshake.outgoing()).await.map_err(HandshakeError::Io)?;
        if handshake.is_done() {
            return handshake.finish();
        }
        let read = io.read(&mut bytes).await.map_err(HandshakeError::Io)?;
        if read == 0 {
            let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended during the handshake");
            return Err(HandshakeError::Io(ended));
        }
        if let Err(error) = handshake.receive(bytes.get(..read).unwrap_or_default()) {
            // The error counts, whether the peer takes the alert or not.
            let _ = send(io, handshake.outgoing()).await;
            return Err(error);
        }
    }
}

async fn send<IO: AsyncWrite + Unpin>(io: &mut IO, bytes: Vec<u8>) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    io.write_all(&bytes).await?;
    io.flush().await
}
