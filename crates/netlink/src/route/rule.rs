//! Routing rules: which table is looked in for which packets.

use super::Rtnl;
use crate::error::Error;

/// A rule that looks in a table for packets with a mark, to add or as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// Of IPv6 rather than IPv4.
    pub ipv6: bool,
    /// Lower ones come first.
    pub priority: u32,
    /// The mark and which of its bits count; all packets if absent.
    pub mark: Option<(u32, u32)>,
    /// The table.
    pub table: u32,
}

impl Rtnl {
    /// All rules of both families.
    pub fn rules(&mut self) -> Result<Vec<RoutingRule>, Error> {
        todo!()
    }

    /// Adds a rule; an equal one that is there is fine.
    pub fn add_rule(&mut self, rule: &RoutingRule) -> Result<(), Error> {
        todo!("{rule:?}")
    }

    /// Deletes a rule; absent is fine.
    pub fn delete_rule(&mut self, rule: &RoutingRule) -> Result<(), Error> {
        todo!("{rule:?}")
    }
}
