//! HTTPRoutes on Services (Gateway API, «GAMMA») to routes for waypoints (contract 7.4), and what is to be said about them.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use stillmesh_core::model::Str;
use stillmesh_core::model::http::{
    Cors, Forward, HeaderEdit, HeaderMatch, HttpRoute, Mirror, PathMatch, PathRewrite, Pattern, QueryMatch, Redirect,
    RedirectPort, RequestMatch, Retry, RetryOn, Rewrite, RouteAction, RouteBackend, RouteKey, RouteKind, RouteParent,
    RouteRule, Share, TextMatch, WeightedBackend,
};

use super::{Mesh, service_key};
use crate::gateway::binding::Binding;
use crate::gateway::http_route::{
    BackendRef, HeaderModifier, HttpBackendRef, HttpCors, HttpFilter, HttpMatch, HttpRetry, HttpRoute as Written,
    HttpRule, HttpTimeouts, NamedValue, ParentRef, PathModifier, RequestMirror, RequestRedirect, UrlRewrite,
};
use crate::object::DEFAULT_NAMESPACE;
use crate::status::Condition;

/// What a route refers to: looked up by whoever knows the objects.
pub trait References {
    /// The ports of a Service; `None` where there is none of that name.
    fn service_ports(&self, namespace: &str, name: &str) -> Option<Vec<u16>>;
    /// Which waypoint a Service is bound to.
    fn binding(&self, namespace: &str, name: &str) -> Binding;
    /// Whether a ReferenceGrant lets HTTPRoutes of one namespace refer to a Service of another.
    fn is_granted(&self, from: &str, namespace: &str, name: &str) -> bool;
}

/// What an HTTPRoute means.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// For waypoints: one for everybody's requests, or one for those of its own namespace, or both. Empty where no parent
    /// is a Service, or none takes it.
    pub routes: Vec<HttpRoute>,
    /// What is said to each parent that is a Service.
    pub parents: Vec<(ParentRef, Vec<Condition>)>,
    /// The rules are such that no parent takes them: the last version that was taken stays, if there is one.
    pub refused: bool,
}

impl Routed {
    /// Says that an earlier version stays in force.
    pub fn stays_as_it_was(&mut self) {
        let said = self.parents.iter_mut().flat_map(|(_, said)| said);
        for condition in said.filter(|one| one.type_ == "Accepted" && one.status == "False") {
            condition.message.push_str("; its last accepted version stays in force");
        }
    }
}

/// Why a part of a route is not used: a reason of the Gateway API, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    reason: &'static str,
    message: String,
}

impl Problem {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Translates a route.
///
/// A route with a part that is not supported is not accepted as a whole: to leave out what a user asked for would be
/// worse than the last good version. A backend that is not there is: its share of the requests is answered 500.
pub fn http_route(written: &Written, references: &impl References, mesh: &Mesh) -> Routed {
    let namespace = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let reader = Reader { namespace, references, mesh };
    let mut unresolved = None;
    let rules: Result<Vec<RouteRule>, Problem> =
        written.spec.rules.iter().map(|rule| reader.rule(rule, &mut unresolved)).collect();
    let mut parents = Vec::new();
    let (mut own, mut consumed) = (Vec::new(), Vec::new());
    for parent in written.spec.parent_refs.iter().filter(|parent| parent.is_service()) {
        let taken = rules.as_ref().map(|_| ()).map_err(Clone::clone).and_then(|()| reader.parent(parent));
        match &taken {
            Ok(found) if parent.namespace.as_deref().is_none_or(|other| other == namespace) => own.push(found.clone()),
            Ok(found) => consumed.push(found.clone()),
            Err(_) => {}
        }
        let accepted = match taken {
            Ok(_) => Condition::accepted("Accepted", "Route was valid".to_owned()),
            Err(problem) => Condition::not_accepted(problem.reason, problem.message),
        };
        let resolved = match &unresolved {
            None => Condition::resolved("All references resolved".to_owned()),
            Some(Problem { reason, message }) => Condition::unresolved(reason, message.clone()),
        };
        let binding = references.binding(parent.namespace.as_deref().unwrap_or(namespace), &parent.name);
        parents.push((parent.clone(), vec![accepted, resolved, Condition::waypoints(&binding)]));
    }
    let created = written.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let name: Str = written.metadata.name.as_deref().unwrap_or_default().into();
    let refused = rules.is_err();
    let rules = rules.unwrap_or_default();
    let route = |suffix: &str, parents: Vec<RouteParent>, consumer: Option<Str>| HttpRoute {
        key: RouteKey { kind: RouteKind::Http, namespace: namespace.into(), name: format!("{name}{suffix}").into() },
        parents,
        consumer,
        created,
        rules: rules.clone(),
    };
    // No object's name has an `@`.
    let own = (!own.is_empty()).then(|| route("", own, None));
    let consumed = (!consumed.is_empty()).then(|| route("@consumer", consumed, Some(namespace.into())));
    Routed { routes: own.into_iter().chain(consumed).collect(), parents, refused }
}

struct Reader<'a, R> {
    namespace: &'a str,
    references: &'a R,
    mesh: &'a Mesh,
}

impl<R: References> Reader<'_, R> {
    fn parent(&self, parent: &ParentRef) -> Result<RouteParent, Problem> {
        let namespace = parent.namespace.as_deref().unwrap_or(self.namespace);
        let Some(ports) = self.references.service_ports(namespace, &parent.name) else {
            let message = format!("Service {namespace}/{} is not there", parent.name);
            return Err(Problem::new("NoMatchingParent", message));
        };
        if let Some(port) = parent.port.filter(|port| !ports.contains(port)) {
            let message = format!("Service {namespace}/{} has no port {port}", parent.name);
            return Err(Problem::new("NoMatchingParent", message));
        }
        if let Some(section) = &parent.section_name {
            let message = format!("sectionName {section:?}: a Service is attached to by its port");
            return Err(Problem::new("NoMatchingParent", message));
        }
        Ok(RouteParent { service: service_key(namespace, &parent.name, self.mesh), port: parent.port })
    }

    /// A rule; what its backends lack is noted in `unresolved`, the first of all.
    fn rule(&self, written: &HttpRule, unresolved: &mut Option<Problem>) -> Result<RouteRule, Problem> {
        if written.session_persistence.is_some() {
            return Err(unsupported("sessionPersistence"));
        }
        let filters = Filters::read(&written.filters, &mut |backend| self.backend(backend, unresolved))?;
        let redirect = filters.redirect.as_ref().map(redirect).transpose()?;
        let action = match redirect {
            Some(redirect) => RouteAction::Redirect(redirect),
            None => {
                let backends = written.backend_refs.iter();
                RouteAction::Forward(Forward {
                    backends: backends.map(|backend| self.weighted(backend, unresolved)).collect::<Result<_, _>>()?,
                    rewrite: filters.rewrite,
                    mirrors: filters.mirrors,
                    timeout: timeout(written.timeouts.as_ref())?,
                    retry: retry(written.retry.as_ref(), written.timeouts.as_ref())?,
                })
            }
        };
        Ok(RouteRule {
            name: written.name.as_deref().map(Str::from),
            matches: written.matches.iter().map(request_match).collect::<Result<_, _>>()?,
            action,
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
            fault: None,
            cors: filters.cors,
        })
    }

    fn weighted(&self, written: &HttpBackendRef, unresolved: &mut Option<Problem>) -> Result<WeightedBackend, Problem> {
        let filters = Filters::read(&written.filters, &mut |backend| self.backend(backend, unresolved))?;
        let elsewhere = [
            ("RequestRedirect", filters.redirect.is_some()),
            ("RequestMirror", !filters.mirrors.is_empty()),
            ("CORS", filters.cors.is_some()),
            ("URLRewrite of a path", filters.rewrite.path.is_some()),
        ];
        if let Some((filter, _)) = elsewhere.iter().find(|(_, is_there)| *is_there) {
            return Err(unsupported(&format!("{filter} at a backendRef")));
        }
        Ok(WeightedBackend {
            backend: self.backend(&written.backend, unresolved),
            weight: written.weight.unwrap_or(1),
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
            authority: filters.rewrite.authority,
        })
    }

    fn backend(&self, written: &BackendRef, unresolved: &mut Option<Problem>) -> RouteBackend {
        match self.resolve(written) {
            Ok(backend) => backend,
            Err(problem) => {
                let said = problem.message.clone();
                unresolved.get_or_insert(problem);
                RouteBackend::Invalid { problem: said.into() }
            }
        }
    }

    fn resolve(&self, written: &BackendRef) -> Result<RouteBackend, Problem> {
        let (group, kind) = (written.group.as_deref().unwrap_or(""), written.kind.as_deref().unwrap_or("Service"));
        let namespace = written.namespace.as_deref().unwrap_or(self.namespace);
        let name = &written.name;
        if (group, kind) != ("", "Service") {
            let message = format!("{kind} of group {group:?} cannot take requests: a Service can");
            return Err(Problem::new("InvalidKind", message));
        }
        if namespace != self.namespace && !self.references.is_granted(self.namespace, namespace, name) {
            let message = format!(
                "Service {namespace}/{name} is not open to routes of namespace {}: a ReferenceGrant in {namespace} is needed",
                self.namespace
            );
            return Err(Problem::new("RefNotPermitted", message));
        }
        let Some(ports) = self.references.service_ports(namespace, name) else {
            return Err(Problem::new("BackendNotFound", format!("Service {namespace}/{name} is not there")));
        };
        let Some(port) = written.port.and_then(NonZeroU16::new) else {
            let message = format!("Service {namespace}/{name}: the port is missing");
            return Err(Problem::new("UnsupportedValue", message));
        };
        if !ports.contains(&port.get()) {
            let message = format!("Service {namespace}/{name} has no port {port}");
            return Err(Problem::new("BackendNotFound", message));
        }
        let service = service_key(namespace, name, self.mesh);
        Ok(RouteBackend::Service { service, port: Some(port), subset: None })
    }
}

fn unsupported(what: &str) -> Problem {
    Problem::new("UnsupportedValue", format!("{what} is not supported"))
}

/// What a list of filters comes to.
#[derive(Default)]
struct Filters {
    request_headers: HeaderEdit,
    response_headers: HeaderEdit,
    rewrite: Rewrite,
    redirect: Option<RequestRedirect>,
    mirrors: Vec<Mirror>,
    cors: Option<Cors>,
}

impl Filters {
    fn read(written: &[HttpFilter], backend: &mut impl FnMut(&BackendRef) -> RouteBackend) -> Result<Self, Problem> {
        let mut read = Self::default();
        let mut counts = BTreeMap::new();
        for filter in written {
            let HttpFilter { request_header_modifier, response_header_modifier, .. } = filter;
            let count = counts.entry(filter.type_.as_str()).or_insert(0);
            *count += 1;
            if *count > 1 && filter.type_ != "RequestMirror" {
                return Err(Problem::new("IncompatibleFilters", format!("filter {} twice", filter.type_)));
            }
            let absent = || {
                let message = format!("filter {}: its content is missing", filter.type_);
                Problem::new("UnsupportedValue", message)
            };
            match filter.type_.as_str() {
                "RequestHeaderModifier" => {
                    read.request_headers = headers(request_header_modifier.as_ref().ok_or_else(absent)?);
                }
                "ResponseHeaderModifier" => {
                    read.response_headers = headers(response_header_modifier.as_ref().ok_or_else(absent)?);
                }
                "RequestMirror" => {
                    let mirror = filter.request_mirror.as_ref().ok_or_else(absent)?;
                    read.mirrors.push(Mirror { backend: backend(&mirror.backend_ref), share: share(mirror)? });
                }
                "RequestRedirect" => read.redirect = Some(filter.request_redirect.clone().ok_or_else(absent)?),
                "URLRewrite" => read.rewrite = rewrite(filter.url_rewrite.as_ref().ok_or_else(absent)?)?,
                "CORS" => read.cors = Some(cors(filter.cors.as_ref().ok_or_else(absent)?)?),
                other => return Err(unsupported(&format!("filter {other}"))),
            }
        }
        if read.redirect.is_some() && (read.rewrite != Rewrite::default()) {
            let message = "RequestRedirect and URLRewrite in one rule";
            return Err(Problem::new("IncompatibleFilters", message));
        }
        Ok(read)
    }
}

fn headers(written: &HeaderModifier) -> HeaderEdit {
    let pairs = |written: &[crate::gateway::http_route::HttpHeader]| {
        written.iter().map(|header| (lower(&header.name), header.value.as_str().into())).collect()
    };
    HeaderEdit {
        set: pairs(&written.set),
        add: pairs(&written.add),
        remove: written.remove.iter().map(|name| lower(name)).collect(),
    }
}

/// Names of headers have no case.
fn lower(name: &str) -> Str {
    name.to_ascii_lowercase().into()
}

/// The part of the requests that is mirrored: all where nothing is said.
fn share(written: &RequestMirror) -> Result<Share, Problem> {
    let (parts, of) = match (written.percent, written.fraction) {
        (None, None) => return Ok(Share::ALL),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => {
            return Err(Problem::new("UnsupportedValue", "RequestMirror: percent and fraction do not go together"));
        }
    };
    if of == 0 || parts > of {
        return Err(Problem::new("UnsupportedValue", format!("RequestMirror: {parts} of {of} is not a part")));
    }
    let million = u64::from(parts) * 1_000_000 / u64::from(of);
    Ok(Share::parts_per_million(u32::try_from(million).unwrap_or(u32::MAX)))
}

fn rewrite(written: &UrlRewrite) -> Result<Rewrite, Problem> {
    let path = written.path.as_ref().map(path_rewrite).transpose()?;
    Ok(Rewrite { authority: written.hostname.as_deref().map(Str::from), path })
}

fn path_rewrite(written: &PathModifier) -> Result<PathRewrite, Problem> {
    match (written.type_.as_str(), &written.replace_full_path, &written.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => Ok(PathRewrite::Full(path.as_str().into())),
        ("ReplacePrefixMatch", None, Some(path)) => Ok(PathRewrite::Prefix(path.as_str().into())),
        (kind, ..) => {
            let message = format!("a path of type {kind:?}: ReplaceFullPath or ReplacePrefixMatch, with its value");
            Err(Problem::new("UnsupportedValue", message))
        }
    }
}

fn redirect(written: &RequestRedirect) -> Result<Redirect, Problem> {
    let status = written.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(Problem::new("UnsupportedValue", format!("a redirect with status {status}")));
    }
    Ok(Redirect {
        scheme: written.scheme.as_deref().map(Str::from),
        host: written.hostname.as_deref().map(Str::from),
        port: written.port.and_then(NonZeroU16::new).map_or(RedirectPort::Derived, RedirectPort::Number),
        path: written.path.as_ref().map(path_rewrite).transpose()?,
        status,
    })
}

fn cors(written: &HttpCors) -> Result<Cors, Problem> {
    let credentials = written.allow_credentials.unwrap_or(false);
    let texts = |written: &[String]| written.iter().map(|text| text.as_str().into()).collect();
    Ok(Cors {
        origins: written.allow_origins.iter().map(|origin| self::origin(origin)).collect::<Result<_, _>>()?,
        methods: texts(&written.allow_methods),
        headers: texts(&written.allow_headers),
        expose: texts(&written.expose_headers),
        max_age: Some(Duration::from_secs(written.max_age.unwrap_or(5).into())),
        credentials,
    })
}

/// An origin: `*` is every one, and in the host stands for any labels.
fn origin(written: &str) -> Result<TextMatch, Problem> {
    if written == "*" {
        return Ok(TextMatch::Present);
    }
    if !written.contains('*') {
        return Ok(TextMatch::Exact(written.into()));
    }
    let escaped: String = written
        .chars()
        .map(|one| match one {
            '*' => "[^/]+".to_owned(),
            one if one.is_ascii_alphanumeric() => one.to_string(),
            one => format!("\\{one}"),
        })
        .collect();
    pattern(&escaped).map(TextMatch::Regex)
}

fn pattern(text: &str) -> Result<Pattern, Problem> {
    Pattern::new(text).map_err(|error| Problem::new("UnsupportedValue", error.to_string()))
}

fn request_match(written: &HttpMatch) -> Result<RequestMatch, Problem> {
    let path = match &written.path {
        None => PathMatch::segments("/"),
        Some(path) => {
            let value = path.value.as_deref().unwrap_or("/");
            match path.type_.as_deref() {
                None | Some("PathPrefix") => PathMatch::segments(value),
                Some("Exact") => PathMatch::Exact(value.into()),
                Some("RegularExpression") => PathMatch::Regex(pattern(value)?),
                Some(other) => return Err(unsupported(&format!("a path match of type {other:?}"))),
            }
        }
    };
    let value = |written: &NamedValue| match written.type_.as_deref() {
        None | Some("Exact") => Ok(TextMatch::Exact(written.value.as_str().into())),
        Some("RegularExpression") => pattern(&written.value).map(TextMatch::Regex),
        Some(other) => Err(unsupported(&format!("a match of type {other:?}"))),
    };
    // Of several of one name the first counts, as the Gateway API has it.
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for header in &written.headers {
        let name = lower(&header.name);
        if !headers.iter().any(|known| known.name == name) {
            headers.push(HeaderMatch { name, value: value(header)? });
        }
    }
    let mut query: Vec<QueryMatch> = Vec::new();
    for parameter in &written.query_params {
        if !query.iter().any(|known| *known.name == *parameter.name) {
            query.push(QueryMatch { name: parameter.name.as_str().into(), value: value(parameter)? });
        }
    }
    Ok(RequestMatch {
        path: Some(path),
        method: written.method.as_deref().map(|method| TextMatch::Exact(method.into())),
        headers,
        query,
        ..RequestMatch::default()
    })
}

/// `0s` is: as long as it takes.
fn timeout(written: Option<&HttpTimeouts>) -> Result<Option<Duration>, Problem> {
    let request = written.and_then(|written| written.request.as_deref());
    Ok(request.map(duration).transpose()?.filter(|time| !time.is_zero()))
}

fn retry(written: Option<&HttpRetry>, timeouts: Option<&HttpTimeouts>) -> Result<Option<Retry>, Problem> {
    let per_try = timeouts.and_then(|timeouts| timeouts.backend_request.as_deref()).map(duration).transpose()?;
    let per_try = per_try.filter(|time| !time.is_zero());
    let Some(written) = written else {
        // What one try may take holds without retries too.
        return Ok(per_try.map(|per_try| Retry { attempts: 0, per_try: Some(per_try), backoff: None, on: Vec::new() }));
    };
    let connection = [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset, RetryOn::PerTryTimeout];
    Ok(Some(Retry {
        attempts: written.attempts.unwrap_or(1),
        per_try,
        backoff: written.backoff.as_deref().map(duration).transpose()?,
        on: connection.into_iter().chain(written.codes.iter().map(|code| RetryOn::Status(*code))).collect(),
    }))
}

/// A duration as the Gateway API writes it (GEP-2257): up to four of `<digits><h|m|s|ms>`, each number of at most five
/// digits.
fn duration(text: &str) -> Result<Duration, Problem> {
    let wrong = || {
        let message = format!("{text:?} is not a duration: 1h30m, 10s or 500ms are");
        Problem::new("UnsupportedValue", message)
    };
    let mut left = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = left.len() - left.trim_start_matches(|one: char| one.is_ascii_digit()).len();
        let (number, rest) = left.split_at(digits);
        let number: u64 = if digits > 5 { return Err(wrong()) } else { number.parse().map_err(|_| wrong())? };
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let unit = units.into_iter().find_map(|(unit, millis)| Some((rest.strip_prefix(unit)?, millis)));
        let (rest, millis) = unit.ok_or_else(wrong)?;
        total += Duration::from_millis(number * millis);
        left = rest;
        if left.is_empty() {
            return Ok(total);
        }
    }
    Err(wrong())
}

#[cfg(test)]
mod tests;
