//! The current snapshot of the mesh. [`crate::writer`] is the only one that publishes; everybody else loads a snapshot
//! once and lets go of it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use stillmesh_core::snapshot::Snapshot;
use tokio::sync::watch;

/// The current snapshot, and its generation to wait on.
#[derive(Debug)]
pub struct Snapshots {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
}

impl Snapshots {
    /// Starts with `initial`.
    pub fn new(initial: Snapshot) -> Self {
        let generation = watch::Sender::new(initial.generation());
        Self { current: ArcSwap::from_pointee(initial), generation }
    }

    /// The current one. Hold it for one decision.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the current one. Only [`crate::writer`] calls this.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.generation();
        self.current.store(Arc::new(snapshot));
        self.generation.send_replace(generation);
    }

    /// Waits until `find` finds something, in this snapshot or a later one.
    pub async fn wait_for<T>(&self, limit: Duration, mut find: impl FnMut(&Snapshot) -> Option<T>) -> Option<T> {
        if let Some(found) = find(&self.load()) {
            return Some(found);
        }
        let mut changes = self.generation.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = find(&self.load()) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, waiting).await.ok().flatten()
    }
}
