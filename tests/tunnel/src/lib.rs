//! A mesh for tests: nodes with a real ztunnel each, pods in network namespaces with real capture rules, a control
//! plane and a CA that speak the real protocols. Everything lives in the namespaces of one isolated test.
//!
//! Everything here panics when it cannot do its part: a test that cannot run has failed.
#![expect(clippy::panic, clippy::expect_used, reason = "a test that cannot run fails with the reason")]

pub mod collector;
mod control;
mod mesh;
mod peer;
mod pod;
mod replica;

pub use control::{Control, HOST};
pub use mesh::{Mesh, Node, PATIENCE};
pub use peer::Peer;
pub use pod::Pod;
pub use replica::Replica;
