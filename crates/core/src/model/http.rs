//! HTTP as a waypoint is told to treat it: routes, in one form for Gateway API's HTTPRoute and GRPCRoute and Istio's
//! VirtualService (contract 7.4). One user's object is one value; [`crate::decide::route`] joins and orders them. Rules for
//! connections that are no HTTP ([`super::stream`]) are in the same values: a VirtualService has both.

mod action;
mod matching;

use std::fmt;

pub use action::{
    Abort, Cors, Fault, Forward, HeaderEdit, Mirror, PathRewrite, Redirect, RedirectPort, Respond, Retry, RetryOn,
    Rewrite, RouteAction, RouteBackend, Share, WeightedBackend,
};
pub use matching::{
    ClaimMatch, HeaderMatch, InvalidPattern, PathMatch, Pattern, QueryMatch, RequestMatch, Substitution, TextMatch,
};
use serde::Serialize;

use super::stream::StreamRule;
use super::{ServiceKey, Str};

/// Names a route object: its kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RouteKey {
    /// What it is written as.
    pub kind: RouteKind,
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub name: Str,
}

impl fmt::Display for RouteKey {
    /// `HTTPRoute namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Which kind of object a route is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum RouteKind {
    /// Gateway API.
    #[serde(rename = "HTTPRoute")]
    Http,
    /// Gateway API.
    #[serde(rename = "GRPCRoute")]
    Grpc,
    /// Gateway API.
    #[serde(rename = "TLSRoute")]
    Tls,
    /// Gateway API.
    #[serde(rename = "TCPRoute")]
    Tcp,
    /// Istio.
    VirtualService,
}

impl RouteKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Http, Self::Grpc, Self::Tls, Self::Tcp, Self::VirtualService];

    /// The kind beside whose routes those of this kind are without effect on a port of a service: gRPC says more than HTTP,
    /// and TLS more than TCP (Gateway API, GEP-1294). A VirtualService stands beside all, after them.
    pub fn gives_way_to(self) -> Option<Self> {
        match self {
            Self::Http => Some(Self::Grpc),
            Self::Tcp => Some(Self::Tls),
            Self::Grpc | Self::Tls | Self::VirtualService => None,
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
            Self::VirtualService => "VirtualService",
        })
    }
}

/// One route object: rules for the requests of some services, and for connections that are no HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// Primary key.
    pub key: RouteKey,
    /// The services, by the port that was dialled.
    pub parents: Vec<RouteParent>,
    /// Only for clients of this namespace, whose own route it then is: it stands in place of the service's own routes
    /// (Gateway API, «consumer route»).
    pub consumer: Option<Str>,
    /// When it was created, seconds since 1970: the older of two equal ones counts.
    pub created: i64,
    /// The rules for requests.
    pub rules: Vec<RouteRule>,
    /// The rules for connections that are carried as they are.
    pub streams: Vec<StreamRule>,
}

impl HttpRoute {
    /// Whether it says what becomes of requests, be it that there are none for it.
    pub fn is_for_requests(&self) -> bool {
        match self.key.kind {
            RouteKind::Http | RouteKind::Grpc => true,
            RouteKind::Tls | RouteKind::Tcp => false,
            RouteKind::VirtualService => !self.rules.is_empty() || self.streams.is_empty(),
        }
    }

    /// Whether it says what becomes of connections that are no HTTP.
    pub fn is_for_streams(&self) -> bool {
        match self.key.kind {
            RouteKind::Http | RouteKind::Grpc => false,
            RouteKind::Tls | RouteKind::Tcp => true,
            RouteKind::VirtualService => !self.streams.is_empty(),
        }
    }
}

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteParent {
    /// The service that is dialled.
    pub service: ServiceKey,
    /// Only this port of it.
    pub port: Option<u16>,
}

/// What is done with requests that one of its matches describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// Its name, where it has one.
    pub name: Option<Str>,
    /// Any of them must hold; none: every request.
    pub matches: Vec<RequestMatch>,
    /// What happens.
    pub action: RouteAction,
    /// Edits of the request, before it is forwarded.
    pub request_headers: HeaderEdit,
    /// Edits of the response, whoever made it.
    pub response_headers: HeaderEdit,
    /// Delays and failures on purpose.
    pub fault: Option<Fault>,
    /// Answers to browsers that ask for permission.
    pub cors: Option<Cors>,
}
