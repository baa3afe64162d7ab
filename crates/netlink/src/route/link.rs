//! Network devices.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::Rtnl;
use crate::error::{Error, absent_is_fine};
use crate::wire::{self, CREATE, EXCLUSIVE, Message};

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
        self.socket.list(&message(GET, 0, 0, None), "list the links", |kind, payload| {
            (kind == NEW).then(|| Link::read(payload)).flatten()
        })
    }

    /// The device of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut get = message(GET, 0, 0, None);
        get.text(IFNAME, name);
        match self.socket.ask(get, &format!("look up link {name}"), |_, payload| Link::read(payload)) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a device.
    pub fn add_link(&mut self, name: &str, kind: LinkKind) -> Result<(), Error> {
        let kind = match kind {
            LinkKind::Bridge => "bridge",
            LinkKind::Dummy => "dummy",
        };
        let mut add = message(NEW, CREATE | EXCLUSIVE, 0, None);
        add.text(IFNAME, name);
        add.nested(LINKINFO, |out| out.text(INFO_KIND, kind));
        self.socket.request(add, &format!("add {kind} {name}"))
    }

    /// Makes a pair of devices.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<(), Error> {
        let mut add = message(NEW, CREATE | EXCLUSIVE, 0, None);
        write_end(&mut add, veth.name, veth.mtu, veth.mac);
        add.nested(LINKINFO, |out| {
            out.text(INFO_KIND, "veth");
            out.nested(INFO_DATA, |out| {
                let mut peer = Message::fragment();
                write_end(&mut peer, veth.peer_name, veth.mtu, veth.peer_mac);
                if let Some(netns) = veth.peer_netns {
                    peer.u32(NET_NS_FD, netns.as_raw_fd().cast_unsigned());
                }
                let mut payload = header(0, None).to_vec();
                payload.extend_from_slice(peer.as_bytes());
                out.attribute(VETH_PEER, &payload);
            });
        });
        self.socket.request(add, &format!("add veth {} with peer {}", veth.name, veth.peer_name))
    }

    /// Changes a device.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let mut set = message(NEW, 0, index, change.up);
        if let Some(name) = change.name {
            set.text(IFNAME, name);
        }
        if let Some(mtu) = change.mtu {
            set.u32(MTU, mtu);
        }
        if let Some(master) = change.master {
            set.u32(MASTER, master);
        }
        if let Some(mac) = change.mac {
            set.attribute(ADDRESS, &mac);
        }
        if let Some(netns) = change.netns {
            set.u32(NET_NS_FD, netns.as_raw_fd().cast_unsigned());
        }
        self.socket.request(set, &format!("change link {index}"))
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
        let mut delete = message(DELETE, 0, 0, None);
        delete.text(IFNAME, name);
        absent_is_fine(self.socket.request(delete, &format!("delete link {name}")))
    }
}

impl Link {
    fn read(payload: &[u8]) -> Option<Self> {
        let index = wire::u32_at(payload, 4)?;
        let flags = wire::u32_at(payload, 8)?;
        let attributes = payload.get(HEADER_BYTES..)?;
        let number = |kind| wire::find(attributes, kind).and_then(|value| wire::u32_at(value, 0));
        let kind = wire::find(attributes, LINKINFO).and_then(|info| wire::find(info, INFO_KIND)).map(wire::text);
        Some(Self {
            index,
            name: wire::text(wire::find(attributes, IFNAME)?),
            up: flags & UP != 0,
            mtu: number(MTU).unwrap_or_default(),
            mac: wire::find(attributes, ADDRESS).and_then(|value| value.try_into().ok()),
            master: number(MASTER),
            peer: number(LINK).filter(|_| kind.as_deref() == Some("veth")),
            kind,
        })
    }
}

fn write_end(out: &mut Message, name: &str, mtu: Option<u32>, mac: Option<[u8; 6]>) {
    out.text(IFNAME, name);
    if let Some(mtu) = mtu {
        out.u32(MTU, mtu);
    }
    if let Some(mac) = mac {
        out.attribute(ADDRESS, &mac);
    }
}

fn message(kind: u16, flags: u16, index: u32, up: Option<bool>) -> Message {
    Message::new(kind, flags, &header(index, up))
}

/// Linux's `ifinfomsg`.
fn header(index: u32, up: Option<bool>) -> [u8; HEADER_BYTES] {
    let flags = if up == Some(true) { UP } else { 0 };
    let change = if up.is_some() { UP } else { 0 };
    let mut header = [0; HEADER_BYTES];
    let numbers = [0, index, flags, change];
    for (place, number) in header.chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    header
}

const HEADER_BYTES: usize = 16;
const NEW: u16 = 16;
const DELETE: u16 = 17;
const GET: u16 = 18;
const UP: u32 = 1;
const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const LINK: u16 = 5;
const MASTER: u16 = 10;
const LINKINFO: u16 = 18;
const NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;

/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;
