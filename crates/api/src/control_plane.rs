//! Where the control plane is and how to trust it: the TLS channel that xDS and CA calls go through.

use std::path::PathBuf;
use std::time::Duration;

/// The control plane as a node knows it.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// `https://host:port`.
    pub address: String,
    /// What its certificate must be signed by. Read anew for every connection.
    pub root: Root,
    /// The DNS name that its certificate must carry instead of the address's host.
    pub alt_hostname: Option<String>,
    /// What we show. Read anew for every request.
    pub token: Token,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// Further gRPC metadata (`XDS_HEADER_*`, `CA_HEADER_*`).
    pub headers: Vec<(String, String)>,
}

/// Trusted certificates.
#[derive(Clone, Debug)]
pub enum Root {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    /// None is sent.
    None,
    /// The content of a file, trimmed.
    File(PathBuf),
    /// As given.
    Literal(String),
}

/// Why a channel to the control plane cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// The address is not `https://host:port`.
    #[error("control plane address {address:?}: https://host:port is accepted")]
    Address {
        /// As configured.
        address: String,
    },
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}
