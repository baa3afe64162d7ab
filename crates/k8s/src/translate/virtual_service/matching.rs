//! What a VirtualService asks of requests.

use stillmesh_core::model::http::{HeaderMatch, PathMatch, QueryMatch, RequestMatch, TextMatch};

use super::{MESH, pattern};
use crate::istio::virtual_service::{HttpMatch, StringMatch};

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
    Ok(RequestMatch {
        path: written.uri.as_ref().map(|uri| path(uri, written.ignore_uri_case)).transpose()?.flatten(),
        method: one(&written.method)?,
        authority: one(&written.authority)?,
        scheme: one(&written.scheme)?,
        headers: headers(written.headers.iter())?,
        without_headers: headers(written.without_headers.iter())?,
        query: written
            .query_params
            .iter()
            .map(|(name, value)| Ok(QueryMatch { name: name.as_str().into(), value: text(value)? }))
            .collect::<Result<_, String>>()?,
        port: written.port,
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

fn headers<'a>(written: impl Iterator<Item = (&'a String, &'a StringMatch)>) -> Result<Vec<HeaderMatch>, String> {
    let named = written.map(|(name, value)| {
        if FIELDS.contains(&name.as_str()) {
            return Err(format!("the header {name:?}: the field {name} asks for that"));
        }
        if name.starts_with('@') {
            return Err(format!("{name}: claims of tokens are not supported"));
        }
        Ok(HeaderMatch { name: name.to_ascii_lowercase().into(), value: text(value)? })
    });
    named.collect()
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
