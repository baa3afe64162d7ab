//! All that control plane and nodes say to each other: messages, codec, delta xDS, the CA's protocol, and the
//! hand-over of pods from node agent to node tunnel and from a node tunnel to its successor.
//!
//! Read in this order: [`proto`] (the messages), [`codec`] (wire to model and back: bad input is refused there,
//! once), [`delta`] (client and server as state machines without I/O), then the shells that move bytes: [`xds`],
//! [`ca`], [`zds`], [`succession`], [`probes`]. Both sides of every protocol live here, so that their tests can talk to each other.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod ca;
pub mod caller;
pub mod codec;
pub mod control_plane;
pub mod delta;
pub mod packets;
pub mod probes;
pub mod proto;
pub mod serve;
pub mod succession;
pub mod xds;
pub mod zds;

#[cfg(test)]
mod fixtures;

pub use caller::{AuthError, Authenticate, Caller, Credentials};
pub use control_plane::{ControlPlane, ControlPlaneError, Root, Token};

/// A boxed future: what the object-safe traits of this crate return.
pub use futures::future::BoxFuture;
