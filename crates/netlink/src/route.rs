//! Links, addresses, routes, routing rules and neighbours.

mod address;
mod link;
mod neighbour;
mod routes;
mod rule;

pub use address::{Address, AddressOptions};
pub use link::{Link, LinkChange, LinkKind, Veth};
pub use neighbour::Neighbour;
pub use routes::{Route, RouteKind, Scope, TABLE_LOCAL, TABLE_MAIN};
pub use rule::RoutingRule;

use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use crate::error::Error;
use crate::socket::Socket;
use crate::wire::{self, Message};

/// A socket to the kernel's routing of one network namespace: that of the thread that opened it, wherever it is used.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    /// Opens a socket in the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkRoute)? })
    }
}

const INET: u8 = 2;
const INET6: u8 = 10;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// An attribute with an address.
fn write_ip(message: &mut Message, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.attribute(kind, &address.octets()),
        IpAddr::V6(address) => message.attribute(kind, &address.octets()),
    }
}

/// The address in an attribute, by its length.
fn read_ip(payload: &[u8]) -> Option<IpAddr> {
    match payload.len() {
        4 => wire::array_at::<4>(payload, 0).map(IpAddr::from),
        16 => wire::array_at::<16>(payload, 0).map(IpAddr::from),
        _ => None,
    }
}
