//! How both ends of what is carried are called in telemetry, and values of labels.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use stillmesh_core::model::{Identity, Str, Workload};
use stillmesh_hbone::headers::Baggage;

/// A label's value; absent and empty ones read `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Text(Option<Str>);

impl Text {
    /// What an absent value reads as.
    pub const UNKNOWN: &'static str = "unknown";

    /// What values read when there is no place for more of them ([`crate::series`]).
    pub fn overflow() -> Self {
        Self(Some(OVERFLOW.into()))
    }

    /// The value as written.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or(Self::UNKNOWN)
    }
}

impl From<&Str> for Text {
    fn from(text: &Str) -> Self {
        Self((!text.is_empty()).then(|| text.clone()))
    }
}

impl From<Option<&Str>> for Text {
    fn from(text: Option<&Str>) -> Self {
        text.map(Self::from).unwrap_or_default()
    }
}

impl From<Option<Str>> for Text {
    fn from(text: Option<Str>) -> Self {
        Self(text.filter(|text| !text.is_empty()))
    }
}

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// What values read that have no place within the budget of their metric.
const OVERFLOW: &str = "overflow";

/// A principal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Nobody proved one.
    #[default]
    Unknown,
    /// The identity, with `spiffe://`.
    Of(Identity),
    /// One of those that have no place ([`crate::series`]). No identity reads like this.
    Overflow,
}

impl From<Option<Identity>> for Principal {
    fn from(identity: Option<Identity>) -> Self {
        identity.map_or(Self::Unknown, Self::Of)
    }
}

impl EncodeLabelValue for Principal {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        match self {
            Self::Of(identity) => write!(encoder, "{identity}"),
            Self::Unknown => encoder.write_str(Text::UNKNOWN),
            Self::Overflow => encoder.write_str(OVERFLOW),
        }
    }
}

/// A value of a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word(pub &'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        encoder.write_str(self.0)
    }
}

/// What one end of a connection is called in telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    /// Name of the owner (a Deployment, say).
    pub workload: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// Canonical service.
    pub canonical_service: Option<Str>,
    /// Canonical revision.
    pub canonical_revision: Option<Str>,
    /// Cluster.
    pub cluster: Option<Str>,
    /// Region.
    pub region: Option<Str>,
    /// Zone.
    pub zone: Option<Str>,
}

impl From<&Workload> for Party {
    fn from(workload: &Workload) -> Self {
        Self {
            workload: Some(workload.workload_name.clone()),
            namespace: Some(workload.namespace.clone()),
            canonical_service: Some(workload.canonical_name.clone()),
            canonical_revision: Some(workload.canonical_revision.clone()),
            cluster: Some(workload.cluster.clone()),
            region: Some(workload.locality.region.clone()),
            zone: Some(workload.locality.zone.clone()),
        }
    }
}

/// Longest name taken from a peer, characters: as long as names of Kubernetes objects may be.
const LONGEST: usize = 253;

/// What a peer says of itself. Only names: its identity is in its certificate.
impl From<Baggage> for Party {
    fn from(baggage: Baggage) -> Self {
        let text = |text: Option<Str>| {
            text.map(
                |text| if text.len() <= LONGEST { text } else { text.chars().take(LONGEST).collect::<String>().into() },
            )
        };
        Self {
            workload: text(baggage.workload.map(|(_, name)| name)),
            namespace: text(baggage.namespace),
            canonical_service: text(baggage.service),
            canonical_revision: text(baggage.revision),
            cluster: text(baggage.cluster),
            region: text(baggage.region),
            zone: text(baggage.zone),
        }
    }
}

/// A workload as baggage tells of it (contract 3.2).
pub fn baggage(workload: &Workload) -> Baggage {
    let text = |text: &Str| (!text.is_empty()).then(|| text.clone());
    Baggage {
        cluster: text(&workload.cluster),
        namespace: text(&workload.namespace),
        workload: text(&workload.workload_name).map(|name| (workload.workload_type.as_str(), name)),
        service: text(&workload.canonical_name),
        revision: text(&workload.canonical_revision),
        region: text(&workload.locality.region),
        zone: text(&workload.locality.zone),
    }
}
