//! The 27 labels of the TCP metrics, in Istio's order (contract 9.1), and how they come from the two ends of a
//! connection. Pure.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use stillmesh_core::model::{Identity, Service, Str, Workload};
pub use stillmesh_proxy::labels::{Party, Principal, Text, Word};
use stillmesh_proxy::series::Labels;

use super::{Direction, Flag};

/// The labels of every `istio_tcp_*` counter. The order of the fields is the order on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct TrafficLabels {
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

    pub request_protocol: Word,
    pub response_flags: Word,
    pub connection_security_policy: Word,

    pub source_region: Text,
    pub source_zone: Text,
    pub destination_region: Text,
    pub destination_zone: Text,
}

impl Labels for TrafficLabels {
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
            request_protocol: self.request_protocol,
            response_flags: self.response_flags,
            connection_security_policy: self.connection_security_policy,
            source_region: text(),
            source_zone: text(),
            destination_region: text(),
            destination_zone: text(),
        }
    }
}

/// Everything that the labels are made of.
#[derive(Clone, Debug)]
pub struct LabelParts<'a> {
    /// Which end reports.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The client's identity, only where mutual TLS proved it.
    pub source_identity: Option<Identity>,
    /// The server.
    pub destination: Option<&'a Arc<Workload>>,
    /// The service that was meant.
    pub service: Option<&'a Arc<Service>>,
    /// How it ended, so far.
    pub flag: Flag,
    /// Whether mutual TLS carries it.
    pub mutual_tls: bool,
}

impl From<LabelParts<'_>> for TrafficLabels {
    fn from(parts: LabelParts<'_>) -> Self {
        // Names are moved where they can be: each further clone is a write to what all workers share.
        let text = |name: Option<Str>| Text::from(name);
        let source = parts.source;
        let destination = parts.destination.map(|workload| Party::from(workload.as_ref())).unwrap_or_default();
        Self {
            reporter: Word(parts.direction.reporter()),
            source_workload: text(source.workload),
            source_canonical_service: Text::from(source.canonical_service.as_ref()),
            source_canonical_revision: Text::from(source.canonical_revision.as_ref()),
            source_workload_namespace: text(source.namespace),
            source_principal: parts.source_identity.into(),
            source_app: text(source.canonical_service),
            source_version: text(source.canonical_revision),
            source_cluster: text(source.cluster),
            destination_service: Text::from(parts.service.map(|service| &service.key.hostname)),
            destination_service_namespace: Text::from(parts.service.map(|service| &service.key.namespace)),
            destination_service_name: Text::from(parts.service.map(|service| &service.name)),
            destination_workload: text(destination.workload),
            destination_canonical_service: Text::from(destination.canonical_service.as_ref()),
            destination_canonical_revision: Text::from(destination.canonical_revision.as_ref()),
            destination_workload_namespace: text(destination.namespace),
            destination_principal: parts.destination.map(|workload| workload.identity()).into(),
            destination_app: text(destination.canonical_service),
            destination_version: text(destination.canonical_revision),
            destination_cluster: text(destination.cluster),
            request_protocol: Word("tcp"),
            response_flags: Word(parts.flag.as_str()),
            connection_security_policy: Word(if parts.mutual_tls { "mutual_tls" } else { "unknown" }),
            source_region: text(source.region),
            source_zone: text(source.zone),
            destination_region: text(destination.region),
            destination_zone: text(destination.zone),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::{counter::Counter, family::Family};
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::testing;

    const ORDER: [&str; 27] = [
        "reporter",
        "source_workload",
        "source_canonical_service",
        "source_canonical_revision",
        "source_workload_namespace",
        "source_principal",
        "source_app",
        "source_version",
        "source_cluster",
        "destination_service",
        "destination_service_namespace",
        "destination_service_name",
        "destination_workload",
        "destination_canonical_service",
        "destination_canonical_revision",
        "destination_workload_namespace",
        "destination_principal",
        "destination_app",
        "destination_version",
        "destination_cluster",
        "request_protocol",
        "response_flags",
        "connection_security_policy",
        "source_region",
        "source_zone",
        "destination_region",
        "destination_zone",
    ];

    fn encoded(labels: TrafficLabels) -> Vec<(String, String)> {
        let family = Family::<TrafficLabels, Counter>::default();
        family.get_or_create(&labels).inc();
        let mut registry = Registry::default();
        registry.register("x", "x", family);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = text.lines().find(|line| line.starts_with("x_total")).unwrap();
        let inside = &line[line.find('{').unwrap() + 1..line.rfind('}').unwrap()];
        inside
            .split("\",")
            .map(|pair| pair.split_once("=\"").unwrap())
            .map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned()))
            .collect()
    }

    #[test]
    fn the_27_labels_come_in_istios_order() {
        let labels = TrafficLabels::from(LabelParts {
            direction: Direction::Outbound,
            source: Party::default(),
            source_identity: None,
            destination: None,
            service: None,
            flag: Flag::None,
            mutual_tls: false,
        });
        let encoded = encoded(labels);
        assert_eq!(encoded.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ORDER);
    }

    #[test]
    fn what_is_absent_reads_unknown() {
        let labels = TrafficLabels::from(LabelParts {
            direction: Direction::Inbound,
            source: Party::default(),
            source_identity: None,
            destination: None,
            service: None,
            flag: Flag::Deny,
            mutual_tls: false,
        });
        for (key, value) in encoded(labels) {
            let expected = match key.as_str() {
                "reporter" => "destination",
                "request_protocol" => "tcp",
                "response_flags" => "DENY",
                _ => "unknown",
            };
            assert_eq!(value, expected, "{key}");
        }
    }

    #[test]
    fn principals_carry_the_scheme_and_the_destinations_comes_from_the_workload() {
        let destination = Arc::new(testing::workload("shop", "details-1", [10, 0, 0, 2]));
        let source = testing::workload("shop", "page-1", [10, 0, 0, 1]);
        let labels = TrafficLabels::from(LabelParts {
            direction: Direction::Inbound,
            source: Party::from(&source),
            source_identity: Some(source.identity()),
            destination: Some(&destination),
            service: None,
            flag: Flag::None,
            mutual_tls: true,
        });
        let encoded = encoded(labels);
        let value = |name: &str| encoded.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!(value("source_principal"), "spiffe://cluster.local/ns/shop/sa/page");
        assert_eq!(value("destination_principal"), "spiffe://cluster.local/ns/shop/sa/details");
        assert_eq!(value("connection_security_policy"), "mutual_tls");
        assert_eq!(value("source_app"), "page");
    }
}
