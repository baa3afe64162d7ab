//! The labels of the waypoint's metrics (contract 9.2), and how they come from the two ends. Pure.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::Arc;

use prometheus_client::encoding::{
    EncodeLabelKey, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};
use stillmesh_core::model::{Service, Str, Workload};
use stillmesh_proxy::labels::{Party, Principal, Text, Word};
use stillmesh_proxy::series::Labels;

use super::Flags;
use crate::capture::Downstream;

/// The two ends, as every metric names them. The order of the fields is the order on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct RequestLabels {
    pub ends: Ends,
    pub request_protocol: Word,
    pub response_code: u16,
    pub grpc_response_status: String,
    pub response_flags: Flags,
}

/// Of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the labels' names")]
pub struct TcpLabels {
    pub ends: Ends,
    pub request_protocol: Word,
    pub response_flags: Flags,
}

/// Labels with their names, in the order on the wire.
pub trait Named: Clone + Debug + Eq + Hash + Send + Sync + 'static {
    /// Shows each to `see`, until it fails.
    fn each(&self, see: &mut See<'_>) -> fmt::Result;
}

/// Takes a label's name and value.
pub type See<'a> = dyn FnMut(&'static str, &dyn Encoded) -> fmt::Result + 'a;

/// A label's value, whatever its type.
pub trait Encoded {
    /// Writes it.
    fn write(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result;
}

impl<T: EncodeLabelValue> Encoded for T {
    fn write(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.encode(encoder)
    }
}

macro_rules! named {
    ($type:ident: $($inner:ident)? [$($field:ident)+]) => {
        impl Named for $type {
            fn each(&self, see: &mut See<'_>) -> fmt::Result {
                $(self.$inner.each(see)?;)?
                $(see(stringify!($field), &self.$field)?;)+
                Ok(())
            }
        }
    };
}

named!(Ends: [
    reporter source_workload source_canonical_service source_canonical_revision source_workload_namespace
    source_principal source_app source_version source_cluster destination_service destination_service_namespace
    destination_service_name destination_workload destination_canonical_service destination_canonical_revision
    destination_workload_namespace destination_principal destination_app destination_version destination_cluster
    connection_security_policy
]);
named!(RequestLabels: ends [request_protocol response_code grpc_response_status response_flags]);
named!(TcpLabels: ends [request_protocol response_flags]);

/// Labels that users give another value, or (`None`) leave out; those that are not there otherwise come last.
pub type Tags = BTreeMap<Str, Option<Str>>;

/// Labels as users changed them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edited<L> {
    /// As they are.
    pub labels: L,
    /// What of them is otherwise.
    pub tags: Option<Arc<Tags>>,
}

impl<L> From<L> for Edited<L> {
    fn from(labels: L) -> Self {
        Self { labels, tags: None }
    }
}

impl<L: Named> EncodeLabelSet for Edited<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut seen: Vec<&'static str> = Vec::new();
        let changed = |name: &str| self.tags.as_ref().and_then(|tags| tags.get(name));
        self.labels.each(&mut |name, value| match changed(name) {
            None => put(encoder, name, value),
            Some(other) => {
                seen.push(name);
                other.as_ref().map_or(Ok(()), |other| put(encoder, name, &&**other))
            }
        })?;
        let more = self.tags.iter().flat_map(|tags| tags.iter()).filter(|(name, _)| !seen.contains(&&***name));
        for (name, value) in more {
            if let Some(value) = value {
                put(encoder, name, &&**value)?;
            }
        }
        Ok(())
    }
}

fn put(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &dyn Encoded) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    EncodeLabelKey::encode(&name, &mut key)?;
    let mut written = key.encode_label_value()?;
    value.write(&mut written)?;
    written.finish()
}

impl<L: Named + Overflow> Labels for Edited<L> {
    fn overflow(&self) -> Self {
        let hidden = |tags: &Arc<Tags>| {
            let one =
                |(name, value): (&Str, &Option<Str>)| (name.clone(), value.as_ref().map(|_| Str::from("overflow")));
            Arc::new(tags.iter().map(one).collect())
        };
        Self { labels: self.labels.overflow(), tags: self.tags.as_ref().map(hidden) }
    }
}

/// What labels are counted as when the budget is used up.
pub trait Overflow {
    /// Every value that is not of a small closed set is `overflow`.
    #[must_use]
    fn overflow(&self) -> Self;
}

impl Overflow for Ends {
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

impl Overflow for RequestLabels {
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

impl Overflow for TcpLabels {
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
