//! The controller against a real API server: what it is allowed, what it writes, whom it believes.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod authority;
mod gateways;
mod leader;
mod nodes;
mod policies;
mod proxy;
mod watching;
mod webhook;
