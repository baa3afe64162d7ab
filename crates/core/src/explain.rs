//! Why: every decision carries a [`Reason`]; the nearest miss is computed only when somebody asks.

mod catalogue;
mod misses;
mod request_misses;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use catalogue::{Catalogue, Entry, catalogue};
pub use misses::{Miss, nearest_misses};
pub use request_misses::nearest_request_misses;
use serde::Serialize;

use crate::diagnose::Fault;
use crate::model::{PolicyKey, ServiceKey, Str, WorkloadUid};

/// How many policies [`Reason::NoAllowMatched`] names at most.
pub const NAMED_POLICIES: usize = 4;

/// Why a connection was carried or refused. Closed: each variant has a stable code and a one-line remedy.
///
/// Serializes as an object: its code under `code`, then the names of what decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "code", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// No policy refuses, and no allow policy applies to the destination.
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
    /// A Quarantine cuts off one of the two ends.
    Quarantined {
        /// The policy that the Quarantine became; [`PolicyKey::quarantine`] has its name.
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
    /// The request's token does not hold.
    TokenRefused {
        /// What is wrong with it.
        problem: &'static str,
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
    /// Outlier detection leaves out all endpoints of the service.
    EndpointsEjected {
        /// The service.
        service: ServiceKey,
        /// How many they are.
        endpoints: usize,
    },
    /// A route names a subset of a service's endpoints that no DestinationRule defines.
    SubsetUnknown {
        /// The service.
        service: ServiceKey,
        /// The subset.
        subset: Str,
    },
    /// The service has no such port.
    NoServicePort {
        /// The service.
        service: ServiceKey,
        /// The port asked for.
        port: u16,
    },
    /// Routes are attached to the port, and none of them takes the connection.
    NoRoute {
        /// The service.
        service: ServiceKey,
        /// The port that was dialled.
        port: u16,
    },
    /// The route that takes the connection leads nowhere.
    BackendInvalid {
        /// The route, with its kind.
        route: Str,
        /// What is wrong with its backend.
        problem: Str,
    },
    /// A waypoint is bound and cannot be reached.
    WaypointUnavailable {
        /// The waypoint as it is bound: `namespace/hostname` or `network/ip`.
        waypoint: Str,
    },
    /// The address was a workload's in the mesh until a moment ago, and is nobody's yet.
    WorkloadGone {
        /// The address.
        address: IpAddr,
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
        self.entry().code
    }

    /// One line: what to do about it. Empty where nothing is to be done.
    pub fn remedy(&self) -> &'static str {
        self.entry().remedy
    }

    /// Whose fault a refusal with this reason is.
    pub fn fault(&self) -> Fault {
        self.entry().fault
    }

    /// A policy could not be asked, so that nothing was decided: new connections are refused (CONNECT: 503, so that
    /// the peer tries another endpoint, and not 401), open ones stay.
    pub fn is_undecided(&self) -> bool {
        matches!(self, Self::PolicyUnknown { .. } | Self::PolicyUnreadable { .. })
    }

    /// A policy said no: a CONNECT is answered 401 and not tried elsewhere.
    pub fn is_denial(&self) -> bool {
        matches!(
            self,
            Self::DeniedBy { .. }
                | Self::NoAllowMatched { .. }
                | Self::MutualTlsRequired { .. }
                | Self::Quarantined { .. }
        )
    }

    /// The policy that it names first.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::AllowedBy { policy, .. }
            | Self::DeniedBy { policy, .. }
            | Self::MutualTlsRequired { policy }
            | Self::Quarantined { policy }
            | Self::PolicyUnknown { policy }
            | Self::PolicyUnreadable { policy, .. } => Some(policy),
            Self::NoAllowMatched { policies } => policies.first(),
            _ => None,
        }
    }

    /// Whether a connection with this reason goes nowhere.
    pub fn is_refusal(&self) -> bool {
        self.entry().refuses
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no policy refuses it and no allow policy applies"),
            Self::AllowedBy { policy, rule } => write!(f, "allowed by rule {rule} of policy {policy}"),
            Self::DeniedBy { policy, rule } => write!(f, "denied by rule {rule} of policy {policy}"),
            Self::NoAllowMatched { policies } => {
                f.write_str("allow policies apply and none matched: ")?;
                for (index, policy) in policies.iter().enumerate() {
                    write!(f, "{}{policy}", if index == 0 { "" } else { ", " })?;
                }
                if policies.len() == NAMED_POLICIES { f.write_str(", ...") } else { Ok(()) }
            }
            Self::MutualTlsRequired { policy } => {
                write!(f, "clear text, and mutual TLS is required (PeerAuthentication, as policy {policy})")
            }
            Self::Quarantined { policy } => {
                write!(f, "Quarantine {}/{} cuts it off", policy.namespace, policy.quarantine().unwrap_or(&policy.name))
            }
            Self::PolicyUnknown { policy } => write!(f, "policy {policy} applies and has not arrived"),
            Self::PolicyUnreadable { policy, detail } => {
                write!(f, "policy {policy} applies and cannot be read: {detail}")
            }
            Self::TokenRefused { problem } => write!(f, "the request's token does not hold: {problem}"),
            Self::ToWorkload { workload } => write!(f, "carried to workload {workload}"),
            Self::ToEndpoint { service, workload } => {
                write!(f, "carried to endpoint {workload} of service {service}")
            }
            Self::ToWaypoint { waypoint } => write!(f, "carried to waypoint {waypoint}"),
            Self::Unmanaged => f.write_str("the destination is not in the mesh: passed on unchanged"),
            Self::NoHealthyEndpoint { service } => write!(f, "service {service} has no endpoint that takes traffic"),
            Self::EndpointsEjected { service, endpoints } => {
                write!(f, "outlier detection leaves out the endpoints of service {service} for a while: {endpoints}")
            }
            Self::SubsetUnknown { service, subset } => write!(f, "service {service} has no subset {subset:?}"),
            Self::NoServicePort { service, port } => write!(f, "service {service} has no port {port}"),
            Self::NoRoute { service, port } => {
                write!(f, "routes are attached to port {port} of service {service}, and none takes this")
            }
            Self::BackendInvalid { route, problem } => write!(f, "{route} leads nowhere: {problem}"),
            Self::WaypointUnavailable { waypoint } => {
                write!(f, "waypoint {waypoint} is bound and has no endpoint that takes traffic")
            }
            Self::WorkloadGone { address } => {
                write!(f, "the workload at {address} is gone, and no other is known there")
            }
            Self::NetworkUnreachable { network } => {
                write!(f, "the destination is on network {network:?}, which cannot be reached from here")
            }
            Self::ProxyPort { destination } => write!(f, "{destination} is a port of ztunnel itself"),
            Self::ForeignAuthority { authority } => {
                write!(f, "CONNECT to {authority}, which is not an address of this workload")
            }
            Self::UnknownAuthority { authority } => {
                write!(f, "CONNECT to {authority}, and no such service or port is known here")
            }
        }
    }
}

#[cfg(test)]
mod tests;
