//! The wire form of routes.

use std::num::NonZeroU16;
use std::time::Duration;

use prost::Message as _;
use stillmesh_core::model::http::{
    Abort, ClaimMatch, Cors, Fault, Forward, HeaderEdit, HttpRoute, PathMatch, PathRewrite, Redirect, RedirectPort,
    RequestMatch, Retry, RetryOn, RouteAction, RouteBackend, RouteKind, RouteParent, RouteRule, TextMatch,
    WeightedBackend,
};
use stillmesh_core::model::stream::{ServerName, StreamBackend, StreamMatch, StreamRule};
use stillmesh_core::model::{ServiceKey, Str};

use crate::proto::google::protobuf::Duration as WireDuration;
use crate::proto::stillmesh::config::v1 as wire;

/// The wire form of a route.
pub fn encode(route: &HttpRoute) -> Vec<u8> {
    let kind = match route.key.kind {
        RouteKind::Http => wire::RouteKind::HttpRoute,
        RouteKind::Grpc => wire::RouteKind::GrpcRoute,
        RouteKind::VirtualService => wire::RouteKind::VirtualService,
        RouteKind::Tls => wire::RouteKind::TlsRoute,
        RouteKind::Tcp => wire::RouteKind::TcpRoute,
    };
    wire::HttpRoute {
        kind: kind.into(),
        namespace: route.key.namespace.to_string(),
        name: route.key.name.to_string(),
        parents: route.parents.iter().map(parent).collect(),
        consumer: text(route.consumer.as_ref()),
        created: route.created,
        rules: route.rules.iter().map(rule).collect(),
        streams: route.streams.iter().map(stream).collect(),
    }
    .encode_to_vec()
}

fn text(text: Option<&Str>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn strings(texts: &[Str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn port(port: Option<NonZeroU16>) -> u32 {
    port.map_or(0, |port| port.get().into())
}

pub(in crate::codec) fn service(key: &ServiceKey) -> wire::Service {
    wire::Service { namespace: key.namespace.to_string(), hostname: key.hostname.to_string() }
}

/// Longer than 292 billion years is that long.
pub(in crate::codec) fn duration(time: Duration) -> WireDuration {
    WireDuration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
    }
}

fn parent(parent: &RouteParent) -> wire::Parent {
    wire::Parent { service: Some(service(&parent.service)), port: parent.port.map_or(0, u32::from) }
}

fn rule(rule: &RouteRule) -> wire::Rule {
    use wire::rule::Action;
    let action = match &rule.action {
        RouteAction::Forward(inner) => Action::Forward(forward(inner)),
        RouteAction::Redirect(inner) => Action::Redirect(redirect(inner)),
        RouteAction::Respond(inner) => {
            Action::Respond(wire::Respond { status: inner.status.into(), body: inner.body.to_string() })
        }
    };
    wire::Rule {
        name: text(rule.name.as_ref()),
        matches: rule.matches.iter().map(request_match).collect(),
        action: Some(action),
        request_headers: headers(&rule.request_headers),
        response_headers: headers(&rule.response_headers),
        fault: rule.fault.as_ref().map(fault),
        cors: rule.cors.as_ref().map(cors),
    }
}

fn stream(rule: &StreamRule) -> wire::StreamRule {
    use wire::server_name::Kind;
    let name = |name: &ServerName| {
        let kind = match name {
            ServerName::Exact(name) => Kind::Exact(name.to_string()),
            ServerName::Suffix(suffix) => Kind::Suffix(suffix.to_string()),
            ServerName::Any => Kind::Any(true),
        };
        wire::ServerName { kind: Some(kind) }
    };
    let matched = |matched: &StreamMatch| wire::StreamMatch {
        server_names: matched.server_names.iter().map(name).collect(),
        port: matched.port.map_or(0, u32::from),
    };
    let weighted =
        |one: &StreamBackend| wire::StreamBackend { backend: Some(backend(&one.backend)), weight: one.weight };
    wire::StreamRule {
        name: text(rule.name.as_ref()),
        matches: rule.matches.iter().map(matched).collect(),
        backends: rule.backends.iter().map(weighted).collect(),
    }
}

fn request_match(matched: &RequestMatch) -> wire::RequestMatch {
    let named =
        |name: &Str, value: &TextMatch| wire::NamedMatch { name: name.to_string(), value: Some(text_match(value)) };
    wire::RequestMatch {
        path: matched.path.as_ref().map(path_match),
        method: matched.method.as_ref().map(text_match),
        authority: matched.authority.as_ref().map(text_match),
        scheme: matched.scheme.as_ref().map(text_match),
        headers: matched.headers.iter().map(|header| named(&header.name, &header.value)).collect(),
        without_headers: matched.without_headers.iter().map(|header| named(&header.name, &header.value)).collect(),
        query: matched.query.iter().map(|parameter| named(&parameter.name, &parameter.value)).collect(),
        port: matched.port.map_or(0, u32::from),
        claims: matched.claims.iter().map(claim).collect(),
        without_claims: matched.without_claims.iter().map(claim).collect(),
    }
}

fn claim(matched: &ClaimMatch) -> wire::ClaimMatch {
    wire::ClaimMatch { path: strings(&matched.path), value: Some(text_match(&matched.value)) }
}

fn path_match(path: &PathMatch) -> wire::PathMatch {
    use wire::path_match::Kind;
    let kind = match path {
        PathMatch::Exact(text) => Kind::Exact(text.to_string()),
        PathMatch::Segments(text) => Kind::Segments(text.to_string()),
        PathMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        PathMatch::Regex(pattern) => Kind::Regex(pattern.text().to_string()),
        PathMatch::ExactIgnoringCase(text) => Kind::ExactIgnoringCase(text.to_string()),
        PathMatch::PrefixIgnoringCase(text) => Kind::PrefixIgnoringCase(text.to_string()),
    };
    wire::PathMatch { kind: Some(kind) }
}

fn text_match(text: &TextMatch) -> wire::TextMatch {
    use wire::text_match::Kind;
    let kind = match text {
        TextMatch::Exact(text) => Kind::Exact(text.to_string()),
        TextMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        TextMatch::Regex(pattern) => Kind::Regex(pattern.text().to_string()),
        TextMatch::Present => Kind::Present(true),
    };
    wire::TextMatch { kind: Some(kind) }
}

fn headers(edit: &HeaderEdit) -> Option<wire::HeaderEdit> {
    let pairs = |pairs: &[(Str, Str)]| {
        pairs.iter().map(|(name, value)| wire::Header { name: name.to_string(), value: value.to_string() }).collect()
    };
    let whole = || wire::HeaderEdit { set: pairs(&edit.set), add: pairs(&edit.add), remove: strings(&edit.remove) };
    (!edit.is_empty()).then(whole)
}

fn forward(forward: &Forward) -> wire::Forward {
    wire::Forward {
        backends: forward.backends.iter().map(weighted_backend).collect(),
        authority: text(forward.rewrite.authority.as_ref()),
        path: forward.rewrite.path.as_ref().map(rewrite),
        mirrors: forward
            .mirrors
            .iter()
            .map(|mirror| wire::Mirror {
                backend: Some(backend(&mirror.backend)),
                parts_per_million: mirror.share.get(),
            })
            .collect(),
        timeout: forward.timeout.map(duration),
        retry: forward.retry.as_ref().map(retry),
    }
}

fn weighted_backend(weighted: &WeightedBackend) -> wire::WeightedBackend {
    wire::WeightedBackend {
        backend: Some(backend(&weighted.backend)),
        weight: weighted.weight,
        request_headers: headers(&weighted.request_headers),
        response_headers: headers(&weighted.response_headers),
        authority: text(weighted.authority.as_ref()),
    }
}

fn backend(backend: &RouteBackend) -> wire::Backend {
    use wire::backend::Target;
    let target = match backend {
        RouteBackend::Service { service: key, port: number, subset } => Target::Service(wire::ServiceBackend {
            service: Some(service(key)),
            port: port(*number),
            subset: text(subset.as_ref()),
        }),
        RouteBackend::Invalid { problem } => Target::Invalid(problem.to_string()),
    };
    wire::Backend { target: Some(target) }
}

fn rewrite(rewrite: &PathRewrite) -> wire::PathRewrite {
    use wire::path_rewrite::Kind;
    let kind = match rewrite {
        PathRewrite::Full(text) => Kind::Full(text.to_string()),
        PathRewrite::Prefix(text) => Kind::Prefix(text.to_string()),
        PathRewrite::Regex(substitution) => Kind::Regex(wire::Substitution {
            pattern: substitution.pattern().to_string(),
            substitution: substitution.substitution().to_string(),
        }),
    };
    wire::PathRewrite { kind: Some(kind) }
}

fn retry(retry: &Retry) -> wire::Retry {
    use wire::RetryCondition as Condition;
    use wire::retry_on::Kind;
    let condition = |condition: Condition| Kind::Condition(condition.into());
    let on = |on: &RetryOn| {
        let kind = match on {
            RetryOn::ConnectFailure => condition(Condition::ConnectFailure),
            RetryOn::RefusedStream => condition(Condition::RefusedStream),
            RetryOn::Reset => condition(Condition::Reset),
            RetryOn::PerTryTimeout => condition(Condition::PerTryTimeout),
            RetryOn::GatewayError => condition(Condition::GatewayError),
            RetryOn::ServerError => condition(Condition::ServerError),
            RetryOn::Conflict => condition(Condition::Conflict),
            RetryOn::Status(code) => Kind::Status((*code).into()),
            RetryOn::Grpc(code) => Kind::Grpc((*code).into()),
        };
        wire::RetryOn { kind: Some(kind) }
    };
    wire::Retry {
        attempts: retry.attempts,
        per_try: retry.per_try.map(duration),
        backoff: retry.backoff.map(duration),
        on: retry.on.iter().map(on).collect(),
    }
}

fn redirect(redirect: &Redirect) -> wire::Redirect {
    use wire::redirect::Port;
    let of = |of: wire::RedirectPort| Some(Port::Of(of.into()));
    wire::Redirect {
        scheme: text(redirect.scheme.as_ref()),
        host: text(redirect.host.as_ref()),
        port: match redirect.port {
            RedirectPort::Derived => None,
            RedirectPort::OfScheme => of(wire::RedirectPort::OfScheme),
            RedirectPort::OfRequest => of(wire::RedirectPort::OfRequest),
            RedirectPort::Number(number) => Some(Port::Number(number.get().into())),
        },
        path: redirect.path.as_ref().map(rewrite),
        status: redirect.status.into(),
    }
}

fn fault(fault: &Fault) -> wire::Fault {
    use wire::abort::Answer;
    wire::Fault {
        delay: fault
            .delay
            .map(|(time, share)| wire::Delay { time: Some(duration(time)), parts_per_million: share.get() }),
        abort: fault.abort.map(|(abort, share)| wire::Abort {
            answer: Some(match abort {
                Abort::Http(status) => Answer::Http(status.into()),
                Abort::Grpc(status) => Answer::Grpc(status.into()),
            }),
            parts_per_million: share.get(),
        }),
    }
}

fn cors(cors: &Cors) -> wire::Cors {
    wire::Cors {
        origins: cors.origins.iter().map(text_match).collect(),
        methods: strings(&cors.methods),
        headers: strings(&cors.headers),
        expose: strings(&cors.expose),
        max_age: cors.max_age.map(duration),
        credentials: cors.credentials,
        forward_unmatched: cors.forward_unmatched,
    }
}
