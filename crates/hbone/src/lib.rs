//! HBONE: one TCP connection carried as one HTTP/2 CONNECT stream over mutual TLS (contract 3).
//!
//! [`Pool`] opens tunnels and streams, [`server`] accepts them, [`Stream`] is what either end holds, [`copy`] moves bytes between
//! a stream and a socket, [`headers`] are what a CONNECT says of itself. Knows identities, nothing of policies.
//! The HTTP/2 library is used in `limits`, `pool`, `pulse`, `server` and `stream` only, so that another can take its place.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod chunks;
pub mod copy;
mod error;
#[cfg(test)]
mod harness;
pub mod headers;
mod limits;
mod link;
mod memory;
pub mod pool;
mod pulse;
pub mod server;
mod stream;

pub use error::TunnelError;
pub use limits::Limits;
pub use memory::{DEFAULT_BYTES as DEFAULT_MEMORY_BYTES, Memory};
pub use pool::{Dial, Dialling, Key, Opened, Pool, Transport};
pub use stream::Stream;
