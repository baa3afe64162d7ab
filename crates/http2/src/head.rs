//! Heads of messages: from decoded fields, checked (RFC 9113 sections 8.1 to 8.3 and 8.5), and to header blocks.

use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::hpack::{self, OVERHEAD};
use crate::{Request, SendError};

/// Where a head stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Request,
    Response,
    Trailers,
}

/// Collects the fields of one header block. What is wrong is kept in mind: the block is decoded to its end all the same.
#[derive(Debug)]
pub(crate) struct Fields {
    part: Part,
    /// What the list may still have, bytes (RFC 9113 section 6.5.2).
    left: usize,
    wrong: Option<&'static str>,
    method: Option<Method>,
    authority: Option<String>,
    scheme: bool,
    path: bool,
    status: Option<StatusCode>,
    headers: HeaderMap,
}

impl Fields {
    /// `limit` is our SETTINGS_MAX_HEADER_LIST_SIZE, bytes.
    pub(crate) fn new(part: Part, limit: u32) -> Self {
        Self {
            part,
            left: limit as usize,
            wrong: None,
            method: None,
            authority: None,
            scheme: false,
            path: false,
            status: None,
            headers: HeaderMap::new(),
        }
    }

    /// One field. Trailers are checked and not kept.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) {
        if self.wrong.is_some() {
            return;
        }
        match self.left.checked_sub(name.len() + value.len() + OVERHEAD) {
            Some(left) => self.left = left,
            None => {
                self.wrong = Some("headers are more than SETTINGS_MAX_HEADER_LIST_SIZE");
                self.headers = HeaderMap::new();
                return;
            }
        }
        let added = match name.strip_prefix(b":") {
            Some(name) => self.pseudo(name, value),
            None => self.regular(name, value),
        };
        self.wrong = added.err();
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if !self.headers.is_empty() {
            return Err("a pseudo-header after a header");
        }
        let again = match (self.part, name) {
            (Part::Request, b"method") => {
                let method = Method::from_bytes(value).map_err(|_| "a :method that is none")?;
                self.method.replace(method).is_some()
            }
            (Part::Request, b"authority") => self.authority.replace(visible(value)?).is_some(),
            (Part::Request, b"scheme") => {
                visible(value)?;
                std::mem::replace(&mut self.scheme, true)
            }
            (Part::Request, b"path") => {
                if value.is_empty() {
                    return Err("an empty :path");
                }
                visible(value)?;
                std::mem::replace(&mut self.path, true)
            }
            (Part::Response, b"status") => {
                let status = StatusCode::from_bytes(value).map_err(|_| "a :status that is none")?;
                self.status.replace(status).is_some()
            }
            _ => return Err("a pseudo-header that does not belong here"),
        };
        if again { Err("a pseudo-header twice") } else { Ok(()) }
    }

    fn regular(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let name = HeaderName::from_lowercase(name).map_err(|_| "a header's name that is none")?;
        if forbidden(&name) || (name == TE && value != b"trailers") {
            return Err("a header of HTTP/1.1's connections");
        }
        let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if space(value.first()) || space(value.last()) {
            return Err("a header's value with space around it");
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| "a header's value that is none")?;
        let added = self.headers.try_append(name, value);
        added.map(|_| ()).map_err(|_| "more headers than anybody needs")
    }

    /// As a request, with what its content-length binds it to. Errors: it is malformed.
    pub(crate) fn request(self) -> Result<(Request, Option<u64>), &'static str> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let method = self.method.ok_or("a request without :method")?;
        let mut content = None;
        if method == Method::CONNECT {
            if self.scheme || self.path || self.authority.as_ref().is_none_or(String::is_empty) {
                return Err("a CONNECT without :authority, or with :scheme or :path");
            }
        } else {
            if !self.scheme || !self.path {
                return Err("a request without :scheme or :path");
            }
            content = content_length(&self.headers)?;
        }
        Ok((Request { method, authority: self.authority, headers: self.headers }, content))
    }

    /// As a response.
    pub(crate) fn response(self) -> Result<(StatusCode, HeaderMap), &'static str> {
        match self.wrong {
            Some(wrong) => Err(wrong),
            None => Ok((self.status.ok_or("a response without :status")?, self.headers)),
        }
    }

    /// As trailers.
    pub(crate) fn trailers(self) -> Result<(), &'static str> {
        self.wrong.map_or(Ok(()), Err)
    }
}

/// RFC 9113 section 8.2.2.
fn forbidden(name: &HeaderName) -> bool {
    let others = matches!(name.as_str(), "keep-alive" | "proxy-connection");
    others || [CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name)
}

fn visible(value: &[u8]) -> Result<String, &'static str> {
    let text = value.iter().all(u8::is_ascii_graphic).then(|| str::from_utf8(value).ok()).flatten();
    text.map(str::to_owned).ok_or("a pseudo-header with other than visible characters")
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let digits = first.as_bytes().iter().all(u8::is_ascii_digit).then(|| first.to_str().ok()?.parse().ok());
    let same = values.all(|value| value == first);
    digits.flatten().filter(|_| same).map(Some).ok_or("a content-length that is none")
}

/// A header block in the making.
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    /// Counted as RFC 9113 section 6.5.2 does, bytes.
    pub(crate) size: usize,
}

impl Block {
    /// `first`: nothing was sent on this connection before.
    fn new(first: bool) -> Self {
        let mut bytes = Vec::with_capacity(256);
        if first {
            hpack::put_no_table(&mut bytes);
        }
        Self { bytes, size: 0 }
    }

    fn add(&mut self, name: &str, value: &[u8], sensitive: bool) {
        hpack::put_field(&mut self.bytes, name, value, sensitive);
        self.size += name.len() + value.len() + OVERHEAD;
    }

    fn headers(mut self, headers: &HeaderMap) -> Result<Self, SendError> {
        for (name, value) in headers {
            let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
            if forbidden(name) || space(value.as_bytes().first()) || space(value.as_bytes().last()) {
                return Err(SendError::Head);
            }
            self.add(name.as_str(), value.as_bytes(), value.is_sensitive());
        }
        Ok(self)
    }

    /// A CONNECT.
    pub(crate) fn connect(first: bool, authority: &str, headers: &HeaderMap) -> Result<Self, SendError> {
        if authority.is_empty() || visible(authority.as_bytes()).is_err() {
            return Err(SendError::Authority);
        }
        let mut block = Self::new(first);
        block.add(":method", b"CONNECT", false);
        block.add(":authority", authority.as_bytes(), false);
        block.headers(headers)
    }

    /// A final response.
    pub(crate) fn response(first: bool, status: StatusCode, headers: &HeaderMap) -> Result<Self, SendError> {
        if status.is_informational() {
            return Err(SendError::Head);
        }
        let mut block = Self::new(first);
        block.add(":status", status.as_str().as_bytes(), false);
        block.headers(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(part: Part, fields: &[(&str, &str)]) -> Fields {
        let mut all = Fields::new(part, 16 << 10);
        fields.iter().for_each(|(name, value)| all.add(name.as_bytes(), value.as_bytes()));
        all
    }

    const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")];

    #[test]
    fn a_connect_has_a_method_and_an_authority() {
        let request = |more: &[(&str, &str)]| fields(Part::Request, &[&CONNECT, more].concat()).request();
        let (request_, content) = request(&[("baggage", "a=b"), ("content-length", "?")]).unwrap();
        assert_eq!(
            (request_.method, request_.authority.as_deref(), content),
            (Method::CONNECT, Some("10.0.0.1:80"), None)
        );
        assert_eq!(request_.headers["baggage"], "a=b");
        for more in [
            &[(":scheme", "https")][..],
            &[(":path", "/")],
            &[(":method", "CONNECT")],
            &[(":authority", "b")],
            &[(":protocol", "websocket")],
            &[(":status", "200")],
            &[("a", "b"), (":scheme", "https")],
            &[("Baggage", "a=b")],
            &[("connection", "close")],
            &[("proxy-connection", "close")],
            &[("keep-alive", "1")],
            &[("transfer-encoding", "chunked")],
            &[("upgrade", "h2c")],
            &[("te", "gzip")],
            &[("a", " b")],
            &[("a", "b\t")],
            &[("a", "b\0")],
            &[("a", "b\r\nc: d")],
            &[("", "b")],
            &[("a b", "b")],
        ] {
            assert!(request(more).is_err(), "{more:?}");
        }
        assert!(request(&[("te", "trailers"), ("a", "")]).is_ok());
        assert!(fields(Part::Request, &CONNECT[..1]).request().is_err());
        assert!(fields(Part::Request, &[CONNECT[0], (":authority", "")]).request().is_err());
        assert!(fields(Part::Request, &[CONNECT[0], (":authority", "a b")]).request().is_err());
    }

    #[test]
    fn other_requests_are_told_by_their_method_when_they_are_well_formed() {
        let request = |more: &[(&str, &str)]| fields(Part::Request, &[&GET, more].concat()).request();
        assert_eq!(request(&[]).unwrap().0.method, Method::GET);
        assert_eq!(request(&[("content-length", "12"), ("content-length", "12")]).unwrap().1, Some(12));
        for length in ["-1", "+1", "", "1,1", "99999999999999999999"] {
            assert!(request(&[("content-length", length)]).is_err(), "{length:?}");
        }
        assert!(request(&[("content-length", "1"), ("content-length", "2")]).is_err());
        for missing in [0, 1, 3] {
            let mut some = GET.to_vec();
            some.remove(missing);
            assert!(fields(Part::Request, &some).request().is_err(), "{missing}");
        }
    }

    #[test]
    fn responses_and_trailers_have_their_own() {
        let (status, headers) = fields(Part::Response, &[(":status", "200"), ("a", "b")]).response().unwrap();
        assert_eq!((status, headers.len()), (StatusCode::OK, 1));
        for wrong in [&[("a", "b")][..], &[(":status", "2")], &[(":status", "20a")], &[(":method", "GET")]] {
            assert!(fields(Part::Response, wrong).response().is_err(), "{wrong:?}");
        }
        assert!(fields(Part::Trailers, &[("a", "b")]).trailers().is_ok());
        assert!(fields(Part::Trailers, &[(":status", "200")]).trailers().is_err());
    }

    #[test]
    fn a_list_is_counted_with_its_overhead() {
        let list = |limit| {
            let mut all = Fields::new(Part::Request, limit);
            CONNECT.iter().for_each(|(name, value)| all.add(name.as_bytes(), value.as_bytes()));
            all.request()
        };
        let size = 2 * 32 + 7 + 7 + 10 + 11;
        assert!(list(size).is_ok());
        assert!(list(size - 1).is_err());
    }

    #[test]
    fn what_cannot_be_carried_is_not_sent() {
        let mut headers = HeaderMap::new();
        assert_eq!(Block::connect(true, "a b", &headers).err(), Some(SendError::Authority));
        assert_eq!(Block::response(true, StatusCode::CONTINUE, &headers).err(), Some(SendError::Head));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        assert_eq!(Block::connect(true, "a:1", &headers).err(), Some(SendError::Head));
    }
}
