//! What a rule plan is made of: tables, chains, rules and routes as plain data, independent of how they reach the kernel.

use std::net::IpAddr;

use super::plan::InterfaceName;

/// A value under a mask, of a packet's or a connection's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bits wanted.
    pub value: u32,
    /// The bits looked at.
    pub mask: u32,
}

/// Rules and routes of a pod in one of its states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlan {
    /// Tables of family `inet`.
    pub tables: Vec<Table>,
    /// Address families whose marked replies are routed to the local stack.
    pub reply_routes: Vec<Family>,
}

/// One table of family `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its chains, the ones that are jumped to after those that jump.
    pub chains: Vec<Chain>,
}

/// One chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it hangs; `None` for a chain that is only jumped to.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs. Its policy is accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// The order among the chains of the hook, lower first.
    pub priority: i32,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Filter and mark.
    Filter,
    /// The same, and route again when the mark changed.
    Route,
    /// Translate addresses; sees only the first packet of each tracked connection.
    Nat,
}

/// A hook of the network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive, the ones from `lo` included.
    Prerouting,
    /// Packets that local sockets send.
    Output,
}

/// Matches that must all hold, then one action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet came in through this interface.
    From(InterfaceName),
    /// The packet came in through `lo`.
    FromLoopback,
    /// The packet goes out through `lo`.
    ToLoopback,
    /// The packet goes out through another interface than `lo`.
    NotToLoopback,
    /// The packet is of this family.
    Is(Family),
    /// Any TCP packet.
    Tcp,
    /// Any UDP packet.
    Udp,
    /// A TCP packet with SYN and none of ACK, FIN, RST: the one that opens a connection.
    OpeningSyn,
    /// A TCP packet with SYN and without ACK, whatever else: what no receiver may take for an opening one.
    AnySyn,
    /// A TCP packet with SYN and ACK.
    SynAck,
    /// The source address.
    Source(IpAddr),
    /// The destination address.
    Destination(IpAddr),
    /// Any other destination address of the same family.
    NotDestination(IpAddr),
    /// The source port of TCP or UDP (said by a match before).
    SourcePort(u16),
    /// The destination port of TCP or UDP (said by a match before).
    DestinationPort(u16),
    /// Any other destination port.
    NotDestinationPort(u16),
    /// A socket of the pod is there for the packet: a listening one, or the connection's own.
    Served,
    /// The packet's mark.
    Marked(Mark),
    /// Any other packet mark.
    NotMarked(Mark),
    /// The mark of the packet's connection.
    ConnectionMarked(Mark),
    /// Connection tracking finds the packet impossible.
    ConnectionInvalid,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets the packet pass this hook.
    Accept,
    /// Drops it silently; the sender tries again.
    Drop,
    /// Drops it and tells the sender with a TCP reset.
    Reset,
    /// Ends this chain.
    Return,
    /// Goes on in another chain of the table, then comes back.
    Jump(&'static str),
    /// Sends the connection to this local port.
    Redirect(u16),
    /// Sets the masked bits of the connection's mark.
    MarkConnection(Mark),
    /// Gives the packet its connection's mark.
    RestoreMark,
    /// Tracks the packet's connection in this zone.
    Zone(u16),
}

impl RulePlan {
    /// Stable fingerprint of the plan, as it stands in a pod's receipt.
    pub fn fingerprint(&self) -> u64 {
        twox_hash::XxHash64::oneshot(0, self.to_string().as_bytes())
    }
}
