//! Packets on a SOCK_SEQPACKET socket, descriptors beside them: what node agent and node tunnels talk over.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

/// Longest packet, bytes.
pub const MOST_BYTES: usize = 1024;

/// Most descriptors beside a packet.
pub const MOST_FDS: usize = 12;

/// Room for [`MOST_FDS`] descriptors and a header, aligned as the kernel's headers in it are.
#[repr(align(8))]
struct Control([u8; 64]);

/// One packet as it came off the socket.
#[derive(Debug)]
pub struct Packet {
    /// Its content, at most [`MOST_BYTES`].
    pub bytes: Vec<u8>,
    /// The descriptors beside it.
    pub fds: Vec<OwnedFd>,
    /// More came than there was room for, of bytes or of descriptors.
    pub truncated: bool,
}

/// Why a packet was not sent or received. Each ends the use of the socket.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// What came or was to go is not allowed.
    #[error("{0}")]
    Bad(&'static str),
    /// The peer did not do its part in time.
    #[error("the peer did not {what} within {limit:?}")]
    Slow {
        /// What it should have done.
        what: &'static str,
        /// The deadline.
        limit: Duration,
    },
}

/// Connects within a deadline.
pub async fn connect(path: &Path, limit: Duration) -> Result<UnixSeqpacket, PacketError> {
    let slow = PacketError::Slow { what: "accept", limit };
    Ok(timeout(limit, UnixSeqpacket::connect(path)).await.map_err(|_| slow)??)
}

/// The user of the process on the other end, as the kernel saw it when the connection was made.
pub fn peer_user(socket: &UnixSeqpacket) -> Result<u32, PacketError> {
    Ok(socket.peer_cred()?.uid())
}

/// Listens at a path, only for this user. A socket file that is there is replaced in one step, whoever listens at it:
/// from then on connections come here.
pub fn take_over(path: &Path) -> io::Result<UnixSeqpacketListener> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{:016x}", rand::random::<u64>()));
    let beside = PathBuf::from(beside);
    let listener = UnixSeqpacketListener::bind_with_backlog(&beside, BACKLOG)?;
    let placed = std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&beside, path));
    if placed.is_err() {
        // Whatever made the rename fail is what the caller should read.
        let _ = std::fs::remove_file(&beside);
    }
    placed.map(|()| listener)
}

const BACKLOG: i32 = 16;

/// The next packet. Cancel-safe.
pub async fn receive(socket: &UnixSeqpacket) -> Result<Packet, PacketError> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut control = Control([0; 64]);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let (info, ancillary) = socket.recv_vectored_with_ancillary(&mut buffers, &mut control.0).await?;
    let mut fds = Vec::new();
    for message in ancillary.into_messages() {
        match message {
            OwnedAncillaryMessage::FileDescriptors(passed) => fds.extend(passed),
            _ => return Err(PacketError::Bad("control data that is not known")),
        }
    }
    if info.bytes_read() == 0 {
        return Err(PacketError::Closed);
    }
    bytes.truncate(info.bytes_read());
    Ok(Packet { bytes, fds, truncated: info.truncated() || info.ancillary_truncated() })
}

/// [`receive`] within a deadline; `what` says what the peer should have done.
pub async fn receive_within(
    socket: &UnixSeqpacket,
    what: &'static str,
    limit: Duration,
) -> Result<Packet, PacketError> {
    timeout(limit, receive(socket)).await.unwrap_or(Err(PacketError::Slow { what, limit }))
}

/// Sends a packet with descriptors, at most [`MOST_FDS`], within a deadline.
pub async fn send(
    socket: &UnixSeqpacket,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<(), PacketError> {
    let sending = async {
        let mut control = Control([0; 64]);
        let mut ancillary = AncillaryMessageWriter::new(&mut control.0);
        if !fds.is_empty() {
            ancillary.add_fds(fds).map_err(|_| PacketError::Bad("no room for the descriptors"))?;
        }
        socket.send_vectored_with_ancillary(&[IoSlice::new(bytes)], &mut ancillary).await.map_err(closed)
    };
    let sent = timeout(limit, sending).await.unwrap_or(Err(PacketError::Slow { what: "read", limit }))?;
    if sent != bytes.len() {
        return Err(PacketError::Bad("a packet was sent in part"));
    }
    Ok(())
}

/// A peer that is gone is no failure of the socket.
fn closed(error: io::Error) -> PacketError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => PacketError::Closed,
        _ => PacketError::Io(error),
    }
}
