//! Routing rules: which table is looked in for which packets.

use super::{INET, INET6, Rtnl};
use crate::error::{Error, absent_is_fine};
use crate::wire::{self, CREATE, EXCLUSIVE, Message};

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
        let mut all = Vec::new();
        for family in [INET, INET6] {
            let mut header = [0; HEADER_BYTES];
            header[0] = family;
            all.extend(self.socket.list(
                &Message::new(GET, 0, &header),
                "list the routing rules",
                |kind, payload| (kind == NEW).then(|| RoutingRule::read(payload)).flatten(),
            )?);
        }
        Ok(all)
    }

    /// Adds a rule; an equal one that is there is fine.
    pub fn add_rule(&mut self, rule: &RoutingRule) -> Result<(), Error> {
        let action = format!("add routing rule {} for table {}", rule.priority, rule.table);
        match self.socket.request(rule.message(NEW, CREATE | EXCLUSIVE), &action) {
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Deletes a rule; absent is fine.
    pub fn delete_rule(&mut self, rule: &RoutingRule) -> Result<(), Error> {
        let action = format!("delete routing rule {} for table {}", rule.priority, rule.table);
        absent_is_fine(self.socket.request(rule.message(DELETE, 0), &action))
    }
}

impl RoutingRule {
    fn message(&self, kind: u16, flags: u16) -> Message {
        let mut header = [0; HEADER_BYTES];
        header[0] = if self.ipv6 { INET6 } else { INET };
        header[4] = u8::try_from(self.table).unwrap_or_default();
        header[7] = TO_TABLE;
        let mut message = Message::new(kind, flags, &header);
        message.u32(PRIORITY, self.priority);
        message.u32(TABLE, self.table);
        if let Some((mark, mask)) = self.mark {
            message.u32(MARK, mark);
            message.u32(MASK, mask);
        }
        message
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let [family, _, _, _, table, _, _, action] = wire::array_at::<8>(payload, 0)?;
        let attributes = payload.get(HEADER_BYTES..)?;
        let number = |kind| wire::find(attributes, kind).and_then(|value| wire::u32_at(value, 0));
        let mark = number(MARK).unwrap_or_default();
        let mask = number(MASK).unwrap_or_default();
        (action == TO_TABLE).then_some(Self {
            ipv6: family == INET6,
            priority: number(PRIORITY).unwrap_or_default(),
            mark: (mask != 0).then_some((mark, mask)),
            table: number(TABLE).unwrap_or_else(|| table.into()),
        })
    }
}

/// Size of Linux's `fib_rule_hdr`.
const HEADER_BYTES: usize = 12;
const NEW: u16 = 32;
const DELETE: u16 = 33;
const GET: u16 = 34;
const TO_TABLE: u8 = 1;
const PRIORITY: u16 = 6;
const MARK: u16 = 10;
const TABLE: u16 = 15;
const MASK: u16 = 16;
