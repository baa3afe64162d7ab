//! How a plan reads: in the words of `nft list ruleset`, for tests, fingerprints and people.

use std::fmt::{Display, Formatter, Result};
use std::net::IpAddr;

use super::model::{Action, Base, Chain, ChainKind, Family, Hook, Mark, Match, Rule, RulePlan, Table};
use super::plan::{REPLY_MARK, REPLY_RULE_PRIORITY, REPLY_TABLE};

impl Display for RulePlan {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        self.tables.iter().try_for_each(|table| table.fmt(out))?;
        for family in &self.reply_routes {
            let (flag, all) = match family {
                Family::V4 => ("-4", "0.0.0.0/0"),
                Family::V6 => ("-6", "::/0"),
            };
            let Mark { value, mask } = REPLY_MARK;
            writeln!(
                out,
                "ip {flag} rule fwmark {value:#x}/{mask:#x} lookup {REPLY_TABLE} pref {REPLY_RULE_PRIORITY}"
            )?;
            writeln!(out, "ip {flag} route local {all} dev lo table {REPLY_TABLE}")?;
        }
        Ok(())
    }
}

impl Display for Table {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        writeln!(out, "table inet {} {{", self.name)?;
        self.chains.iter().try_for_each(|chain| chain.fmt(out))?;
        writeln!(out, "}}")
    }
}

impl Display for Chain {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        writeln!(out, "  chain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(out, "    {base}")?;
        }
        for rule in &self.rules {
            writeln!(out, "    {rule}")?;
        }
        writeln!(out, "  }}")
    }
}

impl Display for Base {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Route => "route",
            ChainKind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        };
        write!(out, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

impl Display for Rule {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        for (at, condition) in self.matches.iter().enumerate() {
            // A port belongs to the protocol that an earlier match names.
            let protocol = if self.matches[..at].contains(&Match::Udp) { "udp" } else { "tcp" };
            write_match(out, condition, protocol)?;
            write!(out, " ")?;
        }
        write!(out, "counter {}", self.action)
    }
}

fn write_match(out: &mut Formatter<'_>, condition: &Match, protocol: &str) -> Result {
    match condition {
        Match::From(interface) => write!(out, "iifname \"{}\"", interface.as_str()),
        Match::FromLoopback => write!(out, "iifname \"lo\""),
        Match::ToLoopback => write!(out, "oifname \"lo\""),
        Match::NotToLoopback => write!(out, "oifname != \"lo\""),
        Match::Is(Family::V4) => write!(out, "meta nfproto ipv4"),
        Match::Is(Family::V6) => write!(out, "meta nfproto ipv6"),
        Match::Tcp => write!(out, "meta l4proto tcp"),
        Match::Udp => write!(out, "meta l4proto udp"),
        Match::OpeningSyn => write!(out, "tcp flags & (fin | syn | rst | ack) == syn"),
        Match::AnySyn => write!(out, "tcp flags & (syn | ack) == syn"),
        Match::SynAck => write!(out, "tcp flags & (syn | ack) == syn | ack"),
        Match::Source(address) => write!(out, "{} saddr {address}", protocol_of(address)),
        Match::Destination(address) => write!(out, "{} daddr {address}", protocol_of(address)),
        Match::NotDestination(address) => write!(out, "{} daddr != {address}", protocol_of(address)),
        Match::SourcePort(port) => write!(out, "{protocol} sport {port}"),
        Match::DestinationPort(port) => write!(out, "{protocol} dport {port}"),
        Match::NotDestinationPort(port) => write!(out, "{protocol} dport != {port}"),
        Match::Served => write!(out, "socket transparent != 2"),
        Match::Marked(mark) => write!(out, "meta mark & {:#x} == {:#x}", mark.mask, mark.value),
        Match::NotMarked(mark) => write!(out, "meta mark & {:#x} != {:#x}", mark.mask, mark.value),
        Match::ConnectionMarked(mark) => write!(out, "ct mark & {:#x} == {:#x}", mark.mask, mark.value),
        Match::ConnectionInvalid => write!(out, "ct state invalid"),
    }
}

fn protocol_of(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

impl Display for Action {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::Accept => write!(out, "accept"),
            Self::Drop => write!(out, "drop"),
            Self::Reset => write!(out, "reject with tcp reset"),
            Self::Return => write!(out, "return"),
            Self::Jump(chain) => write!(out, "jump {chain}"),
            Self::Redirect(port) => write!(out, "redirect to :{port}"),
            Self::MarkConnection(mark) => {
                write!(out, "ct mark set ct mark & {:#x} | {:#x}", !mark.mask, mark.value)
            }
            Self::RestoreMark => write!(out, "meta mark set ct mark"),
            Self::Zone(zone) => write!(out, "ct zone set {zone}"),
        }
    }
}
