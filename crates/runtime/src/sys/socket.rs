//! Sockets as the node tunnel needs them: marked, transparent, dual-stack, with the original destination.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::MsgFlags;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;

/// A firewall mark (SO_MARK). Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(pub u32);

impl Mark {
    /// What ztunnel sets on every socket that it makes in a pod's namespace. Source: contract 2.1.
    pub const PROXY: Self = Self(0x539);
}

/// How a listening or datagram socket is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// SO_MARK.
    pub mark: Option<Mark>,
    /// IP_TRANSPARENT: take connections to addresses that are not ours, and send from them.
    pub transparent: bool,
    /// SO_REUSEPORT: several processes listen on one port.
    pub reuse_port: bool,
}

/// A nonblocking TCP listener with SO_REUSEADDR. `[::]` is dual-stack.
pub fn tcp_listener(address: SocketAddr, options: Options) -> io::Result<TcpListener> {
    let socket = bound(address, Type::STREAM, options)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A nonblocking TCP listener on all addresses of both families, or of IPv4 alone where IPv6 is off.
pub fn tcp_listener_any(port: u16, options: Options) -> io::Result<TcpListener> {
    either(Ipv6Addr::UNSPECIFIED.into(), |ip| tcp_listener(SocketAddr::new(ip, port), options))
}

/// A listener of the calling runtime: `[::]` is dual-stack, or IPv4 alone where IPv6 is off.
pub fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let make = |ip| tcp_listener(SocketAddr::new(ip, address.port()), Options::default());
    tokio::net::TcpListener::from_std(either(address.ip(), make)?)
}

/// A nonblocking UDP socket, bound, with SO_REUSEADDR.
pub fn udp_socket(address: SocketAddr, options: Options) -> io::Result<UdpSocket> {
    Ok(bound(address, Type::DGRAM, options)?.into())
}

const BACKLOG: i32 = 4096;

/// Tries an address; `0.0.0.0` instead of `[::]` where the machine or the namespace has no IPv6.
fn either<T>(ip: IpAddr, make: impl Fn(IpAddr) -> io::Result<T>) -> io::Result<T> {
    match make(ip) {
        Err(error)
            if ip == Ipv6Addr::UNSPECIFIED
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            make(Ipv4Addr::UNSPECIFIED.into())
        }
        other => other,
    }
}

fn bound(address: SocketAddr, kind: Type, options: Options) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark.0)?;
    }
    if options.transparent {
        set_transparent(&socket, address.ip())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// An unconnected nonblocking TCP socket for a connection to `destination`: marked before anything else, and with
/// `source` as its address even if that is not ours (IP_TRANSPARENT). Its port is chosen at connect time
/// where it is 0; another one is shared with connections to other destinations, and connecting fails with
/// `AddrNotAvailable` where one to this destination has it.
///
/// A source of the other family than the destination is `InvalidInput`.
pub fn tcp_connect_socket(
    destination: SocketAddr,
    mark: Option<Mark>,
    source: Option<SocketAddr>,
) -> io::Result<TcpSocket> {
    let socket = tcp_socket(destination.is_ipv4(), mark)?;
    bind_source(&socket, destination, source)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// A nonblocking TCP socket, marked and nothing else.
pub fn tcp_socket(is_ipv4: bool, mark: Option<Mark>) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark.0)?;
    }
    Ok(socket)
}

/// Connects a socket of [`tcp_socket`], from `source` as [`tcp_connect_socket`] says. On any thread: a socket stays in the namespace
/// where it was made. Who is at the same machine, as an application in its namespace is, has answered at once: then nothing is waited for.
pub async fn connect(
    socket: Socket,
    destination: SocketAddr,
    source: Option<SocketAddr>,
) -> io::Result<tokio::net::TcpStream> {
    bind_source(&socket, destination, source)?;
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // There is none while it is under way, nor where it has failed.
    let is_connected = socket.peer_addr().is_ok();
    let stream = tokio::net::TcpStream::from_std(socket.into())?;
    if !is_connected {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

fn bind_source(socket: &Socket, destination: SocketAddr, source: Option<SocketAddr>) -> io::Result<()> {
    if let Some(source) = source.map(|source| SocketAddr::new(source.ip().to_canonical(), source.port())) {
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "source and destination are of different families",
            ));
        }
        // Permits an address that is not ours as well.
        set_transparent(socket, source.ip())?;
        if source.port() == 0 {
            nix::sys::socket::setsockopt(socket, IpBindAddressNoPort, &true)?;
        } else {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&source.into())?;
    }
    Ok(())
}

fn set_transparent(socket: &Socket, family: IpAddr) -> io::Result<()> {
    match family {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Sets SO_MARK of an open socket.
pub fn set_mark(socket: &impl AsFd, mark: Mark) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark.0)
}

/// SO_MARK of an open socket.
pub fn mark(socket: &impl AsFd) -> io::Result<Mark> {
    SockRef::from(socket).mark().map(Mark)
}

/// TCP_NODELAY, and keepalive probes (default of contract 3.3: 180 s, 180 s, 9).
pub fn tune(socket: &impl AsFd, keepalive: Option<Keepalive>) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    if let Some(Keepalive { time, interval, retries }) = keepalive {
        let probes = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        socket.set_tcp_keepalive(&probes)?;
    }
    Ok(())
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes before the connection counts as dead.
    pub retries: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { time: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 }
    }
}

/// Reads what is there without taking it out of the socket. Never waits: `WouldBlock` where there is nothing.
pub fn peek(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::recv(socket.as_fd().as_raw_fd(), buffer, flags)?)
}

/// Makes closing the socket reset the connection (SO_LINGER with zero).
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Where the connection was going before it was redirected here, else the local address. IPv4-mapped addresses come
/// back as IPv4. Source: contract 2.1.
pub fn original_destination(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    let local = socket.local_addr()?.as_socket();
    let local = local.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket"))?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    // The option goes by the addresses on the wire: a mapped address on an IPv6 socket has an IPv4 entry.
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    match original {
        Ok(address) => Ok(address.as_socket().unwrap_or(local)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT)) => Ok(local),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_kernel_without_ipv6_all_addresses_are_those_of_ipv4_and_one_address_stays_what_it_is() {
        let without = |ip: IpAddr| match ip {
            IpAddr::V4(_) => Ok(ip),
            IpAddr::V6(_) => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
        assert_eq!(either(Ipv6Addr::UNSPECIFIED.into(), without).unwrap(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(either(Ipv4Addr::LOCALHOST.into(), without).unwrap(), Ipv4Addr::LOCALHOST);
        assert!(either(Ipv6Addr::LOCALHOST.into(), without).is_err());
        let taken = |_| Err::<(), _>(io::Error::from_raw_os_error(libc::EADDRINUSE));
        assert!(either(Ipv6Addr::UNSPECIFIED.into(), taken).is_err());
    }

    #[tokio::test]
    async fn a_listener_at_all_addresses_takes_both_families() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    }
}
