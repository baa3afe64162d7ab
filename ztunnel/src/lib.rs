//! The node tunnel: captures the TCP traffic of its node's pods and carries it over HBONE.
//!
//! A connection is read in five words: capture → lookup → decide → tunnel → deliver. Start at [`path`]. The rest:
//! [`record`] (one log line and one count per connection), [`enforce`] (open connections under new policies),
//! [`dns`], [`admin`], [`config`], [`app`] (start and end).
#![warn(missing_docs)]

pub mod admin;
pub mod app;
pub mod capture;
pub mod config;
pub mod decide;
pub mod deliver;
pub mod dns;
pub mod enforce;
pub mod lookup;
mod memory;
pub mod node;
pub mod path;
pub mod quarantine;
pub mod record;
pub mod tunnel;
pub mod workers;

#[cfg(test)]
mod testing;

pub use app::{main, run};
pub use config::Config;
