//! Who is who on the wire: SPIFFE identities in certificates, from the CA to the handshake.
//!
//! Read in this order: [`TrustBundle`] and [`Leaf`] (what one identity holds), [`tls`] (the configurations of both
//! ends and the checks of contract 3.1), [`Secrets`] (a node's certificates: on demand, renewed, forgotten),
//! [`Issuer`] (the CA built into the control plane). [`TlsError`] says why a handshake failed.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod bundle;
pub mod ca;
pub mod clock;
pub mod crl;
mod csr;
mod error;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod issuer;
mod leaf;
pub mod peer;
pub mod revocation;
pub mod secrets;
pub mod tls;
mod verify;

pub use bundle::{BundleError, TrustBundle};
pub use clock::{Clock, SystemClock, TokioClock};
pub use error::TlsError;
pub use issuer::rotation;
pub use issuer::{IssueError, Issuer, IssuerError, Material, Serving};
pub use leaf::{Facts, Leaf, LeafError};
pub use peer::{expiry, peer_identity};
pub use revocation::Revocations;
pub use secrets::{SecretError, SecretLimits, Secrets, Sign, SignFailure};
pub use tls::{client_config, server_config, serving_config};
