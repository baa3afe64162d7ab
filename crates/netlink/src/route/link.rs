//! Network devices.

use std::os::fd::BorrowedFd;

use super::Rtnl;
use crate::error::Error;

/// A network device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind, where it has one: `veth`, `bridge`.
    pub kind: Option<String>,
    /// Whether it is switched on.
    pub up: bool,
    /// Largest packet.
    pub mtu: u32,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Index of its peer, for a veth; in the peer's namespace.
    pub peer: Option<u32>,
}

/// Devices that can be made alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A device that takes everything and sends nothing.
    Dummy,
}

/// A pair of devices; what goes into one comes out of the other.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Where the other end is made; here if absent.
    pub peer_netns: Option<BorrowedFd<'a>>,
    /// Largest packet of both ends; the kernel's default if absent.
    pub mtu: Option<u32>,
    /// Hardware address of this end.
    pub mac: Option<[u8; 6]>,
    /// Hardware address of the other end.
    pub peer_mac: Option<[u8; 6]>,
}

/// What is to change in a device; what is absent stays.
#[derive(Clone, Debug, Default)]
pub struct LinkChange<'a> {
    /// Switch it on or off.
    pub up: Option<bool>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// A new name. The device must be off.
    pub name: Option<&'a str>,
    /// Index of the bridge to join; 0 leaves it.
    pub master: Option<u32>,
    /// Move it into another namespace.
    pub netns: Option<BorrowedFd<'a>>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
}

impl Rtnl {
    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        todo!()
    }

    /// The device of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        todo!("{name}")
    }

    /// Makes a device.
    pub fn add_link(&mut self, name: &str, kind: LinkKind) -> Result<(), Error> {
        todo!("{name} {kind:?}")
    }

    /// Makes a pair of devices.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<(), Error> {
        todo!("{}", veth.name)
    }

    /// Changes a device.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        todo!("{index} {change:?}")
    }

    /// Switches a device on.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        self.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })
    }

    /// Switches the loopback device on.
    pub fn set_loopback_up(&mut self) -> Result<(), Error> {
        self.set_up(LOOPBACK)
    }

    /// Deletes a device (of a pair: both ends). Absent is fine.
    pub fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        todo!("{name}")
    }
}

/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;
