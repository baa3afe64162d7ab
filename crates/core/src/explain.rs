//! Why: every decision carries a [`Reason`]; the nearest miss is computed only when somebody asks.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use crate::attrs::InboundAttrs;
use crate::diagnose::Fault;
use crate::model::{PolicyKey, ServiceKey, Str, WorkloadUid};
use crate::snapshot::Snapshot;

/// How many policies [`Reason::NoAllowMatched`] names at most.
pub const NAMED_POLICIES: usize = 4;

/// Why a connection was carried or refused. Closed: each variant has a stable code and a one-line remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// No policy applies to the destination.
    NoPolicy,
    /// An allow policy's rule matched.
    AllowedBy {
        /// The policy.
        policy: PolicyKey,
        /// The rule in it, from 0.
        rule: usize,
    },
    /// A deny policy's rule matched.
    DeniedBy {
        /// The policy.
        policy: PolicyKey,
        /// The rule in it, from 0.
        rule: usize,
    },
    /// Allow policies apply and none of them matched; the first ones by name.
    NoAllowMatched {
        /// At most [`NAMED_POLICIES`] of them.
        policies: Vec<PolicyKey>,
    },
    /// The peer sent clear text where mutual TLS is required.
    MutualTlsRequired {
        /// The policy that a PeerAuthentication became.
        policy: PolicyKey,
    },
    /// The destination names a policy that has not arrived.
    PolicyUnknown {
        /// Its name.
        policy: PolicyKey,
    },
    /// A policy that applies has content that this version cannot read.
    PolicyUnreadable {
        /// The policy.
        policy: PolicyKey,
        /// What in it cannot be read.
        detail: Str,
    },
    /// Carried to a mesh workload over HBONE.
    ToWorkload {
        /// The workload.
        workload: WorkloadUid,
    },
    /// Carried to an endpoint of a service.
    ToEndpoint {
        /// The service.
        service: ServiceKey,
        /// The endpoint.
        workload: WorkloadUid,
    },
    /// Carried to a waypoint.
    ToWaypoint {
        /// The waypoint as it is bound: `namespace/hostname` or `network/ip`.
        waypoint: Str,
    },
    /// The destination is not in the mesh: passed on unchanged.
    Unmanaged,
    /// The service has no endpoint that takes traffic.
    NoHealthyEndpoint {
        /// The service.
        service: ServiceKey,
    },
    /// The service has no such port.
    NoServicePort {
        /// The service.
        service: ServiceKey,
        /// The port asked for.
        port: u16,
    },
    /// A waypoint is bound and cannot be reached.
    WaypointUnavailable {
        /// The waypoint as it is bound: `namespace/hostname` or `network/ip`.
        waypoint: Str,
    },
    /// The destination is on another network that cannot be crossed from here.
    NetworkUnreachable {
        /// The other network.
        network: Str,
    },
    /// A port of ztunnel's own was asked for.
    ProxyPort {
        /// Where the connection was to go.
        destination: SocketAddr,
    },
    /// A CONNECT asked for an address that is not the workload's.
    ForeignAuthority {
        /// The CONNECT's authority.
        authority: Str,
    },
    /// A CONNECT asked for a name or port that is not known here.
    UnknownAuthority {
        /// The CONNECT's authority.
        authority: Str,
    },
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

    /// Whose fault a refusal with this reason is.
    pub fn fault(&self) -> Fault {
        todo!()
    }

    /// A policy could not be asked, so that nothing was decided: new connections are refused (CONNECT: 503, so that
    /// the peer tries another endpoint, and not 401), open ones stay.
    pub fn is_undecided(&self) -> bool {
        matches!(self, Self::PolicyUnknown { .. } | Self::PolicyUnreadable { .. })
    }

    /// A policy said no: a CONNECT is answered 401 and not tried elsewhere.
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::DeniedBy { .. } | Self::NoAllowMatched { .. } | Self::MutualTlsRequired { .. })
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
