//! A waypoint for tests, and what is on both sides of it: clients that are real HBONE peers, endpoints that are real
//! HBONE servers with applications behind them, a control plane and a CA that speak the real protocols. Everything lives
//! on the loopback device of one isolated test.
//!
//! Everything here panics when it cannot do its part: a test that cannot run has failed.
#![expect(clippy::panic, clippy::expect_used, reason = "a test that cannot run fails with the reason")]

pub mod access;
mod app;
mod client;
mod endpoint;
pub mod issuer;
pub mod routes;
pub mod streams;
mod world;

pub use app::{App, Counts, body_of};
pub use client::{Body, Client, Http};
pub use endpoint::Endpoint;
pub use world::{PATIENCE, WAYPOINT, World};
