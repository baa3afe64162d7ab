//! What a request's endpoint depends on, where a DestinationRule asks for a consistent hash. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderValue;
use http::request::Parts;
use stillmesh_core::decide::hash_of;
use stillmesh_core::decide::route::parameter;
use stillmesh_core::model::destination::{HashCookie, HashKey, Method, TrafficPolicy};

use crate::authenticate::cookies;

/// What the endpoint depends on, and the cookie that the client is given so that its next request comes to the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// See [`hash_of`]; `None`: nothing.
    pub hash: Option<u64>,
    /// `Set-Cookie`.
    pub cookie: Option<HeaderValue>,
}

impl Affinity {
    /// Of a request. A connection that is no HTTP has no head. `bits` are random.
    pub fn of(policy: &TrafficPolicy, head: Option<&Parts>, client: IpAddr, bits: u64) -> Self {
        let Some(Method::ConsistentHash(key)) = policy.balancing.as_ref().map(|balancing| &balancing.method) else {
            return Self::default();
        };
        let only = |text: Option<Vec<u8>>| Self { hash: text.map(|text| hash_of(&text)), cookie: None };
        match (key, head) {
            (HashKey::SourceAddress, _) => only(Some(client.to_canonical().to_string().into_bytes())),
            (_, None) => Self::default(),
            (HashKey::Header(name), Some(head)) => only(in_header(&head.headers, name)),
            (HashKey::Query(name), Some(head)) => {
                only(parameter(head.uri.query(), name).map(|value| value.as_bytes().to_vec()))
            }
            (HashKey::Cookie(cookie), Some(head)) => match in_cookie(&head.headers, cookie) {
                Some(value) => only(Some(value.as_bytes().to_vec())),
                None => given(cookie, bits),
            },
        }
    }
}

/// All values of a header count, in order.
fn in_header(headers: &HeaderMap, name: &str) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    (!values.is_empty()).then(|| values.join(&b','))
}

fn in_cookie<'a>(headers: &'a HeaderMap, cookie: &HashCookie) -> Option<&'a str> {
    let value = cookies(headers).find(|(name, _)| *name == &*cookie.name).map(|(_, value)| value);
    value.filter(|value| !value.is_empty())
}

/// A new cookie, where one is to be given.
fn given(cookie: &HashCookie, bits: u64) -> Affinity {
    let Some(ttl) = cookie.ttl else { return Affinity::default() };
    let value = format!("{bits:016x}");
    let mut line = format!("{}=\"{value}\"", cookie.name);
    if !ttl.is_zero() {
        let _ = write!(line, "; Max-Age={}", ttl.as_secs());
    }
    if let Some(path) = &cookie.path {
        let _ = write!(line, "; Path={path}");
    }
    line.push_str("; HttpOnly");
    // It comes back as it was written, with its quotes.
    let hash = hash_of(format!("\"{value}\"").as_bytes());
    Affinity { hash: Some(hash), cookie: HeaderValue::try_from(line).ok() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;
    use stillmesh_core::model::destination::Balancing;

    use super::*;

    fn affinity(key: HashKey, request: http::request::Builder) -> Affinity {
        let balancing = Balancing { method: Method::ConsistentHash(key), ..Balancing::default() };
        let policy = TrafficPolicy { balancing: Some(balancing), ..TrafficPolicy::default() };
        let (head, ()) = request.body(()).unwrap().into_parts();
        Affinity::of(&policy, Some(&head), [10, 0, 0, 1].into(), 7)
    }

    fn hash(key: HashKey, request: http::request::Builder) -> Option<u64> {
        affinity(key, request).hash
    }

    #[test]
    fn a_key_is_what_it_says_and_absent_is_no_key() {
        let get = |uri: &str| Request::get(uri.to_owned());
        let header = || HashKey::Header("x-user".into());
        assert_eq!(hash(header(), get("/").header("X-User", "ann")), Some(hash_of(b"ann")));
        assert_eq!(hash(header(), get("/").header("x-user", "a").header("x-user", "b")), Some(hash_of(b"a,b")));
        assert_eq!(hash(header(), get("/")), None);
        let query = || HashKey::Query("user".into());
        assert_eq!(hash(query(), get("/?a=b&user=ann&user=bob")), Some(hash_of(b"ann")));
        assert_eq!(hash(query(), get("/?users=ann")), None);
        assert_eq!(hash(HashKey::SourceAddress, get("/")), Some(hash_of(b"10.0.0.1")));
        assert_eq!(Affinity::of(&TrafficPolicy::default(), None, [10, 0, 0, 1].into(), 7), Affinity::default());
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one_that_brings_it_back() {
        let key = |ttl| {
            HashKey::Cookie(HashCookie {
                name: "who".into(),
                path: Some("/shop".into()),
                ttl: Some(Duration::from_secs(ttl)),
            })
        };
        let first = affinity(key(60), Request::get("/").header("cookie", "other=1"));
        let line = first.cookie.as_ref().unwrap().to_str().unwrap().to_owned();
        assert_eq!(line, "who=\"0000000000000007\"; Max-Age=60; Path=/shop; HttpOnly");
        let pair = line.split(';').next().unwrap();
        let next = affinity(key(60), Request::get("/").header("cookie", format!("a=b; {pair}")));
        assert_eq!(next, Affinity { hash: first.hash, cookie: None });
        let of_session = affinity(key(0), Request::get("/")).cookie.unwrap();
        assert_eq!(of_session, "who=\"0000000000000007\"; Path=/shop; HttpOnly");
        let none = HashKey::Cookie(HashCookie { name: "who".into(), path: None, ttl: None });
        assert_eq!(affinity(none, Request::get("/")), Affinity::default());
    }
}
