//! Delta xDS as state machines: no I/O, no clock, no tasks. The shells in [`crate::xds`] drive them.
//!
//! [`client`] is the node's side. [`catalog`] is what a control plane publishes and [`server`] one node's session
//! on it.

pub mod catalog;
pub mod client;
pub mod server;

#[cfg(test)]
pub(crate) mod fixtures;
