//! What the control plane publishes. Every stream sends from it.

use stillmesh_core::snapshot::Change;

/// The published resources of both types. Cheap to share.
#[derive(Default)]
pub struct Store {}

impl Store {
    /// Nothing published yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes changes at once. Resources equal to what is published are not sent again. Returns the generation
    /// that [`super::Observer::acked`] tells when a node has applied them. Nodes get policies before the workloads
    /// that come with them, and removals of policies after, whatever the order here.
    pub fn publish(&self, _changes: Vec<Change>) -> u64 {
        todo!()
    }

    /// The current generation.
    pub fn generation(&self) -> u64 {
        todo!()
    }
}
