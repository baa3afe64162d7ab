//! `stillmesh.config.v1.HttpRoute`: routes for waypoints. A route is never read as if a part of it were absent: what this
//! version does not know refuses it, and the version before stays in force.

mod write;

use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use stillmesh_core::model::http::{
    Abort, ClaimMatch, Cors, Fault, Forward, HeaderEdit, HeaderMatch, HttpRoute, Mirror, PathMatch, PathRewrite,
    Pattern, QueryMatch, Redirect, RedirectPort, RequestMatch, Respond, Retry, RetryOn, Rewrite, RouteAction,
    RouteBackend, RouteKey, RouteKind, RouteParent, RouteRule, Share, Substitution, TextMatch, WeightedBackend,
};
use stillmesh_core::model::stream::{ServerName, StreamBackend, StreamMatch, StreamRule};
use stillmesh_core::model::{ServiceKey, Str};
pub use write::encode;
pub(super) use write::{duration as wire_duration, service as wire_service};

use super::{CodecError, FieldError, fields};
use crate::proto::google::protobuf::Duration as WireDuration;
use crate::proto::stillmesh::config::v1 as wire;

/// The field of backends.
const BACKENDS: &str = "rules.forward.backends";

/// The name under which a route travels: `<kind>/<namespace>/<name>`.
pub fn name(key: &RouteKey) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

/// Reads such a name.
pub fn key(name: &str) -> Option<RouteKey> {
    let (kind, rest) = name.split_once('/')?;
    let (namespace, name) = rest.split_once('/')?;
    let kind = RouteKind::ALL.into_iter().find(|known| known.to_string() == kind)?;
    let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
    whole.then(|| RouteKey { kind, namespace: namespace.into(), name: name.into() })
}

/// Reads a route.
pub fn decode(name: &str, bytes: Bytes) -> Result<HttpRoute, CodecError> {
    read(name, bytes).map_err(|error| error.of(name))
}

fn read(resource: &str, bytes: Bytes) -> Result<HttpRoute, FieldError> {
    let wire = wire::HttpRoute::decode(bytes.clone())
        .map_err(|error| FieldError::new("route", format!("not a message: {error}")))?;
    // What is not known is lost in reading, and then it is not written as it came.
    if wire.encode_to_vec() != *bytes {
        return Err(FieldError::new("route", "has parts that this version does not know"));
    }
    let kind = match wire::RouteKind::try_from(wire.kind) {
        Ok(wire::RouteKind::HttpRoute) => RouteKind::Http,
        Ok(wire::RouteKind::GrpcRoute) => RouteKind::Grpc,
        Ok(wire::RouteKind::VirtualService) => RouteKind::VirtualService,
        Ok(wire::RouteKind::TlsRoute) => RouteKind::Tls,
        Ok(wire::RouteKind::TcpRoute) => RouteKind::Tcp,
        Err(_) => return Err(FieldError::new("kind", format!("{}: 0 to 4 are known", wire.kind))),
    };
    let own = RouteKey { kind, namespace: wire.namespace.into(), name: wire.name.into() };
    if key(resource).as_ref() != Some(&own) {
        return Err(FieldError::new("name", format!("the resource's own key is {:?}", name(&own))));
    }
    Ok(HttpRoute {
        key: own,
        parents: wire.parents.into_iter().map(parent).collect::<Result<_, _>>()?,
        consumer: text(wire.consumer),
        created: wire.created,
        rules: wire.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
        streams: wire.streams.into_iter().map(stream).collect::<Result<_, _>>()?,
    })
}

/// A text; `None` where it is empty.
pub(super) fn text(text: String) -> Option<Str> {
    (!text.is_empty()).then(|| text.into())
}

pub(super) fn needed<T>(field: &str, value: Option<T>) -> Result<T, FieldError> {
    value.ok_or_else(|| FieldError::new(field, "is needed, and absent or of a kind that is not known"))
}

pub(super) fn service(field: &str, wire: Option<wire::Service>) -> Result<ServiceKey, FieldError> {
    let wire = needed(field, wire)?;
    fields::service_key(field, &wire.namespace, &wire.hostname)
}

fn port(field: &str, port: u32) -> Result<Option<NonZeroU16>, FieldError> {
    if port == 0 { Ok(None) } else { fields::port(field, port).map(Some) }
}

fn status(field: &str, status: u32) -> Result<u16, FieldError> {
    let known = u16::try_from(status).ok().filter(|status| (100..600).contains(status));
    known.ok_or_else(|| FieldError::new(field, format!("status {status}: 100 to 599 are accepted")))
}

fn grpc_status(field: &str, status: u32) -> Result<u16, FieldError> {
    let known = u16::try_from(status).ok().filter(|status| *status <= 16);
    known.ok_or_else(|| FieldError::new(field, format!("gRPC status {status}: 0 to 16 are accepted")))
}

pub(super) fn duration(field: &str, wire: Option<WireDuration>) -> Result<Option<Duration>, FieldError> {
    let Some(wire) = wire else { return Ok(None) };
    let (seconds, nanos) = (u64::try_from(wire.seconds), u32::try_from(wire.nanos));
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos @ 0..=999_999_999)) => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(FieldError::new(field, "a duration is not negative, and its nanos are below 1,000,000,000")),
    }
}

fn parent(wire: wire::Parent) -> Result<RouteParent, FieldError> {
    let port = port("parents.port", wire.port)?.map(NonZeroU16::get);
    Ok(RouteParent { service: service("parents.service", wire.service)?, port })
}

fn rule(wire: wire::Rule) -> Result<RouteRule, FieldError> {
    let action = match needed("rules.action", wire.action)? {
        wire::rule::Action::Forward(wire) => RouteAction::Forward(forward(wire)?),
        wire::rule::Action::Redirect(wire) => RouteAction::Redirect(redirect(wire)?),
        wire::rule::Action::Respond(wire) => RouteAction::Respond(Respond {
            status: status("rules.respond.status", wire.status)?,
            body: wire.body.into(),
        }),
    };
    Ok(RouteRule {
        name: text(wire.name),
        matches: wire.matches.into_iter().map(request_match).collect::<Result<_, _>>()?,
        action,
        request_headers: headers(wire.request_headers),
        response_headers: headers(wire.response_headers),
        fault: wire.fault.map(fault).transpose()?,
        cors: wire.cors.map(cors).transpose()?,
    })
}

fn stream(wire: wire::StreamRule) -> Result<StreamRule, FieldError> {
    let matched = |wire: wire::StreamMatch| {
        let server_names = wire.server_names.into_iter().map(server_name).collect::<Result<_, _>>()?;
        let port = port("streams.matches.port", wire.port)?.map(NonZeroU16::get);
        Ok::<_, FieldError>(StreamMatch { server_names, port })
    };
    let weighted = |wire: wire::StreamBackend| {
        let backend = backend("streams.backends", wire.backend)?;
        Ok::<_, FieldError>(StreamBackend { backend, weight: wire.weight })
    };
    Ok(StreamRule {
        name: text(wire.name),
        matches: wire.matches.into_iter().map(matched).collect::<Result<_, _>>()?,
        backends: wire.backends.into_iter().map(weighted).collect::<Result<_, _>>()?,
    })
}

fn server_name(wire: wire::ServerName) -> Result<ServerName, FieldError> {
    use wire::server_name::Kind;
    let field = "streams.matches.server_names";
    match needed(field, wire.kind)? {
        Kind::Exact(name) => Ok(ServerName::Exact(name.into())),
        Kind::Suffix(suffix) => Ok(ServerName::Suffix(suffix.into())),
        Kind::Any(true) => Ok(ServerName::Any),
        Kind::Any(false) => Err(FieldError::new(field, "any is true, or another kind is set")),
    }
}

fn request_match(wire: wire::RequestMatch) -> Result<RequestMatch, FieldError> {
    let one = |field: &str, wire: Option<wire::TextMatch>| wire.map(|wire| text_match(field, wire)).transpose();
    let header = |wire: wire::NamedMatch| {
        let value = text_match("rules.matches.headers", needed("rules.matches.headers.value", wire.value)?)?;
        Ok::<_, FieldError>(HeaderMatch { name: wire.name.into(), value })
    };
    let parameter = |wire: wire::NamedMatch| {
        let value = text_match("rules.matches.query", needed("rules.matches.query.value", wire.value)?)?;
        Ok::<_, FieldError>(QueryMatch { name: wire.name.into(), value })
    };
    let claim = |wire: wire::ClaimMatch| {
        let field = "rules.matches.claims";
        if wire.path.is_empty() {
            return Err(FieldError::new(field, "a claim has a name"));
        }
        let value = text_match(field, needed("rules.matches.claims.value", wire.value)?)?;
        Ok::<_, FieldError>(ClaimMatch { path: strings(wire.path), value })
    };
    Ok(RequestMatch {
        path: wire.path.map(path_match).transpose()?,
        method: one("rules.matches.method", wire.method)?,
        authority: one("rules.matches.authority", wire.authority)?,
        scheme: one("rules.matches.scheme", wire.scheme)?,
        headers: wire.headers.into_iter().map(header).collect::<Result<_, _>>()?,
        without_headers: wire.without_headers.into_iter().map(header).collect::<Result<_, _>>()?,
        query: wire.query.into_iter().map(parameter).collect::<Result<_, _>>()?,
        port: port("rules.matches.port", wire.port)?.map(NonZeroU16::get),
        claims: wire.claims.into_iter().map(claim).collect::<Result<_, _>>()?,
        without_claims: wire.without_claims.into_iter().map(claim).collect::<Result<_, _>>()?,
    })
}

fn pattern(field: &str, text: &str) -> Result<Pattern, FieldError> {
    Pattern::new(text).map_err(|error| FieldError::new(field, error.to_string()))
}

fn path_match(wire: wire::PathMatch) -> Result<PathMatch, FieldError> {
    use wire::path_match::Kind;
    Ok(match needed("rules.matches.path", wire.kind)? {
        Kind::Exact(text) => PathMatch::Exact(text.into()),
        Kind::Segments(text) => PathMatch::Segments(text.into()),
        Kind::Prefix(text) => PathMatch::Prefix(text.into()),
        Kind::Regex(text) => PathMatch::Regex(pattern("rules.matches.path", &text)?),
        Kind::ExactIgnoringCase(text) => PathMatch::ExactIgnoringCase(text.into()),
        Kind::PrefixIgnoringCase(text) => PathMatch::PrefixIgnoringCase(text.into()),
    })
}

fn text_match(field: &str, wire: wire::TextMatch) -> Result<TextMatch, FieldError> {
    use wire::text_match::Kind;
    Ok(match needed(field, wire.kind)? {
        Kind::Exact(text) => TextMatch::Exact(text.into()),
        Kind::Prefix(text) => TextMatch::Prefix(text.into()),
        Kind::Regex(text) => TextMatch::Regex(pattern(field, &text)?),
        Kind::Present(true) => TextMatch::Present,
        Kind::Present(false) => return Err(FieldError::new(field, "present is true, or another kind is set")),
    })
}

fn headers(wire: Option<wire::HeaderEdit>) -> HeaderEdit {
    let wire = wire.unwrap_or_default();
    let pairs = |headers: Vec<wire::Header>| {
        headers.into_iter().map(|header| (header.name.into(), header.value.into())).collect()
    };
    HeaderEdit { set: pairs(wire.set), add: pairs(wire.add), remove: strings(wire.remove) }
}

fn strings(wire: Vec<String>) -> Vec<Str> {
    wire.into_iter().map(Str::from).collect()
}

fn forward(wire: wire::Forward) -> Result<Forward, FieldError> {
    let mirror = |wire: wire::Mirror| {
        let backend = backend(BACKENDS, wire.backend)?;
        Ok::<_, FieldError>(Mirror { backend, share: Share::parts_per_million(wire.parts_per_million) })
    };
    Ok(Forward {
        backends: wire.backends.into_iter().map(weighted_backend).collect::<Result<_, _>>()?,
        rewrite: Rewrite { authority: text(wire.authority), path: wire.path.map(rewrite).transpose()? },
        mirrors: wire.mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?,
        timeout: duration("rules.forward.timeout", wire.timeout)?,
        retry: wire.retry.map(retry).transpose()?,
    })
}

fn weighted_backend(wire: wire::WeightedBackend) -> Result<WeightedBackend, FieldError> {
    Ok(WeightedBackend {
        backend: backend(BACKENDS, wire.backend)?,
        weight: wire.weight,
        request_headers: headers(wire.request_headers),
        response_headers: headers(wire.response_headers),
        authority: text(wire.authority),
    })
}

fn backend(field: &str, wire: Option<wire::Backend>) -> Result<RouteBackend, FieldError> {
    use wire::backend::Target;
    Ok(match needed(field, wire.and_then(|wire| wire.target))? {
        Target::Service(wire) => RouteBackend::Service {
            service: service(field, wire.service)?,
            port: port(field, wire.port)?,
            subset: text(wire.subset),
        },
        Target::Invalid(problem) => RouteBackend::Invalid { problem: problem.into() },
    })
}

fn rewrite(wire: wire::PathRewrite) -> Result<PathRewrite, FieldError> {
    use wire::path_rewrite::Kind;
    Ok(match needed("rules.path", wire.kind)? {
        Kind::Full(text) => PathRewrite::Full(text.into()),
        Kind::Prefix(text) => PathRewrite::Prefix(text.into()),
        Kind::Regex(wire) => {
            let read = Substitution::new(&wire.pattern, &wire.substitution);
            PathRewrite::Regex(read.map_err(|error| FieldError::new("rules.path", error.to_string()))?)
        }
    })
}

fn retry(wire: wire::Retry) -> Result<Retry, FieldError> {
    let on = wire.on.into_iter().map(retry_on).collect::<Result<_, _>>()?;
    let (per_try, backoff) = (duration("retry.per_try", wire.per_try)?, duration("retry.backoff", wire.backoff)?);
    Ok(Retry { attempts: wire.attempts, per_try, backoff, on })
}

fn retry_on(wire: wire::RetryOn) -> Result<RetryOn, FieldError> {
    use wire::RetryCondition as Condition;
    use wire::retry_on::Kind;
    let field = "rules.forward.retry.on";
    Ok(match needed(field, wire.kind)? {
        Kind::Condition(number) => match Condition::try_from(number) {
            Ok(Condition::ConnectFailure) => RetryOn::ConnectFailure,
            Ok(Condition::RefusedStream) => RetryOn::RefusedStream,
            Ok(Condition::Reset) => RetryOn::Reset,
            Ok(Condition::PerTryTimeout) => RetryOn::PerTryTimeout,
            Ok(Condition::GatewayError) => RetryOn::GatewayError,
            Ok(Condition::ServerError) => RetryOn::ServerError,
            Ok(Condition::Conflict) => RetryOn::Conflict,
            Err(_) => return Err(FieldError::new(field, format!("condition {number}: 0 to 6 are known"))),
        },
        Kind::Status(code) => RetryOn::Status(status(field, code)?),
        Kind::Grpc(code) => RetryOn::Grpc(grpc_status(field, code)?),
    })
}

fn redirect(wire: wire::Redirect) -> Result<Redirect, FieldError> {
    use wire::redirect::Port;
    let field = "rules.redirect.port";
    let port = match wire.port {
        None => RedirectPort::Derived,
        Some(Port::Number(number)) => RedirectPort::Number(fields::port(field, number)?),
        Some(Port::Of(of)) => match wire::RedirectPort::try_from(of) {
            Ok(wire::RedirectPort::Derived) => RedirectPort::Derived,
            Ok(wire::RedirectPort::OfScheme) => RedirectPort::OfScheme,
            Ok(wire::RedirectPort::OfRequest) => RedirectPort::OfRequest,
            Err(_) => return Err(FieldError::new(field, format!("{of}: 0 to 2 are known"))),
        },
    };
    Ok(Redirect {
        scheme: text(wire.scheme),
        host: text(wire.host),
        port,
        path: wire.path.map(rewrite).transpose()?,
        status: status("rules.redirect.status", wire.status)?,
    })
}

fn fault(wire: wire::Fault) -> Result<Fault, FieldError> {
    let delay = match wire.delay {
        None => None,
        Some(wire) => {
            let time = needed("rules.fault.delay.time", duration("rules.fault.delay.time", wire.time)?)?;
            Some((time, Share::parts_per_million(wire.parts_per_million)))
        }
    };
    let abort = match wire.abort {
        None => None,
        Some(wire) => {
            let answer = match needed("rules.fault.abort", wire.answer)? {
                wire::abort::Answer::Http(code) => Abort::Http(status("rules.fault.abort", code)?),
                wire::abort::Answer::Grpc(code) => Abort::Grpc(grpc_status("rules.fault.abort", code)?),
            };
            Some((answer, Share::parts_per_million(wire.parts_per_million)))
        }
    };
    Ok(Fault { delay, abort })
}

fn cors(wire: wire::Cors) -> Result<Cors, FieldError> {
    let origin = |wire: wire::TextMatch| text_match("rules.cors.origins", wire);
    Ok(Cors {
        origins: wire.origins.into_iter().map(origin).collect::<Result<_, _>>()?,
        methods: strings(wire.methods),
        headers: strings(wire.headers),
        expose: strings(wire.expose),
        max_age: duration("rules.cors.max_age", wire.max_age)?,
        credentials: wire.credentials,
        forward_unmatched: wire.forward_unmatched,
    })
}
