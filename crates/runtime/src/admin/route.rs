//! Which handler answers which request.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Method;

use super::message::{Request, Response};

/// Answers requests of one route. Implemented by async functions of a [`Request`].
pub trait Handler: Send + Sync + 'static {
    /// The answer.
    fn call(&self, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send>>;
}

impl<F, T> Handler for F
where
    F: Fn(Request) -> T + Send + Sync + 'static,
    T: Future<Output = Response> + Send + 'static,
{
    fn call(&self, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send>> {
        Box::pin(self(request))
    }
}

/// All routes of a server, asked in the order of their registration.
#[derive(Default)]
pub(super) struct Routes {
    routes: Vec<Route>,
}

struct Route {
    method: Method,
    segments: Vec<Segment>,
    handler: Arc<dyn Handler>,
}

enum Segment {
    Literal(String),
    Param(String),
    Rest(String),
}

/// What the routes know of a path.
pub(super) enum Found {
    Handler(Arc<dyn Handler>, BTreeMap<String, String>),
    OtherMethods(Vec<Method>),
    Nothing,
}

impl Routes {
    pub(super) fn add(&mut self, method: Method, path: &str, handler: Arc<dyn Handler>) {
        let segment = |text: &str| match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(name) => match name.strip_prefix('*') {
                Some(rest) => Segment::Rest(rest.to_owned()),
                None => Segment::Param(name.to_owned()),
            },
            None => Segment::Literal(text.to_owned()),
        };
        let segments = path.trim_start_matches('/').split('/').map(segment).collect();
        self.routes.push(Route { method, segments, handler });
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> Found {
        // An answer to HEAD is an answer to GET whose body the HTTP layer leaves out.
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let mut others = Vec::new();
        for route in &self.routes {
            let Some(params) = matches(&route.segments, path) else { continue };
            if route.method == *method {
                return Found::Handler(Arc::clone(&route.handler), params);
            }
            others.push(route.method.clone());
        }
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }
}

fn matches(segments: &[Segment], path: &str) -> Option<BTreeMap<String, String>> {
    let mut params = BTreeMap::new();
    let mut rest = Some(path.strip_prefix('/')?);
    for segment in segments {
        let here = rest?;
        let (head, tail) = match here.split_once('/') {
            Some((head, tail)) => (head, Some(tail)),
            None => (here, None),
        };
        match segment {
            Segment::Literal(text) if text == head => rest = tail,
            Segment::Literal(_) => return None,
            Segment::Param(_) if head.is_empty() => return None,
            Segment::Param(name) => {
                params.insert(name.clone(), decode(head, false)?);
                rest = tail;
            }
            Segment::Rest(name) => {
                params.insert(name.clone(), decode(here, false)?);
                return Some(params);
            }
        }
    }
    rest.is_none().then_some(params)
}

/// The query's parameters in order. Undecodable ones are left out.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        Some((decode(key, true)?, decode(value, true)?))
    };
    query.split('&').filter(|part| !part.is_empty()).filter_map(pair).collect()
}

/// Percent-decodes; `None` when it is not valid or not UTF-8.
fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let mut routes = Routes::default();
        for path in ["/", "/pods", "/pods/{ns}/{name}", "/logs/{*rest}"] {
            let handler = |_request| async { Response::empty(http::StatusCode::OK) };
            routes.add(Method::GET, path, Arc::new(handler));
        }
        routes
    }

    fn params(path: &str) -> Option<Vec<String>> {
        match routes().find(&Method::GET, path) {
            Found::Handler(_, params) => Some(params.into_values().collect()),
            _ => None,
        }
    }

    #[test]
    fn paths_match_by_segment_and_params_are_decoded() {
        assert_eq!(params("/"), Some(vec![]));
        assert_eq!(params("/pods"), Some(vec![]));
        assert_eq!(params("/pods/shop/page%2d1"), Some(vec!["page-1".to_owned(), "shop".to_owned()]));
        assert_eq!(params("/logs/a/b/c"), Some(vec!["a/b/c".to_owned()]));
        for path in ["/pods/", "/pods/shop", "/pods/shop/", "/pods/shop/a/b", "/nothing", "pods", "", "/pods/a/%zz"] {
            assert_eq!(params(path), None, "{path}");
        }
    }

    #[test]
    fn another_method_is_told_from_an_unknown_path() {
        assert!(
            matches!(routes().find(&Method::POST, "/pods"), Found::OtherMethods(methods) if methods == [Method::GET])
        );
        assert!(matches!(routes().find(&Method::POST, "/nothing"), Found::Nothing));
        assert!(matches!(routes().find(&Method::HEAD, "/pods"), Found::Handler(..)));
    }

    #[test]
    fn queries_are_decoded_and_bad_parts_left_out() {
        let expected = [("a", "1 2"), ("b", ""), ("c", "&")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(parse_query("a=1+2&b&&c=%26&d=%f"), expected);
    }
}
