//! What is asked: the attributes of one connection. Everything a decision needs is in here or in the snapshot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::decide::Target;
use crate::model::{Identity, Str, Workload, WorkloadUid};

/// A connection that a captured workload opens.
#[derive(Clone, Debug)]
pub struct OutboundAttrs<'a> {
    /// The workload that opens it, known from its network namespace, never from its address.
    pub source: &'a Workload,
    /// Where the application wanted to go.
    pub destination: SocketAddr,
    /// Uniform random bits for this attempt: core has no randomness of its own.
    pub entropy: u64,
    /// Endpoints that already failed for this connection: not picked again while others remain.
    pub tried: &'a [WorkloadUid],
}

/// A connection that arrives for a captured workload, over HBONE or in the clear.
#[derive(Clone, Debug)]
pub struct InboundAttrs<'a> {
    /// The workload it arrives at, known from its network namespace.
    pub destination: &'a Workload,
    /// Address and target port that the application would be reached at: what policies compare.
    pub upstream: SocketAddr,
    /// Address of the TCP peer.
    pub source_ip: IpAddr,
    /// Identity from the peer's certificate; `None` in the clear.
    pub source_identity: Option<&'a Identity>,
}

/// What an HBONE peer asks for: the CONNECT's `:authority`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port`.
    Address(SocketAddr),
    /// `hostname:port`.
    Name(Str, u16),
}

impl fmt::Display for Authority {
    /// As it stands in the CONNECT: `ip:port`, IPv6 in brackets, or `hostname:port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// An HTTP request that arrives at a waypoint.
#[derive(Clone, Copy)]
pub struct RequestAttrs<'a> {
    /// Its method.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// `Host` or `:authority`, as it came.
    pub authority: &'a str,
    /// The path without the query.
    pub path: &'a str,
    /// The query, without its `?`.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a dyn Headers,
    /// The port of the service that was dialled.
    pub port: u16,
    /// Its token, verified.
    pub token: Option<&'a Token>,
}

/// A connection that arrives at a waypoint and is carried as it is.
#[derive(Clone, Copy, Debug)]
pub struct StreamAttrs<'a> {
    /// What was dialled.
    pub target: &'a Target,
    /// The client's namespace, by its certificate.
    pub client_namespace: &'a str,
    /// How its client begins.
    pub opening: Opening<'a>,
    /// Uniform random bits for this connection.
    pub entropy: u64,
}

/// How a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening<'a> {
    /// With anything, or not at all.
    Bytes,
    /// With TLS, asking for this name, in lower case.
    Tls(Option<&'a str>),
}

/// A request's headers, however they are held.
pub trait Headers {
    /// The value of a header, by its name in lower case; several of one name joined by commas (RFC 9110 section 5.3).
    /// `None` where there is none, or where it is no text.
    fn value(&self, name: &str) -> Option<Cow<'_, str>>;

    /// The values of a header that comes more than once, line by line; empty for any other. Policies ask for them.
    fn lines(&self, name: &str) -> Vec<Cow<'_, str>> {
        let _ = name;
        Vec::new()
    }
}

/// A request, or a connection that is no HTTP, that asks to pass a waypoint.
#[derive(Clone, Copy)]
pub struct AccessAttrs<'a> {
    /// The waypoint's own workload.
    pub waypoint: &'a Workload,
    /// What was dialled.
    pub target: &'a Target,
    /// The client, by its certificate.
    pub source_identity: Option<&'a Identity>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The address of whom the client speaks for, where it is believed; else its own.
    pub remote_ip: IpAddr,
    /// Server name of a TLS connection.
    pub server_name: Option<&'a str>,
    /// The request, its path normalized. `None`: a connection that is no HTTP.
    pub request: Option<&'a RequestAttrs<'a>>,
    /// The request's token, verified.
    pub token: Option<&'a Token>,
}

/// What a verified token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    claims: BTreeMap<Str, Claim>,
    principal: Option<String>,
}

/// What a claim is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A text.
    Text(Str),
    /// A list; what of it is no text is left out.
    List(Vec<Str>),
    /// Claims in it.
    Object(BTreeMap<Str, Claim>),
    /// Something that is never compared: a number, a truth value.
    Other,
}

impl Token {
    /// A token with these claims.
    pub fn new(claims: BTreeMap<Str, Claim>) -> Self {
        let text = |name: &str| match claims.get(name) {
            Some(Claim::Text(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        let principal = text("iss").zip(text("sub")).map(|(issuer, subject)| format!("{issuer}/{subject}"));
        Self { claims, principal }
    }

    /// `issuer/subject`, where it has both.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// The texts of a claim. `scope` and `permission` are lists with spaces between (RFC 8693 section 4.2).
    pub fn texts(&self, path: &[Str]) -> Vec<&str> {
        let Some((first, inner)) = path.split_first() else { return Vec::new() };
        let mut found = self.claims.get(first);
        for name in inner {
            found = match found {
                Some(Claim::Object(claims)) => claims.get(name),
                _ => None,
            };
        }
        match found {
            Some(Claim::Text(text)) if inner.is_empty() && matches!(&**first, "scope" | "permission") => {
                text.split(' ').filter(|one| !one.is_empty()).collect()
            }
            Some(Claim::Text(text)) => vec![text],
            Some(Claim::List(texts)) => texts.iter().map(|text| &**text).collect(),
            Some(Claim::Object(_) | Claim::Other) | None => Vec::new(),
        }
    }
}

/// An HBONE CONNECT that arrives for a captured workload.
#[derive(Clone, Debug)]
pub struct ConnectAttrs<'a> {
    /// The workload it arrives at.
    pub destination: &'a Workload,
    /// The address that the peer dialled (the workload's own).
    pub local_ip: IpAddr,
    /// What it asks for.
    pub authority: &'a Authority,
}
