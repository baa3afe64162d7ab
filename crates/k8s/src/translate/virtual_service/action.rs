//! What a VirtualService does with requests.

use std::num::NonZeroU16;
use std::time::Duration;

use stillmesh_core::model::Str;
use stillmesh_core::model::http::{
    Abort, Cors, Fault, Forward, HeaderEdit, Mirror, PathMatch, PathRewrite, Redirect, RedirectPort, RequestMatch,
    Respond, Retry, RetryOn, Rewrite, RouteAction, RouteBackend, RouteRule, Share, Substitution, TextMatch,
    WeightedBackend,
};

use super::matching::{never, request_match, text};
use super::{Reader, resolve};
use crate::duration;
use crate::istio::virtual_service as written;
use crate::translate::route::References;
use crate::translate::service_key;

/// After what requests are tried again where `retryOn` says nothing (contract 7.4).
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

impl<R: References> Reader<'_, R> {
    /// A rule; `None` where none of its matches can ever hold.
    pub(super) fn rule(&mut self, rule: &written::HttpRoute) -> Result<Option<RouteRule>, String> {
        let mut matches = Vec::new();
        for matched in &rule.matches {
            match never(matched) {
                Some(field) => drop(self.notes.insert(format!("a match with {field} never holds at a waypoint"))),
                None => matches.push(request_match(matched)?),
            }
        }
        if matches.is_empty() && !rule.matches.is_empty() {
            return Ok(None);
        }
        let edits = Edits::read(rule.headers.as_ref())?;
        let action = match (&rule.redirect, &rule.direct_response, rule.route.is_empty()) {
            (Some(redirect), None, true) => RouteAction::Redirect(self::redirect(redirect)?),
            (None, Some(response), true) => RouteAction::Respond(respond(response)?),
            (None, None, false) => {
                if rule.rewrite.as_ref().is_some_and(|rewrite| !rewrite.uri.is_empty()) {
                    // Every path begins with `/`, and that is what is written anew.
                    let any = || PathMatch::Prefix("/".into());
                    for matched in &mut matches {
                        matched.path.get_or_insert_with(any);
                    }
                    if matches.is_empty() {
                        matches.push(RequestMatch { path: Some(any()), ..RequestMatch::default() });
                    }
                }
                RouteAction::Forward(self.forward(rule, edits.authority)?)
            }
            _ => return Err("exactly one of route, redirect and directResponse is needed".to_owned()),
        };
        Ok(Some(RouteRule {
            name: (!rule.name.is_empty()).then(|| rule.name.as_str().into()),
            matches,
            action,
            request_headers: edits.request,
            response_headers: edits.response,
            fault: rule.fault.as_ref().map(fault).transpose()?,
            cors: rule.cors_policy.as_ref().map(cors).transpose()?,
        }))
    }

    fn forward(&mut self, rule: &written::HttpRoute, authority: Option<Str>) -> Result<Forward, String> {
        let alone = rule.route.len() == 1;
        let mut backends = Vec::new();
        for one in &rule.route {
            let edits = Edits::read(one.headers.as_ref())?;
            backends.push(WeightedBackend {
                backend: self.destination(&one.destination),
                weight: weight(one.weight, alone),
                request_headers: edits.request,
                response_headers: edits.response,
                authority: edits.authority,
            });
        }
        if backends.iter().all(|one| one.weight == 0) {
            return Err("route: the weights add up to nothing".to_owned());
        }
        let rewrite = rule.rewrite.as_ref();
        let path = match rewrite {
            Some(written::Rewrite { uri_regex_rewrite: Some(regex), uri, .. }) if uri.is_empty() => {
                let read = Substitution::new(&regex.pattern, &regex.rewrite);
                Some(PathRewrite::Regex(read.map_err(|error| error.to_string())?))
            }
            Some(written::Rewrite { uri_regex_rewrite: Some(_), .. }) => {
                return Err("rewrite: uri and uriRegexRewrite do not go together".to_owned());
            }
            Some(written::Rewrite { uri, .. }) if !uri.is_empty() => Some(PathRewrite::Prefix(uri.as_str().into())),
            _ => None,
        };
        let host = rewrite.map(|rewrite| rewrite.authority.as_str()).filter(|host| !host.is_empty());
        let timeout = rule.timeout.as_deref().map(duration::istio).transpose()?;
        Ok(Forward {
            backends,
            rewrite: Rewrite { authority: host.map(Str::from).or(authority), path },
            mirrors: self.mirrors(rule)?,
            timeout: timeout.filter(|time| !time.is_zero()),
            retry: rule.retries.as_ref().map(retry).transpose()?,
        })
    }

    fn mirrors(&mut self, rule: &written::HttpRoute) -> Result<Vec<Mirror>, String> {
        let old = match (rule.mirror_percentage, rule.mirror_percent) {
            (Some(percent), _) => share(percent.value)?,
            (None, Some(percent)) => share(percent.into())?,
            (None, None) => Share::ALL,
        };
        let mut mirrors: Vec<Mirror> = Vec::new();
        if let Some(one) = &rule.mirror {
            mirrors.push(Mirror { backend: self.destination(one), share: old });
        }
        for one in &rule.mirrors {
            let share = one.percentage.map_or(Ok(Share::ALL), |percent| share(percent.value))?;
            mirrors.push(Mirror { backend: self.destination(&one.destination), share });
        }
        Ok(mirrors)
    }

    /// Where requests go; what is not there is noted.
    fn destination(&mut self, written: &written::Destination) -> RouteBackend {
        self.resolved_or(written, "answered 500")
    }

    /// Where something goes; what is not there is noted, with what becomes of its share.
    pub(super) fn resolved_or(&mut self, written: &written::Destination, else_: &str) -> RouteBackend {
        self.resolved(written).unwrap_or_else(|problem| {
            self.notes.insert(format!("{problem}: its share is {else_}"));
            RouteBackend::Invalid { problem: problem.into() }
        })
    }

    fn resolved(&self, written: &written::Destination) -> Result<RouteBackend, String> {
        let host = &written.host;
        let found = resolve(host, self.namespace, self.mesh);
        let ports = found.as_ref().and_then(|(namespace, name)| self.references.service_ports(namespace, name));
        let (Some((namespace, name)), Some(ports)) = (found, ports) else {
            return Err(format!("the destination {host:?} is not a Service here"));
        };
        let port = match (&written.port, ports.as_slice()) {
            (Some(port), ports) if !ports.contains(&port.number) => {
                return Err(format!("Service {namespace}/{name} has no port {}", port.number));
            }
            (Some(port), _) => NonZeroU16::new(port.number),
            (None, [only]) => NonZeroU16::new(*only),
            (None, _) => None,
        };
        let subset = written.subset.as_deref().filter(|subset| !subset.is_empty()).map(Str::from);
        Ok(RouteBackend::Service { service: service_key(&namespace, &name, self.mesh), port, subset })
    }
}

/// The share of a destination. Without weights nothing is said about shares but of a single one.
pub(super) fn weight(written: Option<u32>, alone: bool) -> u32 {
    written.filter(|weight| !alone || *weight > 0).unwrap_or(u32::from(alone))
}

/// Changes of headers, and of the host, which is written as one.
#[derive(Default)]
struct Edits {
    request: HeaderEdit,
    response: HeaderEdit,
    authority: Option<Str>,
}

impl Edits {
    fn read(written: Option<&written::Headers>) -> Result<Self, String> {
        let Some(written) = written else { return Ok(Self::default()) };
        let is_host = |name: &str| matches!(name.to_ascii_lowercase().as_str(), "host" | ":authority");
        let mut request = written.request.clone();
        let host = request.set.iter().chain(&request.add).find(|(name, _)| is_host(name));
        let authority = host.map(|(_, host)| host.as_str().into());
        request.set.retain(|name, _| !is_host(name));
        request.add.retain(|name, _| !is_host(name));
        Ok(Self { request: edit(&request)?, response: edit(&written.response)?, authority })
    }
}

fn edit(written: &written::HeaderOperations) -> Result<HeaderEdit, String> {
    let name = |name: &str| match name.starts_with(':') {
        true => Err(format!("{name} cannot be changed as a header")),
        false => Ok(Str::from(name.to_ascii_lowercase())),
    };
    let pairs = |pairs: &std::collections::BTreeMap<String, String>| {
        pairs.iter().map(|(key, text)| Ok((name(key)?, value(text)?))).collect::<Result<Vec<_>, String>>()
    };
    Ok(HeaderEdit {
        set: pairs(&written.set)?,
        add: pairs(&written.add)?,
        remove: written.remove.iter().map(|key| name(key)).collect::<Result<_, _>>()?,
    })
}

/// A header's value. Envoy puts things in place of `%NAME%`; `%%` is a percent sign.
fn value(written: &str) -> Result<Str, String> {
    let mut parts = written.split("%%");
    match parts.any(|part| part.contains('%')) {
        true => Err(format!("the header's value {written:?}: variables between percent signs are not supported")),
        false => Ok(written.replace("%%", "%").into()),
    }
}

fn redirect(written: &written::Redirect) -> Result<Redirect, String> {
    let set = |text: &str| (!text.is_empty()).then(|| Str::from(text));
    let status = written.redirect_code.unwrap_or(301);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!("redirect: status {status}: 301, 302, 303, 307 and 308 are accepted"));
    }
    let port = match (written.port.and_then(NonZeroU16::new), written.derive_port.as_deref()) {
        (Some(port), None) => RedirectPort::Number(port),
        (None, Some("FROM_PROTOCOL_DEFAULT")) => RedirectPort::OfScheme,
        (None, Some("FROM_REQUEST_PORT")) => RedirectPort::OfRequest,
        // Another host has the port that is written with it.
        (None, None) if !written.authority.is_empty() => RedirectPort::OfScheme,
        (None, None) => RedirectPort::OfRequest,
        (_, Some(other)) => return Err(format!("redirect: derivePort {other:?}, beside a port or unknown")),
    };
    Ok(Redirect {
        scheme: set(&written.scheme),
        host: set(&written.authority),
        port,
        path: set(&written.uri).map(PathRewrite::Full),
        status,
    })
}

fn respond(written: &written::DirectResponse) -> Result<Respond, String> {
    if !(200..600).contains(&written.status) {
        return Err(format!("directResponse: status {}: 200 to 599 are accepted", written.status));
    }
    let body = match &written.body {
        None => String::new(),
        Some(written::Body { string: Some(text), bytes: None }) => text.clone(),
        Some(written::Body { string: None, bytes: None }) => String::new(),
        Some(_) => return Err("directResponse: a body of bytes is not supported; a string is".to_owned()),
    };
    Ok(Respond { status: written.status, body: body.into() })
}

/// Parts of a hundred.
fn share(percent: f64) -> Result<Share, String> {
    if !(0.0..=100.0).contains(&percent) {
        return Err(format!("{percent} is not a percentage"));
    }
    let million = format!("{:.0}", percent * 10_000.0);
    million.parse().map(Share::parts_per_million).map_err(|_| format!("{percent} is not a percentage"))
}

fn fault(written: &written::Fault) -> Result<Fault, String> {
    let mut fault = Fault::default();
    if let Some(delay) = &written.delay {
        if delay.exponential_delay.is_some() {
            return Err("fault.delay: exponentialDelay is not supported".to_owned());
        }
        let fixed = delay.fixed_delay.as_deref().ok_or("fault.delay: fixedDelay is missing")?;
        let percent = delay.percentage.map_or_else(|| f64::from(delay.percent.unwrap_or(0)), |percent| percent.value);
        fault.delay = Some((duration::istio(fixed)?, share(percent)?));
    }
    if let Some(abort) = &written.abort {
        let answer = match (abort.http_status, abort.grpc_status.as_deref(), &abort.http2_error) {
            (Some(status), None, None) if (200..600).contains(&status) => Abort::Http(status),
            (None, Some(name), None) => {
                Abort::Grpc(grpc(name).ok_or_else(|| format!("{name:?} is not a gRPC status"))?)
            }
            _ => return Err("fault.abort: httpStatus from 200 to 599 or grpcStatus is needed".to_owned()),
        };
        fault.abort = Some((answer, share(abort.percentage.map_or(0.0, |percent| percent.value))?));
    }
    Ok(fault)
}

/// The statuses of gRPC, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn grpc(name: &str) -> Option<u16> {
    let known = GRPC.iter().position(|known| *known == name).and_then(|number| u16::try_from(number).ok());
    known.or_else(|| name.parse().ok().filter(|number| usize::from(*number) < GRPC.len()))
}

/// Whether endpoints of other places may be tried, and ones that have failed, is for the balancing to say: what a user
/// permits there is not an obligation.
fn retry(written: &written::Retries) -> Result<Retry, String> {
    let time = |text: &Option<String>| text.as_deref().map(duration::istio).transpose();
    let per_try = time(&written.per_try_timeout)?.filter(|time| !time.is_zero());
    if written.attempts == 0 {
        return Ok(Retry { attempts: 0, per_try, backoff: None, on: Vec::new() });
    }
    let words = if written.retry_on.is_empty() { RETRY_ON } else { &written.retry_on };
    let mut on = Vec::new();
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        on.extend(retry_on(word)?);
    }
    Ok(Retry { attempts: written.attempts, per_try, backoff: time(&written.backoff)?, on })
}

/// One of Envoy's words; `None` for those that mean nothing here.
fn retry_on(word: &str) -> Result<Option<RetryOn>, String> {
    let grpc = |name: &str| self::grpc(name).map(RetryOn::Grpc);
    Ok(match word {
        "5xx" => Some(RetryOn::ServerError),
        "gateway-error" => Some(RetryOn::GatewayError),
        "reset" | "reset-before-request" => Some(RetryOn::Reset),
        "connect-failure" => Some(RetryOn::ConnectFailure),
        "refused-stream" => Some(RetryOn::RefusedStream),
        "retriable-4xx" => Some(RetryOn::Conflict),
        "cancelled" => grpc("CANCELLED"),
        "deadline-exceeded" => grpc("DEADLINE_EXCEEDED"),
        "internal" => grpc("INTERNAL"),
        "resource-exhausted" => grpc("RESOURCE_EXHAUSTED"),
        "unavailable" => grpc("UNAVAILABLE"),
        // The statuses are listed beside it.
        "retriable-status-codes" => None,
        // Nobody speaks HTTP/3 here.
        "http3-post-connect-failure" => None,
        status => match status.parse() {
            Ok(status @ 100..=599) => Some(RetryOn::Status(status)),
            _ => return Err(format!("retries: retryOn {word:?} is not supported")),
        },
    })
}

fn cors(written: &written::CorsPolicy) -> Result<Cors, String> {
    let forward_unmatched = match written.unmatched_preflights.as_deref() {
        None | Some("FORWARD" | "UNSPECIFIED") => true,
        Some("IGNORE") => false,
        Some(other) => {
            return Err(format!("corsPolicy: unmatchedPreflights {other:?}: FORWARD and IGNORE are accepted"));
        }
    };
    let origin = |matched: TextMatch| match &matched {
        TextMatch::Exact(text) if **text == *"*" => TextMatch::Present,
        _ => matched,
    };
    let old = written.allow_origin.iter().map(|text| Ok(TextMatch::Exact(text.as_str().into())));
    let origins = old.chain(written.allow_origins.iter().map(text));
    let texts = |written: &[String]| written.iter().map(|text| text.as_str().into()).collect();
    let max_age = written.max_age.as_deref().map(duration::istio).transpose()?;
    let max_age: Option<Duration> = max_age.filter(|time| !time.is_zero());
    Ok(Cors {
        origins: origins.map(|matched| matched.map(origin)).collect::<Result<_, String>>()?,
        methods: texts(&written.allow_methods),
        headers: texts(&written.allow_headers),
        expose: texts(&written.expose_headers),
        max_age,
        credentials: written.allow_credentials.unwrap_or(false),
        forward_unmatched,
    })
}
