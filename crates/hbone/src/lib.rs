//! HBONE: one TCP connection carried as one HTTP/2 CONNECT stream over mutual TLS (contract 3).
//!
//! [`Pool`] opens tunnels and streams, [`server`] accepts them, [`Stream`] is what either end holds, [`copy`] moves bytes between
//! a stream and a socket, [`headers`] are what a CONNECT says of itself. Knows identities, nothing of policies.
//! What moves bytes is `carrier`, over the crates `tls` and `http2`.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod carrier;
mod chunks;
pub mod copy;
mod early;
mod ending;
mod error;
#[cfg(test)]
mod harness;
pub mod headers;
mod limits;
mod memory;
pub mod pool;
mod pulse;
pub mod server;
mod stream;

pub use early::Early;
pub use ending::Ending;
pub use error::TunnelError;
pub use limits::Limits;
pub use memory::{DEFAULT_BYTES as DEFAULT_MEMORY_BYTES, Memory};
pub use pool::{Dial, Dialling, Key, Opened, Pool, Transport};
pub use stream::Stream;
