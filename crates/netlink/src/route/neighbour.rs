//! Neighbours: which hardware address an IP address has.

use std::net::IpAddr;

use super::{Rtnl, family, write_ip};
use crate::error::{Error, absent_is_fine};
use crate::wire::{CREATE, Message, REPLACE};

/// A permanent entry, or a proxy entry that makes this namespace answer for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the device.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Its hardware address; `None` is a proxy entry.
    pub mac: Option<[u8; 6]>,
}

impl Rtnl {
    /// Adds or replaces an entry.
    pub fn add_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        let action = format!("add neighbour {} of link {}", neighbour.ip, neighbour.link);
        self.socket.request(neighbour.message(NEW, CREATE | REPLACE), &action)
    }

    /// Deletes an entry; absent is fine.
    pub fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        let action = format!("delete neighbour {} of link {}", neighbour.ip, neighbour.link);
        absent_is_fine(self.socket.request(neighbour.message(DELETE, 0), &action))
    }
}

impl Neighbour {
    /// Linux's `ndmsg` and attributes.
    fn message(&self, kind: u16, flags: u16) -> Message {
        let (state, flag) = if self.mac.is_some() { (PERMANENT, 0) } else { (0, PROXY) };
        let [a, b, c, d] = self.link.to_ne_bytes();
        let [state_a, state_b] = u16::to_ne_bytes(state);
        let mut message = Message::new(kind, flags, &[family(self.ip), 0, 0, 0, a, b, c, d, state_a, state_b, flag, 0]);
        write_ip(&mut message, DST, self.ip);
        if let Some(mac) = self.mac {
            message.attribute(LLADDR, &mac);
        }
        message
    }
}

const NEW: u16 = 28;
const DELETE: u16 = 29;
const DST: u16 = 1;
const LLADDR: u16 = 2;
const PERMANENT: u16 = 0x80;
const PROXY: u8 = 0x08;
