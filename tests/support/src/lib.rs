//! What tests of several crates need.
//!
//! Everything here panics when it cannot do its part: it runs in tests only, and a test that cannot run has failed.
#![expect(clippy::panic, clippy::expect_used, reason = "a test that cannot run fails with the reason")]
#![expect(clippy::print_stdout, reason = "what a test prints is shown where it is asked for")]

pub mod isolate;
pub mod net;

pub use isolate::{isolated, isolated_async};
