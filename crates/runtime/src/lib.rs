//! What every process of the mesh needs and no part of it owns: telemetry, tasks, drain, accept loops, the
//! admin server, the environment, back-off, and (in [`sys`]) every system call that needs `unsafe`.
//!
//! Nothing here knows what a workload or a policy is.

pub mod accept;
pub mod admin;
pub mod backoff;
mod bell;
pub mod drain;
pub mod env;
pub mod sys;
pub mod tasks;
pub mod telemetry;

pub use backoff::Backoff;
pub use tasks::Tasks;
