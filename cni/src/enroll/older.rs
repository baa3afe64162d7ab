//! Connections older than capture: open in the clear when the rules came, and left alone.
//!
//! Counted between guard and rules, when no new connection can open, and followed until they are gone. Pure but for
//! [`sockets`] and [`cut`], which ask the kernel in the calling thread's namespace.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use stillmesh_netlink::Error;
use stillmesh_netlink::sock_diag::{self, State, TcpSocket};

use crate::rules::plan::{Facts, HBONE_PORT, INBOUND_PORT, Inbound, OUTBOUND_PORT, PROBE_SOURCE, PROBE_SOURCE_V6};
use crate::rules::plan::{Probes, TUNNEL_MARK};

/// The ends of a connection as the pod sees them, and which of several with equal ends it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The kernel's cookie of the socket; absent while the connection has none of its own yet.
    pub cookie: Option<u64>,
}

/// The open connections of a pod that no tunnel carries and that capture would have: neither those within the pod, nor
/// the tunnel's own, nor those that are redirected to it or were opened by it, nor what the pod's facts leave alone.
pub fn uncaptured(facts: &Facts, sockets: &[TcpSocket]) -> Vec<Connection> {
    let listening: HashSet<u16> = match facts.inbound {
        Inbound::Captured => HashSet::new(),
        Inbound::Bypassed => {
            sockets.iter().filter(|socket| socket.state == State::Listen).map(|socket| socket.local.port()).collect()
        }
    };
    let probe =
        |address: IpAddr| facts.probes == Probes::Honoured && (address == PROBE_SOURCE || address == PROBE_SOURCE_V6);
    // What reaches another socket of this namespace: its remote end is somebody's local end, and the other way round.
    let here: HashSet<(SocketAddr, SocketAddr)> = sockets.iter().map(|socket| (socket.local, socket.remote)).collect();
    // A redirected connection keeps its source, so the tunnel's end has the application's own address as remote.
    let redirected: HashSet<SocketAddr> = sockets
        .iter()
        .filter(|socket| socket.local.port() == OUTBOUND_PORT && socket.state != State::Listen)
        .map(|socket| socket.remote)
        .collect();
    let outside = |socket: &&TcpSocket| {
        alive(socket)
            && !of_tunnel(socket)
            && !socket.remote.ip().is_loopback()
            && !probe(socket.remote.ip())
            && !listening.contains(&socket.local.port())
            && !here.contains(&(socket.remote, socket.local))
            && !redirected.contains(&socket.local)
    };
    sockets.iter().filter(outside).map(connection).collect()
}

/// Which of the older connections are still there.
pub fn remaining(older: &[Connection], sockets: &[TcpSocket]) -> Vec<Connection> {
    let mut now: HashMap<(SocketAddr, SocketAddr), Connection> = HashMap::new();
    for socket in sockets.iter().filter(|socket| alive(socket)) {
        now.insert((socket.local, socket.remote), connection(socket));
    }
    let still = |before: &Connection| {
        let found = now.get(&(before.local, before.remote))?;
        // One that was half open gets its socket later; another cookie is another connection with the same ends.
        (before.cookie.is_none() || found.cookie.is_none() || before.cookie == found.cookie).then_some(*found)
    };
    older.iter().filter_map(still).collect()
}

/// How many connections of a pod the tunnel carries: those it accepted in the pod's namespace.
pub fn in_tunnel(sockets: &[TcpSocket]) -> usize {
    let carried = |socket: &&TcpSocket| {
        let open = !matches!(socket.state, State::Listen | State::TimeWait | State::Close);
        open && matches!(socket.local.port(), OUTBOUND_PORT | INBOUND_PORT | HBONE_PORT)
    };
    sockets.iter().filter(carried).count()
}

/// The TCP sockets of the calling thread's namespace.
pub fn sockets() -> Result<Vec<TcpSocket>, Error> {
    sock_diag::tcp_sockets(&[])
}

/// Resets these connections, in the calling thread's namespace; their owners connect again, captured. Returns how many
/// were still there.
pub fn cut(older: &[Connection]) -> Result<usize, Error> {
    let sockets = sockets()?;
    let still: HashSet<Connection> = remaining(older, &sockets).into_iter().collect();
    let (mut ended, mut failed) = (0, None);
    for socket in sockets.iter().filter(|socket| alive(socket) && still.contains(&connection(socket))) {
        match sock_diag::destroy(socket) {
            Ok(()) => ended += 1,
            // The others are no less to be reset.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(ended), Err)
}

/// Whether bytes of an application may still pass: not listeners, not what only the kernel still knows. A connection
/// that is being opened by the pod does not count: the guard and the rules see to it that it opens captured.
fn alive(socket: &TcpSocket) -> bool {
    match socket.state {
        State::Listen | State::Close | State::TimeWait | State::SynSent => false,
        // Nobody reads any more; the kernel answers what comes with a reset.
        State::FinWait2 => socket.inode != 0,
        _ => true,
    }
}

fn of_tunnel(socket: &TcpSocket) -> bool {
    let marked = socket.mark.is_some_and(|mark| mark & TUNNEL_MARK.mask == TUNNEL_MARK.value);
    marked || matches!(socket.local.port(), OUTBOUND_PORT | INBOUND_PORT | HBONE_PORT)
}

fn connection(socket: &TcpSocket) -> Connection {
    let half_open = matches!(socket.state, State::SynReceived | State::NewSynReceived);
    let cookie = (!half_open && socket.cookie != 0).then_some(socket.cookie);
    Connection { local: socket.local, remote: socket.remote, cookie }
}

#[cfg(test)]
mod tests;
