//! What rules ask of a request.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::PathPattern;
use crate::model::{ServiceAccountMatch, Str, StringMatch};

/// All clauses must hold; none holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RequestRule {
    /// One of all `from`, one of all `to`, one per `when`.
    pub clauses: Vec<RequestClause>,
}

/// Any alternative must hold; none never holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RequestClause {
    /// The alternatives.
    pub alternatives: Vec<Alternative>,
}

/// All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Alternative {
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// One attribute that is one of some values, or none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// One of them, or none.
    pub sense: Sense,
    /// The attribute and its values.
    pub wanted: Wanted,
}

/// Whether a list admits or excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Sense {
    /// One of the list.
    AnyOf,
    /// None of the list.
    NoneOf,
}

/// An attribute and the values that it is compared with. An attribute that a request has not is none of any values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Wanted {
    /// Namespace of the client's identity.
    Namespace(Vec<StringMatch>),
    /// The client's identity without `spiffe://`.
    Principal(Vec<StringMatch>),
    /// The client's service account, in any trust domain.
    ServiceAccount(Vec<ServiceAccountMatch>),
    /// Address of the client.
    SourceIp(Vec<IpNet>),
    /// Address of whom the client speaks for, where it is believed; else its own.
    RemoteIp(Vec<IpNet>),
    /// Address that was dialled.
    DestinationIp(Vec<IpNet>),
    /// Port that was dialled.
    DestinationPort(Vec<u16>),
    /// Server name of a TLS connection.
    ServerName(Vec<StringMatch>),
    /// `issuer/subject` of the request's token.
    RequestPrincipal(Vec<StringMatch>),
    /// `aud` of the request's token.
    Audience(Vec<StringMatch>),
    /// `azp` of the request's token.
    Presenter(Vec<StringMatch>),
    /// A claim of the request's token, a text or a list of texts.
    Claim {
        /// Its name, then names inside it.
        path: Vec<Str>,
        /// Its values.
        values: Vec<StringMatch>,
    },
    /// The `Host` or `:authority`, with its port where it has one. Its case does not count: the values are in lower case
    /// ([`Wanted::host`]).
    Host(Vec<StringMatch>),
    /// The method.
    Method(Vec<StringMatch>),
    /// The normalized path without its query.
    Path(Vec<PathPattern>),
    /// A header.
    Header {
        /// Its name, in lower case.
        name: Str,
        /// Its values; [`StringMatch::Presence`] holds for an empty one too.
        values: Vec<StringMatch>,
    },
}

impl Wanted {
    /// Hosts, whose case does not count.
    pub fn host(values: impl IntoIterator<Item = StringMatch>) -> Self {
        let lower = |text: Str| -> Str { text.to_ascii_lowercase().into() };
        let value = |value| match value {
            StringMatch::Exact(text) => StringMatch::Exact(lower(text)),
            StringMatch::Prefix(text) => StringMatch::Prefix(lower(text)),
            StringMatch::Suffix(text) => StringMatch::Suffix(lower(text)),
            StringMatch::Presence => StringMatch::Presence,
        };
        Self::Host(values.into_iter().map(value).collect())
    }

    /// A header, whose name has no case.
    pub fn header(name: &str, values: Vec<StringMatch>) -> Self {
        Self::Header { name: name.to_ascii_lowercase().into(), values }
    }

    /// Whether only a request has it: a connection that is no HTTP has not (contract 5.3).
    pub fn is_of_requests(&self) -> bool {
        match self {
            Self::Namespace(_)
            | Self::Principal(_)
            | Self::ServiceAccount(_)
            | Self::SourceIp(_)
            | Self::DestinationIp(_)
            | Self::DestinationPort(_)
            | Self::ServerName(_) => false,
            Self::RemoteIp(_)
            | Self::RequestPrincipal(_)
            | Self::Audience(_)
            | Self::Presenter(_)
            | Self::Claim { .. }
            | Self::Host(_)
            | Self::Method(_)
            | Self::Path(_)
            | Self::Header { .. } => true,
        }
    }

    /// What is compared, as explanations name it.
    pub fn attribute(&self) -> Str {
        let word = match self {
            Self::Namespace(_) => "namespace",
            Self::Principal(_) => "principal",
            Self::ServiceAccount(_) => "service_account",
            Self::SourceIp(_) => "source_ip",
            Self::RemoteIp(_) => "remote_ip",
            Self::DestinationIp(_) => "destination_ip",
            Self::DestinationPort(_) => "destination_port",
            Self::ServerName(_) => "server_name",
            Self::RequestPrincipal(_) => "request_principal",
            Self::Audience(_) => "audience",
            Self::Presenter(_) => "presenter",
            Self::Claim { path, .. } => return format!("claim {}", path.join(".")).into(),
            Self::Host(_) => "host",
            Self::Method(_) => "method",
            Self::Path(_) => "path",
            Self::Header { name, .. } => return format!("header {name}").into(),
        };
        word.into()
    }

    /// The values as text, in their order.
    pub fn values(&self) -> Vec<String> {
        fn texts<T: fmt::Display>(values: &[T]) -> Vec<String> {
            values.iter().map(ToString::to_string).collect()
        }
        match self {
            Self::Namespace(values)
            | Self::Principal(values)
            | Self::ServerName(values)
            | Self::RequestPrincipal(values)
            | Self::Audience(values)
            | Self::Presenter(values)
            | Self::Claim { values, .. }
            | Self::Host(values)
            | Self::Method(values)
            | Self::Header { values, .. } => texts(values),
            Self::ServiceAccount(values) => texts(values),
            Self::SourceIp(values) | Self::RemoteIp(values) | Self::DestinationIp(values) => texts(values),
            Self::DestinationPort(values) => texts(values),
            Self::Path(values) => texts(values),
        }
    }
}
