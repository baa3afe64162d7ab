//! What an operator sets: read once from the environment (contract 11.1), checked, every problem reported together.
//!
//! [`raw::Raw`] holds the keys that are read here, as text; [`Config`] is what the rest of the crate uses.

mod checked;
pub mod raw;
mod rows;

pub use checked::{Config, ConfigErrors, Dns, Hbone, HopSpans, Keepalive, Limits, Mode, SourceAddress, Workers};
pub use rows::{ROWS, Row};

#[cfg(test)]
mod tests;
