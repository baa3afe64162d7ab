//! Neighbours: which hardware address an IP address has.

use std::net::IpAddr;

use super::Rtnl;
use crate::error::Error;

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
        todo!("{neighbour:?}")
    }

    /// Deletes an entry; absent is fine.
    pub fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        todo!("{neighbour:?}")
    }
}
