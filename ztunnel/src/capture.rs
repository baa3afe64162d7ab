//! Pods coming and going, their listeners, and the connections that come in at them.

pub mod listeners;
pub mod open;
pub mod pod;
pub mod pods;
pub mod succession;
pub mod zds;

use std::net::{IpAddr, SocketAddr};

use stillmesh_runtime::sys::socket;
use tokio::net::TcpStream;

use crate::path::PathError;

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

/// Asks the kernel where a captured connection was going.
pub fn captured(stream: TcpStream, peer: SocketAddr) -> Result<Captured, PathError> {
    let original = socket::original_destination(&stream).map_err(|source| PathError::NoDestination { source })?;
    Ok(Captured { stream, peer, original: canonical(original) })
}

/// IPv4 addresses as IPv4, also where a dual-stack socket shows them as IPv6.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}
