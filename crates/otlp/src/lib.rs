//! Spans and records of logs, told to a collector over OTLP, and the headers by which traces go on (W3C's and B3's).
//!
//! [`context`] reads and writes those headers. [`queue()`] takes what is to be told without ever waiting, [`run()`] sends it in
//! batches. [`message`] is the part of OTLP's messages that is spoken. How the collector is reached is the caller's to say.
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod context;
mod export;
pub mod message;
mod queue;

pub use context::{Context, Headers};
pub use export::{Failure, Opening, To, run};
pub use queue::{Batches, Exporter, Told, queue};
