//! TLS 1.3 (RFC 8446) connections whose handshake is rustls' and whose record protection is ours, so that records are
//! sealed and opened where they lie, and all that a connection is can be handed to another process.
//!
//! | part | its job | RFC 8446 |
//! | --- | --- | --- |
//! | [`handshake`] | drives rustls up to the first byte of application data; takes the traffic secrets over | 4 |
//! | [`keys`] | keys and IVs of traffic secrets, and the next generation of those | 7.1 to 7.3 |
//! | [`record`] | one record: sealed, opened, counted | 5 |
//! | [`session`] | both directions: KeyUpdate, tickets, alerts, the end; [`Exported`] | 4.6, 6 |
//!
//! Called by whoever carries bytes: nothing here waits, but for [`connect`] and [`accept`], which have no deadline of
//! their own. Secrets are wiped from memory when they are dropped, and are in no log, error or `Debug`.
//!
//! There is no resumption, no early data and no post-handshake authentication; tickets are ignored.
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

#[cfg(test)]
mod fixtures;
pub mod handshake;
pub mod keys;
pub mod record;
pub mod session;

pub use handshake::{Established, Handshake, HandshakeError, accept, connect, prepare_client, prepare_server};
pub use keys::{Suite, TrafficSecret};
pub use record::{ContentType, Opener, RecordError, SealError, Sealer};
pub use session::{Exported, ImportError, Received, Role, Session, SessionError};
