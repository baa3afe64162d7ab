//! What is kept of a request or connection for whoever asks why. A request's record has the trace of the CONNECT that
//! brought it and of the one that carried it on, so that both ways lead on from it.

use std::hash::{BuildHasher as _, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, mem};

use foldhash::fast::FixedState;
use http::Method;
use stillmesh_core::Diagnose as _;
use stillmesh_core::attrs::Authority;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::http::{HttpRoute, RouteKey};
use stillmesh_core::model::{Service, Workload};
use stillmesh_proxy::decisions::{because, microseconds, now_us, short_microseconds};
use stillmesh_records::{Address, Draft, Field, Hop, LONGEST_NAME, Record, Shape, shortened};

use super::Early;
use super::connection::Connection;
use super::flags::Flags;
use super::judged::Judged;
use super::request::Request;
use crate::capture::Client;
use crate::path::PathError;
use crate::waypoint::Waypoint;

/// The code of what a route decided.
const ROUTED: &str = "ROUTED";
/// The code of what went where it was dialled, no route being attached.
const CARRIED: &str = "CARRIED";

/// One of a route's rules.
#[derive(Clone, Debug)]
pub struct Rule {
    route: Arc<HttpRoute>,
    index: usize,
}

impl Rule {
    /// The route's rule of this number, from 0 on.
    pub fn new((route, index): &(Arc<HttpRoute>, usize)) -> Self {
        Self { route: route.clone(), index: *index }
    }

    /// As Istio names it: `namespace.name.index`.
    pub fn dotted(&self) -> String {
        let RouteKey { namespace, name, .. } = &self.route.key;
        format!("{namespace}.{name}.{}", self.index)
    }

    fn write(&self, draft: &mut Draft) {
        draft.record.reason = ROUTED;
        let rule = self.to_string();
        draft.name_str(Field::Because, &format!("taken by {rule}"));
        draft.name_str(Field::Object, &rule);
    }

    /// Whether both are the same rule of the same route, as it was at one time.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.route, &other.route) && self.index == other.index
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, rule {}", self.route.key, self.index)
    }
}

/// What was decided.
#[derive(Clone, Debug)]
pub enum Why {
    /// Core said so.
    Reason(Reason),
    /// A route took it.
    Route(Rule),
    /// It failed otherwise.
    Failure {
        /// Stable code.
        code: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl Why {
    /// Core said so.
    pub fn of_reason(reason: &Reason) -> Self {
        Self::Reason(reason.clone())
    }

    /// It failed.
    pub fn of_error(error: &PathError) -> Self {
        match error.reason() {
            Some(reason) => Self::Reason(reason.clone()),
            None => Self::Failure { code: error.code(), remedy: error.remedy() },
        }
    }

    fn write(&self, draft: &mut Draft) {
        match self {
            Self::Reason(reason) => because(draft, reason),
            Self::Route(rule) => rule.write(draft),
            Self::Failure { code, remedy } => {
                draft.record.reason = code;
                draft.record.remedy = remedy;
            }
        }
    }
}

/// Where the requests of one CONNECT come from, as records have it.
#[derive(Debug)]
pub struct Origin {
    trace: u128,
    client: Address,
    dialled: Address,
    source: Option<Arc<Workload>>,
    address: String,
    identity: String,
    authority: String,
    /// Of its texts.
    hash: u64,
}

impl Origin {
    /// Of a client's CONNECT of this trace; `source` is its workload, where it is known for sure.
    pub fn new(client: &Client, trace: u128, source: Option<Arc<Workload>>, authority: &Authority) -> Self {
        let (identity, authority) = (client.identity.to_string(), authority.to_string());
        Self {
            trace,
            client: client.address.into(),
            dialled: client.local.into(),
            source,
            address: client.address.to_string(),
            hash: FixedState::default().hash_one((&identity, &authority)),
            identity,
            authority,
        }
    }

    /// The CONNECT's trace, which the client's ztunnel knows it by.
    pub fn trace(&self) -> u128 {
        self.trace
    }

    /// The client's address and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The client's identity.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What the CONNECT asked for.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    fn record(&self, hop: Hop, at_us: u64) -> Record {
        Record {
            at_us,
            id: self.trace,
            hop,
            is_tunnelled: true,
            source: self.client,
            original: self.dialled,
            ..Record::default()
        }
    }

    /// Whether records of both have the same texts.
    fn is_like(&self, other: &Self) -> bool {
        is_same(self.source.as_ref(), other.source.as_ref())
            && self.hash == other.hash
            && self.identity == other.identity
            && self.authority == other.authority
    }

    fn write(&self, draft: &mut Draft) {
        if let Some(source) = &self.source {
            draft.name_str(Field::Source, &source.uid.0);
        }
        draft.name_str(Field::SourceIdentity, &self.identity);
        draft.name_str(Field::Authority, &self.authority);
    }
}

/// A request that has ended, before its record is written. It holds nothing that its client waits for, and little: it goes from one
/// processor's cache to another's.
#[derive(Debug)]
pub(super) struct Ended {
    ended: Instant,
    id: u128,
    next: u128,
    received: u64,
    sent: u64,
    total_us: u64,
    decide_us: u32,
    open_us: u32,
    upstream: Address,
    status: u16,
    retries: u16,
    grpc: u8,
    is_refused: bool,
    flags: Flags,
    /// How many bytes its host and its path have.
    host_length: u16,
    path_length: u16,
    method: Method,
    origin: Arc<Origin>,
    service: Option<Arc<Service>>,
    endpoint: Option<Arc<Workload>>,
    rule: Option<Rule>,
    unusual: Option<Box<Unusual>>,
}

/// What few requests have.
#[derive(Debug)]
struct Unusual {
    error: Option<String>,
    /// What else decided than a rule.
    why: Option<Why>,
    /// What its client was told; 0: nothing.
    decision: u64,
}

/// Host and path of a request that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Texts<'a> {
    pub(super) host: &'a str,
    pub(super) path: &'a str,
}

impl Ended {
    /// Takes out of a request what its record is written of.
    fn of(request: &mut Request, total: Duration, flags: Flags) -> Self {
        let denied = denied(request.judged.as_ref());
        let is_stopped = matches!(&request.why, Some(Why::Reason(reason)) if reason.is_refusal());
        let is_refused =
            denied.is_some() || is_stopped || (request.error.is_some() && request.answered_after.is_none());
        let decision =
            denied.and_then(|judged| u64::from_str_radix(judged.id.as_deref()?, 16).ok()).unwrap_or_default();
        let (rule, why) = match denied.map(|judged| Why::of_reason(&judged.reason)).or_else(|| request.why.take()) {
            Some(Why::Route(rule)) => (Some(rule), None),
            why => (None, why),
        };
        let error = request.error.take();
        let is_unusual = why.is_some() || error.is_some();
        let method = mem::take(&mut request.method);
        let is_cut = method.as_str().len() > LONGEST_NAME;
        let cut = || Method::from_bytes(shortened(method.as_str()).as_bytes()).unwrap_or_default();
        Self {
            ended: (request.began + total).into_std(),
            id: request.id.number(),
            next: request.carried,
            received: request.received.bytes(),
            sent: request.sent,
            total_us: microseconds(total),
            decide_us: short_microseconds(request.decided),
            open_us: request.answered_after.map_or(0, short_microseconds),
            upstream: request.upstream.map(Into::into).unwrap_or_default(),
            status: request.status.map_or(0, |status| status.as_u16()),
            retries: request.retries,
            grpc: request.grpc_status.map_or(0, |status| status.saturating_add(1)),
            is_refused,
            flags,
            host_length: 0,
            path_length: 0,
            method: if is_cut { cut() } else { method },
            origin: request.downstream.origin.clone(),
            service: request.service.take(),
            endpoint: request.endpoint.take(),
            rule,
            unusual: is_unusual.then(|| Box::new(Unusual { error, why, decision })),
        }
    }

    /// Its numbers.
    pub(super) fn record(&self, clock: Clock) -> Record {
        Record {
            request: self.id,
            next: self.next,
            received: self.received,
            sent: self.sent,
            total_us: self.total_us,
            decide_us: self.decide_us,
            open_us: self.open_us,
            upstream: self.upstream,
            status: self.status,
            retries: self.retries,
            grpc: self.grpc,
            is_refused: self.is_refused,
            decision: self.unusual.as_ref().map_or(0, |unusual| unusual.decision),
            ..self.origin.record(Hop::Request, clock.us(self.ended))
        }
    }

    /// Puts its texts, as much as records keep of them, to those of others that wait.
    pub(super) fn put_texts(&mut self, of: Texts<'_>, texts: &mut String) {
        let put = |text: &str| {
            let text = shortened(text);
            texts.push_str(text);
            u16::try_from(text.len()).unwrap_or_default()
        };
        [self.host_length, self.path_length] = [of.host, of.path].map(put);
    }

    /// Its texts, which `texts` begins with; they are taken away.
    pub(super) fn take_texts<'a>(&self, texts: &mut &'a str) -> Texts<'a> {
        let mut take = |length: u16| {
            let (text, rest) = texts.split_at_checked(length.into()).unwrap_or_default();
            *texts = rest;
            text
        };
        Texts { host: take(self.host_length), path: take(self.path_length) }
    }

    /// Its shape, by way of a draft; `record` is its numbers.
    pub(super) fn shape(&self, record: Record, host: &str, draft: &mut Draft) -> Shape {
        draft.begin(record);
        self.origin.write(draft);
        draft.name_some(Field::Service, self.service.as_ref().map(|service| &service.key));
        if let Some(endpoint) = &self.endpoint {
            draft.name_str(Field::Endpoint, &endpoint.uid.0);
        }
        draft.name_str(Field::Method, self.method.as_str());
        draft.name_str(Field::Host, host);
        draft.name(Field::Flags, self.flags);
        let unusual = self.unusual.as_ref();
        draft.name_some(Field::Error, unusual.and_then(|unusual| unusual.error.as_ref()));
        match (&self.rule, unusual.and_then(|unusual| unusual.why.as_ref())) {
            (Some(rule), _) => rule.write(draft),
            (None, Some(why)) => why.write(draft),
            (None, None) => carried(draft),
        }
        Shape::of(draft)
    }

    /// Whether others are likely to be like it.
    pub(super) fn is_usual(&self) -> bool {
        self.unusual.is_none()
    }

    /// Whether both have one shape, their hosts being the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.unusual.is_none()
            && other.unusual.is_none()
            && self.flags == other.flags
            && self.is_refused == other.is_refused
            && self.upstream == other.upstream
            && is_same(self.service.as_ref(), other.service.as_ref())
            && is_same(self.endpoint.as_ref(), other.endpoint.as_ref())
            && (Arc::ptr_eq(&self.origin, &other.origin) || self.origin.is_like(&other.origin))
            && self.method == other.method
            && match (&self.rule, &other.rule) {
                (None, None) => true,
                (Some(one), Some(other)) => one.is_same(other),
                _ => false,
            }
    }
}

/// What is alike has one hash; it need not be otherwise. Hosts are left out.
impl Hash for Ended {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.service.as_ref().map(Arc::as_ptr).hash(state);
        self.endpoint.as_ref().map(Arc::as_ptr).hash(state);
        self.upstream.hash(state);
        self.origin.source.as_ref().map(Arc::as_ptr).hash(state);
        self.origin.hash.hash(state);
        self.method.hash(state);
        self.flags.hash(state);
        self.rule.as_ref().map(|rule| (Arc::as_ptr(&rule.route), rule.index)).hash(state);
    }
}

/// What time it was when something ended, told by when that was and what time it is now: one clock is read for many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    at: Instant,
    us: u64,
}

impl Clock {
    /// Of now.
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), us: now_us() }
    }

    /// Microseconds since 1970.
    fn us(self, then: Instant) -> u64 {
        self.us.saturating_sub(microseconds(self.at.saturating_duration_since(then)))
    }
}

/// Keeps a request that has ended.
pub(super) fn keep_request(request: &mut Request, total: Duration, flags: Flags) {
    if request.downstream.waypoint().records.is_on() {
        let ended = Ended::of(request, total, flags);
        let texts = Texts { host: &request.host, path: &request.path };
        request.downstream.waypoint().records.later(ended, texts);
    }
}

/// Keeps a connection that has ended.
pub(super) fn keep_connection(connection: &Connection, flags: Flags) {
    let waypoint = connection.downstream.waypoint();
    if !waypoint.records.is_on() {
        return;
    }
    let mut record = connection.downstream.origin.record(Hop::Connection, now_us());
    record.next = connection.carried;
    record.is_refused = connection.error.is_some() && connection.flow.is_none();
    record.retries = connection.retries;
    record.upstream = connection.upstream.map(Into::into).unwrap_or_default();
    record.open_us = connection.opened_after.map_or(0, short_microseconds);
    record.total_us = microseconds(connection.began.elapsed());
    (record.received, record.sent) = connection.flow.as_ref().map_or((0, 0), |flow| flow.bytes());
    let mut draft = Draft::new(record);
    connection.downstream.origin.write(&mut draft);
    draft.name_some(Field::Service, connection.service.as_ref().map(|service| &service.key));
    draft.name_some(Field::Endpoint, connection.endpoint.as_ref().map(|endpoint| &endpoint.uid));
    draft.name(Field::Flags, flags);
    draft.name_some(Field::Error, connection.error.as_ref());
    match &connection.why {
        Some(why) => why.write(&mut draft),
        None => carried(&mut draft),
    }
    waypoint.records.later_drafted(draft);
}

/// Keeps what was refused before much was known of it.
pub(super) fn keep_early(waypoint: &Waypoint, early: &Early<'_>, error: &PathError) {
    if !waypoint.records.is_on() || matches!(error, PathError::Serve(_)) {
        return;
    }
    let record = Record {
        at_us: now_us(),
        id: early.trace,
        hop: Hop::Connection,
        is_refused: true,
        is_tunnelled: true,
        source: early.client.map(Into::into).unwrap_or_default(),
        ..Record::default()
    };
    let mut draft = Draft::new(record);
    draft.name_some(Field::SourceIdentity, early.identity);
    draft.name_some(Field::Authority, early.authority);
    draft.name(Field::Flags, Flags::default().with(error.flag()));
    draft.name(Field::Error, error.text());
    Why::of_error(error).write(&mut draft);
    waypoint.records.later_drafted(draft);
}

/// What refused a request, if something did.
pub(super) fn denied(judged: Option<&Judged>) -> Option<&Judged> {
    judged.filter(|judged| !judged.allowed)
}

fn carried(draft: &mut Draft) {
    draft.record.reason = CARRIED;
    draft.name_str(Field::Because, "no route is attached: carried to what was dialled");
}

/// Whether it is the same object, or none both times.
fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}
