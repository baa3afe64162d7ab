//! Which rule takes an HTTP request, and what that means for it (contract 7.4).

use std::fmt::Write as _;
use std::sync::Arc;

use super::balance::{Stream, weighted};
use crate::attrs::RequestAttrs;
use crate::model::http::{
    ClaimMatch, Forward, HttpRoute, PathMatch, PathRewrite, Redirect, RedirectPort, RequestMatch, RouteRule, Share,
    WeightedBackend,
};
use crate::snapshot::RouteTable;

/// The rule that takes a request.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// Its route.
    pub route: &'a Arc<HttpRoute>,
    /// The rule.
    pub rule: &'a RouteRule,
    /// Which one of the route it is, from 0.
    pub rule_index: usize,
    /// What of the rule held; `None`: the rule asks nothing.
    pub matched: Option<&'a RequestMatch>,
}

/// The first rule in order that takes the request. `None`: there are routes, and none of them takes it (404).
pub fn route<'a>(table: &'a RouteTable, request: &RequestAttrs<'_>) -> Option<Chosen<'a>> {
    let entry = table.first(request.path, |entry| entry.matched().is_none_or(|matched| holds(matched, request)))?;
    Some(Chosen { route: &entry.route, rule: entry.rule()?, rule_index: entry.rule_index, matched: entry.matched() })
}

/// Whether all that is asked of a request holds.
pub fn holds(matched: &RequestMatch, request: &RequestAttrs<'_>) -> bool {
    let header = |name: &str| request.headers.value(name);
    let claim = |wanted: &ClaimMatch| {
        request.token.is_some_and(|token| token.texts(&wanted.path).iter().any(|text| wanted.value.holds(text)))
    };
    matched.port.is_none_or(|port| port == request.port)
        && matched.path.as_ref().is_none_or(|path| path.holds(request.path))
        && matched.method.as_ref().is_none_or(|method| method.holds(request.method))
        && matched.authority.as_ref().is_none_or(|authority| authority.holds(request.authority))
        && matched.scheme.as_ref().is_none_or(|scheme| scheme.holds(request.scheme))
        && matched.headers.iter().all(|wanted| header(&wanted.name).is_some_and(|value| wanted.value.holds(&value)))
        && !matched
            .without_headers
            .iter()
            .any(|unwanted| header(&unwanted.name).is_some_and(|value| unwanted.value.holds(&value)))
        && matched.claims.iter().all(claim)
        && !matched.without_claims.iter().any(claim)
        && matched
            .query
            .iter()
            .all(|wanted| parameter(request.query, &wanted.name).is_some_and(|value| wanted.value.holds(value)))
}

/// The first query parameter of a name, as it is written; without `=` its value is empty.
pub fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The backend that a request goes to, by weight. `None`: there is none, or all weights are 0 (500).
pub fn backend(forward: &Forward, entropy: u64) -> Option<&WeightedBackend> {
    forward.backends.get(backend_index(forward, entropy)?)
}

/// Which of its backends [`backend`] is.
pub fn backend_index(forward: &Forward, entropy: u64) -> Option<usize> {
    let weights = forward.backends.iter().map(|backend| u64::from(backend.weight));
    weighted(entropy, Stream::Backend, weights)
}

/// Chances of one request that must not depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chance {
    /// It is delayed on purpose.
    Delay,
    /// It fails on purpose.
    Abort,
    /// It is copied to the mirror of this number.
    Mirror(u32),
}

/// Whether a request is one of those that `share` means.
pub fn is_hit(share: Share, chance: Chance, entropy: u64) -> bool {
    let (stream, entropy) = match chance {
        Chance::Delay => (Stream::Delay, entropy),
        Chance::Abort => (Stream::Abort, entropy),
        Chance::Mirror(number) => (Stream::Mirror, entropy.rotate_left(number)),
    };
    let hit = u64::from(share.get());
    let missed = u64::from(Share::ALL.get()) - hit;
    weighted(entropy, stream, [hit, missed].into_iter()) == Some(0)
}

impl Chosen<'_> {
    /// What becomes of the path; the query is not part of it. Always begins with `/`.
    pub fn rewritten(&self, rewrite: &PathRewrite, path: &str) -> String {
        let new = match rewrite {
            PathRewrite::Full(new) => new.to_string(),
            PathRewrite::Prefix(new) => match self.matched.and_then(|matched| matched.path.as_ref()) {
                Some(PathMatch::Segments(prefix)) => {
                    // A beginning of whole segments is replaced by whole segments (Gateway API, ReplacePrefixMatch).
                    let (new, rest) = (new.trim_end_matches('/'), path.get(prefix.len()..).unwrap_or_default());
                    // Taken away, it leaves no path that begins with two slashes: that would be a host to some (Istio likewise).
                    if new.is_empty() { format!("/{}", rest.trim_start_matches('/')) } else { format!("{new}{rest}") }
                }
                Some(PathMatch::Prefix(prefix) | PathMatch::PrefixIgnoringCase(prefix)) => {
                    format!("{new}{}", path.get(prefix.len()..).unwrap_or_default())
                }
                Some(PathMatch::Exact(_) | PathMatch::ExactIgnoringCase(_) | PathMatch::Regex(_)) => new.to_string(),
                // As «/», the beginning of every path.
                None => format!("{}/{}", new.trim_end_matches('/'), path.trim_start_matches('/')),
            },
            PathRewrite::Regex(substitution) => substitution.apply(path),
        };
        if new.starts_with('/') { new } else { format!("/{new}") }
    }

    /// The `Location` of a redirect (RFC 9110 section 10.2.2): absolute, with the request's query.
    pub fn location(&self, redirect: &Redirect, request: &RequestAttrs<'_>) -> String {
        let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
        let (asked_host, asked_port) = split_port(request.authority);
        let host = redirect.host.as_deref().unwrap_or(asked_host);
        let port = match redirect.port {
            RedirectPort::Number(port) => Some(port.get()),
            RedirectPort::OfScheme => None,
            // The one that the request's scheme means anyway is not the next scheme's.
            RedirectPort::OfRequest => asked_port.filter(|port| !is_meant_by(request.scheme, *port)),
            RedirectPort::Derived if redirect.scheme.is_some() => None,
            RedirectPort::Derived => Some(request.port),
        };
        let path = redirect.path.as_ref().map(|rewrite| self.rewritten(rewrite, request.path));
        let mut location = format!("{scheme}://{host}");
        if let Some(port) = port.filter(|port| !is_meant_by(scheme, *port)) {
            let _ = write!(location, ":{port}");
        }
        location.push_str(path.as_deref().unwrap_or(request.path));
        if let Some(query) = request.query {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

/// Whether a scheme means this port where none is written.
fn is_meant_by(scheme: &str, port: u16) -> bool {
    matches!((scheme, port), ("http", 80) | ("https", 443))
}

/// A host and its port; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests;
