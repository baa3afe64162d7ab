//! HTTPRoutes on Services (Gateway API, «GAMMA») to routes for waypoints (contract 7.4), and what is to be said about them.

use std::time::Duration;

use stillmesh_core::model::Str;
use stillmesh_core::model::http::{
    Forward, HeaderMatch, PathMatch, QueryMatch, RequestMatch, Retry, RetryOn, RouteAction, RouteRule, TextMatch,
};

use super::Mesh;
use super::route::{Filters, Problem, Reader, References, Routed, Rules, lower, pattern, unsupported};
use crate::gateway::http_route::{HttpMatch, HttpRetry, HttpRoute, HttpRule, HttpTimeouts, NamedValue};
use crate::object::Kind;

/// Translates a route.
///
/// A route with a part that is not supported is not accepted as a whole: to leave out what a user asked for would be
/// worse than the last good version. A backend that is not there is: its share of the requests is answered 500.
pub fn http_route(written: &HttpRoute, references: &impl References, mesh: &Mesh) -> Routed {
    let mut reader = Reader::new(Kind::HttpRoute, &written.metadata, &written.spec.parent_refs, references, mesh);
    let rules: Result<_, _> = written.spec.rules.iter().map(|written| rule(&mut reader, written)).collect();
    reader.finish(rules.map(Rules::requests))
}

fn rule<R: References>(reader: &mut Reader<'_, R>, written: &HttpRule) -> Result<RouteRule, Problem> {
    if written.session_persistence.is_some() {
        return Err(unsupported("sessionPersistence"));
    }
    let filters = Filters::read(&written.filters, &mut |backend| reader.backend(backend))?;
    let action = match filters.redirect {
        Some(redirect) => RouteAction::Redirect(redirect),
        None => {
            let backends = written.backend_refs.iter();
            RouteAction::Forward(Forward {
                backends: backends.map(|backend| reader.weighted(backend)).collect::<Result<_, _>>()?,
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
    let mut query: Vec<QueryMatch> = Vec::new();
    for parameter in &written.query_params {
        if !query.iter().any(|known| *known.name == *parameter.name) {
            query.push(QueryMatch { name: parameter.name.as_str().into(), value: value(parameter)? });
        }
    }
    Ok(RequestMatch {
        path: Some(path),
        method: written.method.as_deref().map(|method| TextMatch::Exact(method.into())),
        headers: headers(&written.headers)?,
        query,
        ..RequestMatch::default()
    })
}

/// What is asked of headers. Of several of one name the first counts, as the Gateway API has it.
pub(super) fn headers(written: &[NamedValue]) -> Result<Vec<HeaderMatch>, Problem> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for header in written {
        let name = lower(&header.name);
        if !headers.iter().any(|known| known.name == name) {
            headers.push(HeaderMatch { name, value: value(header)? });
        }
    }
    Ok(headers)
}

fn value(written: &NamedValue) -> Result<TextMatch, Problem> {
    match written.type_.as_deref() {
        None | Some("Exact") => Ok(TextMatch::Exact(written.value.as_str().into())),
        Some("RegularExpression") => pattern(&written.value).map(TextMatch::Regex),
        Some(other) => Err(unsupported(&format!("a match of type {other:?}"))),
    }
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
