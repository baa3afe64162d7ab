//! The sockets that a pod is served at, as long as it is: what can be handed to a successor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use stillmesh_api::succession::{Kind, Place};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;

use super::listeners::Listeners;

/// A pod's sockets in use. Each is held by those who accept there, and closes with the last of them.
#[derive(Debug)]
pub struct Sockets {
    /// As in [`Listeners`].
    pub outbound: Arc<TcpListener>,
    /// As in [`Listeners`].
    pub inbound_plain: Arc<TcpListener>,
    /// As in [`Listeners`].
    pub inbound_hbone: Arc<TcpListener>,
    /// As in [`Listeners`].
    pub dns: Vec<(Arc<UdpSocket>, Arc<TcpListener>)>,
}

impl Sockets {
    /// Takes listeners into use: connections on the worker `home`, DNS on the current runtime.
    pub fn of(listeners: Listeners, home: &Handle) -> io::Result<Self> {
        let tcp = |listener| TcpListener::from_std(listener).map(Arc::new);
        let pair = |(socket, listener)| Ok((Arc::new(UdpSocket::from_std(socket)?), tcp(listener)?));
        let dns = listeners.dns.into_iter().map(pair).collect::<io::Result<_>>()?;
        let _home = home.enter();
        Ok(Self {
            outbound: tcp(listeners.outbound)?,
            inbound_plain: tcp(listeners.inbound_plain)?,
            inbound_hbone: tcp(listeners.inbound_hbone)?,
            dns,
        })
    }

    /// Follows them without keeping them open.
    pub fn watch(&self) -> Open {
        let mut open = Open::default();
        for listener in [&self.outbound, &self.inbound_plain, &self.inbound_hbone] {
            open.tcp.push(Arc::downgrade(listener));
        }
        for (socket, listener) in &self.dns {
            open.udp.push(Arc::downgrade(socket));
            open.tcp.push(Arc::downgrade(listener));
        }
        open
    }
}

/// Sockets that may have closed.
#[derive(Debug, Default)]
pub struct Open {
    tcp: Vec<Weak<TcpListener>>,
    udp: Vec<Weak<UdpSocket>>,
}

impl Open {
    /// Descriptors of their own for those that are open.
    pub fn duplicate(&self) -> io::Result<Vec<(Place, OwnedFd)>> {
        let mut all = Vec::new();
        for listener in self.tcp.iter().filter_map(Weak::upgrade) {
            all.push(duplicate(Kind::Tcp, listener.local_addr()?, &*listener)?);
        }
        for socket in self.udp.iter().filter_map(Weak::upgrade) {
            all.push(duplicate(Kind::Udp, socket.local_addr()?, &*socket)?);
        }
        Ok(all)
    }
}

fn duplicate(kind: Kind, address: SocketAddr, socket: &impl AsFd) -> io::Result<(Place, OwnedFd)> {
    Ok((Place { kind, address }, socket.as_fd().try_clone_to_owned()?))
}
