//! Tables, chains, rules and sets as data.

use std::fmt;
use std::net::IpAddr;

use super::expr::{Expr, Value, Verdict};

/// What kind of packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// A table with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: String,
    /// Kept by the kernel with the table, at most 127 bytes; for example a hash of what was applied.
    pub comment: Option<String>,
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains, in any order.
    pub chains: Vec<Chain>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), comment: None, sets: Vec::new(), chains: Vec::new() }
    }

    /// Adds a chain.
    #[must_use]
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chains.push(chain);
        self
    }

    /// Adds a set or map.
    #[must_use]
    pub fn set(mut self, set: Set) -> Self {
        self.sets.push(set);
        self
    }

    /// Sets the comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// A chain: a base chain is called by the kernel, another only by jumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Where the kernel calls it.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that is jumped to.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None, rules: Vec::new() }
    }

    /// A chain that the kernel calls; its policy is accept.
    #[must_use]
    pub fn base(name: impl Into<String>, kind: Kind, hook: Hook, priority: i32) -> Self {
        Self { base: Some(Base { kind, hook, priority, policy: Policy::Accept }), ..Self::new(name) }
    }

    /// Drops what reaches its end. Only of a base chain.
    #[must_use]
    pub fn policy_drop(mut self) -> Self {
        if let Some(base) = &mut self.base {
            base.policy = Policy::Drop;
        }
        self
    }

    /// Adds a rule at the end.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Adds rules at the end.
    #[must_use]
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules.extend(rules);
        self
    }
}

/// Where and how the kernel calls a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: Kind,
    /// When it is called.
    pub hook: Hook,
    /// Lower ones are called first.
    pub priority: i32,
    /// What happens at its end.
    pub policy: Policy,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any hook; no address translation.
    Filter,
    /// Address translation: sees the first packet of a connection.
    Nat,
    /// Output only; a changed mark makes the packet be routed again.
    Route,
}

/// When a base chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Everything that arrives, before routing.
    Prerouting,
    /// What arrives for this namespace.
    Input,
    /// What passes through.
    Forward,
    /// What this namespace sends.
    Output,
    /// Everything that leaves, after routing.
    Postrouting,
}

/// What happens at the end of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
}

/// A rule: its expressions are carried out in order until one does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Matches and statements.
    pub exprs: Vec<Expr>,
    /// Kept by the kernel with the rule, at most 127 bytes. Counters are found by it.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule of these expressions.
    #[must_use]
    pub fn new(exprs: impl IntoIterator<Item = Expr>) -> Self {
        Self { exprs: exprs.into_iter().collect(), comment: None }
    }

    /// Sets the comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// The type of one part of a set's key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// Port.
    Port,
    /// Transport protocol.
    Protocol,
    /// Firewall mark.
    Mark,
    /// Interface name.
    Interface,
    /// A number of 32 bits, as [`super::Key::Random`] makes it.
    Number,
}

/// A set, a map to values, or a map to verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique in the table.
    pub name: String,
    /// The parts of its key; more than one is a concatenation.
    pub key: Vec<DataType>,
    /// What a key maps to, if it is a map.
    pub value: Option<SetValue>,
    /// What it has from the start; see also [`super::Batch::add_elements`].
    pub elements: Vec<Element>,
}

impl Set {
    /// A set of keys.
    #[must_use]
    pub fn of(name: impl Into<String>, key: impl IntoIterator<Item = DataType>) -> Self {
        Self { name: name.into(), key: key.into_iter().collect(), value: None, elements: Vec::new() }
    }

    /// A map from keys to values.
    #[must_use]
    pub fn map(
        name: impl Into<String>,
        key: impl IntoIterator<Item = DataType>,
        value: impl IntoIterator<Item = DataType>,
    ) -> Self {
        Self { value: Some(SetValue::Data(value.into_iter().collect())), ..Self::of(name, key) }
    }

    /// A map from keys to verdicts.
    #[must_use]
    pub fn verdicts(name: impl Into<String>, key: impl IntoIterator<Item = DataType>) -> Self {
        Self { value: Some(SetValue::Verdict), ..Self::of(name, key) }
    }

    /// A map from 0, 1, … to address and port: what a service's connections are spread over. Addresses must be of the
    /// family of the first one; others are left out. See [`super::NatTarget::Map`].
    #[must_use]
    pub fn endpoints(name: impl Into<String>, endpoints: impl IntoIterator<Item = std::net::SocketAddr>) -> Self {
        let mut endpoints = endpoints.into_iter().peekable();
        let is_ipv4 = endpoints.peek().is_none_or(std::net::SocketAddr::is_ipv4);
        let address = if is_ipv4 { DataType::Ipv4 } else { DataType::Ipv6 };
        let same = endpoints.filter(|endpoint| endpoint.is_ipv4() == is_ipv4);
        let element = |(index, endpoint): (u32, std::net::SocketAddr)| {
            Element::value([index.into()], [endpoint.ip().into(), endpoint.port().into()])
        };
        let elements = (0u32..).zip(same).map(element).collect();
        Self { elements, ..Self::map(name, [DataType::Number], [address, DataType::Port]) }
    }

    /// Adds an element.
    #[must_use]
    pub fn element(mut self, element: Element) -> Self {
        self.elements.push(element);
        self
    }
}

/// What a map's keys map to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetValue {
    /// Data; more than one part is a concatenation.
    Data(Vec<DataType>),
    /// A verdict.
    Verdict,
}

/// One element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// One value for each part of the key.
    pub key: Vec<Value>,
    /// One value for each part of the map's value; empty for sets and verdict maps.
    pub value: Vec<Value>,
    /// The verdict, in verdict maps.
    pub verdict: Option<Verdict>,
}

impl Element {
    /// An element of a set.
    pub fn key(key: impl IntoIterator<Item = Value>) -> Self {
        Self { key: key.into_iter().collect(), value: Vec::new(), verdict: None }
    }

    /// An element of a map to values.
    pub fn value(key: impl IntoIterator<Item = Value>, value: impl IntoIterator<Item = Value>) -> Self {
        Self { value: value.into_iter().collect(), ..Self::key(key) }
    }

    /// An element of a map to verdicts.
    pub fn verdict(key: impl IntoIterator<Item = Value>, verdict: Verdict) -> Self {
        Self { verdict: Some(verdict), ..Self::key(key) }
    }
}

impl From<IpAddr> for DataType {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}
