//! The sockets of a pod: made inside its network namespace by the thread that lives there, or inherited from the
//! ztunnel before this one.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use socket2::SockRef;
use stillmesh_api::succession::{Kind, Place};
use stillmesh_runtime::sys::netns::{Netns, NetnsThread};
use stillmesh_runtime::sys::socket::{self, Mark, Options};

use crate::config::Config;

/// Where captured outbound connections are redirected to.
pub const OUTBOUND: u16 = 15001;
/// Where captured inbound connections are redirected to.
pub const INBOUND_PLAIN: u16 = 15006;
/// Where HBONE peers connect.
pub const INBOUND_HBONE: u16 = 15008;

/// All of them.
#[derive(Debug)]
pub struct Listeners {
    /// [`OUTBOUND`].
    pub outbound: TcpListener,
    /// [`INBOUND_PLAIN`].
    pub inbound_plain: TcpListener,
    /// [`INBOUND_HBONE`].
    pub inbound_hbone: TcpListener,
    /// The DNS proxy's, both transports per address.
    pub dns: Vec<(UdpSocket, TcpListener)>,
}

impl Listeners {
    /// TCP_NODELAY, and keepalive to peers: what is accepted has the options of its listener. A socket that refuses them still carries
    /// bytes.
    fn tune(&self, config: &Config) {
        let keepalive = config.keepalive.map(Into::into);
        // Who is captured is answered for by this kernel.
        for (listener, keepalive) in
            [(&self.outbound, None), (&self.inbound_plain, keepalive), (&self.inbound_hbone, keepalive)]
        {
            if let Err(error) = socket::tune(listener, keepalive) {
                tracing::debug!(%error, "socket options not set");
            }
        }
    }
}

/// A listener that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {what} in the pod's namespace: {source}")]
pub struct ListenError {
    /// Which one.
    pub what: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// Sockets that the ztunnel before this one gave, each found to be what it was given as.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<(SocketAddr, TcpListener)>,
    udp: Vec<(SocketAddr, UdpSocket)>,
}

impl Inherited {
    /// Takes what was given if all of it is usable: a socket of another namespace would carry one pod's traffic under
    /// another's identity, so nothing is believed. Otherwise all are made anew, beside those.
    pub fn check(given: Vec<(Place, OwnedFd)>, netns: &Netns, mark: Mark) -> Self {
        let mut inherited = Self::default();
        for (place, fd) in given {
            if let Err(problem) = check(place, &fd, netns, mark) {
                tracing::warn!(?place, %problem, "the sockets of the ztunnel before are not used");
                return Self::default();
            }
            match place.kind {
                Kind::Tcp => inherited.tcp.push((place.address, TcpListener::from(fd))),
                Kind::Udp => inherited.udp.push((place.address, UdpSocket::from(fd))),
            }
        }
        inherited
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn any(&mut self, port: u16) -> Option<TcpListener> {
        let found = self.tcp.iter().position(|(at, _)| at.ip().is_unspecified() && at.port() == port)?;
        Some(self.tcp.swap_remove(found).1)
    }

    fn pair(&mut self, address: SocketAddr) -> Option<(UdpSocket, TcpListener)> {
        let udp = self.udp.iter().position(|(at, _)| *at == address)?;
        let tcp = self.tcp.iter().position(|(at, _)| *at == address)?;
        Some((self.udp.swap_remove(udp).1, self.tcp.swap_remove(tcp).1))
    }
}

fn check(place: Place, fd: &OwnedFd, netns: &Netns, mark: Mark) -> io::Result<()> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let socket = SockRef::from(fd);
    let fits = match place.kind {
        Kind::Tcp => socket.is_listener()?,
        Kind::Udp => socket.r#type()? == socket2::Type::DGRAM,
    };
    if !fits {
        return Err(bad("it is of another kind"));
    }
    if socket.local_addr()?.as_socket() != Some(place.address) {
        return Err(bad("it is bound elsewhere"));
    }
    if Netns::of_socket(fd)? != *netns {
        return Err(bad("it is in another network namespace"));
    }
    socket.set_nonblocking(true)?;
    socket::set_mark(fd, mark)
}

/// Has all listeners of a pod: inherited ones as they are, the others made.
pub async fn listen(thread: &NetnsThread, config: &Config, mut inherited: Inherited) -> Result<Listeners, ListenError> {
    let mark = Some(Mark(config.mark.get()));
    let plain = Options { mark, transparent: false, reuse_port: config.port_reuse };
    let transparent = Options { transparent: true, ..plain };
    let dns: Vec<SocketAddr> = config.dns.as_ref().map(|dns| dns.listen.clone()).unwrap_or_default();
    let made = thread.run(move || {
        let mut any = |port: u16, options| {
            if let Some(inherited) = inherited.any(port) {
                return Ok(inherited);
            }
            socket::tcp_listener_any(port, options)
                .map_err(|source| ListenError { what: format!("port {port}"), source })
        };
        if plain.reuse_port {
            migrate_connections();
        }
        Ok(Listeners {
            outbound: any(OUTBOUND, plain)?,
            inbound_plain: any(INBOUND_PLAIN, transparent)?,
            inbound_hbone: any(INBOUND_HBONE, transparent)?,
            dns: dns
                .into_iter()
                .filter_map(|address| match inherited.pair(address) {
                    Some(pair) => Some(Ok(pair)),
                    None => dns_pair(address, plain).transpose(),
                })
                .collect::<Result<_, _>>()?,
        })
    });
    let listeners = made.await.map_err(|source| ListenError { what: "any port".to_owned(), source })??;
    listeners.tune(config);
    Ok(listeners)
}

/// Where two ztunnels listen on one port, connections that wait for the one that closes its listener go to the other;
/// without this the kernel resets them. The node agent sets it too: a container may not write here.
fn migrate_connections() {
    if let Err(error) = std::fs::write(MIGRATE, "1") {
        tracing::debug!(%error, path = MIGRATE, "not set here");
    }
}

const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// `None` for an IPv6 address where the namespace has no IPv6.
fn dns_pair(address: SocketAddr, options: Options) -> Result<Option<(UdpSocket, TcpListener)>, ListenError> {
    let pair = socket::udp_socket(address, options).and_then(|udp| Ok((udp, socket::tcp_listener(address, options)?)));
    match pair {
        Ok(pair) => Ok(Some(pair)),
        Err(error) if address.is_ipv6() && no_family(&error) => Ok(None),
        Err(source) => Err(ListenError { what: address.to_string(), source }),
    }
}

fn no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}
