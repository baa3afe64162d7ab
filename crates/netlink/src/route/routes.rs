//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Rtnl;
use crate::error::Error;

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
        todo!("{table:?}")
    }

    /// Adds a route, or replaces the one to the same destination with the same metric in the same table.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        todo!("{route:?}")
    }

    /// Deletes a route; absent is fine.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        todo!("{route:?}")
    }
}
