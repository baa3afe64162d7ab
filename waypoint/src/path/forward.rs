//! What of a message's head is forwarded, and what is added to it. Pure.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri};
use stillmesh_core::model::Identity;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::{PathError, Version};

/// Who sent a request on.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// By which protocol it came.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Whose certificates it came with.
pub const FORWARDED_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// What a request is called in logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Refuses what must not be forwarded: a request whose host is not one name, and methods that are the mesh's own.
pub fn check(head: &Parts, version: Version) -> Result<(), PathError> {
    let bad = |what| Err(PathError::BadRequest { what });
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("more than one Host header");
    }
    if head.method == Method::CONNECT {
        return bad("CONNECT is not forwarded");
    }
    match (version, host, head.uri.authority()) {
        (Version::One, None, None) if head.version == http::Version::HTTP_11 => bad("no Host header"),
        (Version::One, Some(host), None) if !is_authority(host) => bad("a malformed Host header"),
        (Version::Two, Some(host), Some(authority))
            if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            bad(":authority and Host differ")
        }
        (Version::Two, None, None) => bad("no :authority"),
        _ => Ok(()),
    }
}

/// An empty Host is allowed where the target has no authority (RFC 9112 section 3.2).
fn is_authority(host: &HeaderValue) -> bool {
    host.is_empty() || Authority::try_from(host.as_bytes()).is_ok_and(|authority| !authority.as_str().contains('@'))
}

/// What a request asks its connection to become, if that may be passed on: HTTP/1.1 alone has it, and another HTTP version
/// is not the endpoint's business.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asked = listed(headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let is_h2c = protocol.to_str().is_ok_and(|text| text.split(',').any(|one| one.trim().eq_ignore_ascii_case("h2c")));
    (asked && !is_h2c).then(|| protocol.clone())
}

/// A client's CONNECT by which it wants to speak another protocol on a stream of HTTP/2 (RFC 8441), made the HTTP/1.1 request
/// that asks for the same; says what the stream is to become. Other requests stay as they are.
pub fn extended_connect<B>(request: &mut Request<B>, bits: u128) -> Option<HeaderValue> {
    if request.method() != Method::CONNECT {
        return None;
    }
    let protocol = request.extensions_mut().remove::<hyper::ext::Protocol>()?;
    let protocol = HeaderValue::try_from(protocol.as_str()).ok()?;
    *request.method_mut() = Method::GET;
    if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        let key = HeaderValue::try_from(STANDARD.encode(bits.to_be_bytes())).ok()?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_KEY, key);
    }
    Some(protocol)
}

/// Makes a request that asks for another protocol the CONNECT that asks an HTTP/2 endpoint for the same (RFC 8441).
pub fn connect(head: &mut Parts, protocol: &HeaderValue) {
    head.method = Method::CONNECT;
    head.headers.remove(header::SEC_WEBSOCKET_KEY);
    if let Ok(protocol) = protocol.to_str() {
        head.extensions.insert(hyper::ext::Protocol::from(protocol));
    }
}

/// Takes out what is meant for the next hop only (RFC 9110 section 7.6.1).
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        listed(headers, header::CONNECTION).filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok()).collect();
    let wants_trailers = listed(headers, header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    // What a request is about is never for one hop, whatever it says: else a client could take it away from its target.
    let protected = [header::HOST, header::CONTENT_LENGTH, header::AUTHORIZATION, FORWARDED_FOR, REQUEST_ID];
    for name in named.iter().filter(|name| !protected.contains(name)) {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// A client as endpoints are told of it, the same for all of its requests.
#[derive(Debug)]
pub struct Introduction {
    address: HeaderValue,
    certificate: HeaderValue,
}

impl Introduction {
    /// Of a client at an address, and its identity, to a waypoint with this one.
    pub fn new(address: IpAddr, identity: &Identity, own: &Identity) -> Self {
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        Self { address: value(address.to_string()), certificate: value(format!("By={own};URI={identity}")) }
    }
}

/// Says who the client is. What it says itself counts only where it is a gateway of this mesh.
pub fn introduce(headers: &mut HeaderMap, client: &Introduction, is_gateway: bool) {
    let append = |headers: &mut HeaderMap, name: HeaderName, own: &HeaderValue| {
        let before =
            headers.get_all(&name).iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
        let whole = match before.is_empty() {
            true => Ok(own.clone()),
            false => HeaderValue::try_from([before.as_bytes(), b",", own.as_bytes()].concat()),
        };
        if let Ok(value) = whole {
            headers.insert(name, value);
        }
    };
    if !is_gateway {
        headers.remove(FORWARDED_FOR);
        headers.remove(FORWARDED_PROTO);
        headers.remove(FORWARDED_CERTIFICATE);
        headers.remove(header::FORWARDED);
    }
    append(headers, FORWARDED_FOR, &client.address);
    append(headers, FORWARDED_CERTIFICATE, &client.certificate);
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

/// What a request is called: by its client, or else here.
#[derive(Debug)]
pub struct RequestId {
    header: HeaderValue,
    made: Option<Uuid>,
}

impl RequestId {
    /// The one that it has; else one made of these random bits (a UUID, version 4), which it has from then on.
    pub fn of(headers: &mut HeaderMap, bits: u128) -> Self {
        if let Some(id) = headers.get(REQUEST_ID).filter(|id| !id.is_empty()) {
            return Self { header: id.clone(), made: None };
        }
        let made = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();
        let mut text = [0; Hyphenated::LENGTH];
        made.hyphenated().encode_lower(&mut text);
        let header = HeaderValue::from_maybe_shared(Bytes::from_owner(text));
        let header = header.unwrap_or(HeaderValue::from_static("0"));
        headers.insert(REQUEST_ID, header.clone());
        Self { header, made: Some(made) }
    }

    /// As its header has it.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The UUID as a number; 0: it is none.
    pub fn number(&self) -> u128 {
        self.made.or_else(|| Uuid::try_parse_ascii(self.header.as_bytes()).ok()).map_or(0, |id| id.as_u128())
    }
}

/// The target as the version writes it: HTTP/1.1 by path, with the authority as Host; HTTP/2 with scheme and authority.
pub fn target(head: &mut Parts, version: Version) -> Result<(), PathError> {
    let bad = |what| PathError::BadRequest { what };
    let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    if version == Version::One {
        if let Some(authority) = head.uri.authority() {
            // The target's authority counts, whatever Host says (RFC 9112 section 3.2.2).
            let host = HeaderValue::try_from(authority.as_str()).map_err(|_| bad("a malformed target"))?;
            head.headers.insert(header::HOST, host);
        }
        head.uri = Uri::from(path);
        head.version = http::Version::HTTP_11;
        return Ok(());
    }
    let authority = match head.uri.authority() {
        Some(authority) => authority.clone(),
        None => {
            let host = head.headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
            Authority::try_from(host).map_err(|_| bad("a malformed Host header"))?
        }
    };
    head.headers.remove(header::HOST);
    // HTTP/2 endpoints are sent bodies unasked.
    head.headers.remove(header::EXPECT);
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(head.uri.scheme().cloned().unwrap_or(Scheme::HTTP));
    parts.authority = Some(authority);
    parts.path_and_query = Some(path);
    head.uri = Uri::from_parts(parts).map_err(|_| bad("a malformed target"))?;
    head.version = http::Version::HTTP_2;
    Ok(())
}

/// How long a gRPC client waits (gRPC over HTTP/2, `grpc-timeout`): at most eight digits and a unit. What is none is not
/// honoured.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Whether a request may be sent again although an endpoint may have seen it (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    method.is_idempotent()
}

#[cfg(test)]
mod tests;
