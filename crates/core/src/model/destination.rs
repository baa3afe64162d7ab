//! How a waypoint treats the endpoints of a service: Istio's DestinationRule (contract 7.4). One user's object is one value;
//! [`crate::snapshot`] joins those of a service.

use std::time::Duration;

use serde::Serialize;

use super::{PolicyKey, RoutingScope, ServiceKey, Str, WorkloadUid};

/// One DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// Primary key: namespace and name.
    pub key: PolicyKey,
    /// The services that its host names.
    pub services: Vec<ServiceKey>,
    /// How much of a hostname its host says, bytes; [`DestinationRule::WHOLE`] without a wildcard. Of several in one namespace
    /// those that say most count.
    pub exactness: u32,
    /// Whether it is the mesh's own (root namespace), and holds where neither the waypoint's nor the service's namespace has one.
    pub is_mesh_wide: bool,
    /// When it was created, seconds since 1970: the oldest counts where several say the same thing.
    pub created: i64,
    /// For all endpoints.
    pub traffic: Traffic,
    /// Named parts of the endpoints.
    pub subsets: Vec<Subset>,
}

impl DestinationRule {
    /// The exactness of a host without a wildcard.
    pub const WHOLE: u32 = u32::MAX;
}

/// A policy, and others for single ports of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// For ports that have none of their own.
    pub policy: TrafficPolicy,
    /// A port's own stands in place of the policy as a whole (Istio, `portLevelSettings`).
    pub ports: Vec<(u16, TrafficPolicy)>,
}

/// Some of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// By which routes name it.
    pub name: Str,
    /// Those that have its labels. Sorted.
    pub members: Vec<WorkloadUid>,
    /// Before what is said for all endpoints.
    pub traffic: Traffic,
}

/// How endpoints are treated. What is absent is as if nothing had been written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// How one is picked.
    pub balancing: Option<Balancing>,
    /// How much is sent to them at a time.
    pub limits: Option<ConnectionPool>,
    /// Which are left out for a while.
    pub outliers: Option<OutlierDetection>,
}

impl TrafficPolicy {
    /// What `other` says before what this one says.
    #[must_use]
    pub fn overridden(&self, other: &Self) -> Self {
        Self {
            balancing: other.balancing.clone().or_else(|| self.balancing.clone()),
            limits: other.limits.clone().or_else(|| self.limits.clone()),
            outliers: other.outliers.or(self.outliers),
        }
    }
}

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Balancing {
    /// Among those that are as good as each other.
    pub method: Method,
    /// How new ones begin.
    pub warm_up: Option<WarmUp>,
    /// By where they are; absent: nearer ones first where outliers are watched for.
    pub locality: Option<LocalityPolicy>,
}

/// How one of several endpoints is picked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// The one with fewer requests under way, of two taken at random.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// The same one for the same key, as long as it is there.
    ConsistentHash(HashKey),
    /// The address that the client dialled.
    Passthrough,
}

/// What of a request decides about its endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HashKey {
    /// A header; its name in lower case.
    Header(Str),
    /// A cookie.
    Cookie(HashCookie),
    /// The client's address.
    SourceAddress,
    /// A parameter of the query.
    Query(Str),
}

/// A cookie that decides about a request's endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HashCookie {
    /// Its name.
    pub name: Str,
    /// The path that it is set for.
    pub path: Option<Str>,
    /// How long one lives that the waypoint sets where the client has none; zero: as long as the client's session; absent: none is set.
    pub ttl: Option<Duration>,
}

/// How a new endpoint comes to its share: from the least part it grows with time (Envoy, «slow start»).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WarmUp {
    /// Until it has all of it.
    pub duration: Duration,
    /// What it begins with, parts of a hundred, at most 100.
    pub least_percent: u32,
    /// Thousandths: 1000 grows evenly, more grows faster at the beginning. Never 0.
    pub aggression: u32,
}

/// By where endpoints are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalityPolicy {
    /// Does not matter.
    Ignored,
    /// Shares by place: the first whose `from` is where the waypoint is; none: as if nothing had been written.
    Distribute(Vec<Distribution>),
    /// The waypoint's place first; when a region fails, another one before all others: pairs of both.
    Failover(Vec<(Str, Str)>),
    /// As many of these, from the first on, as an endpoint has in common with the waypoint.
    Priority(Vec<RoutingScope>),
}

/// How what comes from one place is shared among places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    /// From where.
    pub from: Place,
    /// To where, with weights beside each other.
    pub to: Vec<(Place, u32)>,
}

/// A place as it is written: `region/zone/subzone`; what is absent, or `*`, is anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Region.
    pub region: Option<Str>,
    /// Zone.
    pub zone: Option<Str>,
    /// Subzone.
    pub subzone: Option<Str>,
}

/// How much is sent to a service's endpoints at a time (Istio, `connectionPool`). Absent: no bound but the waypoint's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionPool {
    /// TCP connections, and HTTP/1.1 requests, each of which has one.
    pub connections: Option<u32>,
    /// HTTP/1.1 requests that wait for one.
    pub pending: Option<u32>,
    /// Requests.
    pub requests: Option<u32>,
    /// Requests that are retries.
    pub retries: Option<u32>,
    /// Requests that one connection carries before it is closed.
    pub requests_per_connection: Option<u32>,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: Option<u32>,
    /// How long connecting may take.
    pub connect_timeout: Option<Duration>,
    /// How long a connection for HTTP may be without requests; zero: as long as it lives.
    pub http_idle: Option<Duration>,
    /// How long nothing may pass on a TCP connection; zero: for ever.
    pub tcp_idle: Option<Duration>,
    /// How long a connection lives.
    pub age: Option<Duration>,
    /// The HTTP version that endpoints are spoken to in.
    pub version: EndpointVersion,
}

/// The HTTP version that endpoints are spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointVersion {
    /// As the port says, else the client's.
    #[default]
    OfPort,
    /// HTTP/2 for HTTP/1.1 requests too.
    Two,
    /// The client's, whatever the port says.
    OfClient,
}

/// When an endpoint is left out for a while (Istio, `outlierDetection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// After so many answers in a row with 5xx; 0: never.
    pub consecutive_5xx: u32,
    /// After so many with 502, 503 or 504; 0: never.
    pub consecutive_gateway: u32,
    /// After so many tries without an answer, which then are no 5xx; absent: they count as 5xx.
    pub consecutive_local: Option<u32>,
    /// How often it is looked whether somebody may come back.
    pub interval: Duration,
    /// How long the first time; the second time it is twice that, and so on.
    pub base_ejection: Duration,
    /// Of a hundred endpoints, at most so many at a time; one in any case, unless 0.
    pub most_percent: u32,
    /// With fewer than so many of a hundred left, nobody counts as left out.
    pub least_healthy_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            most_percent: 10,
            least_healthy_percent: 0,
        }
    }
}
