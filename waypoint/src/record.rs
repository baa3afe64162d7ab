//! What is written down: one log line and one count per request ([`request`]) or TCP connection ([`connection`]), also when
//! it was cut. Under Istio's names (contract 9.2), `reporter` is `waypoint`.

pub mod connection;
mod flags;
mod flow;
pub mod grpc;
pub mod judged;
mod labels;
mod metrics;
pub mod request;
pub mod series;

use std::net::SocketAddr;

use stillmesh_core::Diagnose as _;
use stillmesh_core::attrs::Authority;

pub use flags::{Flag, Flags};
pub use labels::{Ends, RequestLabels, TcpLabels};
pub use metrics::Metrics;

use crate::path::PathError;

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
