//! `image: stillmesh/echo`: a server that says who it is, what it was sent, and by whom. HTTP and plain TCP on each port.
//!
//! A connection whose first bytes are a HTTP request line is answered as HTTP/1 (keep-alive); any other gets its bytes
//! back. A port given as server-first greets before it reads. It knows nothing of the mesh: what it names as its peer
//! is the peer that its socket has.
//!
//! Query parameters: `status=503`, `delay=250ms` (at most a minute), `size=1048576` (that many bytes instead of the
//! description, at most 1 GiB). `Accept: application/json` or `format=json` answers with JSON.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use stillmesh_runtime::Tasks;
use stillmesh_runtime::accept::Acceptor;
use stillmesh_runtime::env::{Reader, parse_duration};
use stillmesh_runtime::sys::socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::args;

/// Connections at a time and port; further ones wait in the kernel.
const MOST_CONNECTIONS: usize = 10_000;
/// Bytes of a request's body that are read; more ends the connection.
const MOST_BODY: usize = 64 << 20;
/// Bytes of a request's body that are told back.
const TOLD_BODY: usize = 1024;
const MOST_SIZE: u64 = 1 << 30;
const MOST_DELAY: Duration = Duration::from_secs(60);
/// A request's head has to be there by then.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
const METHODS: [&str; 9] = ["GET ", "POST ", "PUT ", "HEAD ", "DELETE ", "OPTIONS ", "PATCH ", "TRACE ", "CONNECT "];

/// Who answers.
#[derive(Clone, Debug, Serialize)]
struct Server {
    name: String,
    pod: Option<String>,
    namespace: Option<String>,
    node: Option<String>,
    service_account: Option<String>,
    ip: Option<String>,
}

/// What is answered.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    server: &'a Server,
    local: SocketAddr,
    peer: SocketAddr,
    method: String,
    path: String,
    version: String,
    headers: BTreeMap<String, Vec<String>>,
    body_bytes: usize,
    body: String,
}

/// Serves until SIGTERM or SIGINT, then lets open requests end.
pub fn run(args: &args::Echo) -> anyhow::Result<ExitCode> {
    let env = Reader::process();
    let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let server = Arc::new(Server {
        name: args.name.clone().unwrap_or(hostname),
        pod: env.string("POD_NAME"),
        namespace: env.string("POD_NAMESPACE"),
        node: env.string("NODE_NAME"),
        service_account: env.string("SERVICE_ACCOUNT"),
        ip: env.string("POD_IP"),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args, server))
}

async fn serve(args: &args::Echo, server: Arc<Server>) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new("echo");
    let plain = args.ports.iter().map(|port| (*port, false));
    for (port, first) in plain.chain(args.server_first_ports.iter().map(|port| (*port, true))) {
        let acceptor = Acceptor::new("echo", listen(port)?, MOST_CONNECTIONS);
        let (server, group) = (server.clone(), tasks.clone());
        tasks.spawn("accept", async move {
            loop {
                let accepted = acceptor.accept().await;
                let server = server.clone();
                group.spawn("connection", async move {
                    let _permit = accepted.permit;
                    // A broken connection is the peer's business.
                    let _ = connection(accepted.connection, accepted.peer, first, server).await;
                });
            }
        });
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn listen(port: u16) -> anyhow::Result<TcpListener> {
    socket::listen((Ipv6Addr::UNSPECIFIED, port).into()).with_context(|| format!("listening on port {port}"))
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, first: bool, server: Arc<Server>) -> std::io::Result<()> {
    let local = unmapped(stream.local_addr()?);
    let peer = unmapped(peer);
    stream.set_nodelay(true)?;
    if first {
        stream.write_all(format!("220 {} sees {peer}\r\n", server.name).as_bytes()).await?;
        return echo(stream).await;
    }
    if !speaks_http(&stream).await? {
        return echo(stream).await;
    }
    let service = hyper::service::service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(answer(request, local, peer, &server).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(std::io::Error::other)
}

/// Whether the first bytes are those of a HTTP request. Reads nothing away.
async fn speaks_http(stream: &TcpStream) -> std::io::Result<bool> {
    let mut head = [0u8; 8];
    let mut seen = 0;
    loop {
        let count = stream.peek(&mut head).await?;
        let bytes = head.get(..count).unwrap_or_default();
        let fits = |method: &&str| method.as_bytes().starts_with(bytes) || bytes.starts_with(method.as_bytes());
        if count == 0 || !METHODS.iter().any(fits) {
            return Ok(false);
        }
        if METHODS.iter().any(|method| bytes.starts_with(method.as_bytes())) {
            return Ok(true);
        }
        if count == seen {
            // A part of a method's name and nothing more yet; peeking does not wait for more.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        seen = count;
    }
}

/// Sends everything back, and ends its side when the peer has ended the other.
async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(buffer.get(..count).unwrap_or_default()).await?;
    }
}

async fn answer(request: Request<Incoming>, local: SocketAddr, peer: SocketAddr, server: &Server) -> Response<Reply> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MOST_BODY).collect().await else {
        return reply(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", Reply::text(String::new()));
    };
    let body = body.to_bytes();
    let query: BTreeMap<&str, &str> =
        head.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    if let Some(delay) = query.get("delay").and_then(|text| parse_duration(text)) {
        tokio::time::sleep(delay.min(MOST_DELAY)).await;
    }
    let status = query.get("status").and_then(|text| text.parse().ok()).unwrap_or(StatusCode::OK);
    if let Some(size) = query.get("size").and_then(|text| text.parse::<u64>().ok()) {
        return reply(status, "application/octet-stream", Reply { head: Bytes::new(), rest: size.min(MOST_SIZE) });
    }
    let mut headers = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &head.headers {
        headers.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let answer = Answer {
        server,
        local,
        peer,
        method: head.method.to_string(),
        path: head.uri.to_string(),
        version: format!("{:?}", head.version),
        headers,
        body_bytes: body.len(),
        body: String::from_utf8_lossy(body.get(..body.len().min(TOLD_BODY)).unwrap_or_default()).into_owned(),
    };
    let accepts =
        head.headers.get(http::header::ACCEPT).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if accepts || query.get("format") == Some(&"json") {
        let text = serde_json::to_string_pretty(&answer).unwrap_or_default();
        return reply(status, "application/json", Reply::text(format!("{text}\n")));
    }
    reply(status, "text/plain; charset=utf-8", Reply::text(describe(&answer)))
}

fn describe(answer: &Answer<'_>) -> String {
    let mut lines = vec![format!("server: {}", answer.server.name)];
    let server = answer.server;
    let known =
        [("namespace", &server.namespace), ("node", &server.node), ("service account", &server.service_account)];
    lines.extend(known.iter().filter_map(|(what, value)| value.as_ref().map(|value| format!("{what}: {value}"))));
    lines.push(format!("local: {}", answer.local));
    lines.push(format!("peer: {}", answer.peer));
    lines.push(format!("request: {} {} {}", answer.method, answer.path, answer.version));
    for (name, values) in &answer.headers {
        lines.extend(values.iter().map(|value| format!("header {name}: {value}")));
    }
    lines.push(format!("body: {} bytes", answer.body_bytes));
    if !answer.body.is_empty() {
        lines.push(answer.body.clone());
    }
    lines.join("\n") + "\n"
}

fn reply(status: StatusCode, content_type: &'static str, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// A text, then any number of equal bytes that are made as they are sent.
#[derive(Debug)]
struct Reply {
    head: Bytes,
    rest: u64,
}

impl Reply {
    fn text(text: String) -> Self {
        Self { head: text.into(), rest: 0 }
    }
}

static FILL: [u8; 64 << 10] = [b'x'; 64 << 10];

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.head.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.head)))));
        }
        if self.rest == 0 {
            return Poll::Ready(None);
        }
        let count = usize::try_from(self.rest).unwrap_or(FILL.len()).min(FILL.len());
        self.rest -= count as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(FILL.get(..count).unwrap_or_default())))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.rest == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.head.len() as u64 + self.rest)
    }
}

/// The address without the IPv6 form of an IPv4 one.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
