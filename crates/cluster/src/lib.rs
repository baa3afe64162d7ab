//! The Kubernetes API as the parts of the mesh use it.
//!
//! [`Cluster`] is the access; [`KubernetesSource`] brings objects in, as the watched directory does on one machine.
//! What single parts write (annotations, statuses, secrets) they write themselves through [`Cluster::client`].
#![forbid(unsafe_code)]

pub mod access;
mod kinds;
pub mod leader;
pub mod source;
mod trim;

pub use access::{AccessError, Cluster};
pub use leader::{Candidate, Leader, NotLeading, Terms};
pub use source::{KubernetesSource, Scope, Watch};
