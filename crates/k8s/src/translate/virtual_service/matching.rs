//! What a VirtualService asks of requests.

use std::collections::BTreeMap;

use stillmesh_core::model::Str;
use stillmesh_core::model::http::{ClaimMatch, HeaderMatch, PathMatch, QueryMatch, RequestMatch, TextMatch};

use super::{MESH, pattern};
use crate::istio::virtual_service::{HttpMatch, StringMatch};

/// How claims of verified tokens are written among headers.
const CLAIMS: &str = "@request.auth.claims";

/// Keys of headers that Istio leaves out: they have fields of their own.
const FIELDS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// Why a match never holds at a waypoint.
pub(super) fn never(written: &HttpMatch) -> Option<&'static str> {
    if !written.source_labels.is_empty() {
        Some("sourceLabels")
    } else if !written.source_namespace.is_empty() {
        Some("sourceNamespace")
    } else if !written.gateways.is_empty() && !written.gateways.iter().any(|gateway| gateway == MESH) {
        Some("gateways")
    } else {
        None
    }
}

pub(super) fn request_match(written: &HttpMatch) -> Result<RequestMatch, String> {
    let one = |written: &Option<StringMatch>| written.as_ref().map(text).transpose();
    let (headers, claims) = headers(&written.headers)?;
    let (without_headers, without_claims) = self::headers(&written.without_headers)?;
    Ok(RequestMatch {
        path: written.uri.as_ref().map(|uri| path(uri, written.ignore_uri_case)).transpose()?.flatten(),
        method: one(&written.method)?,
        authority: one(&written.authority)?,
        scheme: one(&written.scheme)?,
        headers,
        without_headers,
        query: written
            .query_params
            .iter()
            .map(|(name, value)| Ok(QueryMatch { name: name.as_str().into(), value: text(value)? }))
            .collect::<Result<_, String>>()?,
        port: written.port,
        claims,
        without_claims,
    })
}

/// `None`: any path, which every request has.
fn path(written: &StringMatch, ignores_case: bool) -> Result<Option<PathMatch>, String> {
    Ok(match (text(written)?, ignores_case) {
        (TextMatch::Exact(text), false) => Some(PathMatch::Exact(text)),
        (TextMatch::Exact(text), true) => Some(PathMatch::ExactIgnoringCase(text)),
        (TextMatch::Prefix(text), false) => Some(PathMatch::Prefix(text)),
        (TextMatch::Prefix(text), true) => Some(PathMatch::PrefixIgnoringCase(text)),
        (TextMatch::Regex(pattern), _) => Some(PathMatch::Regex(pattern)),
        (TextMatch::Present, _) => None,
    })
}

/// What is asked of headers, and of claims of tokens, which are written among them.
fn headers(written: &BTreeMap<String, StringMatch>) -> Result<(Vec<HeaderMatch>, Vec<ClaimMatch>), String> {
    let (mut headers, mut claims) = (Vec::new(), Vec::new());
    for (name, value) in written {
        if FIELDS.contains(&name.as_str()) {
            return Err(format!("the header {name:?}: the field {name} asks for that"));
        }
        let value = text(value)?;
        match name.strip_prefix('@') {
            None => headers.push(HeaderMatch { name: name.to_ascii_lowercase().into(), value }),
            Some(_) => {
                let path = claim(name)
                    .ok_or_else(|| format!("{name}: {CLAIMS}.NAME and {CLAIMS}[NAME][NAME] are accepted"))?;
                claims.push(ClaimMatch { path, value });
            }
        }
    }
    Ok((headers, claims))
}

/// The names of a claim and of claims in it, as Istio writes them: after dots, or in brackets where names may have dots.
fn claim(name: &str) -> Option<Vec<Str>> {
    let (known, rest) = (name.get(..CLAIMS.len())?, name.get(CLAIMS.len()..)?);
    if !known.eq_ignore_ascii_case(CLAIMS) {
        return None;
    }
    let names: Vec<&str> = match rest.strip_prefix('.') {
        Some(dotted) => dotted.split('.').collect(),
        None => rest.strip_prefix('[')?.strip_suffix(']')?.split("][").collect(),
    };
    let is_name = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(is_name).then(|| names.into_iter().map(Str::from).collect())
}

/// How a text is compared.
pub(super) fn text(written: &StringMatch) -> Result<TextMatch, String> {
    match (&written.exact, &written.prefix, &written.regex) {
        (None, None, None) => Ok(TextMatch::Present),
        (Some(text), None, None) => Ok(TextMatch::Exact(text.as_str().into())),
        (None, Some(text), None) => Ok(TextMatch::Prefix(text.as_str().into())),
        (None, None, Some(text)) => pattern(text).map(TextMatch::Regex),
        _ => Err("more than one of exact, prefix and regex".to_owned()),
    }
}
