//! What a list of filters comes to.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use stillmesh_core::model::Str;
use stillmesh_core::model::http::{
    Cors, HeaderEdit, Mirror, PathRewrite, Redirect, RedirectPort, Rewrite, RouteBackend, Share, TextMatch,
};

use super::{Problem, lower, pattern, unsupported};
use crate::gateway::http_route::{
    BackendRef, HeaderModifier, HttpCors, HttpFilter, HttpHeader, PathModifier, RequestMirror, RequestRedirect,
    UrlRewrite,
};

/// What a list of filters comes to.
#[derive(Default)]
pub(in crate::translate) struct Filters {
    pub request_headers: HeaderEdit,
    pub response_headers: HeaderEdit,
    pub rewrite: Rewrite,
    pub redirect: Option<Redirect>,
    pub mirrors: Vec<Mirror>,
    pub cors: Option<Cors>,
}

impl Filters {
    pub fn read(
        written: &[HttpFilter],
        backend: &mut impl FnMut(&BackendRef) -> RouteBackend,
    ) -> Result<Self, Problem> {
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
                "RequestRedirect" => {
                    read.redirect = Some(redirect(filter.request_redirect.as_ref().ok_or_else(absent)?)?)
                }
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
    let pairs = |written: &[HttpHeader]| {
        written.iter().map(|header| (lower(&header.name), header.value.as_str().into())).collect()
    };
    HeaderEdit {
        set: pairs(&written.set),
        add: pairs(&written.add),
        remove: written.remove.iter().map(|name| lower(name)).collect(),
    }
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
        // The endpoint is not asked: the route has said who may.
        forward_unmatched: false,
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
