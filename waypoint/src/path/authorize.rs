//! Whether a request may pass, and whether a connection may that is no HTTP: core's [`decide::authorize_request`], carried
//! out. Before it the path becomes what is decided by and sent on. Every request is decided with the newest snapshot.
//!
//! Whoever is refused learns an id and nothing else. Under it the log has policy, rule and what would have to differ.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode, Uri};
use stillmesh_core::attrs::{AccessAttrs, Headers, RequestAttrs, Token};
use stillmesh_core::decide::{self, Refusal, RequestVerdict, Target};
use stillmesh_core::explain::{Reason, nearest_request_misses};
use stillmesh_core::model::access::{RequestAuthentication, normalize};
use stillmesh_core::snapshot::Snapshot;

use super::plan::{self, Answer};
use super::{PathError, forward};
use crate::authenticate::{self, Problem};
use crate::capture::Downstream;
use crate::record::judged::Judged;
use crate::record::request::Request as Record;

/// How many differences are written down of a refused request.
const MISSES: usize = 3;

/// What became of a request.
#[derive(Debug)]
pub enum Admitted {
    /// It may pass, with its token, verified.
    Passes(Option<Token>),
    /// It is answered.
    Answered(Answer),
}

/// Lets a request pass, or answers it. Its path is normalized.
pub async fn admit(downstream: &Downstream, head: &mut Parts, record: &mut Record) -> Result<Admitted, PathError> {
    let waypoint = downstream.waypoint();
    let snapshot = waypoint.snapshots.load();
    let level = snapshot.request_settings().map(|settings| settings.normalization).unwrap_or_default();
    let path = match normalize(head.uri.path(), level) {
        Ok(Cow::Borrowed(_)) => None,
        Ok(Cow::Owned(path)) => Some(path),
        Err(_) => return Err(PathError::BadRequest { what: "an ambiguous path" }),
    };
    if let Some(path) = path {
        rewrite(head, &path)?;
    }
    let service = downstream.target.service().map(|service| &service.key);
    let authentications = snapshot.request_authentications(&downstream.own, service);
    let (judged, admitted) = match unreadable(&authentications) {
        Some(reason) => {
            let judged = refused(reason);
            let answer = denied(&judged);
            (judged, Admitted::Answered(answer))
        }
        None => match authenticate::authenticate(&waypoint.keys, &authentications, head).await {
            Ok(token) => {
                let judged = judge(downstream, &snapshot, head, token.as_ref());
                let admitted =
                    if judged.allowed { Admitted::Passes(token) } else { Admitted::Answered(denied(&judged)) };
                (judged, admitted)
            }
            Err(problem) => {
                let judged = refused(Reason::TokenRefused { problem: problem.code() });
                (judged, Admitted::Answered(unauthorized(problem, head)))
            }
        },
    };
    waypoint.metrics.judged(&judged);
    record.judged(judged);
    Ok(admitted)
}

fn unreadable(authentications: &[&RequestAuthentication]) -> Option<Reason> {
    authentications.iter().find_map(|one| {
        let detail = one.unreadable.clone()?;
        Some(Reason::PolicyUnreadable { policy: one.key.clone(), detail })
    })
}

fn refused(reason: Reason) -> Judged {
    let verdict = RequestVerdict { allowed: false, reason, dry_run: Vec::new(), audited: Vec::new() };
    judged(verdict, Vec::new)
}

/// 401, saying what is wrong with the token (RFC 6750 section 3): who has made it is asked to make a better one.
fn unauthorized(problem: Problem, head: &Parts) -> Answer {
    let mut answer = refusal(StatusCode::UNAUTHORIZED, problem.to_string());
    let realm = format!("http://{}{}", plan::authority(head), head.uri.path()).replace(['"', '\\'], "");
    if let Ok(value) = HeaderValue::try_from(format!("Bearer realm=\"{realm}\", error=\"invalid_token\"")) {
        answer.headers.insert(header::WWW_AUTHENTICATE, value);
    }
    answer
}

/// Lets a connection pass that is no HTTP, by what of the policies is about connections. `server_name` is what a client of
/// TLS asks for, where that was looked for.
pub fn connection(downstream: &Downstream, server_name: Option<&str>) -> Result<(), PathError> {
    let snapshot = downstream.waypoint().snapshots.load();
    let attrs = of_connection(downstream, server_name);
    let verdict = decide::authorize_request(&snapshot, &attrs);
    let judged = judged(verdict, || misses(&snapshot, &attrs));
    downstream.waypoint().metrics.judged(&judged);
    if judged.allowed { Ok(()) } else { Err(PathError::Refused(Refusal::from(judged.reason))) }
}

/// A connection that is no HTTP, as policies see it.
pub fn of_connection<'a>(downstream: &'a Downstream, server_name: Option<&'a str>) -> AccessAttrs<'a> {
    let client = &downstream.client;
    AccessAttrs {
        waypoint: &downstream.own,
        target: &downstream.target,
        source_identity: Some(&client.identity),
        source_ip: client.address.ip(),
        remote_ip: client.address.ip(),
        server_name,
        request: None,
        token: None,
    }
}

fn judge(downstream: &Downstream, snapshot: &Snapshot, head: &Parts, token: Option<&Token>) -> Judged {
    with_request(downstream, snapshot, head, token, |attrs| {
        judged(decide::authorize_request(snapshot, attrs), || misses(snapshot, attrs))
    })
}

/// Asks something about a request as policies see it.
pub fn with_request<R>(
    downstream: &Downstream,
    snapshot: &Snapshot,
    head: &Parts,
    token: Option<&Token>,
    ask: impl FnOnce(&AccessAttrs<'_>) -> R,
) -> R {
    let client = &downstream.client;
    let authority = plan::authority(head);
    let request = RequestAttrs {
        method: head.method.as_str(),
        scheme: head.uri.scheme_str().unwrap_or("http"),
        authority: &authority,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &All(&head.headers),
        port: match &downstream.target {
            Target::Service { port, .. } => port.mapping.service_port,
            Target::Workload { address, .. } => address.port(),
        },
        token,
    };
    ask(&AccessAttrs {
        waypoint: &downstream.own,
        target: &downstream.target,
        source_identity: Some(&client.identity),
        source_ip: client.address.ip(),
        remote_ip: remote_ip(downstream, snapshot, &head.headers),
        server_name: None,
        request: Some(&request),
        token,
    })
}

fn judged(verdict: RequestVerdict, misses: impl FnOnce() -> Vec<String>) -> Judged {
    let RequestVerdict { allowed, reason, dry_run, audited } = verdict;
    // What would have to differ costs more than the decision: only where somebody reads it.
    let asked = !allowed && tracing::enabled!(target: "authorization", tracing::Level::DEBUG);
    Judged {
        allowed,
        id: (!allowed).then(|| format!("{:016x}", rand::random::<u64>())),
        misses: if asked { misses() } else { Vec::new() },
        reason,
        dry_run,
        audited,
    }
}

fn misses(snapshot: &Snapshot, attrs: &AccessAttrs<'_>) -> Vec<String> {
    let misses = nearest_request_misses(snapshot, attrs, MISSES);
    misses
        .into_iter()
        .map(|miss| {
            format!("{} of {}: {} wants {}, is {}", miss.rule, miss.policy, miss.attribute, miss.wanted, miss.seen)
        })
        .collect()
}

/// Whom a client speaks for: the last that it names, where it is believed, else itself.
fn remote_ip(downstream: &Downstream, snapshot: &Snapshot, headers: &HeaderMap) -> IpAddr {
    let own = downstream.client.address.ip();
    if !is_believed(downstream, snapshot) {
        return own;
    }
    let last = headers.get_all(forward::FORWARDED_FOR).iter().next_back().and_then(|value| value.to_str().ok());
    last.and_then(|list| list.rsplit(',').next()?.trim().parse().ok()).unwrap_or(own)
}

/// Whether what a client says about others is believed: it is a gateway of this mesh, by the operator's word or the control
/// plane's.
pub fn is_believed(downstream: &Downstream, snapshot: &Snapshot) -> bool {
    let client = &downstream.client.identity;
    let told = snapshot.request_settings().map_or(&[][..], |settings| &settings.gateways);
    downstream.waypoint().config.gateways.contains(client) || told.contains(client)
}

fn rewrite(head: &mut Parts, path: &str) -> Result<(), PathError> {
    let bad = |_| PathError::BadRequest { what: "an ambiguous path" };
    let whole = head.uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(whole).map_err(bad)?);
    head.uri = Uri::from_parts(parts).map_err(|_| PathError::BadRequest { what: "an ambiguous path" })?;
    Ok(())
}

/// 403, or PERMISSION_DENIED where gRPC is spoken, with the decision's id and nothing else.
fn denied(judged: &Judged) -> Answer {
    let text = format!("denied: {}", judged.id.as_deref().unwrap_or_default());
    refusal(StatusCode::FORBIDDEN, text)
}

/// An answer that says this much, in the words of HTTP and of gRPC.
pub fn refusal(status: StatusCode, text: String) -> Answer {
    let mut answer = Answer::of(status);
    if let Ok(message) = HeaderValue::try_from(text.as_str()) {
        answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        answer.headers.insert("grpc-message", message);
    }
    answer.body = Bytes::from(text);
    answer
}

/// Headers as policies see them: none is overlooked because it is no text.
pub struct All<'a>(pub &'a HeaderMap);

impl Headers for All<'_> {
    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.0.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let first = values.next()?;
        Some(values.fold(first, |all, next| Cow::Owned(format!("{all},{next}"))))
    }

    fn lines(&self, name: &str) -> Vec<Cow<'_, str>> {
        let lines: Vec<_> =
            self.0.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        if lines.len() > 1 { lines } else { Vec::new() }
    }
}

impl Judged {
    /// As Envoy writes it into `response_code_details`; `None` where nothing was refused.
    pub fn details(&self) -> Option<String> {
        if self.allowed {
            return None;
        }
        Some(match &self.reason {
            Reason::DeniedBy { policy, rule } => format!(
                "rbac_access_denied_matched_policy[ns[{}]-policy[{}]-rule[{rule}]]",
                policy.namespace, policy.name
            ),
            Reason::NoAllowMatched { .. } => "rbac_access_denied_matched_policy[none]".to_owned(),
            Reason::TokenRefused { problem } => format!("jwt_authn_access_denied{{{problem}}}"),
            other => other.code().to_ascii_lowercase(),
        })
    }
}
