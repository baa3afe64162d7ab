//! The TCP sockets of the calling thread's network namespace.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::SockProtocol;

use crate::error::{Error, absent_is_fine};
use crate::socket::Socket;
use crate::wire::{self, Message};

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
    /// In the order of their numbers, which start at 1.
    const ALL: [Self; 12] = [
        Self::Established,
        Self::SynSent,
        Self::SynReceived,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
        Self::NewSynReceived,
    ];

    fn bit(self) -> u32 {
        let index = Self::ALL.iter().position(|state| *state == self).unwrap_or_default();
        1 << (index + 1)
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

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
    let states = if states.is_empty() { &State::ALL } else { states };
    let bits = states.iter().fold(0, |bits, state| bits | state.bit());
    let mut socket = Socket::open(SockProtocol::NetlinkSockDiag)?;
    let mut all = Vec::new();
    for family in [INET, INET6] {
        let list = Message::new(BY_FAMILY, 0, &request(family, bits, &[0; ID_BYTES]));
        all.extend(socket.list(&list, "list the TCP sockets", |_, payload| TcpSocket::read(payload))?);
    }
    Ok(all)
}

/// The socket with exactly these addresses, if there is one. A listener does not count.
pub fn find_tcp(local: SocketAddr, remote: SocketAddr) -> Result<Option<TcpSocket>, Error> {
    let action = format!("look up the TCP socket {local} to {remote}");
    let (family, id) = id(local, remote, ANY_COOKIE, &action)?;
    let mut socket = Socket::open(SockProtocol::NetlinkSockDiag)?;
    let get = Message::new(BY_FAMILY, 0, &request(family, u32::MAX, &id));
    match socket.ask(get, &action, |_, payload| TcpSocket::read(payload)) {
        Ok(found) => Ok(Some(found).filter(|found| found.state != State::Listen)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Resets a connection: its owner reads an error, its peer gets a reset. Absent is fine. Needs CAP_NET_ADMIN.
pub fn destroy(socket: &TcpSocket) -> Result<(), Error> {
    let action = format!("reset the TCP connection {} to {}", socket.local, socket.remote);
    let (family, id) = id(socket.local, socket.remote, socket.cookie, &action)?;
    let destroy = Message::new(DESTROY, 0, &request(family, u32::MAX, &id));
    absent_is_fine(Socket::open(SockProtocol::NetlinkSockDiag)?.request(destroy, &action))
}

impl TcpSocket {
    /// Linux's `inet_diag_msg`.
    fn read(payload: &[u8]) -> Option<Self> {
        let [family, state] = wire::array_at(payload, 0)?;
        let address = |port_at: usize, ip_at: usize| {
            let port = u16::from_be_bytes(wire::array_at(payload, port_at)?);
            let ip = match family {
                INET => IpAddr::from(wire::array_at::<4>(payload, ip_at)?),
                INET6 => IpAddr::from(wire::array_at::<16>(payload, ip_at)?).to_canonical(),
                _ => return None,
            };
            Some(SocketAddr::new(ip, port))
        };
        let attributes = payload.get(ANSWER_BYTES..)?;
        Some(Self {
            state: State::from_number(state)?,
            local: address(4, 8)?,
            remote: address(6, 24)?,
            cookie: wire::array_at(payload, 44).map(u64::from_ne_bytes)?,
            uid: wire::u32_at(payload, 64)?,
            inode: wire::u32_at(payload, 68)?,
            mark: wire::find(attributes, MARK).and_then(|value| wire::u32_at(value, 0)),
            cgroup: wire::find(attributes, CGROUP).and_then(|value| wire::array_at(value, 0)).map(u64::from_ne_bytes),
        })
    }
}

/// Linux's `inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let mut request = vec![family, TCP, 0, 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(id);
    request
}

/// Linux's `inet_diag_sockid`, and the family.
fn id(local: SocketAddr, remote: SocketAddr, cookie: u64, action: &str) -> Result<(u8, [u8; ID_BYTES]), Error> {
    let mut bytes = Vec::with_capacity(ID_BYTES);
    bytes.extend_from_slice(&local.port().to_be_bytes());
    bytes.extend_from_slice(&remote.port().to_be_bytes());
    let mut families = Vec::new();
    for address in [local, remote] {
        let mut place = [0; 16];
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                let (start, _) = place.split_at_mut(4);
                start.copy_from_slice(&ip.octets());
                families.push(INET);
            }
            IpAddr::V6(ip) => {
                place = ip.octets();
                families.push(INET6);
            }
        }
        bytes.extend_from_slice(&place);
    }
    // Any interface.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&cookie.to_ne_bytes());
    let invalid = |problem: &str| Error::Invalid { action: action.to_owned(), problem: problem.to_owned() };
    match families.as_slice() {
        [local, remote] if local == remote => {
            let id = bytes.try_into().map_err(|_| invalid("its address is too long"))?;
            Ok((*local, id))
        }
        _ => Err(invalid("its addresses are of different families")),
    }
}

const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const ID_BYTES: usize = 48;
const ANSWER_BYTES: usize = 72;
const ANY_COOKIE: u64 = u64::MAX;
const MARK: u16 = 15;
const CGROUP: u16 = 21;
