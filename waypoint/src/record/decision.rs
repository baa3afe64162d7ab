//! What is kept of a request or connection for whoever asks why. A request's record has the trace of the CONNECT that
//! brought it and of the one that carried it on, so that both ways lead on from it.

use std::fmt;
use std::time::Duration;

use stillmesh_core::Diagnose as _;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::http::RouteKey;
use stillmesh_proxy::decisions::{because, microseconds, now_us, short_microseconds};
use stillmesh_records::{Draft, Field, Hop, Record};

use super::Early;
use super::connection::Connection;
use super::flags::Flags;
use super::judged::Judged;
use super::request::Request;
use crate::capture::Downstream;
use crate::path::PathError;
use crate::waypoint::Waypoint;

/// The code of what a route decided.
const ROUTED: &str = "ROUTED";
/// The code of what went where it was dialled, no route being attached.
const CARRIED: &str = "CARRIED";

/// One of a route's rules.
#[derive(Clone, Debug)]
pub struct Rule {
    route: RouteKey,
    index: usize,
}

impl Rule {
    /// The one at `index`, from 0 on.
    pub fn new(route: &RouteKey, index: usize) -> Self {
        Self { route: route.clone(), index }
    }

    /// As Istio names it: `namespace.name.index`.
    pub fn dotted(&self) -> String {
        format!("{}.{}.{}", self.route.namespace, self.route.name, self.index)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, rule {}", self.route, self.index)
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
            Self::Route(rule) => {
                draft.record.reason = ROUTED;
                draft.name(Field::Because, format_args!("taken by {rule}"));
                draft.name(Field::Object, rule);
            }
            Self::Failure { code, remedy } => {
                draft.record.reason = code;
                draft.record.remedy = remedy;
            }
        }
    }
}

/// Keeps a request that has ended.
pub(super) fn keep_request(request: &Request, total: Duration, flags: Flags) {
    let records = &request.downstream.waypoint().records;
    if !records.is_on() {
        return;
    }
    let judged = request.judged.as_ref();
    let denied = denied(judged);
    let mut record = of(&request.downstream, Hop::Request);
    record.request = request.id.to_str().ok().and_then(uuid).unwrap_or_default();
    record.decision = denied.and_then(|judged| u64::from_str_radix(judged.id.as_deref()?, 16).ok()).unwrap_or_default();
    record.next = request.carried;
    let is_stopped = matches!(&request.why, Some(Why::Reason(reason)) if reason.is_refusal());
    record.is_refused = denied.is_some() || is_stopped || (request.error.is_some() && request.answered_after.is_none());
    record.status = request.status.map_or(0, |status| status.as_u16());
    record.grpc = request.grpc_status.map_or(0, |status| status.saturating_add(1));
    record.retries = request.retries;
    record.upstream = request.upstream.map(Into::into).unwrap_or_default();
    record.decide_us = short_microseconds(request.decided);
    record.open_us = request.answered_after.map_or(0, short_microseconds);
    record.total_us = microseconds(total);
    record.received = request.received.bytes();
    record.sent = request.sent;
    let mut draft = Draft::new(record);
    ends(&mut draft, &request.downstream);
    draft.name_some(Field::Service, request.service.as_ref().map(|service| &service.key));
    draft.name_some(Field::Endpoint, request.endpoint.as_ref().map(|endpoint| &endpoint.uid));
    draft.name(Field::Method, &request.method);
    draft.name(Field::Host, &request.host);
    draft.name(Field::Path, &request.path);
    draft.name(Field::Flags, flags);
    draft.name_some(Field::Error, request.error.as_ref());
    match (denied, &request.why) {
        (Some(judged), _) => because(&mut draft, &judged.reason),
        (None, Some(why)) => why.write(&mut draft),
        (None, None) => carried(&mut draft),
    }
    records.put(&draft);
}

/// Keeps a connection that has ended.
pub(super) fn keep_connection(connection: &Connection, flags: Flags) {
    let records = &connection.downstream.waypoint().records;
    if !records.is_on() {
        return;
    }
    let mut record = of(&connection.downstream, Hop::Connection);
    record.next = connection.carried;
    record.is_refused = connection.error.is_some() && connection.flow.is_none();
    record.retries = connection.retries;
    record.upstream = connection.upstream.map(Into::into).unwrap_or_default();
    record.open_us = connection.opened_after.map_or(0, short_microseconds);
    record.total_us = microseconds(connection.began.elapsed());
    (record.received, record.sent) = connection.flow.as_ref().map_or((0, 0), |flow| flow.bytes());
    let mut draft = Draft::new(record);
    ends(&mut draft, &connection.downstream);
    draft.name_some(Field::Service, connection.service.as_ref().map(|service| &service.key));
    draft.name_some(Field::Endpoint, connection.endpoint.as_ref().map(|endpoint| &endpoint.uid));
    draft.name(Field::Flags, flags);
    draft.name_some(Field::Error, connection.error.as_ref());
    match &connection.why {
        Some(why) => why.write(&mut draft),
        None => carried(&mut draft),
    }
    records.put(&draft);
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
    waypoint.records.put(&draft);
}

/// What refused a request, if something did.
pub(super) fn denied(judged: Option<&Judged>) -> Option<&Judged> {
    judged.filter(|judged| !judged.allowed)
}

fn carried(draft: &mut Draft) {
    draft.record.reason = CARRIED;
    draft.name(Field::Because, "no route is attached: carried to what was dialled");
}

fn of(downstream: &Downstream, hop: Hop) -> Record {
    Record {
        at_us: now_us(),
        id: downstream.trace,
        hop,
        is_tunnelled: true,
        source: downstream.client.address.into(),
        original: downstream.client.local.into(),
        ..Record::default()
    }
}

fn ends(draft: &mut Draft, downstream: &Downstream) {
    draft.name_some(Field::Source, downstream.source.as_ref().map(|source| &source.uid));
    draft.name(Field::SourceIdentity, &downstream.client.identity);
    draft.name(Field::Authority, &downstream.authority);
}

/// A UUID as a number.
fn uuid(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|one| *one != '-').take(33).collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten()
}
