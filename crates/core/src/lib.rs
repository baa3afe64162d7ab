//! What the mesh knows and how it decides.
//!
//! This crate is pure: no I/O, no clock, no randomness, no locks, no async, no logging. The node tunnel, the
//! controller and the command line ask the same functions the same questions and get the same answers.
//!
//! Read in this order: [`model`] (what exists), [`snapshot`] (what is known), [`attrs`] (what is asked),
//! [`decide`] (the answers), [`explain`] (why).
#![forbid(unsafe_code)]

#[cfg(test)]
mod arbitrary;
pub mod attrs;
pub mod decide;
pub mod diagnose;
pub mod explain;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod model;
pub mod observe;
pub mod snapshot;

pub use diagnose::{Diagnose, Fault};
