//! What is known: an immutable view of the mesh with a generation. One writer makes the next from a batch of
//! changes; a change costs what it touches.

mod shards;
mod stage;

use std::net::IpAddr;
use std::sync::Arc;

pub use stage::{Stage, UnknownPolicies};

use crate::model::{NetworkAddress, Policy, PolicyKey, Service, ServiceKey, Str, Workload, WorkloadUid};

/// One change to what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A workload is new or different.
    Workload(Arc<Workload>),
    /// A workload is gone.
    WorkloadRemoved(WorkloadUid),
    /// A service is new or different.
    Service(Arc<Service>),
    /// A service is gone.
    ServiceRemoved(ServiceKey),
    /// A policy is new or different.
    Policy(Arc<Policy>),
    /// A policy is gone.
    PolicyRemoved(PolicyKey),
}

/// What a batch of changes may have altered for live connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Every destination must be decided again (a mesh-wide policy changed).
    pub everything: bool,
    /// Every destination in these namespaces.
    pub namespaces: Vec<Str>,
    /// These destinations.
    pub workloads: Vec<WorkloadUid>,
}

/// An immutable view of the mesh. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    generation: u64,
}

impl Snapshot {
    /// Nothing known yet. `network` is the network that this node is on.
    pub fn empty(_network: impl Into<Str>) -> Self {
        todo!()
    }

    /// Counts up with every [`Snapshot::apply`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The next view. Never fails: changes to unknown names are what they say.
    pub fn apply(&self, _changes: &[Change]) -> (Snapshot, Touched) {
        todo!()
    }

    /// The workload with this key.
    pub fn workload(&self, _uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        todo!()
    }

    /// The workload that owns an address (contract 4.5, step 1: pods first, then HBONE).
    pub fn workload_at(&self, _address: &NetworkAddress) -> Option<&Arc<Workload>> {
        todo!()
    }

    /// The workload of a captured pod: by node, namespace, name and service account.
    pub fn local_workload(
        &self,
        _node: &str,
        _namespace: &str,
        _name: &str,
        _service_account: &str,
    ) -> Option<&Arc<Workload>> {
        todo!()
    }

    /// The service with this key.
    pub fn service(&self, _key: &ServiceKey) -> Option<&Arc<Service>> {
        todo!()
    }

    /// The service that `client` reaches at a VIP (contract 4.5, step 1).
    pub fn service_at(&self, _client: &Workload, _address: IpAddr) -> Option<&Arc<Service>> {
        todo!()
    }

    /// The service that `client_namespace` means by a hostname: visible; own namespace, then canonical, then first.
    pub fn service_named(&self, _client_namespace: &str, _hostname: &str) -> Option<&Arc<Service>> {
        todo!()
    }

    /// As [`Snapshot::service_named`], with a namespace preferred after the canonical one (DNS: contract 4.6).
    pub fn service_named_preferring(
        &self,
        _client_namespace: &str,
        _hostname: &str,
        _preferred_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        todo!()
    }

    /// The network that this node is on.
    pub fn network(&self) -> &Str {
        todo!()
    }

    /// Workloads that are endpoints of a service, whether they take traffic or not.
    pub fn members(&self, _service: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }

    /// Endpoints of a service that take traffic under its health policy, in a fixed order.
    pub fn endpoints(&self, _service: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }

    /// The policy with this key.
    pub fn policy(&self, _key: &PolicyKey) -> Option<&Arc<Policy>> {
        todo!()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        std::iter::empty()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        std::iter::empty()
    }
}
