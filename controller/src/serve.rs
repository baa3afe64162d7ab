//! Nodes: who they are, what they get, which certificates.

mod tokens;

pub use tokens::{JoinTokens, token_digest};
