//! The answers. Every function is total, pure and names its reason.

pub(crate) mod access;
mod authorize;
mod balance;
pub mod cors;
mod gateway;
mod inbound;
pub(crate) mod matching;
mod outbound;
pub mod retry;
pub mod route;
mod spread;
pub mod stream;
pub mod telemetry;
mod waypoint;

use std::net::SocketAddr;
use std::sync::Arc;

pub use access::{RequestVerdict, authorize_request};
pub use authorize::{authorize, authorize_at_waypoint, cut_off};
pub use inbound::{inbound, inbound_plaintext, inbound_service};
pub use outbound::outbound;
pub use spread::{Live, hash_of};
pub use waypoint::{Endpoint, Target, bound, endpoint, treatment, waypoint};

use crate::attrs::Authority;
use crate::diagnose::{Diagnose, Fault};
use crate::explain::Reason;
use crate::model::{Identity, PolicyKey, Service, Str, Workload};

/// Where ztunnel listens inside a pod's network namespace: never a legitimate target (contract, table of ports).
pub const PROXY_PORTS: [u16; 3] = [15001, 15006, 15008];

/// Where HBONE is spoken: ztunnel's port in a pod's network namespace.
pub const HBONE_PORT: u16 = 15008;

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

impl OutboundPlan {
    /// The application's address, where the tunnel would lead from `source` to a workload of the same node, no waypoint is in
    /// between, and both may be connected without a tunnel.
    pub fn directly(&self, source: &Workload) -> Option<SocketAddr> {
        let upstream = self.upstream.as_ref()?;
        let OutboundProtocol::Hbone { authority: Authority::Address(to), waypoint: false, .. } = &self.protocol else {
            return None;
        };
        let is_near = !source.node.is_empty() && source.node == upstream.node && source.cluster == upstream.cluster;
        let is_its_own = upstream.addresses.contains(&to.ip());
        (is_near && is_its_own && source.direct && upstream.direct).then_some(*to)
    }
}

/// What to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dial {
    /// An address.
    Address(SocketAddr),
    /// A name that the tunnel resolves within its deadline, and the port behind it.
    Name(Str, u16),
}

impl Dial {
    /// The address, where it is known already.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(..) => None,
        }
    }
}

/// How to speak to what is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Address and port of the application: what policies compare and logs name.
    pub upstream: SocketAddr,
    /// What to connect to: `upstream`, or loopback with its port behind a PROXY application tunnel (then the source
    /// address is not kept).
    pub connect: SocketAddr,
    /// The destination to write in a PROXY v2 header before the first byte, where the application wants one.
    pub proxy_protocol: Option<SocketAddr>,
    /// The service that the peer asked for by name.
    pub service: Option<Arc<Service>>,
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
    /// Policies that should have been asked and could not be, passed over because the control plane is a foreign one
    /// ([`crate::snapshot::UnknownPolicies::Allow`]). Each is to be counted: a policy was skipped here.
    pub skipped: Vec<PolicyKey>,
}

impl Verdict {
    /// Whether a connection that is already open ends by this verdict: it is denied, and not merely because a policy
    /// has not arrived or cannot be read (design: updates never cause an outage). Ask this when deciding again.
    pub fn ends_open_connection(&self) -> bool {
        !self.allowed && !self.reason.is_undecided()
    }
}

/// A connection that goes nowhere, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
}

impl Diagnose for Refusal {
    fn code(&self) -> &'static str {
        self.reason.code()
    }

    fn fault(&self) -> Fault {
        self.reason.fault()
    }

    fn remedy(&self) -> &'static str {
        self.reason.remedy()
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason }
    }
}
