//! What a rule is made of: matches on fields and statements, with short constructors.
//!
//! What a match presupposes is added by the encoder where the rule does not say it: the IP version before an address
//! (in `inet` tables), the transport protocol before a port or TCP flag.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Goes on if the field (and-ed with the mask, if there is one) compares so with the value.
    Match {
        /// What is looked at.
        field: Field,
        /// Bits that count; all if absent.
        mask: Option<Value>,
        /// How.
        compare: Compare,
        /// With what.
        value: Value,
    },
    /// Goes on if the field is between the two values, both included (or, negated, is not).
    Range {
        /// What is looked at.
        field: Field,
        /// The smallest value.
        from: Value,
        /// The largest value.
        to: Value,
        /// Turns the match around.
        negated: bool,
    },
    /// Goes on if the concatenated fields are in a set (or, negated, are not).
    InSet {
        /// The key's fields in order.
        fields: Vec<Field>,
        /// The set's name.
        set: String,
        /// Turns the match around.
        negated: bool,
    },
    /// Looks a key up in a verdict map and does what it says; goes on if the key is not there.
    VerdictMap {
        /// What is looked up.
        key: Key,
        /// The map's name.
        map: String,
    },
    /// Sets the packet's mark: `(mark & keep) ^ xor`, so `keep` 0 sets all of it.
    SetMetaMark {
        /// Where the bits come from.
        source: MarkSource,
    },
    /// Sets the connection's mark.
    SetCtMark {
        /// Where the bits come from.
        source: MarkSource,
    },
    /// Puts the packet into a conntrack zone. Only before conntrack sees it (priority below -200).
    SetCtZone(u16),
    /// The packet is not tracked. Only before conntrack sees it (priority below -200).
    Notrack,
    /// Counts packets and bytes that come here.
    Counter,
    /// Ends or continues.
    Verdict(Verdict),
    /// Translates the destination to this namespace's own address, with another port.
    Redirect {
        /// The port.
        port: u16,
    },
    /// Translates the destination.
    Dnat(NatTarget),
    /// Translates the source to this address.
    Snat(IpAddr),
    /// Translates the source to the address of the outgoing interface.
    Masquerade,
    /// Drops and answers.
    Reject(Reject),
}

/// Where a mark's new value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkSource {
    /// The old value with the bits of `mask` replaced by those of `value`.
    Bits {
        /// The new bits.
        value: u32,
        /// Which bits are replaced.
        mask: u32,
    },
    /// The other mark: the connection's for a packet, the packet's for a connection.
    OtherMark,
}

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The packet's mark.
    MetaMark,
    /// The transport protocol.
    L4Proto,
    /// The IP version, as a protocol family: 2 or 10.
    NfProto,
    /// Name of the interface that it came in by.
    IifName,
    /// Name of the interface that it goes out by.
    OifName,
    /// User id of the sending socket's owner, where the sender is local.
    SkUid,
    /// IPv4 source address.
    IpSaddr,
    /// IPv4 destination address.
    IpDaddr,
    /// IPv6 source address.
    Ip6Saddr,
    /// IPv6 destination address.
    Ip6Daddr,
    /// TCP source port.
    TcpSport,
    /// TCP destination port.
    TcpDport,
    /// TCP flags.
    TcpFlags,
    /// UDP source port.
    UdpSport,
    /// UDP destination port.
    UdpDport,
    /// Source port of TCP or UDP; the rule must say which protocols it is for.
    ThSport,
    /// Destination port of TCP or UDP; the rule must say which protocols it is for.
    ThDport,
    /// Connection state bits: see [`Field::NEW`] and its neighbours.
    CtState,
    /// The connection's mark.
    CtMark,
    /// Connection status bits: see [`Field::DNAT`] and its neighbours.
    CtStatus,
    /// Kind of the destination address (an RTN_ number: 2 local, 3 broadcast, 5 multicast).
    FibDaddrType,
    /// 1 if the local socket that the packet is for, a listening one included, is transparent, else 0. Without such a
    /// socket the rule does not go on, whatever it compares with. Kernel with `CONFIG_NFT_SOCKET`.
    SocketTransparent,
}

impl Field {
    /// [`Field::CtState`]: not a connection's packet.
    pub const INVALID: u32 = 1;
    /// [`Field::CtState`]: of a connection seen both ways.
    pub const ESTABLISHED: u32 = 2;
    /// [`Field::CtState`]: expected by another connection.
    pub const RELATED: u32 = 4;
    /// [`Field::CtState`]: opens a connection.
    pub const NEW: u32 = 8;
    /// [`Field::CtState`]: not tracked.
    pub const UNTRACKED: u32 = 64;
    /// [`Field::CtStatus`]: its source is translated.
    pub const SNAT: u32 = 1 << 4;
    /// [`Field::CtStatus`]: its destination is translated.
    pub const DNAT: u32 = 1 << 5;
}

/// How a field and a value compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
}

/// A value of a field, or of a part of a set's key or value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A number; the encoder knows the field's width and byte order and refuses what does not fit.
    Number(u32),
    /// An address.
    Ip(IpAddr),
    /// An interface's name.
    Name(String),
}

impl From<u8> for Value {
    fn from(number: u8) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number)
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self::Ip(address.into())
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Self::Ip(address.into())
    }
}

impl From<&str> for Value {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// What is looked up in a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Concatenated fields.
    Fields(Vec<Field>),
    /// A random number below `modulus`, for each packet that comes here.
    Random {
        /// One more than the largest number.
        modulus: u32,
    },
    /// 0, 1, … `modulus` - 1, 0, … in the order in which packets come here.
    RoundRobin {
        /// One more than the largest number.
        modulus: u32,
    },
}

/// Where a destination is translated to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatTarget {
    /// One address and perhaps a port.
    Address {
        /// The address.
        ip: IpAddr,
        /// The port; unchanged if absent.
        port: Option<u16>,
    },
    /// What a map of address and port says, such as [`super::Set::endpoints`]. A key that is not there: goes on.
    Map {
        /// What is looked up.
        key: Key,
        /// The map's name.
        map: String,
        /// Whether the map's addresses are IPv6.
        ipv6: bool,
    },
}

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A TCP reset.
    TcpReset,
    /// ICMP port unreachable, of the packet's IP version.
    PortUnreachable,
    /// ICMP administratively prohibited, of the packet's IP version.
    AdminProhibited,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes on to the next base chain.
    Accept,
    /// It ends.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On with another chain, then back here.
    Jump(String),
    /// On with another chain, then back to the caller of this one.
    Goto(String),
}

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// TCP's SYN flag.
pub const SYN: u8 = 0x02;

/// FIN, SYN, RST and ACK.
const OPENING_MASK: u8 = 0x17;

/// The field is the value.
pub fn eq(field: Field, value: impl Into<Value>) -> Expr {
    Expr::Match { field, mask: None, compare: Compare::Eq, value: value.into() }
}

/// The field is not the value.
pub fn ne(field: Field, value: impl Into<Value>) -> Expr {
    Expr::Match { field, mask: None, compare: Compare::Ne, value: value.into() }
}

/// The bits of the mask are the value.
pub fn masked_eq(field: Field, mask: impl Into<Value>, value: impl Into<Value>) -> Expr {
    Expr::Match { field, mask: Some(mask.into()), compare: Compare::Eq, value: value.into() }
}

/// The bits of the mask are not the value.
pub fn masked_ne(field: Field, mask: impl Into<Value>, value: impl Into<Value>) -> Expr {
    Expr::Match { field, mask: Some(mask.into()), compare: Compare::Ne, value: value.into() }
}

/// At least one of the bits is set: `any_of(Field::CtState, Field::NEW | Field::RELATED)`.
#[must_use]
pub fn any_of(field: Field, bits: u32) -> Expr {
    masked_ne(field, bits, 0u32)
}

/// None of the bits is set.
#[must_use]
pub fn none_of(field: Field, bits: u32) -> Expr {
    masked_eq(field, bits, 0u32)
}

/// The address is in the network. The field must be of the network's IP version.
#[must_use]
pub fn in_cidr(field: Field, network: IpNet) -> Expr {
    masked_eq(field, network.netmask(), network.network())
}

/// The packet opens a TCP connection: of FIN, SYN, RST and ACK only SYN is set.
#[must_use]
pub fn syn_only() -> Expr {
    masked_eq(Field::TcpFlags, OPENING_MASK, SYN)
}

/// The concatenated fields are in the set.
pub fn in_set(fields: impl IntoIterator<Item = Field>, set: impl Into<String>) -> Expr {
    Expr::InSet { fields: fields.into_iter().collect(), set: set.into(), negated: false }
}

/// Replaces the bits of `mask` in the packet's mark.
#[must_use]
pub fn set_meta_mark(value: u32, mask: u32) -> Expr {
    Expr::SetMetaMark { source: MarkSource::Bits { value, mask } }
}

/// Replaces the bits of `mask` in the connection's mark.
#[must_use]
pub fn set_ct_mark(value: u32, mask: u32) -> Expr {
    Expr::SetCtMark { source: MarkSource::Bits { value, mask } }
}

/// Puts the packet into a conntrack zone.
#[must_use]
pub fn set_ct_zone(zone: u16) -> Expr {
    Expr::SetCtZone(zone)
}

/// Counts.
#[must_use]
pub fn counter() -> Expr {
    Expr::Counter
}

/// Accepts.
#[must_use]
pub fn accept() -> Expr {
    Expr::Verdict(Verdict::Accept)
}

/// Drops.
#[must_use]
pub fn drop() -> Expr {
    Expr::Verdict(Verdict::Drop)
}

/// Returns to the calling chain.
#[must_use]
pub fn ret() -> Expr {
    Expr::Verdict(Verdict::Return)
}

/// Jumps to a chain.
pub fn jump(chain: impl Into<String>) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.into()))
}

/// Goes to a chain.
pub fn goto(chain: impl Into<String>) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.into()))
}

/// Redirects to a port of this namespace.
#[must_use]
pub fn redirect(port: u16) -> Expr {
    Expr::Redirect { port }
}

/// Masquerades.
#[must_use]
pub fn masquerade() -> Expr {
    Expr::Masquerade
}

/// Rejects with a TCP reset.
#[must_use]
pub fn reject_tcp_reset() -> Expr {
    Expr::Reject(Reject::TcpReset)
}
