//! The source of Kubernetes objects, behind one interface: here a watched directory of manifests.
//!
//! The controller, the node agent and `stillmesh up` read objects through [`Source`]; none of them knows where the
//! objects come from. [`directory`] is the implementation for one machine.

pub mod directory;

use std::future::Future;
use std::sync::Arc;

pub use directory::DirectorySource;
pub use stillmesh_k8s::{Finding, Object, ObjectKey, Placed, Position, Unusable};

/// One change to the set of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An object is new or different.
    Set(Placed),
    /// An object is gone.
    Removed(ObjectKey),
}

impl Change {
    /// Which object it is about.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Set(placed) => placed.object.key(),
            Self::Removed(key) => key.clone(),
        }
    }
}

/// What changed since the last update. Applying every update in order gives the current objects.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// At most one change per object.
    pub changes: Vec<Change>,
    /// Policies that are there and cannot be read, each told in the findings too. They come after the changes; a key
    /// that is set or removed later can be read again, or is gone.
    pub unusable: Vec<Unusable>,
    /// Objects that are as before but written elsewhere now (a line was inserted above, a file renamed).
    pub moved: Vec<(ObjectKey, Position)>,
    /// All errors and warnings that hold now, in order of place; `None` where they are as before.
    pub findings: Option<Arc<[Finding]>>,
    /// Whether the initial set of objects is complete with this update (and stays so).
    pub complete: bool,
}

/// Where objects come from.
pub trait Source: Send {
    /// Waits for the next update; `None` when there will be none. The first update comes as soon as the initial set
    /// has been read, even when that is empty. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Update>> + Send;
}
