//! Where an inbound connection leads (contract 3.4).

use std::net::SocketAddr;
use std::sync::Arc;

use super::{InboundPlan, Refusal};
use crate::attrs::ConnectAttrs;
use crate::model::{Service, Workload};
use crate::snapshot::Snapshot;

/// Resolves an inbound CONNECT to the application's address.
pub fn inbound(_snapshot: &Snapshot, _attrs: &ConnectAttrs<'_>) -> Result<InboundPlan, Refusal> {
    todo!()
}

/// Whether a plaintext connection may be for `destination` at all: not for a port of ztunnel's own.
pub fn inbound_plaintext(_destination: SocketAddr) -> Result<(), Refusal> {
    todo!()
}

/// The service that an inbound connection was probably for, for telemetry only: the one named by the peer's `forwarded`
/// host, else the first of the workload's services whose target port is `port` (contract 4.5, headless services).
pub fn inbound_service(
    _snapshot: &Snapshot,
    _workload: &Workload,
    _forwarded_host: Option<&str>,
    _port: u16,
) -> Option<Arc<Service>> {
    todo!()
}
