//! Connections that a waypoint carries as they are: rules of Gateway API's TLSRoute and TCPRoute and of Istio's
//! VirtualService (contract 7.4), in one form. [`crate::decide::stream`] orders them.

use serde::Serialize;

use super::Str;
use super::http::RouteBackend;

/// Where connections go that one of its matches describes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamRule {
    /// Its name, where it has one.
    pub name: Option<Str>,
    /// Any of them must hold; none: every connection.
    pub matches: Vec<StreamMatch>,
    /// One is chosen by weight; without any, or where the weights add up to nothing, the connection is refused.
    pub backends: Vec<StreamBackend>,
}

/// What is asked of a connection: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamMatch {
    /// It is TLS, and its client asks for one of these; empty: TLS or not.
    pub server_names: Vec<ServerName>,
    /// The port that was dialled.
    pub port: Option<u16>,
}

/// Names that a client of TLS may ask for (server name indication, RFC 6066 section 3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ServerName {
    /// This one. In lower case.
    Exact(Str),
    /// Everything that ends so, with a label or more before: `.example.com` for `*.example.com`. In lower case.
    Suffix(Str),
    /// Whatever it is, and none at all.
    Any,
}

impl ServerName {
    /// As users write it: `*`, `*.example.com` or a name.
    pub fn read(text: &str) -> Self {
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.to_ascii_lowercase().into()),
            None => Self::Exact(text.to_ascii_lowercase().into()),
        }
    }

    /// Whether a client means it that asks for `name`, which is in lower case.
    pub fn holds(&self, name: Option<&str>) -> bool {
        match (self, name) {
            (Self::Any, _) => true,
            (Self::Exact(known), Some(name)) => **known == *name,
            (Self::Suffix(suffix), Some(name)) => name.len() > suffix.len() && name.ends_with(&**suffix),
            (Self::Exact(_) | Self::Suffix(_), None) => false,
        }
    }

    /// How much it says, for the order in which names are asked: whole ones first, then the longest ends.
    pub fn standing(&self) -> (u8, usize) {
        match self {
            Self::Exact(name) => (2, name.len()),
            Self::Suffix(suffix) => (1, suffix.len()),
            Self::Any => (0, 0),
        }
    }
}

/// A backend with its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamBackend {
    /// The backend.
    pub backend: RouteBackend,
    /// Its share, beside the others' weights.
    pub weight: u32,
}
