//! What all parts of a running machine share: its nodes, the admitted objects, and the bell that says that something
//! has changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use stillmesh_k8s::select::Enrolment;
use stillmesh_k8s::{Object, ObjectKey};
use stillmesh_runtime::tasks::Tasks;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::network::Node;

/// Every admitted object, as its user wrote it.
pub type Objects = BTreeMap<ObjectKey, Object>;

/// A running machine. The reconcile loop writes, the pods' tasks read.
#[derive(Debug)]
pub struct Machine {
    /// Its nodes, in order.
    pub nodes: Vec<Node>,
    /// What pods refer to: namespaces, ConfigMaps, Secrets.
    pub objects: ArcSwap<Objects>,
    /// Rung when a pod's state has changed.
    pub changed: Notify,
    /// Rung when the admitted objects have changed.
    pub admitted: Notify,
    /// Which pods belong to the mesh.
    pub enrolment: Enrolment,
    /// Owns the pods' tasks.
    pub tasks: Tasks,
    /// The machine is ending: grace periods are cut short.
    pub ending: CancellationToken,
}

impl Machine {
    /// A machine without objects.
    pub fn new(nodes: Vec<Node>) -> Arc<Self> {
        Arc::new(Self {
            nodes,
            objects: ArcSwap::default(),
            changed: Notify::new(),
            admitted: Notify::new(),
            enrolment: Enrolment::default(),
            tasks: Tasks::new("pods"),
            ending: CancellationToken::new(),
        })
    }
}
