//! What every proxy of the mesh is made of, whatever it carries: the keys of its environment that mean the same
//! everywhere ([`settings`]), the mesh as it is known and the one writer of it ([`snapshots`], [`writer`]), readiness
//! ([`readiness`]), how both ends are called in telemetry ([`labels`]), metrics within a budget ([`series`]), how decisions
//! are recorded and told ([`decisions`]), how they are added up and kept on disk ([`flows`]), and what the admin port shows and sets
//! ([`dump`], [`logging`]).
//!
//! It must not know how traffic is captured or carried: that is what proxies differ in.

pub mod control;
pub mod decisions;
pub mod dump;
pub mod flows;
pub mod labels;
pub mod logging;
pub mod readiness;
pub mod revocations;
pub mod series;
pub mod settings;
pub mod snapshots;
pub mod writer;

pub use readiness::Readiness;
pub use snapshots::Snapshots;
pub use writer::{INTERVAL, Pass, Publisher, Turns, Writer};
