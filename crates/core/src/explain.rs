//! Why: every decision carries a [`Reason`]; the nearest miss is computed only when somebody asks.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use crate::attrs::InboundAttrs;
use crate::model::{PolicyKey, ServiceKey, Str, WorkloadUid};
use crate::snapshot::Snapshot;

/// Why a connection was carried or refused. Closed: each variant has a stable code and a one-line remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// No policy applies to the destination.
    NoPolicy,
    /// An allow policy's rule matched.
    AllowedBy { policy: PolicyKey, rule: usize },
    /// A deny policy's rule matched.
    DeniedBy { policy: PolicyKey, rule: usize },
    /// Allow policies apply and none of them matched; the first ones by name.
    NoAllowMatched { policies: Vec<PolicyKey> },
    /// The peer sent clear text where mutual TLS is required.
    MutualTlsRequired { policy: PolicyKey },
    /// The destination names a policy that has not arrived.
    PolicyUnknown { policy: PolicyKey },
    /// A policy that applies has content that this version cannot read.
    PolicyUnreadable { policy: PolicyKey, detail: Str },
    /// Carried to a mesh workload over HBONE.
    ToWorkload { workload: WorkloadUid },
    /// Carried to an endpoint of a service.
    ToEndpoint { service: ServiceKey, workload: WorkloadUid },
    /// Carried to a waypoint.
    ToWaypoint { waypoint: Str },
    /// The destination is not in the mesh: passed on unchanged.
    Unmanaged,
    /// The service has no endpoint that takes traffic.
    NoHealthyEndpoint { service: ServiceKey },
    /// The service has no such port.
    NoServicePort { service: ServiceKey, port: u16 },
    /// A waypoint is bound and cannot be reached.
    WaypointUnavailable { waypoint: Str },
    /// The destination is on another network that cannot be crossed from here.
    NetworkUnreachable { network: Str },
    /// A port of ztunnel's own was asked for.
    ProxyPort { destination: SocketAddr },
    /// A CONNECT asked for an address that is not the workload's.
    ForeignAuthority { authority: Str },
    /// A CONNECT asked for a name or port that is not known here.
    UnknownAuthority { authority: Str },
}

impl Reason {
    /// Stable code, for logs, metrics and scripts, for example `DENIED_BY`.
    pub fn code(&self) -> &'static str {
        todo!()
    }

    /// One line: what to do about it.
    pub fn remedy(&self) -> &'static str {
        todo!()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// How closely a rule missed: what it wanted and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The policy.
    pub policy: PolicyKey,
    /// The rule in it, from 0.
    pub rule: usize,
    /// The attribute that differed, for example `principal`.
    pub attribute: &'static str,
    /// What the rule wants.
    pub wanted: String,
    /// What the connection has.
    pub seen: String,
}

/// The rules that came nearest to letting `attrs` pass, best first, at most `limit`.
pub fn nearest_misses(_snapshot: &Snapshot, _attrs: &InboundAttrs<'_>, _limit: usize) -> Vec<Miss> {
    todo!()
}
