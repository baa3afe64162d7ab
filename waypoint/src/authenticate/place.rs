//! Where tokens are in a request, and taking them out. Pure.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Uri, uri};
use stillmesh_core::model::access::{JwtRule, TokenLocation};

/// How many tokens of one rule are looked at.
const MOST: usize = 4;

/// What is looked at where a rule does not say it (Istio's default).
fn defaults() -> [TokenLocation; 2] {
    [
        TokenLocation::Header { name: "authorization".into(), prefix: "Bearer ".into() },
        TokenLocation::Parameter("access_token".into()),
    ]
}

fn locations(rule: &JwtRule) -> Cow<'_, [TokenLocation]> {
    if rule.from.is_empty() { Cow::Owned(defaults().to_vec()) } else { Cow::Borrowed(&rule.from) }
}

/// The tokens that a rule finds, in its order.
pub fn tokens(rule: &JwtRule, head: &Parts) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for location in locations(rule).iter() {
        let here: Vec<String> = match location {
            TokenLocation::Header { name, prefix } => {
                let values = head.headers.get_all(&**name).iter();
                values.filter_map(|value| in_header(value, prefix)).map(str::to_owned).collect()
            }
            TokenLocation::Parameter(name) => {
                let pairs = head.uri.query().into_iter().flat_map(|query| query.split('&'));
                let named = pairs.filter_map(|pair| pair.split_once('=')).filter(|(key, _)| *key == &**name);
                named.map(|(_, value)| value.to_owned()).collect()
            }
            TokenLocation::Cookie(name) => {
                let named = cookies(&head.headers).filter(|(key, _)| *key == &**name);
                named.map(|(_, value)| value.to_owned()).collect()
            }
        };
        for token in here.into_iter().filter(|token| !token.is_empty()) {
            if found.len() < MOST && !found.contains(&token) {
                found.push(token);
            }
        }
    }
    found
}

/// After the prefix. A header that is no text is one that does not hold.
fn in_header<'a>(value: &'a HeaderValue, prefix: &str) -> Option<&'a str> {
    let text = value.to_str().unwrap_or(UNREADABLE);
    let rest = match (text.get(..prefix.len()), prefix) {
        // Schemes have no case (RFC 9110 section 11.1).
        (Some(begin), "Bearer ") if begin.eq_ignore_ascii_case(prefix) => text.get(prefix.len()..)?,
        _ if text == UNREADABLE => text,
        _ => text.strip_prefix(prefix)?,
    };
    Some(rest.trim())
}

const UNREADABLE: &str = "\u{7f}";

/// The cookies of a request, with their values.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// Takes a token out of every place where its rule finds it.
pub fn remove(rule: &JwtRule, token: &str, head: &mut Parts) {
    for location in locations(rule).iter() {
        match location {
            TokenLocation::Header { name, prefix } => {
                let Ok(name) = HeaderName::try_from(&**name) else { continue };
                let values: Vec<HeaderValue> = head.headers.get_all(&name).iter().cloned().collect();
                head.headers.remove(&name);
                for value in values.into_iter().filter(|value| in_header(value, prefix) != Some(token)) {
                    head.headers.append(&name, value);
                }
            }
            TokenLocation::Parameter(name) => {
                let Some(query) = head.uri.query() else { continue };
                let holds = |pair: &&str| pair.split_once('=') != Some((&**name, token));
                let kept: Vec<&str> = query.split('&').filter(holds).collect();
                let path = head.uri.path();
                let whole = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
                if let Ok(rest) = PathAndQuery::try_from(whole) {
                    let mut parts: uri::Parts = head.uri.clone().into_parts();
                    parts.path_and_query = Some(rest);
                    head.uri = Uri::from_parts(parts).unwrap_or_else(|_| head.uri.clone());
                }
            }
            TokenLocation::Cookie(name) => {
                let kept: Vec<String> = cookies(&head.headers)
                    .filter(|pair| *pair != (&**name, token))
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                head.headers.remove(header::COOKIE);
                if let Ok(value) = HeaderValue::try_from(kept.join("; "))
                    && !kept.is_empty()
                {
                    head.headers.insert(header::COOKIE, value);
                }
            }
        }
    }
}
