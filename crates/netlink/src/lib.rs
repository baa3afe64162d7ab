//! Typed netlink, synchronous, in the network namespace of the calling thread: nf_tables rules ([`nft`]), links,
//! addresses, routes and rules ([`route`]), TCP sockets ([`sock_diag`]).
//!
//! Everything is encoded here, so neither `nft` nor `ip` is needed. Every exchange with the kernel has a deadline.
//! Errors name the object that the kernel refused and carry what it said about it.

pub mod error;
pub mod nft;
pub mod route;
pub mod sock_diag;
mod socket;
mod wire;

pub use error::Error;
