//! Addresses within a named network. Networks separate address spaces that may overlap.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::Str;

/// An address in a network; the network's name may be empty. Displays as `network/ip` (contract 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name.
    pub network: Str,
    /// The address in it.
    pub address: IpAddr,
}

impl NetworkAddress {
    /// Builds it from its parts.
    pub fn new(network: impl Into<Str>, address: IpAddr) -> Self {
        Self { network: network.into(), address }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl Serialize for NetworkAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A range of addresses in a network, for services whose VIP is a CIDR.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkCidr {
    /// The network's name.
    pub network: Str,
    /// The range in it.
    pub cidr: IpNet,
}

impl Serialize for NetworkCidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.network, self.cidr))
    }
}
