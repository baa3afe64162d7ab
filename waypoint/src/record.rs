//! What is written down: one log line and one count per request ([`request`]) or TCP connection ([`connection`]), also when
//! it was cut. Under Istio's names (contract 9.2), `reporter` is `waypoint`.

pub mod connection;
mod decision;
mod facts;
mod flags;
mod flow;
pub mod grpc;
pub mod judged;
mod labels;
mod metrics;
mod records;
pub mod request;
pub mod series;

use std::net::SocketAddr;

use stillmesh_core::Diagnose as _;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;

pub use decision::Origin;
pub use flags::{Flag, Flags, meaning};
pub use labels::{Edited, Ends, RequestLabels, Tags, TcpLabels};
pub use metrics::Metrics;
pub use records::Records;

use crate::path::PathError;
use crate::waypoint::Waypoint;

/// What was refused before much was known of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Early<'a> {
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// Who it is, by its certificate.
    pub identity: Option<&'a Identity>,
    /// The CONNECT's trace; 0: there was no CONNECT.
    pub trace: u128,
    /// What it asked for.
    pub authority: Option<&'a Authority>,
}

/// Writes it down.
pub fn failed_early(waypoint: &Waypoint, early: Early<'_>, error: &PathError) {
    decision::keep_early(waypoint, &early, error);
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.addr = early.client.map(tracing::field::display),
        dst.hbone_addr = early.authority.map(tracing::field::display),
        error.code = error.code(),
        error = error.text().as_str(),
        "connection failed"
    );
}
