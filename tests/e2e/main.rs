//! End to end: the real `stillmesh` command, real processes, real capture, real bytes.
//!
//! Each test drives a one-machine mesh from outside, as a user does. Most share one mesh; those that break something have
//! their own. Nothing is created outside the namespaces that `stillmesh up` makes. Where those are not permitted the
//! tests fail with what `up` says.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says what went wrong by ending"
)]

mod analyze;
mod bench;
mod confined;
mod direct;
mod faults;
mod flows;
mod input;
mod inspect;
mod leaks;
mod mesh;
mod objects;
mod planted;
mod pods;
mod policy;
mod quarantine;
mod receipts;
mod report;
mod scene;
mod shell;
mod simulate;
mod steering;
mod support;
mod traffic;
mod uncertified;
mod waypoint;
mod why;
