//! What handlers get and return.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::accept::{Peer, Stream};

/// A request with its body read.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The segments that the route names, percent-decoded: `{name}` in `/pods/{name}`.
    pub params: BTreeMap<String, String>,
    /// The query's parameters in order, percent-decoded.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
    /// Who asks.
    pub peer: Peer,
}

impl Request {
    /// A path parameter that the route names; empty if it does not.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// The first query parameter of that name.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; the error is the answer to give.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Response> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Response::text(StatusCode::BAD_REQUEST, format!("the body is not what is expected: {error}\n"))
        })
    }
}

/// The sending side of a streamed body. At most 16 chunks wait; then `send` waits. It fails when the peer has gone.
pub type Chunks = mpsc::Sender<Bytes>;

const CHUNKS: usize = 16;

/// What a handler answers.
pub struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ReplyBody,
    pub(super) takeover: Option<Takeover>,
}

pub(super) type Takeover = Box<dyn FnOnce(Raw) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Response {
    /// An answer with a body.
    #[must_use]
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, body: ReplyBody::Full(Some(body.into())), takeover: None }
    }

    /// Plain text.
    #[must_use]
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// JSON. A value that cannot be serialized is answered with 500.
    #[must_use]
    pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::new(status, "application/json", body),
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot be serialized: {error}\n")),
        }
    }

    /// An answer without a body.
    #[must_use]
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: ReplyBody::Full(None), takeover: None }
    }

    /// An answer whose body is sent chunk by chunk; it ends when the sender is dropped.
    #[must_use]
    pub fn stream(status: StatusCode, content_type: &'static str) -> (Self, Chunks) {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let response = Self::new(status, content_type, Bytes::new());
        (Self { body: ReplyBody::Chunks(receiver), ..response }, sender)
    }

    /// Answers `101 Switching Protocols` and hands the raw connection to `then`.
    ///
    /// A peer that passes descriptors must not do so before it has read a byte sent by `then`: what it sends earlier
    /// may be read by the HTTP layer, which loses descriptors.
    #[must_use]
    pub fn takeover<F, T>(protocol: &'static str, then: F) -> Self
    where
        F: FnOnce(Raw) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let headers = HeaderMap::from_iter([
            (http::header::CONNECTION, HeaderValue::from_static("upgrade")),
            (http::header::UPGRADE, HeaderValue::from_static(protocol)),
        ]);
        let takeover: Takeover = Box::new(move |raw| Box::pin(then(raw)));
        let (status, body) = (StatusCode::SWITCHING_PROTOCOLS, ReplyBody::Full(None));
        Self { status, headers, body, takeover: Some(takeover) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: http::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body, where it is not a stream: for tests of handlers.
    #[must_use]
    pub fn body(&self) -> Option<&Bytes> {
        match &self.body {
            ReplyBody::Full(bytes) => bytes.as_ref(),
            ReplyBody::Chunks(_) => None,
        }
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// A connection taken over from HTTP.
#[derive(Debug)]
pub struct Raw {
    /// The connection.
    pub stream: Stream,
    /// Bytes of the peer that were read with the request; they come before those of `stream`.
    pub buffered: Bytes,
}

/// A body that is there, or comes chunk by chunk.
pub(super) enum ReplyBody {
    Full(Option<Bytes>),
    Chunks(mpsc::Receiver<Bytes>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Chunks(chunks) => chunks.poll_recv(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Chunks(_) => SizeHint::default(),
        }
    }
}
