//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{INET, INET6, Rtnl, family, read_ip, write_ip};
use crate::error::{Error, absent_is_fine};
use crate::wire::{self, CREATE, Message, REPLACE};

/// The table that is looked in last.
pub const TABLE_MAIN: u32 = 254;
/// The table of this namespace's own addresses.
pub const TABLE_LOCAL: u32 = 255;

/// A route, to add or as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing device.
    pub link: Option<u32>,
    /// Source address to prefer.
    pub source: Option<IpAddr>,
    /// Table.
    pub table: u32,
    /// What it does.
    pub kind: RouteKind,
    /// How far the destination is; fitting the gateway and kind if absent.
    pub scope: Option<Scope>,
    /// The gateway is reachable by the device, whatever the addresses say.
    pub onlink: bool,
    /// Lower ones come first.
    pub metric: Option<u32>,
}

impl Route {
    /// A unicast route in the main table.
    #[must_use]
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            link: None,
            source: None,
            table: TABLE_MAIN,
            kind: RouteKind::Unicast,
            scope: None,
            onlink: false,
            metric: None,
        }
    }

    /// By a next hop.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// By a device.
    #[must_use]
    pub fn dev(mut self, link: u32) -> Self {
        self.link = Some(link);
        self
    }

    /// The next hop is reachable by the device, whatever the addresses say.
    #[must_use]
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// In another table.
    #[must_use]
    pub fn table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    /// Delivered to this namespace itself (`local 0.0.0.0/0 dev lo`).
    #[must_use]
    pub fn local(mut self) -> Self {
        self.kind = RouteKind::Local;
        self
    }

    /// With a preferred source address.
    #[must_use]
    pub fn source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Leads on.
    Unicast,
    /// Delivers here.
    Local,
    /// Drops silently.
    Blackhole,
    /// Answers that there is no way.
    Unreachable,
    /// Something else, by its number.
    Other(u8),
}

/// How far a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Behind a gateway.
    Universe,
    /// On the link.
    Link,
    /// Here.
    Host,
    /// Something else, by its number.
    Other(u8),
}

impl Rtnl {
    /// The routes of a table (of all if `None`), both families.
    pub fn routes(&mut self, table: Option<u32>) -> Result<Vec<Route>, Error> {
        let list = Message::new(GET, 0, &[0; HEADER_BYTES]);
        let all = self
            .socket
            .list(&list, "list the routes", |kind, payload| (kind == NEW).then(|| Route::read(payload)).flatten())?;
        Ok(all.into_iter().filter(|route| table.is_none_or(|table| table == route.table)).collect())
    }

    /// Adds a route, or replaces the one to the same destination with the same metric in the same table.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let scope = match (route.scope, route.kind, route.gateway) {
            (Some(scope), ..) => scope,
            (None, RouteKind::Local, _) => Scope::Host,
            (None, RouteKind::Unicast, None) => Scope::Link,
            (None, ..) => Scope::Universe,
        };
        let message = route.message(NEW, CREATE | REPLACE, scope.number());
        self.socket.request(message, &format!("add {route}"))
    }

    /// Deletes a route; absent is fine.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let scope = route.scope.map_or(NOWHERE, Scope::number);
        absent_is_fine(self.socket.request(route.message(DELETE, 0, scope), &format!("delete {route}")))
    }
}

impl Route {
    fn message(&self, kind: u16, flags: u16, scope: u8) -> Message {
        let destination = self.destination;
        let flag = if self.onlink { ONLINK } else { 0 };
        let [a, b, c, d] = u32::to_ne_bytes(flag);
        let table = u8::try_from(self.table).unwrap_or(TABLE_IN_ATTRIBUTE);
        let (family, length, kind_number) = (family(destination.addr()), destination.prefix_len(), self.kind.number());
        let header = [family, length, 0, 0, table, PROTOCOL_STATIC, scope, kind_number, a, b, c, d];
        let mut message = Message::new(kind, flags, &header);
        write_ip(&mut message, DST, destination.network());
        if let Some(gateway) = self.gateway {
            write_ip(&mut message, GATEWAY, gateway);
        }
        if let Some(link) = self.link {
            message.u32(OIF, link);
        }
        if let Some(source) = self.source {
            write_ip(&mut message, PREFSRC, source);
        }
        if let Some(metric) = self.metric {
            message.u32(PRIORITY, metric);
        }
        message.u32(TABLE, self.table);
        message
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let [family, length, _, _, table, _, scope, kind] = wire::array_at::<8>(payload, 0)?;
        let flags = wire::u32_at(payload, 8)?;
        let attributes = payload.get(HEADER_BYTES..)?;
        let unspecified = match family {
            INET => IpAddr::from([0; 4]),
            INET6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let ip = |kind| wire::find(attributes, kind).and_then(read_ip);
        let number = |kind| wire::find(attributes, kind).and_then(|value| wire::u32_at(value, 0));
        Some(Self {
            destination: IpNet::new(ip(DST).unwrap_or(unspecified), length).ok()?,
            gateway: ip(GATEWAY),
            link: number(OIF),
            source: ip(PREFSRC),
            table: number(TABLE).unwrap_or_else(|| table.into()),
            kind: RouteKind::from_number(kind),
            scope: Some(Scope::from_number(scope)),
            onlink: flags & ONLINK != 0,
            metric: number(PRIORITY),
        })
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "route to {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(out, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(out, " by link {link}")?;
        }
        write!(out, " in table {}", self.table)
    }
}

impl RouteKind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        let known = [Self::Unicast, Self::Local, Self::Blackhole, Self::Unreachable];
        known.into_iter().find(|kind| kind.number() == number).unwrap_or(Self::Other(number))
    }
}

impl Scope {
    fn number(self) -> u8 {
        match self {
            Self::Universe => 0,
            Self::Link => 253,
            Self::Host => 254,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        let known = [Self::Universe, Self::Link, Self::Host];
        known.into_iter().find(|scope| scope.number() == number).unwrap_or(Self::Other(number))
    }
}

/// Size of Linux's `rtmsg`.
const HEADER_BYTES: usize = 12;
const NEW: u16 = 24;
const DELETE: u16 = 25;
const GET: u16 = 26;
const DST: u16 = 1;
const OIF: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFSRC: u16 = 7;
const TABLE: u16 = 15;
/// The table's number is too large for the header and is in the attribute alone.
const TABLE_IN_ATTRIBUTE: u8 = 252;
const PROTOCOL_STATIC: u8 = 4;
const ONLINK: u32 = 4;
/// When deleting: whatever the scope is.
const NOWHERE: u8 = 255;
