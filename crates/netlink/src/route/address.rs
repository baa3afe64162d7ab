//! Addresses of devices.

use ipnet::IpNet;

use super::{Rtnl, family, read_ip, write_ip};
use crate::error::{Error, absent_is_fine};
use crate::wire::{self, CREATE, EXCLUSIVE, Message};

/// An address that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its device.
    pub link: u32,
    /// The address with its prefix length.
    pub net: IpNet,
}

/// How an address is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOptions {
    /// Without duplicate address detection: an IPv6 address is usable at once. Default true.
    pub nodad: bool,
    /// Without the route to its own network. Default false.
    pub noprefixroute: bool,
}

impl Default for AddressOptions {
    fn default() -> Self {
        Self { nodad: true, noprefixroute: false }
    }
}

impl Rtnl {
    /// All addresses of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        self.socket.list(&Message::new(GET, 0, &[0; HEADER_BYTES]), "list the addresses", |kind, payload| {
            (kind == NEW).then(|| Address::read(payload)).flatten()
        })
    }

    /// Adds an address; one that is there is fine.
    pub fn add_address(&mut self, link: u32, net: IpNet, options: AddressOptions) -> Result<(), Error> {
        let mut add = message(NEW, CREATE | EXCLUSIVE, link, net);
        let mut flags = 0;
        if options.nodad && !net.addr().is_ipv4() {
            flags |= NODAD;
        }
        if options.noprefixroute {
            flags |= NOPREFIXROUTE;
        }
        add.u32(FLAGS, flags);
        match self.socket.request(add, &format!("add address {net} to link {link}")) {
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Deletes an address; absent is fine.
    pub fn delete_address(&mut self, link: u32, net: IpNet) -> Result<(), Error> {
        let delete = message(DELETE, 0, link, net);
        absent_is_fine(self.socket.request(delete, &format!("delete address {net} of link {link}")))
    }
}

impl Address {
    fn read(payload: &[u8]) -> Option<Self> {
        let prefix = *payload.get(1)?;
        let link = wire::u32_at(payload, 4)?;
        let attributes = payload.get(HEADER_BYTES..)?;
        // The other one is the peer's on a point-to-point link.
        let address = wire::find(attributes, LOCAL).or_else(|| wire::find(attributes, ADDRESS)).and_then(read_ip)?;
        Some(Self { link, net: IpNet::new(address, prefix).ok()? })
    }
}

fn message(kind: u16, flags: u16, link: u32, net: IpNet) -> Message {
    let [a, b, c, d] = link.to_ne_bytes();
    let mut message = Message::new(kind, flags, &[family(net.addr()), net.prefix_len(), 0, 0, a, b, c, d]);
    write_ip(&mut message, LOCAL, net.addr());
    write_ip(&mut message, ADDRESS, net.addr());
    message
}

/// Size of Linux's `ifaddrmsg`.
const HEADER_BYTES: usize = 8;
const NEW: u16 = 20;
const DELETE: u16 = 21;
const GET: u16 = 22;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;
const NODAD: u32 = 0x02;
const NOPREFIXROUTE: u32 = 0x200;
