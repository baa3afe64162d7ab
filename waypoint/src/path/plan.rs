//! What is done with a request: the rule of a route that takes it (core's [`stillmesh_core::decide::route`]), carried out on
//! its head; where no route is attached, it goes to what was dialled.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, StatusCode, Uri};
use stillmesh_core::attrs::{Headers, RequestAttrs};
use stillmesh_core::decide::Target;
use stillmesh_core::decide::route::{self, Chosen};
use stillmesh_core::model::http::{
    Forward, HeaderEdit, Redirect, Respond, RouteAction, RouteBackend, RouteRule, WeightedBackend,
};
use stillmesh_core::snapshot::Snapshot;

use super::{PathError, Version};
use crate::capture::Downstream;
use crate::upstream::MOST_TRIES;

/// What is done with a request.
#[derive(Debug)]
pub enum Plan {
    /// It is sent on.
    Forward(Forwarded),
    /// The waypoint answers by itself.
    Answer(Answer),
}

/// A request that is sent on.
#[derive(Debug)]
pub struct Forwarded {
    /// Where it goes.
    pub target: Target,
    /// How often it may be tried again.
    pub retries: usize,
    /// How long it may take until its response begins.
    pub timeout: Option<Duration>,
    /// Edits of its response, in order.
    pub response: Vec<HeaderEdit>,
}

/// The waypoint's own answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Edits of it.
    pub response: HeaderEdit,
}

/// Plans a request and makes its head what the rule wants.
pub fn plan(
    downstream: &Downstream,
    snapshot: &Snapshot,
    head: &mut Parts,
    version: Version,
    entropy: u64,
) -> Result<Plan, PathError> {
    let dialled = || Forwarded {
        target: downstream.target.clone(),
        retries: MOST_TRIES - 1,
        timeout: None,
        response: Vec::new(),
    };
    let Target::Service { service, port, .. } = &downstream.target else {
        return Ok(Plan::Forward(dialled()));
    };
    let (dialled_port, client) = (port.mapping.service_port, &*downstream.client.identity.namespace);
    let Some(table) = snapshot.routes(&service.key, dialled_port, Some(client)) else {
        return Ok(Plan::Forward(dialled()));
    };
    let authority = authority(head).into_owned();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().map(str::to_owned));
    let request = RequestAttrs {
        method: head.method.as_str(),
        scheme: head.uri.scheme_str().unwrap_or("http"),
        authority: &authority,
        path: &path,
        query: query.as_deref(),
        headers: &Seen(&head.headers),
        port: dialled_port,
    };
    let Some(chosen) = route::route(table, &request) else {
        return Ok(Plan::Answer(Answer::of(StatusCode::NOT_FOUND, Bytes::new(), HeaderEdit::default())));
    };
    let rule = chosen.rule;
    match &rule.action {
        RouteAction::Redirect(redirect) => Ok(Plan::Answer(redirected(&chosen, redirect, &request))),
        RouteAction::Respond(respond) => Ok(Plan::Answer(responded(rule, respond))),
        RouteAction::Forward(forward) => {
            let Some(backend) = route::backend(forward, entropy) else {
                return Ok(Plan::Answer(unusable(rule)));
            };
            let Some(target) = target(downstream, snapshot, &backend.backend) else {
                return Ok(Plan::Answer(unusable(rule)));
            };
            let rewritten = forward.rewrite.path.as_ref().map(|rewrite| chosen.rewritten(rewrite, &path));
            edit(&mut head.headers, &rule.request_headers);
            edit(&mut head.headers, &backend.request_headers);
            rewrite(head, version, rewritten.as_deref(), query.as_deref(), host(forward, backend))?;
            let retries = forward.retry.as_ref().map_or(MOST_TRIES - 1, |retry| {
                usize::try_from(retry.attempts).unwrap_or(usize::MAX).min(MOST_TRIES - 1)
            });
            let response = vec![backend.response_headers.clone(), rule.response_headers.clone()];
            Ok(Plan::Forward(Forwarded { target, retries, timeout: forward.timeout, response }))
        }
    }
}

/// The authority that a request gets: the backend's before the rule's.
fn host<'a>(forward: &'a Forward, backend: &'a WeightedBackend) -> Option<&'a str> {
    backend.authority.as_deref().or(forward.rewrite.authority.as_deref())
}

/// A backend as something to send to; `None` where it is not there.
fn target(downstream: &Downstream, snapshot: &Snapshot, backend: &RouteBackend) -> Option<Target> {
    let RouteBackend::Service { service, port, .. } = backend else { return None };
    let service = snapshot.service(service)?;
    let dialled = match &downstream.target {
        Target::Service { port, .. } => port.mapping.service_port,
        Target::Workload { address, .. } => address.port(),
    };
    let port = *service.port(port.map_or(dialled, std::num::NonZeroU16::get))?;
    Some(Target::Service { service: service.clone(), port, address: None })
}

/// A rule whose backend is not there, or that has none (Gateway API: 500).
fn unusable(rule: &RouteRule) -> Answer {
    Answer::of(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new(), rule.response_headers.clone())
}

fn responded(rule: &RouteRule, respond: &Respond) -> Answer {
    let status = StatusCode::from_u16(respond.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = Answer::of(status, Bytes::copy_from_slice(respond.body.as_bytes()), rule.response_headers.clone());
    if !respond.body.is_empty() {
        answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    answer
}

fn redirected(chosen: &Chosen<'_>, redirect: &Redirect, request: &RequestAttrs<'_>) -> Answer {
    let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
    let mut answer = Answer::of(status, Bytes::new(), chosen.rule.response_headers.clone());
    if let Ok(location) = HeaderValue::try_from(chosen.location(redirect, request)) {
        answer.headers.insert(header::LOCATION, location);
    }
    answer
}

impl Answer {
    fn of(status: StatusCode, body: Bytes, response: HeaderEdit) -> Self {
        Self { status, headers: HeaderMap::new(), body, response }
    }
}

/// Headers as core asks for them.
struct Seen<'a>(&'a HeaderMap);

impl Headers for Seen<'_> {
    fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.0.get_all(name).iter();
        let first = values.next()?.to_str().ok()?;
        let mut rest = values.peekable();
        if rest.peek().is_none() {
            return Some(first.into());
        }
        let rest: Option<Vec<&str>> = rest.map(|value| value.to_str().ok()).collect();
        Some(std::iter::once(first).chain(rest?).collect::<Vec<_>>().join(",").into())
    }
}

/// The authority that a request is for; the target's counts before Host (RFC 9112 section 3.2.2).
fn authority(head: &Parts) -> Cow<'_, str> {
    let host = || head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    head.uri.authority().map(Authority::as_str).or_else(host).unwrap_or_default().into()
}

/// Edits headers as a rule says. What is no header is left out: the route's writer was told.
pub fn edit(headers: &mut HeaderMap, edit: &HeaderEdit) {
    for name in edit.remove.iter().filter_map(|name| HeaderName::try_from(&**name).ok()) {
        headers.remove(name);
    }
    let pair = |(name, value): &(std::sync::Arc<str>, std::sync::Arc<str>)| {
        Some((HeaderName::try_from(&**name).ok()?, HeaderValue::try_from(&**value).ok()?))
    };
    for (name, value) in edit.set.iter().filter_map(pair) {
        headers.insert(name, value);
    }
    for (name, value) in edit.add.iter().filter_map(pair) {
        headers.append(name, value);
    }
}

/// Writes the path and the authority anew.
fn rewrite(
    head: &mut Parts,
    version: Version,
    path: Option<&str>,
    query: Option<&str>,
    host: Option<&str>,
) -> Result<(), PathError> {
    let bad = || PathError::BadRequest { what: "the route makes no path or host of this request" };
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    if let Some(path) = path {
        let whole = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        parts.path_and_query = Some(PathAndQuery::try_from(whole).map_err(|_| bad())?);
    }
    if let Some(host) = host {
        match version {
            Version::One => {
                // Without its own authority the target has Host's.
                (parts.scheme, parts.authority) = (None, None);
                head.headers.insert(header::HOST, HeaderValue::try_from(host).map_err(|_| bad())?);
            }
            Version::Two => {
                head.headers.remove(header::HOST);
                parts.authority = Some(Authority::try_from(host).map_err(|_| bad())?);
                parts.scheme.get_or_insert(http::uri::Scheme::HTTP);
                parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
            }
        }
    }
    head.uri = Uri::from_parts(parts).map_err(|_| bad())?;
    Ok(())
}
