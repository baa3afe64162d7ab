//! What is written down: one log line and one count per request ([`request`]) or TCP connection ([`connection`]), also when
//! it was cut. Under Istio's names (contract 9.2), `reporter` is `waypoint`.

pub mod connection;
mod labels;
mod metrics;
pub mod request;

use std::fmt;
use std::net::SocketAddr;

use stillmesh_core::Diagnose as _;
use stillmesh_core::attrs::Authority;

pub use labels::{Ends, RequestLabels, TcpLabels};
pub use metrics::Metrics;

use crate::path::PathError;

/// How something ended, in Envoy's short codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// As its ends wanted.
    None,
    /// No endpoint takes traffic.
    NoHealthyUpstream,
    /// No endpoint was reached.
    UpstreamFailure,
    /// The endpoint broke off.
    UpstreamTermination,
    /// The endpoint was slower than the route allows.
    UpstreamTimeout,
    /// A bound was reached.
    Overflow,
    /// There is nowhere to send it.
    NoRoute,
    /// The client broke off.
    DownstreamTermination,
    /// The client's request is not one.
    DownstreamProtocol,
}

impl Flag {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamFailure => "UF",
            Self::UpstreamTermination => "UC",
            Self::UpstreamTimeout => "UT",
            Self::Overflow => "UO",
            Self::NoRoute => "NR",
            Self::DownstreamTermination => "DC",
            Self::DownstreamProtocol => "DPE",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes down what was refused before much was known of it.
pub fn failed_early(client: SocketAddr, authority: Option<&Authority>, error: &PathError) {
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.addr = %client,
        dst.hbone_addr = authority.map(tracing::field::display),
        error.code = error.code(),
        error = error.text().as_str(),
        "connection failed"
    );
}
