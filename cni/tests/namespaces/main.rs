//! Capture in real network namespaces: what the kernel does with the rules, and the agent with whole pods.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot run fails with the reason"
)]

mod agent;
mod churn;
mod intake;
mod net;
mod rules;
