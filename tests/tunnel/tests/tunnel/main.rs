//! Real connections between real pods.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod carry;
mod decisions;
mod direct;
mod hostile;
mod lifecycle;
mod names;
mod policy;
mod probes;
mod spans;
mod succession;
mod trust;
mod waypoint;
