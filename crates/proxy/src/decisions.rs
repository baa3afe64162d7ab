//! Decisions as they are recorded and told: what of a [`Reason`] goes into a record, and what is added when an operator asks.
//! The nearest misses are computed here, with the mesh as it is then, and never on the way of traffic.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide;
use stillmesh_core::explain::{Miss, Reason, nearest_misses};
use stillmesh_core::model::{Identity, WorkloadUid};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_records::{Answer, Draft, Field, Query, Recorder, Told};
use stillmesh_runtime::admin::{Request, Response};

/// Differences that are told of one decision.
pub const MOST_MISSES: usize = 3;

/// Refusals of one answer whose differences are computed; of more they are not.
const MOST_EXPLAINED: usize = 50;

/// Now, in microseconds since 1970.
pub fn now_us() -> u64 {
    microseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// As records have it.
pub fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// As records have what is short; at least 1, since 0 means that it never was.
pub fn short_microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).max(1)
}

/// Writes down why.
pub fn because(draft: &mut Draft, reason: &Reason) {
    draft.record.reason = reason.code();
    draft.record.remedy = reason.remedy();
    draft.name(Field::Because, reason);
    let object: Option<&dyn Display> = match reason {
        Reason::BackendInvalid { route, .. } => Some(route),
        Reason::ToWaypoint { waypoint } | Reason::WaypointUnavailable { waypoint } => Some(waypoint),
        other => other.policy().map(|policy| policy as &dyn Display),
    };
    draft.name_some(Field::Object, object);
}

/// A difference as it is told.
pub fn told(miss: Miss) -> stillmesh_records::Miss {
    let Miss { policy, rule, attribute, wanted, seen } = miss;
    stillmesh_records::Miss { policy: policy.to_string(), rule, attribute: attribute.to_string(), wanted, seen }
}

/// Answers a question of the admin port. `live` is what is open now and has no record yet; `explain` adds to a refusal what
/// would have had to differ.
pub fn answer(
    recorder: &Recorder,
    request: &Request,
    live: impl FnOnce() -> Vec<Draft>,
    explain: impl Fn(&mut Told),
) -> Response {
    let query = match Query::read(&request.query) {
        Ok(query) => query,
        Err(error) => return Response::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let now_us = now_us();
    let mut decisions: Vec<Told> = if recorder.has_records() {
        let asked = live().into_iter().filter(|draft| query.takes(draft, now_us));
        asked.map(|draft| Told { live: true, ..Told::of(&draft) }).collect()
    } else {
        Vec::new()
    };
    decisions.sort_by_key(|told| std::cmp::Reverse(told.began_us()));
    decisions.extend(recorder.find(&query, now_us));
    decisions.truncate(query.limit);
    decisions.iter_mut().filter(|told| told.refused).take(MOST_EXPLAINED).for_each(explain);
    let (kept, written, bytes) = recorder.size();
    let answer = Answer {
        now_us,
        is_on: recorder.has_records(),
        oldest_us: recorder.oldest_us(),
        kept,
        written,
        bytes,
        decisions,
    };
    Response::json(StatusCode::OK, &answer)
}

/// Whether it was a policy that refused: what failed otherwise is not explained by policies.
pub fn is_by_policy(told: &Told) -> bool {
    let codes = ["DENIED_BY", "NO_ALLOW_MATCHED", "MUTUAL_TLS_REQUIRED", "POLICY_UNKNOWN", "POLICY_UNREADABLE"];
    codes.contains(&told.reason.as_str())
}

/// Adds to a connection that policies refused at its destination what would have had to differ, and what would be decided now.
pub fn explain_connection(snapshot: &Snapshot, told: &mut Told) {
    if !is_by_policy(told) {
        return;
    }
    let Some(destination) = snapshot.workload(&WorkloadUid(told.destination.endpoint.as_str().into())) else { return };
    let (Ok(upstream), Ok(source)) =
        (told.destination.upstream.parse::<SocketAddr>(), told.source.address.parse::<SocketAddr>())
    else {
        return;
    };
    let identity: Option<Identity> = told.source.identity.parse().ok();
    let attrs = InboundAttrs { destination, upstream, source_ip: source.ip(), source_identity: identity.as_ref() };
    let verdict = decide::authorize(snapshot, &attrs);
    if verdict.allowed || verdict.reason.code() != told.reason || verdict.reason.to_string() != told.because {
        told.now = Some(verdict.reason.to_string());
    }
    if verdict.reason.is_denial() {
        told.misses = nearest_misses(snapshot, &attrs, MOST_MISSES).into_iter().map(self::told).collect();
    }
}
