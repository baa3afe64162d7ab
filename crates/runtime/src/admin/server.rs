//! The server: connections, limits, and calling the handlers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;

use super::message::{Raw, ReplyBody, Request, Response, Takeover};
use super::route::{Found, Handler, Routes, parse_query};
use super::stall::Stalling;
use crate::accept::{Acceptor, Listener, Peer, Permit, Stream};
use crate::drain::Watch;
use crate::tasks::Tasks;

/// What a server bears from its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's queue. Default 64.
    pub connections: usize,
    /// Time for a request's head, which is also the longest a connection may be idle between requests. Default 10 s.
    pub head: Duration,
    /// Time for a request's body. Default 10 s.
    pub body: Duration,
    /// Size of a request's body in bytes. Default 1 MiB.
    pub body_bytes: usize,
    /// Time of a handler until its answer, not counting a streamed body. Default 60 s.
    pub handler: Duration,
    /// Time that a peer may refuse to read before its connection is closed. Default 30 s.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            body_bytes: 1 << 20,
            handler: Duration::from_secs(60),
            stall: Duration::from_secs(30),
        }
    }
}

/// Routes and limits, before and while they are served.
pub struct Server {
    name: &'static str,
    routes: Routes,
    limits: Limits,
}

impl Server {
    /// A server without routes. The name appears in logs.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, routes: Routes::default(), limits: Limits::default() }
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds a route. A path segment `{name}` matches any one segment, a last `{*name}` the rest of the path.
    ///
    /// Routes are asked in the order in which they were added. A route for GET answers HEAD too.
    #[must_use]
    pub fn route(mut self, method: Method, path: &str, handler: impl Handler) -> Self {
        self.routes.add(method, path, Arc::new(handler));
        self
    }

    /// Serves until the drain starts; then open requests may end until its deadline. Dropping the future closes all.
    pub async fn serve(self, listener: impl Into<Listener>, drain: Watch) {
        let tasks = Tasks::new(self.name);
        let acceptor = Acceptor::new(self.name, listener.into(), self.limits.connections);
        let server = Arc::new(self);
        let signal = loop {
            let accepted = tokio::select! {
                accepted = acceptor.accept() => accepted,
                signal = drain.signaled() => break signal,
            };
            let serving =
                Arc::clone(&server).connection(accepted.connection, accepted.peer, accepted.permit, drain.clone());
            tasks.spawn("connection", serving);
        };
        drop(acceptor);
        tasks.shutdown(signal.left()).await;
    }

    async fn connection(self: Arc<Self>, stream: Stream, peer: Peer, permit: Permit, drain: Watch) {
        let limits = self.limits;
        // At most one request of a connection takes it over, the last one.
        let upgrade = Arc::new(Mutex::new(None::<(OnUpgrade, Takeover)>));
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            let (server, upgrade) = (Arc::clone(&self), Arc::clone(&upgrade));
            async move {
                let raw = hyper::upgrade::on(&mut request);
                let mut response = server.answer(request, peer).await;
                if let Some(takeover) = response.takeover.take() {
                    *upgrade.lock() = Some((raw, takeover));
                }
                Ok::<_, Infallible>(into_hyper(response))
            }
        });
        let io = TokioIo::new(Stalling::new(stream, limits.stall));
        let http = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(io, service)
            .with_upgrades();
        let mut http = std::pin::pin!(http);
        let ended = tokio::select! {
            ended = http.as_mut() => ended,
            _signal = drain.signaled() => {
                http.as_mut().graceful_shutdown();
                http.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(server = self.name, ?peer, %error, "connection ended early");
        }
        let taken = upgrade.lock().take();
        if let Some((upgrade, takeover)) = taken
            && let Ok(upgraded) = upgrade.await
            && let Ok(parts) = upgraded.downcast::<TokioIo<Stalling>>()
        {
            takeover(Raw { stream: parts.io.into_inner().into_inner(), buffered: parts.read_buf }).await;
        }
        drop(permit);
    }

    async fn answer(&self, request: hyper::Request<Incoming>, peer: Peer) -> Response {
        let (head, body) = request.into_parts();
        let (handler, params) = match self.routes.find(&head.method, head.uri.path()) {
            Found::Handler(handler, params) => (handler, params),
            Found::Nothing => return Response::text(StatusCode::NOT_FOUND, "not found\n"),
            Found::OtherMethods(methods) => {
                let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
                let response = Response::text(StatusCode::METHOD_NOT_ALLOWED, format!("accepted: {allowed}\n"));
                return match HeaderValue::try_from(allowed) {
                    Ok(allowed) => response.header(http::header::ALLOW, allowed),
                    Err(_) => response,
                };
            }
        };
        let body = match self.read_body(body).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let request = Request {
            path: head.uri.path().to_owned(),
            query: parse_query(head.uri.query().unwrap_or_default()),
            method: head.method,
            headers: head.headers,
            params,
            body,
            peer,
        };
        match tokio::time::timeout(self.limits.handler, handler.call(request)).await {
            Ok(response) => response,
            Err(_) => Response::text(StatusCode::GATEWAY_TIMEOUT, "no answer in time\n"),
        }
    }

    async fn read_body(&self, body: Incoming) -> Result<Bytes, Response> {
        let limit = self.limits.body_bytes;
        match tokio::time::timeout(self.limits.body, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(Response::text(StatusCode::PAYLOAD_TOO_LARGE, format!("at most {limit} bytes are accepted\n")))
            }
            Ok(Err(error)) => Err(Response::text(StatusCode::BAD_REQUEST, format!("the body broke off: {error}\n"))),
            Err(_) => Err(Response::text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")),
        }
    }
}

/// Largest head of a request; hyper's smallest allowed buffer is 8 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;

fn into_hyper(response: Response) -> hyper::Response<ReplyBody> {
    let mut reply = hyper::Response::new(response.body);
    *reply.status_mut() = response.status;
    *reply.headers_mut() = response.headers;
    reply
}
