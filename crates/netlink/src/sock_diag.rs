//! The TCP sockets of a network namespace.

use std::net::SocketAddr;

use crate::error::Error;

/// State of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Open both ways.
    Established,
    /// Opening, SYN sent.
    SynSent,
    /// Opening, SYN received.
    SynReceived,
    /// Closed here, FIN not acknowledged.
    FinWait1,
    /// Closed here, waiting for the peer's FIN.
    FinWait2,
    /// Closed on both sides, waiting for stray packets.
    TimeWait,
    /// Closed.
    Close,
    /// Closed by the peer.
    CloseWait,
    /// Closed by the peer, then here.
    LastAck,
    /// Listening.
    Listen,
    /// Closed on both sides at once.
    Closing,
    /// Opening, not yet a socket of its own.
    NewSynReceived,
}

impl State {
    /// Whether bytes can still pass in some direction.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Established | Self::FinWait1 | Self::FinWait2 | Self::CloseWait)
    }
}

/// A TCP socket. IPv4 addresses on IPv6 sockets come as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its state.
    pub state: State,
    /// Its own address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Inode of the socket, as in `/proc/<pid>/fd`; 0 when no process has it.
    pub inode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its firewall mark, where the kernel tells (CAP_NET_ADMIN).
    pub mark: Option<u32>,
    /// Id of its cgroup, where the kernel tells.
    pub cgroup: Option<u64>,
    /// The kernel's cookie, which tells sockets with equal addresses apart.
    pub cookie: u64,
}

/// The TCP sockets of both families that are in one of the states; all if none is given.
pub fn tcp_sockets(states: &[State]) -> Result<Vec<TcpSocket>, Error> {
    todo!("{states:?}")
}

/// The socket with exactly these addresses, if there is one. A listener does not count.
pub fn find_tcp(local: SocketAddr, remote: SocketAddr) -> Result<Option<TcpSocket>, Error> {
    todo!("{local} {remote}")
}

/// Resets a connection: its owner reads an error, its peer gets a reset. Absent is fine. Needs CAP_NET_ADMIN.
pub fn destroy(socket: &TcpSocket) -> Result<(), Error> {
    todo!("{socket:?}")
}
