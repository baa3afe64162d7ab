//! Pods coming and going, their listeners, and the connections that come in at them.

pub mod listeners;
pub mod open;
pub mod pod;
pub mod pods;
pub mod succession;
pub mod zds;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use stillmesh_core::model::Workload;
use stillmesh_runtime::sys::socket;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::node::Node;
use crate::path::PathError;
use crate::record::{self, Direction, Early, Protocol};

pub use pod::{Pod, StartError};
pub use pods::Pods;

/// A connection that the pod's capture rules redirected to us.
#[derive(Debug)]
pub struct Captured {
    /// The connection itself.
    pub stream: TcpStream,
    /// Its other end.
    pub peer: SocketAddr,
    /// Where it was going before it was redirected.
    pub original: SocketAddr,
}

/// What an accepted connection is: its place among those of its pod, where it was going, and whose it is. `None`: it cannot be carried,
/// which is written down, and it is broken off.
pub async fn begin(
    pod: &Pod,
    node: &Node,
    stream: TcpStream,
    peer: SocketAddr,
    direction: Direction,
) -> Option<(OwnedSemaphorePermit, Captured, Arc<Workload>)> {
    let began = async {
        let permit = pod.place()?;
        let original = socket::original_destination(&stream).map_err(|source| PathError::NoDestination { source })?;
        let workload = pod.workload(node).await?;
        Ok::<_, PathError>((permit, canonical(original), workload))
    };
    match began.await {
        Ok((permit, original, workload)) => Some((permit, Captured { stream, peer, original }, workload)),
        Err(error) => {
            let early = Early { pod, direction, protocol: Protocol::Tcp, source: peer, destination: peer };
            record::failed_early(&node.ledger, &early, &error);
            break_off(stream);
            None
        }
    }
}

/// Closes a connection that was taken and is not carried. It is reset: that it failed must not look like an end to who opened it.
pub fn break_off(stream: TcpStream) {
    // One that is gone already cannot be told.
    let _ = stream.set_zero_linger();
}

/// IPv4 addresses as IPv4, also where a dual-stack socket shows them as IPv6.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}
