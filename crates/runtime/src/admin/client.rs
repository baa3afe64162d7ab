//! The client's side: one request per connection, every step within a deadline, answers of bounded size.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use stillmesh_core::{Diagnose, Fault};
use tokio::net::{TcpStream, UnixStream};

use super::message::Raw;
use crate::accept::Stream;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket by path.
    Unix(PathBuf),
    /// A unix socket by abstract name, without the leading NUL.
    Abstract(String),
    /// TCP.
    Tcp(std::net::SocketAddr),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "{}", path.display()),
            Self::Abstract(name) => write!(out, "@{name}"),
            Self::Tcp(address) => write!(out, "{address}"),
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or it cannot be reached.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The server.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection or the answer broke off.
    #[error("the exchange with {endpoint} broke off")]
    Exchange {
        /// The server.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The deadline passed.
    #[error("{endpoint} did not answer within {limit:?}")]
    Slow {
        /// The server.
        endpoint: Endpoint,
        /// The deadline.
        limit: Duration,
    },
    /// The server did not agree to hand over the connection.
    #[error("{endpoint} answered {status} to a request for the raw connection: {body}")]
    NotTakenOver {
        /// The server.
        endpoint: Endpoint,
        /// Its answer.
        status: StatusCode,
        /// The answer's text.
        body: String,
    },
}

impl Diagnose for ClientError {
    fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "ADM001",
            Self::Exchange { .. } => "ADM002",
            Self::Slow { .. } => "ADM003",
            Self::NotTakenOver { .. } => "ADM004",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Upstream
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "check that the server runs and that this user may use its socket",
            Self::Exchange { .. } | Self::Slow { .. } => "look into the server's log",
            Self::NotTakenOver { .. } => "check that client and server are of one version",
        }
    }
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    deadline: Duration,
    body_bytes: usize,
}

/// An answer with its body read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
}

impl Answer {
    /// The body as text, for messages.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An answer whose body comes chunk by chunk.
#[derive(Debug)]
pub struct Streamed {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    _connection: ConnectionTask,
}

impl Streamed {
    /// The next chunk; `None` at the end. No deadline: the stream may be silent for as long as the server likes.
    /// Cancel-safe.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl Client {
    /// A client with a deadline of 30 s for a whole exchange and answers up to 64 MiB.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, deadline: Duration::from_secs(30), body_bytes: 64 << 20 }
    }

    /// A client of a unix socket.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(Endpoint::Unix(path.as_ref().to_owned()))
    }

    /// Sets the deadline of a whole exchange; of a streamed one or a takeover: until the answer's head.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the largest body of an answer, in bytes.
    #[must_use]
    pub fn body_bytes(mut self, limit: usize) -> Self {
        self.body_bytes = limit;
        self
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Sends a request (a non-empty body as JSON) and reads the whole answer.
    pub async fn request(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer, ClientError> {
        let body = body.into();
        self.within(async {
            let (response, _connection) = self.exchange(self.build(method, path, body)?).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, self.body_bytes).collect().await.map_err(|error| self.broken(error))?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        })
        .await
    }

    /// Sends a request and returns when the answer's head is there.
    pub async fn stream(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Streamed, ClientError> {
        let body = body.into();
        self.within(async {
            let (response, connection) = self.exchange(self.build(method, path, body)?).await?;
            let (head, body) = response.into_parts();
            Ok(Streamed { status: head.status, headers: head.headers, body, _connection: connection })
        })
        .await
    }

    /// Asks for the raw connection, see [`super::Response::takeover`].
    pub async fn takeover(
        &self,
        method: Method,
        path: &str,
        protocol: &'static str,
        body: impl Into<Bytes>,
    ) -> Result<Raw, ClientError> {
        let body = body.into();
        self.within(async {
            let mut request = self.build(method, path, body)?;
            let headers = request.headers_mut();
            headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
            headers.insert(http::header::UPGRADE, http::HeaderValue::from_static(protocol));
            let (response, _connection) = self.exchange(request).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let status = response.status();
                let body = Limited::new(response.into_body(), MESSAGE_BYTES).collect().await;
                let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
                return Err(ClientError::NotTakenOver { endpoint: self.endpoint.clone(), status, body });
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(error))?;
            match upgraded.downcast::<TokioIo<Stream>>() {
                Ok(parts) => Ok(Raw { stream: parts.io.into_inner(), buffered: parts.read_buf }),
                Err(_) => Err(self.broken("the connection is of another kind")),
            }
        })
        .await
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        let slow = || ClientError::Slow { endpoint: self.endpoint.clone(), limit: self.deadline };
        tokio::time::timeout(self.deadline, work).await.unwrap_or_else(|_| Err(slow()))
    }

    fn build(&self, method: Method, path: &str, body: Bytes) -> Result<hyper::Request<Full<Bytes>>, ClientError> {
        let host = match &self.endpoint {
            Endpoint::Tcp(address) => address.to_string(),
            Endpoint::Unix(_) | Endpoint::Abstract(_) => "unix".to_owned(),
        };
        let mut request = hyper::Request::builder().method(method).uri(path).header(http::header::HOST, host);
        if !body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body)).map_err(|error| self.broken(error))
    }

    async fn exchange(
        &self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(hyper::Response<Incoming>, ConnectionTask), ClientError> {
        let stream = self.connect().await;
        let stream = stream.map_err(|source| ClientError::Connect { endpoint: self.endpoint.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            // Its error reaches the caller through the request or the body.
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        Ok((response, ConnectionTask { _tasks: tasks }))
    }

    async fn connect(&self) -> io::Result<Stream> {
        match &self.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            Endpoint::Abstract(name) => UnixStream::connect(format!("\0{name}")).await.map(Stream::Unix),
            Endpoint::Tcp(address) => TcpStream::connect(address).await.map(Stream::Tcp),
        }
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Exchange { endpoint: self.endpoint.clone(), source: source.into() }
    }
}

const MESSAGE_BYTES: usize = 64 * 1024;

/// Drives the connection; dropped together with the answer.
#[derive(Debug)]
struct ConnectionTask {
    _tasks: tokio::task::JoinSet<()>,
}
