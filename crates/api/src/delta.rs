//! Delta xDS as state machines: no I/O, no clock, no tasks. The shells in [`crate::xds`] drive them.

pub mod client;
pub mod server;
