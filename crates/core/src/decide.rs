//! The answers. Every function is total, pure and names its reason.

mod authorize;
mod balance;
mod inbound;
mod outbound;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

pub use authorize::authorize;
pub use inbound::inbound;
pub use outbound::outbound;

use crate::attrs::Authority;
use crate::explain::Reason;
use crate::model::{Identity, Service, Str, Workload};

/// Where ztunnel listens inside a pod's network namespace: never a legitimate target (contract, table of ports).
pub const PROXY_PORTS: [u16; 3] = [15001, 15006, 15008];

/// How to carry an outbound connection.
#[derive(Clone, Debug)]
pub struct OutboundPlan {
    /// What to dial.
    pub dial: Dial,
    /// How to speak to it.
    pub protocol: OutboundProtocol,
    /// Who answers: the destination's workload, or the waypoint's. `None` where the destination is not in the mesh.
    pub upstream: Option<Arc<Workload>>,
    /// The service that the application meant, if it dialled one.
    pub service: Option<Arc<Service>>,
    /// Why.
    pub reason: Reason,
}

/// What to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dial {
    /// An address.
    Address(SocketAddr),
    /// A name that the tunnel resolves within its deadline, and the port behind it.
    Name(Str, u16),
}

/// How to speak to what is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundProtocol {
    /// Not ours to judge: the bytes go to the original destination unchanged.
    Passthrough,
    /// Plain TCP to a workload outside the tunnels.
    Tcp,
    /// HBONE to a workload's ztunnel or a waypoint.
    Hbone {
        /// The CONNECT's authority.
        authority: Authority,
        /// The peer's certificate must carry one of these.
        expected: Vec<Identity>,
        /// Whether the peer is a waypoint.
        waypoint: bool,
    },
}

/// Where an inbound CONNECT leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPlan {
    /// Address and port of the application.
    pub upstream: SocketAddr,
    /// The PROXY v2 header's destination, where the application wants one.
    pub proxy_protocol: Option<SocketAddr>,
    /// Where to connect instead of `upstream` (loopback behind an application tunnel).
    pub tunnel_port: Option<NonZeroU16>,
}

/// Whether an inbound connection may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The answer.
    pub allowed: bool,
    /// Why: names the policy and the rule.
    pub reason: Reason,
    /// Dry-run policies that would have decided otherwise.
    pub dry_run: Vec<Reason>,
}

/// A connection that goes nowhere, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
}
