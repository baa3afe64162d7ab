//! Nodes: who they are ([`JoinTokens`]), what they get and how they take it, which certificates they are given.

mod ca;
mod certificate;
mod nodes;
mod tokens;

pub(crate) use ca::Authority;
pub(crate) use certificate::ServingCertificate;
pub(crate) use nodes::Nodes;
pub use tokens::{JoinTokens, token_digest};

/// The CA that signs now, and word of the next one.
pub(crate) type Signing = tokio::sync::watch::Receiver<std::sync::Arc<stillmesh_identity::Issuer>>;
