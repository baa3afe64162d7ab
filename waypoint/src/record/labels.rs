//! The labels of the waypoint's metrics (contract 9.2), and how they come from the two ends. Pure.

use prometheus_client::encoding::EncodeLabelSet;
use stillmesh_core::model::{Service, Workload};
use stillmesh_proxy::labels::{Party, Principal, Text, Word};
use stillmesh_proxy::series::Labels;

use super::Flags;
use crate::capture::Downstream;

/// The two ends, as every metric names them. The order of the fields is the order on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct Ends {
    pub reporter: Word,

    pub source_workload: Text,
    pub source_canonical_service: Text,
    pub source_canonical_revision: Text,
    pub source_workload_namespace: Text,
    pub source_principal: Principal,
    pub source_app: Text,
    pub source_version: Text,
    pub source_cluster: Text,

    pub destination_service: Text,
    pub destination_service_namespace: Text,
    pub destination_service_name: Text,

    pub destination_workload: Text,
    pub destination_canonical_service: Text,
    pub destination_canonical_revision: Text,
    pub destination_workload_namespace: Text,
    pub destination_principal: Principal,
    pub destination_app: Text,
    pub destination_version: Text,
    pub destination_cluster: Text,

    pub connection_security_policy: Word,
}

/// Of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct RequestLabels {
    #[prometheus(flatten)]
    pub ends: Ends,
    pub request_protocol: Word,
    pub response_code: u16,
    pub grpc_response_status: String,
    pub response_flags: Flags,
}

/// Of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct TcpLabels {
    #[prometheus(flatten)]
    pub ends: Ends,
    pub request_protocol: Word,
    pub response_flags: Flags,
}

impl Labels for Ends {
    fn overflow(&self) -> Self {
        let (text, principal) = (Text::overflow, Principal::Overflow);
        Self {
            reporter: self.reporter,
            source_workload: text(),
            source_canonical_service: text(),
            source_canonical_revision: text(),
            source_workload_namespace: text(),
            source_principal: principal.clone(),
            source_app: text(),
            source_version: text(),
            source_cluster: text(),
            destination_service: text(),
            destination_service_namespace: text(),
            destination_service_name: text(),
            destination_workload: text(),
            destination_canonical_service: text(),
            destination_canonical_revision: text(),
            destination_workload_namespace: text(),
            destination_principal: principal,
            destination_app: text(),
            destination_version: text(),
            destination_cluster: text(),
            connection_security_policy: self.connection_security_policy,
        }
    }
}

impl Labels for RequestLabels {
    /// Codes are an endpoint's to choose: only their class stays.
    fn overflow(&self) -> Self {
        Self {
            ends: self.ends.overflow(),
            request_protocol: self.request_protocol,
            response_code: self.response_code / 100 * 100,
            grpc_response_status: self.grpc_response_status.clone(),
            response_flags: self.response_flags,
        }
    }
}

impl Labels for TcpLabels {
    fn overflow(&self) -> Self {
        Self {
            ends: self.ends.overflow(),
            request_protocol: self.request_protocol,
            response_flags: self.response_flags,
        }
    }
}

impl Ends {
    /// Of what a client asked for and the endpoint that took it, if one has.
    pub fn new(downstream: &Downstream, service: Option<&Service>, endpoint: Option<&Workload>) -> Self {
        let source = &downstream.party;
        let destination = endpoint.map(Party::from).unwrap_or_default();
        let text = |value: &Option<_>| Text::from(value.as_ref());
        Self {
            reporter: Word("waypoint"),
            source_workload: text(&source.workload),
            source_canonical_service: text(&source.canonical_service),
            source_canonical_revision: text(&source.canonical_revision),
            source_workload_namespace: text(&source.namespace),
            source_principal: Principal::Of(downstream.client.identity.clone()),
            source_app: text(&source.canonical_service),
            source_version: text(&source.canonical_revision),
            source_cluster: text(&source.cluster),
            destination_service: Text::from(service.map(|service| &service.key.hostname)),
            destination_service_namespace: Text::from(service.map(|service| &service.key.namespace)),
            destination_service_name: Text::from(service.map(|service| &service.name)),
            destination_workload: text(&destination.workload),
            destination_canonical_service: text(&destination.canonical_service),
            destination_canonical_revision: text(&destination.canonical_revision),
            destination_workload_namespace: text(&destination.namespace),
            destination_principal: endpoint.map(Workload::identity).into(),
            destination_app: text(&destination.canonical_service),
            destination_version: text(&destination.canonical_revision),
            destination_cluster: text(&destination.cluster),
            connection_security_policy: Word("mutual_tls"),
        }
    }
}
