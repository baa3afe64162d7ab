//! Addresses of devices.

use ipnet::IpNet;

use super::Rtnl;
use crate::error::Error;

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
        todo!()
    }

    /// Adds an address; one that is there is fine.
    pub fn add_address(&mut self, link: u32, net: IpNet, options: AddressOptions) -> Result<(), Error> {
        todo!("{link} {net} {options:?}")
    }

    /// Deletes an address; absent is fine.
    pub fn delete_address(&mut self, link: u32, net: IpNet) -> Result<(), Error> {
        todo!("{link} {net}")
    }
}
