//! Connections that ztunnel opens itself: with sockets of the pod's namespace, marked so that they
//! are not captured again, from the client's address where that is permitted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use stillmesh_runtime::sys::socket;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::sockets::Sockets;
use crate::config::Keepalive;
use crate::node::Node;
use crate::path::PathError;

/// Connects to `destination` from the pod's namespace with the pod's own address.
pub async fn plain(
    sockets: &Sockets,
    node: &Node,
    destination: SocketAddr,
    deadline: Instant,
) -> Result<TcpStream, PathError> {
    let stream = from(sockets, node, destination, None, deadline).await?;
    keep_alive(&stream, node.config.keepalive);
    Ok(stream)
}

/// Connects to `destination`, an address of the pod itself, from `client`'s address. No keepalive probes: it is this kernel that
/// would answer them.
///
/// Not where the pod calls itself: a connection from an address to itself would be ambiguous. Where the kernel does not
/// permit it, from the pod's own address.
pub async fn keeping_source(
    sockets: &Sockets,
    node: &Node,
    destination: SocketAddr,
    client: IpAddr,
    deadline: Instant,
) -> Result<TcpStream, PathError> {
    let keep = node.keeps_source_address()
        && client != destination.ip()
        && client.is_ipv4() == destination.is_ipv4()
        && !destination.ip().is_loopback();
    if !keep {
        return from(sockets, node, destination, None, deadline).await;
    }
    for _ in 0..PORT_TRIES {
        let source = SocketAddr::new(client, rand::random_range(SOURCE_PORTS));
        match from(sockets, node, destination, Some(source), deadline).await {
            Err(PathError::Connect { source, .. }) if is_taken(&source) => {}
            Err(PathError::Connect { source, .. }) if is_refused(&source) && node.source_address_refused() => {
                return from(sockets, node, destination, None, deadline).await;
            }
            connected => return connected,
        }
    }
    tracing::debug!(%client, %destination, "no free source port was found in some tries; the kernel looks for one");
    from(sockets, node, destination, Some(SocketAddr::new(client, 0)), deadline).await
}

/// Source ports of connections that come from a client's address: below those that the client's own kernel gives to its
/// connections (`ip_local_port_range`, by default from 32768 on). The client may have, or open at any time, connections of
/// its own to the same destination that are not in the mesh. One with the same ports would be the same connection
/// as ours to the application's kernel and to connection tracking, and would hang for as long as ours lives.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 1024..=32767;
/// Ports that are tried before the choice is left to the kernel.
const PORT_TRIES: usize = 16;

/// The kernel does not let us send from the client's address.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// The port has a connection to this destination already, or had one a moment ago.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

async fn from(
    sockets: &Sockets,
    node: &Node,
    destination: SocketAddr,
    source: Option<SocketAddr>,
    deadline: Instant,
) -> Result<TcpStream, PathError> {
    let failed = |source| PathError::Connect { to: destination, source };
    let slow = |_| PathError::Slow { to: destination, limit: node.config.limits.connect };
    timeout_at(deadline, sockets.connect(destination, source)).await.map_err(slow)?.map_err(failed)
}

/// TCP keepalive as configured. A socket that refuses it still carries bytes.
pub fn keep_alive(stream: &TcpStream, keepalive: Option<Keepalive>) {
    if let Err(error) = socket::tune(stream, keepalive.map(Into::into)) {
        tracing::debug!(%error, "socket options not set");
    }
}

/// Resolves an endpoint's name with the node's resolver; addresses of `family`'s family first.
pub async fn resolve(name: &str, port: u16, family: IpAddr, limit: Duration) -> io::Result<SocketAddr> {
    let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer in time");
    let found = tokio::time::timeout(limit, tokio::net::lookup_host((name, port))).await.map_err(slow)??;
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.sort_by_key(|address| address.is_ipv4() != family.is_ipv4());
    let first_family = addresses.first().map(SocketAddr::is_ipv4);
    addresses.retain(|address| Some(address.is_ipv4()) == first_family);
    let pick = rand::random_range(0..addresses.len().max(1));
    addresses.get(pick).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}
