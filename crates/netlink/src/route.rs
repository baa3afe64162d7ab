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

use crate::error::Error;

/// A socket to the kernel's routing of one network namespace: that of the thread that opened it, wherever it is used.
#[derive(Debug)]
pub struct Rtnl {
    _private: (),
}

impl Rtnl {
    /// Opens a socket in the namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        todo!()
    }
}
