//! An application: HTTP/1.1 and HTTP/2 at one port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use stillmesh_runtime::tasks::Tasks;
use stillmesh_waypoint::upstream::connections::Owned;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::client::Body;

/// What an application has seen.
#[derive(Debug)]
pub struct Counts {
    /// Connections.
    pub connections: AtomicUsize,
    /// Requests.
    pub requests: AtomicUsize,
    /// Requests of `/first` and `/grpc-status`.
    pub scripted: AtomicUsize,
    /// Bytes sent by `/source`.
    pub sent: AtomicU64,
    /// Requests of `/wait` that were dropped.
    pub cancelled: AtomicUsize,
    /// A request of `/wait` has come.
    pub waiting: Notify,
    /// A request of `/wait` was dropped.
    pub dropped: Notify,
    /// Lets one request of `/wait` go on.
    pub go: Notify,
    /// Bytes that `/length` has taken.
    pub received: AtomicUsize,
    /// The head of the last request.
    pub last: Mutex<Option<Parts>>,
    /// Lets requests of `/held` go on.
    pub held: Semaphore,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            connections: AtomicUsize::default(),
            requests: AtomicUsize::default(),
            scripted: AtomicUsize::default(),
            sent: AtomicU64::default(),
            cancelled: AtomicUsize::default(),
            waiting: Notify::default(),
            dropped: Notify::default(),
            go: Notify::default(),
            received: AtomicUsize::default(),
            last: Mutex::default(),
            held: Semaphore::new(0),
        }
    }
}

/// A running application.
pub struct App {
    /// What it has seen.
    pub counts: Arc<Counts>,
}

impl App {
    /// Starts it; it lives as long as `tasks`.
    pub async fn start(name: &str, at: SocketAddr, tasks: &Tasks) -> Self {
        let counts = Arc::new(Counts::default());
        let listener = TcpListener::bind(at).await.expect("the application's port");
        let (seen, own, name) = (counts.clone(), tasks.clone(), Arc::<str>::from(name));
        tasks.spawn("application", async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                seen.connections.fetch_add(1, Ordering::Relaxed);
                let (seen, name, executor) = (seen.clone(), name.clone(), Owned(own.clone()));
                let tasks = own.clone();
                own.spawn("connection", async move {
                    let service = service_fn(move |request| {
                        let (seen, name, tasks) = (seen.clone(), name.clone(), tasks.clone());
                        async move { Ok::<_, Infallible>(answer(request, &name, &seen, &tasks).await) }
                    });
                    let mut builder = Builder::new(executor);
                    builder.http2().enable_connect_protocol();
                    drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { counts }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Relaxed)
    }
}

/// Counts a request of `/wait` that nobody waits for any more.
struct Waiting<'a>(&'a Counts, bool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::Relaxed);
            self.0.dropped.notify_one();
        }
    }
}

async fn answer(mut request: Request<Incoming>, name: &str, counts: &Arc<Counts>, tasks: &Tasks) -> Response<Body> {
    counts.requests.fetch_add(1, Ordering::Relaxed);
    let mut head = Request::new(()).into_parts().0;
    (head.method, head.uri) = (request.method().clone(), request.uri().clone());
    head.headers.clone_from(request.headers());
    *counts.last.lock() = Some(head);
    if request.method() == Method::HEAD {
        return Response::new(full(""));
    }
    match request.uri().path() {
        // Who answers, and what it was asked.
        "/who" => {
            let headers: serde_json::Map<String, serde_json::Value> = request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
                .collect();
            let seen = serde_json::json!({
                "name": name,
                "version": format!("{:?}", request.version()),
                "method": request.method().as_str(),
                "target": request.uri().to_string(),
                "headers": headers,
            });
            let mut response = Response::new(full(seen.to_string()));
            response.headers_mut().insert("keep-alive", HeaderValue::from_static("timeout=5"));
            response
        }
        // The body comes back as it comes, and its trailers.
        "/echo" => {
            let mut response = Response::new(request.into_body().boxed());
            response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("grpc-status, x-sum"));
            response
        }
        // Answers when it has seen the whole body.
        "/length" => {
            let length = request.into_body().collect().await.expect("a body").to_bytes().len();
            counts.received.fetch_add(length, Ordering::Relaxed);
            Response::new(full(format!("{length} bytes")))
        }
        "/failing-length" => {
            let length = request.into_body().collect().await.expect("a body").to_bytes().len();
            let mut response = Response::new(full(format!("{length} bytes")));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
        "/held/500" => {
            counts.held.acquire().await.expect("it is never closed").forget();
            status(StatusCode::INTERNAL_SERVER_ERROR)
        }
        "/name" => Response::new(full(name.to_owned())),
        // Sends for ever, counting.
        "/source" => {
            let counts = counts.clone();
            let pieces = futures::stream::repeat(Bytes::from_static(&[7; 16 << 10])).map(move |piece| {
                counts.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Ok(Frame::data(piece))
            });
            Response::new(BodyExt::boxed(StreamBody::new(pieces)))
        }
        "/wait" => {
            let mut waiting = Waiting(counts, false);
            counts.waiting.notify_one();
            counts.go.notified().await;
            waiting.1 = true;
            Response::new(full("waited"))
        }
        // Says no before it has seen the body.
        "/no" => status(StatusCode::EXPECTATION_FAILED),
        // Echoes in another protocol.
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tasks.spawn("upgraded", async move {
                let upgraded = upgrade.await.expect("an upgrade");
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                drop(tokio::io::copy(&mut from, &mut to).await);
                drop(tokio::io::AsyncWriteExt::shutdown(&mut to).await);
            });
            if request.method() == Method::CONNECT {
                return status(StatusCode::OK);
            }
            let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
            response
        }
        // One message back and the status in trailers.
        "/grpc" => {
            let message = request.into_body().collect().await.expect("a message").to_bytes();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("5"));
            let frames = vec![Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        path => scripted(path, name, counts).unwrap_or_else(|| status(StatusCode::NOT_FOUND)),
    }
}

/// `/status/503`: always; `/first/2/503`: the first two times; `/grpc-status/14`: a gRPC status and nothing else, once.
fn scripted(path: &str, name: &str, counts: &Counts) -> Option<Response<Body>> {
    let (kind, rest) = path.strip_prefix('/')?.split_once('/')?;
    let answer = |code: u16| {
        let mut response = Response::new(full(name.to_owned()));
        *response.status_mut() = StatusCode::from_u16(code).expect("a status");
        response
    };
    match kind {
        "status" => Some(answer(rest.parse().ok()?)),
        "first" => {
            let (times, code) = rest.split_once('/')?;
            let before = counts.scripted.fetch_add(1, Ordering::Relaxed);
            Some(answer(if before < times.parse().ok()? { code.parse().ok()? } else { 200 }))
        }
        "grpc-status" => {
            let mut response = status(StatusCode::OK);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            let code = if counts.scripted.fetch_add(1, Ordering::Relaxed) == 0 { rest } else { "0" };
            response.headers_mut().insert("grpc-status", code.parse().expect("a header's value"));
            Some(response)
        }
        _ => None,
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    response
}

/// A body of these frames.
pub fn body_of(frames: Vec<Frame<Bytes>>) -> Body {
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames.into_iter().map(Ok))))
}
