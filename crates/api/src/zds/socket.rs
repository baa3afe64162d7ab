//! Packets on a SOCK_SEQPACKET socket.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::time::timeout;
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};

use super::protocol::{Packet, protocol};
use super::{MAX_MESSAGE_BYTES, ZdsError};

/// Room for a few descriptors: more than are allowed, so that too many are seen as such. Aligned as the kernel's
/// headers in it are.
#[repr(align(8))]
struct Control([u8; 64]);

/// The next packet. Cancel-safe.
pub(super) async fn receive(socket: &UnixSeqpacket) -> Result<Packet, ZdsError> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut control = Control([0; 64]);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let (info, ancillary) = socket.recv_vectored_with_ancillary(&mut buffers, &mut control.0).await?;
    let mut fds = Vec::new();
    for message in ancillary.into_messages() {
        match message {
            OwnedAncillaryMessage::FileDescriptors(passed) => fds.extend(passed),
            _ => return Err(protocol("control data that is not known")),
        }
    }
    if info.bytes_read() == 0 {
        return Err(ZdsError::Closed);
    }
    bytes.truncate(info.bytes_read());
    Ok(Packet { bytes, fds, truncated: info.truncated() || info.ancillary_truncated() })
}

/// [`receive`] within a deadline; `what` says what the peer should have done.
pub(super) async fn receive_within(
    socket: &UnixSeqpacket,
    what: &'static str,
    limit: Duration,
) -> Result<Packet, ZdsError> {
    timeout(limit, receive(socket)).await.unwrap_or(Err(ZdsError::Slow { what, limit }))
}

/// Sends a packet, with a descriptor or without, within a deadline.
pub(super) async fn send(
    socket: &UnixSeqpacket,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> Result<(), ZdsError> {
    let sending = async {
        let mut control = Control([0; 64]);
        let mut ancillary = AncillaryMessageWriter::new(&mut control.0);
        if let Some(fd) = fd {
            ancillary.add_fds([fd]).map_err(|_| protocol("no room for a descriptor"))?;
        }
        socket.send_vectored_with_ancillary(&[IoSlice::new(bytes)], &mut ancillary).await.map_err(closed)
    };
    let sent = timeout(limit, sending).await.unwrap_or(Err(ZdsError::Slow { what: "read", limit }))?;
    if sent != bytes.len() {
        return Err(protocol("a packet was sent in part"));
    }
    Ok(())
}

/// A peer that is gone is no failure of the socket.
fn closed(error: std::io::Error) -> ZdsError {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => ZdsError::Closed,
        _ => ZdsError::Io(error),
    }
}
