//! Delta xDS over gRPC: the node's client with its reconnects, and the control plane's service.

pub(crate) mod client;
mod method;
mod server;
mod store;

pub use client::{Client, NodeInfo, Sink, Status, StreamError};
pub use server::{NodeId, Observer, Service, service};
pub use store::Store;

pub use crate::delta::server::Standing;

use stillmesh_core::snapshot::Change;

/// The types that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
    /// Routes of HTTP requests, for waypoints.
    Route,
    /// What decides about requests, for waypoints.
    Access,
    /// How endpoints are treated, for waypoints.
    Destination,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 5] = [Self::Authorization, Self::Access, Self::Address, Self::Destination, Self::Route];
    /// What a node's tunnel subscribes to.
    pub const NODE: [Self; 2] = [Self::Authorization, Self::Address];

    /// Its name on the wire.
    pub fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Route => "type.googleapis.com/stillmesh.config.v1.HttpRoute",
            Self::Access => "type.googleapis.com/stillmesh.config.v1.Access",
            Self::Destination => "type.googleapis.com/stillmesh.config.v1.DestinationRule",
        }
    }

    /// The type of that name.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// The hash by which versions are made: xxHash64, the same in every process.
pub fn hash(bytes: &[u8]) -> u64 {
    twox_hash::XxHash64::oneshot(0, bytes)
}

/// How our controller names itself in responses.
pub const IDENTIFIER: &str = "stillmesh";

/// What one response of the control plane changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The type of everything in it.
    pub kind: ResourceType,
    /// The changes, in the order sent; removals last.
    pub changes: Vec<Change>,
    /// The first response of this type since the process started: with it the type's state is complete.
    pub first: bool,
    /// Whether a controller of ours sent it, going by how it names itself.
    pub ours: bool,
    /// Size of the response on the wire, for telemetry.
    pub bytes: usize,
}

/// A resource that was not taken, and why: becomes part of a NACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The resource's name.
    pub name: String,
    /// Why.
    pub reason: String,
}
