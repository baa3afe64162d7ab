//! What a route does with a request.

use std::num::NonZeroU16;
use std::time::Duration;

use serde::Serialize;

use super::{Substitution, TextMatch};
use crate::model::{ServiceKey, Str};

/// What happens to a request that a rule takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteAction {
    /// It goes to a backend.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The waypoint answers by itself.
    Respond(Respond),
}

/// A request goes to one of several backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// One is chosen by weight; without any, or where the weights add up to nothing, the answer is 500.
    pub backends: Vec<WeightedBackend>,
    /// What is written anew before it goes.
    pub rewrite: Rewrite,
    /// Who gets a copy.
    pub mirrors: Vec<Mirror>,
    /// From the whole request's arrival to the whole response; none: as long as it takes.
    pub timeout: Option<Duration>,
    /// When it is tried again; none: the default (contract 7.4).
    pub retry: Option<Retry>,
}

/// A backend with its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightedBackend {
    /// The backend.
    pub backend: RouteBackend,
    /// Its share, beside the others' weights.
    pub weight: u32,
    /// Edits of requests that go there.
    pub request_headers: HeaderEdit,
    /// Edits of its responses.
    pub response_headers: HeaderEdit,
    /// The authority that requests get that go there, in place of the rule's.
    pub authority: Option<Str>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteBackend {
    /// A port of a service.
    Service {
        /// The service.
        service: ServiceKey,
        /// Its port; none: the one that was dialled.
        port: Option<NonZeroU16>,
        /// Only endpoints of this subset (Istio).
        subset: Option<Str>,
    },
    /// What the route names is not there, or not permitted: its share of the requests is answered 500.
    Invalid {
        /// What is wrong, as in the route's status.
        problem: Str,
    },
}

/// Edits of headers: first what is removed, then what is set, then what is added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdit {
    /// In place of whatever is there. Names in lower case.
    pub set: Vec<(Str, Str)>,
    /// Beside whatever is there.
    pub add: Vec<(Str, Str)>,
    /// Taken away.
    pub remove: Vec<Str>,
}

impl HeaderEdit {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// What of a request is written anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// The `Host` or `:authority`.
    pub authority: Option<Str>,
    /// The path.
    pub path: Option<PathRewrite>,
}

/// What becomes of a path. The query stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// All of it.
    Full(Str),
    /// The part that the match names; where the match names no beginning of the path, all of it.
    Prefix(Str),
    /// Every place that an expression describes.
    Regex(Substitution),
}

/// The client is sent elsewhere. What is not set stays as it is in the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// The scheme.
    pub scheme: Option<Str>,
    /// The host.
    pub host: Option<Str>,
    /// The port.
    pub port: RedirectPort,
    /// The path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The port of a redirect. A port that the scheme means anyway is not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectPort {
    /// The scheme's own where the scheme is set, else the port that was dialled.
    #[default]
    Derived,
    /// The scheme's own.
    OfScheme,
    /// The one of the request's `Host` or `:authority`.
    OfRequest,
    /// This one.
    Number(NonZeroU16),
}

/// The waypoint's own answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Respond {
    /// Status code.
    pub status: u16,
    /// Body, as it is; sent as `text/plain` unless headers say otherwise.
    pub body: Str,
}

/// Parts of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Share(u32);

impl Share {
    /// All.
    pub const ALL: Self = Self(1_000_000);

    /// So many of a million; more is all.
    pub fn parts_per_million(parts: u32) -> Self {
        Self(parts.min(Self::ALL.0))
    }

    /// The parts of a million.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Somebody who gets a copy of requests. The copy's response is thrown away, and nobody waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// Who.
    pub backend: RouteBackend,
    /// Of how many requests.
    pub share: Share,
}

/// Failures on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// So many requests wait so long before they go on.
    pub delay: Option<(Duration, Share)>,
    /// So many requests are answered thus.
    pub abort: Option<(Abort, Share)>,
}

/// The answer to a request that fails on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Abort {
    /// With this status code.
    Http(u16),
    /// With this gRPC status.
    Grpc(u16),
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Further tries at most.
    pub attempts: u32,
    /// How long one try may take; none: the whole request's time.
    pub per_try: Option<Duration>,
    /// The shortest wait before a further try, which then grows; none: 25 ms.
    pub backoff: Option<Duration>,
    /// After which failures.
    pub on: Vec<RetryOn>,
}

/// A failure after which a request may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryOn {
    /// No connection came about.
    ConnectFailure,
    /// The endpoint refused the stream without looking at it.
    RefusedStream,
    /// A try ended without a response, however (Envoy's `reset`).
    Reset,
    /// A try took longer than it may.
    PerTryTimeout,
    /// 502, 503 or 504, or no response.
    GatewayError,
    /// Any 5xx, or no response.
    ServerError,
    /// 409.
    Conflict,
    /// This status.
    Status(u16),
    /// This gRPC status in the response's headers.
    Grpc(u16),
}

/// Answers to browsers that ask whether a page of another origin may do something (Fetch, section 3.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Origins that may.
    pub origins: Vec<TextMatch>,
    /// Methods that they may use.
    pub methods: Vec<Str>,
    /// Headers that they may send.
    pub headers: Vec<Str>,
    /// Headers that they may read.
    pub expose: Vec<Str>,
    /// How long the answer holds.
    pub max_age: Option<Duration>,
    /// Whether they may come with credentials.
    pub credentials: bool,
    /// Whether a question from an origin that may not goes to the endpoint, in place of an answer without permission (Istio,
    /// `unmatchedPreflights`).
    pub forward_unmatched: bool,
}
