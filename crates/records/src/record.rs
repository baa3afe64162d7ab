//! What is kept of one connection or request.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::connects::Connect;
use crate::counted::Handle;
use crate::held::Names;

/// Where on its way something was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hop {
    /// At the client's ztunnel.
    #[default]
    Outbound,
    /// At a waypoint, as a connection.
    Connection,
    /// At a waypoint, as a request.
    Request,
    /// At the server's ztunnel.
    Inbound,
}

impl Hop {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "ztunnel, outbound",
            Self::Connection => "waypoint, connection",
            Self::Request => "waypoint, request",
            Self::Inbound => "ztunnel, inbound",
        }
    }
}

/// A text of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The client's workload, by its uid.
    Source,
    /// The client's identity, where mutual TLS proved it.
    SourceIdentity,
    /// The service that was meant: `namespace/hostname`.
    Service,
    /// Who was to serve it, by its uid: the endpoint, or the waypoint.
    Endpoint,
    /// The policy or route that decided.
    Object,
    /// The decision in words.
    Because,
    /// What went wrong, in words.
    Error,
    /// How it ended, as metrics say it.
    Flags,
    /// The CONNECT's authority.
    Authority,
    /// A request's method.
    Method,
    /// A request's host.
    Host,
    /// A request's path, without its query.
    Path,
}

impl Field {
    /// How many there are.
    pub(crate) const COUNT: usize = 12;

    /// What is held as one text, since it comes together again and again: what all requests of a client's connection have, what
    /// a decision says, what a kind of request has, and a path.
    pub(crate) const GROUPS: [&[Self]; 4] = [
        &[Self::Source, Self::SourceIdentity, Self::Authority],
        &[Self::Service, Self::Endpoint, Self::Object, Self::Because],
        &[Self::Method, Self::Host, Self::Flags, Self::Error],
        &[Self::Path],
    ];

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Its group, and its place there.
    fn place(self) -> (usize, usize) {
        match self {
            Self::Source => (0, 0),
            Self::SourceIdentity => (0, 1),
            Self::Authority => (0, 2),
            Self::Service => (1, 0),
            Self::Endpoint => (1, 1),
            Self::Object => (1, 2),
            Self::Because => (1, 3),
            Self::Method => (2, 0),
            Self::Host => (2, 1),
            Self::Flags => (2, 2),
            Self::Error => (2, 3),
            Self::Path => (3, 0),
        }
    }
}

/// Stands between the texts of a group, and in none of them.
pub(crate) const BETWEEN: char = '\0';

/// An address and a port, in less room than [`SocketAddr`] takes; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    ip: [u8; 16],
    port: u16,
}

impl Address {
    /// The address; none where nothing was written.
    pub fn get(self) -> Option<SocketAddr> {
        (self != Self::default()).then(|| SocketAddr::new(Ipv6Addr::from(self.ip).to_canonical(), self.port))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { ip: ip.octets(), port: address.port() }
    }
}

/// One connection or request, without its texts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// When it was written: microseconds since 1970.
    pub at_us: u64,
    /// The trace of the CONNECT that brought it here; where there is none, of its own.
    pub id: u128,
    /// The trace of the CONNECT that carried it on, where it is another one; 0: none.
    pub next: u128,
    /// A request's id (`x-request-id`), where that is a UUID; else 0.
    pub request: u128,
    /// What a client was told that was refused; 0: nothing.
    pub decision: u64,
    /// Where it was seen.
    pub hop: Hop,
    /// Whether it was refused: a decision said so, or its way was never open.
    pub is_refused: bool,
    /// Whether it left, or came, in a HBONE tunnel.
    pub is_tunnelled: bool,
    /// Whether it went from one pod of a node straight to another, both of which the node's tunnel holds.
    pub is_direct: bool,
    /// The reason's stable code.
    pub reason: &'static str,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: &'static str,
    /// A response's status; 0: none.
    pub status: u16,
    /// The status of gRPC plus one; 0: none.
    pub grpc: u8,
    /// How often it was tried anew.
    pub retries: u16,
    /// The client.
    pub source: Address,
    /// What was dialled.
    pub original: Address,
    /// Where it was carried: the next hop, or the application.
    pub upstream: Address,
    /// How long deciding took, microseconds; 0: nothing was decided.
    pub decide_us: u32,
    /// How long it took until it was open, microseconds; 0: it never was.
    pub open_us: u32,
    /// How long it lasted, microseconds.
    pub total_us: u64,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
}

/// A record in the ring: what it has alone. It is written to memory that nothing has touched for long, and so is the one that it takes
/// the place of: all that others have too is elsewhere, and the order of these leaves no gaps.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(8))]
pub(crate) struct Entry {
    /// Where its [`Connect`] is.
    pub(crate) connect: Handle,
    /// Where its [`Kind`] is.
    pub(crate) kind: Handle,
    /// Its path.
    pub(crate) path: Handle,
    decide_us: u32,
    open_us: u32,
    status: u16,
    retries: u16,
    at_us: u64,
    next: u128,
    request: u128,
    decision: u64,
    total_us: u64,
    received: u64,
    sent: u64,
    hop: Hop,
    grpc: u8,
    is_refused: bool,
    is_tunnelled: bool,
    is_direct: bool,
}

/// What all records of a kind have: of one decision about like requests or connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    reason: &'static str,
    remedy: &'static str,
    upstream: Address,
    /// The groups of texts of the decision and of the request.
    pub(crate) names: [Handle; 2],
}

impl Entry {
    /// Of a record that has these.
    pub(crate) fn of(record: &Record, connect: Handle, kind: Handle, path: Handle) -> Self {
        let Record { at_us, next, request, decision, hop, is_refused, is_tunnelled, is_direct, .. } = *record;
        let Record { status, grpc, retries, decide_us, open_us, total_us, received, sent, .. } = *record;
        Self {
            connect,
            kind,
            path,
            at_us,
            next,
            request,
            decision,
            hop,
            is_refused,
            is_tunnelled,
            is_direct,
            status,
            grpc,
            retries,
            decide_us,
            open_us,
            total_us,
            received,
            sent,
        }
    }

    /// The record, its own CONNECT and kind being these.
    pub(crate) fn record(&self, connect: &Connect, kind: &Kind) -> Record {
        Record {
            at_us: self.at_us,
            id: connect.id,
            next: self.next,
            request: self.request,
            decision: self.decision,
            hop: self.hop,
            is_refused: self.is_refused,
            is_tunnelled: self.is_tunnelled,
            is_direct: self.is_direct,
            reason: kind.reason,
            remedy: kind.remedy,
            status: self.status,
            grpc: self.grpc,
            retries: self.retries,
            source: connect.source,
            original: connect.original,
            upstream: kind.upstream,
            decide_us: self.decide_us,
            open_us: self.open_us,
            total_us: self.total_us,
            received: self.received,
            sent: self.sent,
        }
    }
}

impl Kind {
    /// A record's, with the texts of the decision and of the request.
    pub(crate) fn of(record: &Record, names: [Handle; 2]) -> Self {
        Self { reason: record.reason, remedy: record.remedy, upstream: record.upstream, names }
    }
}

/// A record with its texts, wherever they are.
pub trait Recorded {
    /// The record.
    fn record(&self) -> &Record;

    /// One of its texts; empty where it has none.
    fn text(&self, field: Field) -> &str;
}

/// A record that is kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub(crate) record: Record,
    /// Its texts, by group.
    pub(crate) groups: [Handle; Field::GROUPS.len()],
    pub(crate) names: &'a Names,
}

impl Recorded for Kept<'_> {
    fn record(&self) -> &Record {
        &self.record
    }

    fn text(&self, field: Field) -> &str {
        let (group, place) = field.place();
        let text = self.groups.get(group).map_or("", |handle| self.names.text(*handle));
        text.split(BETWEEN).nth(place).unwrap_or_default()
    }
}
