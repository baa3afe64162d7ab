//! The mesh's side of a connection: HBONE out through pools, plain TCP where the destination is outside the tunnels,
//! HBONE in. What needs no tunnel, since it stays on this node, is opened by [`crate::path::direct`].

pub mod identities;
pub mod pools;

use std::net::SocketAddr;
use std::sync::Arc;

use stillmesh_core::attrs::Authority;
use stillmesh_core::decide::{Dial, OutboundPlan, OutboundProtocol};
use stillmesh_core::model::{Str, Workload};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub use identities::Identities;
pub use pools::Pools;
pub use stillmesh_hbone::{Early, Stream, TunnelError};

use crate::capture::{Captured, Pod};
use crate::deliver::connect;
use crate::node::Node;
use crate::path::PathError;
use crate::path::direct::Arrived;
use crate::record::Facts;
use crate::record::metrics::OnDemandDns;

/// A way to the destination that is open.
#[derive(Debug)]
pub enum Upstream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A CONNECT that was answered 200.
    Hbone(Stream),
    /// A connection in another pod of this node.
    Direct(Box<Arrived>),
}

/// What was opened, and to whom.
#[derive(Debug)]
pub struct Opened {
    /// The way.
    pub upstream: Upstream,
    /// The address that was dialled.
    pub next_hop: SocketAddr,
}

/// One try to open a way.
#[derive(Debug)]
pub struct Request<'a> {
    /// What was decided.
    pub plan: &'a OutboundPlan,
    /// The captured workload.
    pub source: &'a Arc<Workload>,
    /// Its connection.
    pub conn: &'a Captured,
    /// What is known of it.
    pub facts: &'a Facts,
    /// Its first bytes, for a peer that takes them early.
    pub early: &'a Early<'a>,
    /// For all tries together.
    pub deadline: Instant,
}

/// Opens the way that the plan names.
pub async fn open(request: &Request<'_>, pod: &Pod, node: &Node, worker: usize) -> Result<Opened, PathError> {
    let Request { plan, conn, deadline, .. } = request;
    let next_hop = match &plan.dial {
        Dial::Address(address) => *address,
        Dial::Name(name, port) => {
            node.metrics.on_demand_dns.get(&OnDemandDns::new(name, request.source)).inc();
            let left = deadline.saturating_duration_since(Instant::now());
            let resolved = connect::resolve(name, *port, conn.original.ip(), left).await;
            resolved.map_err(|source| PathError::Resolve { name: name.clone(), source })?
        }
    };
    let upstream = match &plan.protocol {
        OutboundProtocol::Passthrough | OutboundProtocol::Tcp => {
            Upstream::Tcp(connect::plain(&pod.connecting, node, next_hop, *deadline).await?)
        }
        OutboundProtocol::Hbone { authority, expected, .. } => {
            Upstream::Hbone(pod.pools.open(request, node, worker, next_hop, authority, expected).await?)
        }
    };
    Ok(Opened { upstream, next_hop })
}

/// Whether a failure says nothing about other endpoints: the peer has not taken the connection, and no policy refused.
pub fn is_worth_another_try(error: &PathError) -> bool {
    match error {
        PathError::Connect { .. } | PathError::Slow { .. } | PathError::Resolve { .. } => true,
        PathError::Tunnel { source } => source.may_repick(),
        _ => false,
    }
}

/// The CONNECT's authority, where the plan has one.
pub fn authority(plan: &OutboundPlan) -> Option<Authority> {
    match &plan.protocol {
        OutboundProtocol::Hbone { authority, .. } => Some(authority.clone()),
        OutboundProtocol::Passthrough | OutboundProtocol::Tcp => None,
    }
}

/// Whether the failure was a tunnel's that had ended, so that the same endpoint is worth another try.
pub fn was_stale(error: &PathError) -> bool {
    matches!(error, PathError::Tunnel { source } if source.was_stale())
}

/// The name of the service that a connection means.
pub fn service_host(plan: &OutboundPlan) -> Option<&Str> {
    plan.service.as_ref().map(|service| &service.key.hostname)
}
