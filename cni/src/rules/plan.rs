//! From the facts of one pod to the typed rules that capture it. Pure: [`super::apply`] carries the plan out.
//!
//! The effect is that of Istio's in-pod rules, with one difference: only the packet that opens a TCP connection is
//! redirected. Connection tracking starts with the first nat or ct rule of a namespace and takes the next packet of a
//! connection that is already open for a new one («loose pickup»). A redirect that matched it would tear that
//! connection apart. Matching the opening SYN only, such a connection gets an identity translation and lives on, and
//! where loose pickup is off its packets are «invalid», which nothing here drops.
//!
//! A connection that is half open at that moment (its SYN left before capture) must not complete in the clear later,
//! or it could not be counted: its SYN-ACK is the one packet that connection tracking calls invalid by rule (a SYN-ACK
//! without a SYN), so it is dropped; the client repeats its SYN, which is redirected like any new one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::{Action, Base, Chain, ChainKind, Family, Hook, Mark, Match, Rule, RulePlan, Table};

/// Mark that the tunnel sets on every socket it makes in a pod's namespace.
pub const TUNNEL_MARK: Mark = Mark { value: 0x539, mask: 0xfff };
/// Mark of connections that the tunnel opened towards the application with the client's address as source.
pub const REPLY_MARK: Mark = Mark { value: 0x111, mask: 0xfff };
/// Route table that brings replies to such connections back to the local stack.
pub const REPLY_TABLE: u32 = 100;
/// Priority of the routing rule that selects [`REPLY_TABLE`].
pub const REPLY_RULE_PRIORITY: u32 = 32764;
/// Port of the tunnel's outbound listener in a pod's namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the tunnel's inbound plaintext listener in a pod's namespace.
pub const INBOUND_PORT: u16 = 15006;
/// Port of the tunnel's HBONE listener in a pod's namespace.
pub const HBONE_PORT: u16 = 15008;
/// Port of the tunnel's DNS proxy in a pod's namespace.
pub const DNS_PORT: u16 = 15053;
/// Source of kubelet probes that a foreign istio-cni has rewritten, IPv4.
pub const PROBE_SOURCE: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Source of kubelet probes that a foreign istio-cni has rewritten, IPv6.
pub const PROBE_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);
/// Name of the table that holds the redirects.
pub const NAT_TABLE: &str = "istio-ambient-nat";
/// Name of the table that marks replies.
pub const MANGLE_TABLE: &str = "istio-ambient-mangle";
/// Name of the table that keeps the tunnel's DNS apart from the application's in connection tracking.
pub const RAW_TABLE: &str = "istio-ambient-raw";
/// Name of the chain of what the pod sends, in each of the tables.
pub const OUTPUT_CHAIN: &str = "istio-output";
/// Name of the table that stands before capture: no new TCP connection in or out.
pub const GUARD_TABLE: &str = "stillmesh-guard";

/// What the rules of one pod depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// IPv6 in the pod's namespace. Without it, opening an IPv6 connection is refused rather than left uncaptured.
    pub ipv6: Ipv6,
    /// Whether DNS goes to the tunnel's proxy.
    pub dns: Dns,
    /// Whether inbound connections are captured.
    pub inbound: Inbound,
    /// Interfaces (of virtual machines in the pod) whose inbound TCP counts as outbound of the pod. In order, no duplicates.
    pub virtual_interfaces: Vec<InterfaceName>,
    /// Ports that `tcpSocket` probes dial: where nobody listens, a connection is refused as without capture, instead of
    /// taken by the tunnel, which would make every such probe pass. In order, no duplicates.
    pub socket_probes: Vec<u16>,
    /// Whether connections from the probe addresses of a foreign istio-cni pass uncaptured.
    pub probes: Probes,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            ipv6: Ipv6::On,
            dns: Dns::Captured,
            inbound: Inbound::Captured,
            virtual_interfaces: Vec::new(),
            socket_probes: Vec::new(),
            probes: Probes::Honoured,
        }
    }
}

/// State of IPv6 in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// Usable.
    On,
    /// Switched off, or the kernel has none.
    Off,
}

/// What becomes of the pod's DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dns {
    /// UDP and TCP port 53 go to the tunnel's proxy.
    Captured,
    /// Untouched.
    Direct,
}

/// What becomes of inbound connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// They pass the tunnel.
    Captured,
    /// They reach the application directly (`ambient.istio.io/bypass-inbound-capture`).
    Bypassed,
}

/// What becomes of connections from a foreign istio-cni's probe addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    /// They reach the application uncaptured.
    Honoured,
    /// They are captured like any other.
    Captured,
}

/// Name of a network interface: 1 to 15 bytes of ASCII without space and slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Checks `name`; `None` where the kernel would not accept it.
    pub fn new(name: &str) -> Option<Self> {
        let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'"');
        ((1..=15).contains(&name.len()) && plain && name != "." && name != "..").then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Capture in force: new connections of the pod, in and out, pass the tunnel.
pub fn capture(facts: &Facts) -> RulePlan {
    let nat = Pair { incoming: nat_prerouting(facts), outgoing: nat_output(facts) };
    full(facts, nat, mangle_capture(facts))
}

/// The pod leaves: new connections are no longer redirected, while those in the tunnel keep their translation and
/// their marks. The nat chains stay because translation stops with the last of them.
pub fn leave(facts: &Facts) -> RulePlan {
    full(facts, Pair::default(), mangle_replies())
}

/// Nothing but the guard: no TCP connection can be opened in or out; open ones live on, and so do those that stay
/// within the pod, the tunnel's own and UDP.
pub fn guard(facts: &Facts) -> RulePlan {
    let mut incoming = vec![rule([Match::FromLoopback], Action::Return)];
    incoming.extend(probe_rules(facts, Match::Source));
    incoming.push(rule([Match::AnySyn], Action::Drop));
    incoming.push(rule([Match::SynAck, Match::ConnectionInvalid], Action::Drop));
    let outgoing = vec![
        rule([Match::ToLoopback], Action::Return),
        rule([Match::Marked(TUNNEL_MARK)], Action::Return),
        rule([Match::AnySyn], Action::Drop),
    ];
    let base = |hook| Base { kind: ChainKind::Filter, hook, priority: GUARD_PRIORITY };
    let chains = vec![
        Chain { name: "prerouting", base: Some(base(Hook::Prerouting)), rules: incoming },
        Chain { name: "output", base: Some(base(Hook::Output)), rules: outgoing },
    ];
    RulePlan { tables: vec![Table { name: GUARD_TABLE, chains }], reply_routes: Vec::new() }
}

/// After connection tracking (-200), before everything of the capture that looks at TCP.
const GUARD_PRIORITY: i32 = -175;
const RAW_PRIORITY: i32 = -300;
const MANGLE_PRIORITY: i32 = -150;
const NAT_PRIORITY: i32 = -100;
/// Zone of the tunnel's own DNS, so that its ports cannot meet those of the application's translated queries.
const DNS_ZONE: u16 = 1;
const DNS: u16 = 53;

/// Rules of the two hooks of one table.
#[derive(Default)]
struct Pair {
    incoming: Vec<Rule>,
    outgoing: Vec<Rule>,
}

fn full(facts: &Facts, nat: Pair, mangle: Pair) -> RulePlan {
    let mut tables = vec![
        table(MANGLE_TABLE, ChainKind::Route, MANGLE_PRIORITY, mangle),
        table(NAT_TABLE, ChainKind::Nat, NAT_PRIORITY, nat),
    ];
    if facts.dns == Dns::Captured {
        tables.push(table(RAW_TABLE, ChainKind::Filter, RAW_PRIORITY, raw_rules()));
    }
    RulePlan { tables, reply_routes: families(facts).to_vec() }
}

/// A table of the shape that others expect: base chains that only jump, and chains that a reader of Istio's rules knows.
fn table(name: &'static str, kind: ChainKind, priority: i32, rules: Pair) -> Table {
    // The kernel has route chains at the output hook only.
    let incoming_kind = if kind == ChainKind::Route { ChainKind::Filter } else { kind };
    let base = |name, target, kind, hook| Chain {
        name,
        base: Some(Base { kind, hook, priority }),
        rules: vec![rule([], Action::Jump(target))],
    };
    let chains = vec![
        base("prerouting", "istio-prerouting", incoming_kind, Hook::Prerouting),
        base("output", OUTPUT_CHAIN, kind, Hook::Output),
        Chain { name: "istio-prerouting", base: None, rules: rules.incoming },
        Chain { name: OUTPUT_CHAIN, base: None, rules: rules.outgoing },
    ];
    Table { name, chains }
}

fn mangle_replies() -> Pair {
    Pair {
        incoming: vec![rule([Match::Marked(TUNNEL_MARK)], Action::MarkConnection(REPLY_MARK))],
        outgoing: vec![rule([Match::ConnectionMarked(REPLY_MARK)], Action::RestoreMark)],
    }
}

fn mangle_capture(facts: &Facts) -> Pair {
    let mut pair = mangle_replies();
    pair.incoming.push(rule([Match::SynAck, Match::ConnectionInvalid], Action::Drop));
    pair.incoming.extend(closed_ports(facts));
    if facts.ipv6 == Ipv6::Off {
        // Nothing serves IPv6 in this pod: should it come on later, it must not be a way past the tunnel.
        let refused = |interface| rule([Match::Is(Family::V6), interface, Match::AnySyn], Action::Drop);
        pair.outgoing.push(refused(Match::NotToLoopback));
    }
    pair
}

/// What opens a connection to such a port goes on to its capture if somebody listens there, and no further otherwise:
/// were it let through, a listener that comes up in between would be reached past the tunnel. What a virtual machine
/// sends is for others' ports.
fn closed_ports(facts: &Facts) -> Vec<Rule> {
    if facts.inbound == Inbound::Bypassed || !facts.virtual_interfaces.is_empty() {
        return Vec::new();
    }
    let of_port = |port: &u16| {
        let opened = [Match::OpeningSyn, Match::DestinationPort(*port)];
        let served = [Match::OpeningSyn, Match::DestinationPort(*port), Match::Served];
        [rule(served, Action::Return), rule(opened, Action::Reset)]
    };
    facts.socket_probes.iter().flat_map(of_port).collect()
}

fn nat_prerouting(facts: &Facts) -> Vec<Rule> {
    let mut rules = Vec::new();
    for interface in &facts.virtual_interfaces {
        rules.push(rule([Match::From(interface.clone()), Match::OpeningSyn], Action::Redirect(OUTBOUND_PORT)));
        rules.push(rule([Match::From(interface.clone())], Action::Return));
    }
    if facts.inbound == Inbound::Bypassed {
        return rules;
    }
    rules.extend(probe_rules(facts, Match::Source));
    for family in families(facts) {
        let captured = [
            Match::NotDestination(loopback(*family)),
            Match::OpeningSyn,
            Match::NotDestinationPort(HBONE_PORT),
            Match::NotMarked(TUNNEL_MARK),
        ];
        rules.push(rule(captured, Action::Redirect(INBOUND_PORT)));
    }
    rules
}

fn nat_output(facts: &Facts) -> Vec<Rule> {
    let mut rules = probe_rules(facts, Match::Destination);
    if facts.dns == Dns::Captured {
        let query = [Match::Udp, Match::DestinationPort(DNS), Match::NotToLoopback, Match::NotMarked(TUNNEL_MARK)];
        rules.push(rule(query, Action::Redirect(DNS_PORT)));
        for family in families(facts) {
            let query = [
                Match::NotDestination(loopback(*family)),
                Match::OpeningSyn,
                Match::DestinationPort(DNS),
                Match::NotMarked(TUNNEL_MARK),
            ];
            rules.push(rule(query, Action::Redirect(DNS_PORT)));
        }
    }
    rules.push(rule([Match::Tcp, Match::Marked(REPLY_MARK)], Action::Accept));
    for family in families(facts) {
        rules.push(rule([Match::ToLoopback, Match::NotDestination(loopback(*family))], Action::Accept));
    }
    for family in families(facts) {
        let captured = [Match::NotDestination(loopback(*family)), Match::OpeningSyn, Match::NotMarked(TUNNEL_MARK)];
        rules.push(rule(captured, Action::Redirect(OUTBOUND_PORT)));
    }
    rules
}

fn raw_rules() -> Pair {
    Pair {
        incoming: vec![rule(
            [Match::Udp, Match::SourcePort(DNS), Match::NotMarked(TUNNEL_MARK)],
            Action::Zone(DNS_ZONE),
        )],
        outgoing: vec![rule(
            [Match::Udp, Match::DestinationPort(DNS), Match::Marked(TUNNEL_MARK)],
            Action::Zone(DNS_ZONE),
        )],
    }
}

fn probe_rules(facts: &Facts, side: fn(IpAddr) -> Match) -> Vec<Rule> {
    if facts.probes == Probes::Captured {
        return Vec::new();
    }
    let accept = |family: &Family| {
        let address = match family {
            Family::V4 => IpAddr::V4(PROBE_SOURCE),
            Family::V6 => IpAddr::V6(PROBE_SOURCE_V6),
        };
        rule([side(address), Match::Tcp], Action::Accept)
    };
    families(facts).iter().map(accept).collect()
}

fn families(facts: &Facts) -> &'static [Family] {
    match facts.ipv6 {
        Ipv6::On => &[Family::V4, Family::V6],
        Ipv6::Off => &[Family::V4],
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

fn rule<const N: usize>(matches: [Match; N], action: Action) -> Rule {
    Rule { matches: matches.into(), action }
}

#[cfg(test)]
mod tests;
