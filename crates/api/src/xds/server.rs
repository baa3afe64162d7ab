//! The control plane's side: one session per stream.

use std::sync::Arc;

use stillmesh_core::model::Str;

use super::{Rejected, ResourceType, Store};
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use crate::{Authenticate, Caller};

/// A connected node, told to observers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    /// `node.id` of the stream's first request.
    pub id: Str,
    /// The Kubernetes node's name (`NODE_NAME` of its metadata); may be empty.
    pub node: Str,
    /// Who authenticated.
    pub caller: Caller,
    /// Unique per stream in this process.
    pub stream: u64,
}

/// Hears how nodes take what is sent. Called from the streams' tasks: must not block.
pub trait Observer: Send + Sync + 'static {
    /// A node opened a stream.
    fn connected(&self, _node: &NodeId) {}
    /// A node has applied everything of a type that was published up to `generation`.
    fn acked(&self, _node: &NodeId, _kind: ResourceType, _generation: u64) {}
    /// A node refused some resources of a response; the others of it count as applied.
    fn nacked(&self, _node: &NodeId, _kind: ResourceType, _generation: u64, _rejected: &[Rejected]) {}
    /// A node's stream ended, and why.
    fn gone(&self, _node: &NodeId, _reason: &str) {}
}

impl Observer for () {}

/// The gRPC service; add it to [`crate::serve::serve`].
pub struct Service {}

/// The xDS service over a store.
pub fn service(
    _store: Arc<Store>,
    _authenticate: Arc<dyn Authenticate>,
    _observer: Arc<dyn Observer>,
) -> AggregatedDiscoveryServiceServer<Service> {
    todo!()
}
