//! What is done with a request: the rule of a route that takes it (core's [`stillmesh_core::decide::route`]), carried out on
//! its head; where no route is attached, it goes to what was dialled.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, StatusCode, Uri};
use stillmesh_core::attrs::{Headers, RequestAttrs, Token};
use stillmesh_core::decide::Target;
use stillmesh_core::decide::route::{self, Chosen};
use stillmesh_core::explain::Reason;
use stillmesh_core::model::Str;
use stillmesh_core::model::http::{
    Forward, HeaderEdit, HttpRoute, Redirect, Respond, RouteAction, RouteBackend, RouteKind, RouteRule, WeightedBackend,
};
use stillmesh_core::snapshot::Snapshot;

use super::{PathError, Version};
use crate::record::Flag;

/// What is done with a request.
#[derive(Debug)]
pub struct Plan {
    /// Who says so.
    pub taken: Taken,
    /// What happens.
    pub action: Action,
}

/// The rule that takes a request; none where no route is attached, or none of them takes it.
#[derive(Debug, Default)]
pub struct Taken {
    /// The route, and which of its rules.
    rule: Option<(Arc<HttpRoute>, usize)>,
    /// Which of the rule's backends.
    backend: Option<usize>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Action {
    /// It is sent on.
    Forward(Target),
    /// The waypoint answers by itself.
    Answer(Answer),
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
    /// The status that a gRPC client is told; none: the one that stands for the status.
    pub grpc: Option<u16>,
    /// What is written down of it.
    pub flag: Option<Flag>,
    /// Why the request is refused, if it is.
    pub reason: Option<Reason>,
}

impl Plan {
    /// The waypoint's own answer, before any rule was asked.
    pub fn answered(answer: Answer) -> Self {
        Self { taken: Taken::default(), action: Action::Answer(answer) }
    }

    fn to_dialled(target: &Target) -> Self {
        Self { taken: Taken::default(), action: Action::Forward(target.clone()) }
    }
}

impl Taken {
    /// The route, with its rule's number.
    pub fn by(&self) -> Option<&(Arc<HttpRoute>, usize)> {
        self.rule.as_ref()
    }

    /// The rule.
    pub fn rule(&self) -> Option<&RouteRule> {
        let (route, index) = self.rule.as_ref()?;
        route.rules.get(*index)
    }

    /// Whether it was written as a VirtualService.
    pub fn is_virtual_service(&self) -> bool {
        self.rule.as_ref().is_some_and(|(route, _)| route.key.kind == RouteKind::VirtualService)
    }

    /// How the rule sends requests on.
    pub fn forward(&self) -> Option<&Forward> {
        match &self.rule()?.action {
            RouteAction::Forward(forward) => Some(forward),
            RouteAction::Redirect(_) | RouteAction::Respond(_) => None,
        }
    }

    /// Edits of the response, in order.
    pub fn response_edits(&self) -> impl Iterator<Item = &HeaderEdit> {
        let backend = self.backend.and_then(|index| self.forward()?.backends.get(index));
        let of_backend = backend.map(|backend| &backend.response_headers);
        of_backend.into_iter().chain(self.rule().map(|rule| &rule.response_headers))
    }
}

/// What is known of a request beside its head.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// How its client speaks.
    pub version: Version,
    /// The client's namespace, by its certificate.
    pub client_namespace: &'a str,
    /// Its token, verified.
    pub token: Option<&'a Token>,
    /// Of what is left to chance.
    pub entropy: u64,
}

/// Plans a request and makes its head what the rule wants.
pub fn plan(dialled: &Target, snapshot: &Snapshot, head: &mut Parts, asked: Asked<'_>) -> Result<Plan, PathError> {
    let Asked { version, client_namespace, token, entropy } = asked;
    let Target::Service { service, port, .. } = dialled else { return Ok(Plan::to_dialled(dialled)) };
    let dialled_port = port.mapping.service_port;
    let Some(table) = snapshot.routes(&service.key, dialled_port, Some(client_namespace)) else {
        return Ok(Plan::to_dialled(dialled));
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
        token,
    };
    let Some(chosen) = route::route(table, &request) else {
        let reason = Some(Reason::NoRoute { service: service.key.clone(), port: dialled_port });
        let answer = Answer { flag: Some(Flag::NoRoute), reason, ..Answer::of(StatusCode::NOT_FOUND) };
        return Ok(Plan { taken: Taken::default(), action: Action::Answer(answer) });
    };
    let rule = chosen.rule;
    let mut taken = Taken { rule: Some((chosen.route.clone(), chosen.rule_index)), backend: None };
    let action = match &rule.action {
        RouteAction::Redirect(redirect) => Action::Answer(redirected(&chosen, redirect, &request)),
        RouteAction::Respond(respond) => Action::Answer(responded(respond)),
        RouteAction::Forward(forward) => {
            let index = route::backend_index(forward, entropy);
            let backend = index.and_then(|index| Some((index, forward.backends.get(index)?)));
            let target = backend.and_then(|(_, backend)| target(dialled, snapshot, &backend.backend));
            match (backend, target) {
                (Some((index, backend)), Some(target)) => {
                    let rewritten = forward.rewrite.path.as_ref().map(|rewrite| chosen.rewritten(rewrite, &path));
                    // In Istio's and Envoy's order, for requests and responses alike: what the rule says counts last.
                    edit(&mut head.headers, &backend.request_headers);
                    edit(&mut head.headers, &rule.request_headers);
                    rewrite(head, version, rewritten.as_deref(), query.as_deref(), host(forward, backend))?;
                    taken.backend = Some(index);
                    Action::Forward(target)
                }
                // A backend that is not there, or none at all (Gateway API: 500; GRPCRoute: UNAVAILABLE).
                (backend, _) => {
                    let problem = problem(backend.map(|(_, backend)| &backend.backend));
                    let reason = Reason::BackendInvalid { route: chosen.route.key.to_string().into(), problem };
                    let answer = Answer::of(StatusCode::INTERNAL_SERVER_ERROR);
                    Action::Answer(Answer { grpc: Some(14), reason: Some(reason), ..answer })
                }
            }
        }
    };
    Ok(Plan { taken, action })
}

/// The authority that a request gets: the backend's before the rule's.
fn host<'a>(forward: &'a Forward, backend: &'a WeightedBackend) -> Option<&'a str> {
    backend.authority.as_deref().or(forward.rewrite.authority.as_deref())
}

/// A backend as something to send to, for what was dialled; `None` where it is not there.
pub fn target(dialled: &Target, snapshot: &Snapshot, backend: &RouteBackend) -> Option<Target> {
    let RouteBackend::Service { service, port, subset } = backend else { return None };
    let service = snapshot.service(service)?;
    let dialled = match dialled {
        Target::Service { port, .. } => port.mapping.service_port,
        Target::Workload { address, .. } => address.port(),
    };
    let port = *service.port(port.map_or(dialled, std::num::NonZeroU16::get))?;
    Some(Target::Service { service: service.clone(), port, address: None, subset: subset.clone() })
}

/// Why a backend cannot be sent to.
fn problem(backend: Option<&RouteBackend>) -> Str {
    match backend {
        None => "it has no backend with a weight".into(),
        Some(RouteBackend::Invalid { problem }) => problem.clone(),
        Some(RouteBackend::Service { service, port, .. }) => {
            let port = port.map(|port| format!(" with port {port}")).unwrap_or_default();
            format!("service {service}{port} is not known here").into()
        }
    }
}

fn responded(respond: &Respond) -> Answer {
    let status = StatusCode::from_u16(respond.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = Answer { body: Bytes::copy_from_slice(respond.body.as_bytes()), ..Answer::of(status) };
    if !respond.body.is_empty() {
        answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    answer
}

fn redirected(chosen: &Chosen<'_>, redirect: &Redirect, request: &RequestAttrs<'_>) -> Answer {
    let mut answer = Answer::of(StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND));
    if let Ok(location) = HeaderValue::try_from(chosen.location(redirect, request)) {
        answer.headers.insert(header::LOCATION, location);
    }
    answer
}

impl Answer {
    /// With a status and nothing else.
    pub fn of(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), grpc: None, flag: None, reason: None }
    }
}

/// Headers as core asks for them.
pub struct Seen<'a>(pub &'a HeaderMap);

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
pub fn authority(head: &Parts) -> Cow<'_, str> {
    let host = || head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    head.uri.authority().map(Authority::as_str).or_else(host).unwrap_or_default().into()
}

/// Edits headers as a rule says. What is no header is left out: the route's writer was told.
pub fn edit(headers: &mut HeaderMap, edit: &HeaderEdit) {
    for name in edit.remove.iter().filter_map(|name| HeaderName::try_from(&**name).ok()) {
        headers.remove(name);
    }
    let pair = |(name, value): &(Arc<str>, Arc<str>)| {
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
