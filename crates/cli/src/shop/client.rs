//! A keep-alive HTTP/1.1 client for one upstream: one connection, replaced when it is old or broken.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use stillmesh_runtime::tasks::Tasks;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one request may take, connection included, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 256 << 20;

/// One upstream, for example `details:9080`.
pub(super) struct KeepAlive {
    authority: String,
    max_age: Duration,
    deadline: Duration,
    tasks: Tasks,
    open: Option<(SendRequest<Empty<Bytes>>, Instant)>,
}

impl KeepAlive {
    /// A client that has not connected yet. `authority` is `host:port`.
    pub(super) fn new(authority: &str, max_age: Duration, tasks: Tasks) -> Self {
        Self { authority: authority.to_owned(), max_age, deadline: DEADLINE, tasks, open: None }
    }

    /// One that waits so long for each answer.
    pub(super) fn patient(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// GETs a path. Errors: anything but a whole 200 answer in time; the connection is not used again.
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Bytes> {
        self.send(&Method::GET, path).await
    }

    /// Sends a request without a body. Errors as for [`KeepAlive::get`].
    pub(super) async fn send(&mut self, method: &Method, path: &str) -> anyhow::Result<Bytes> {
        let limit = self.deadline;
        let answer = timeout(limit, self.exchange(method, path)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {limit:?}")));
        if answer.is_err() {
            self.open = None;
        }
        answer.with_context(|| format!("{method} http://{}{path}", self.authority))
    }

    async fn exchange(&mut self, method: &Method, path: &str) -> anyhow::Result<Bytes> {
        let (mut sender, opened) = match self.reusable().await {
            Some(open) => open,
            None => (self.connect().await?, Instant::now()),
        };
        let request = Request::builder().method(method).uri(path).header("host", &self.authority).body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        self.open = Some((sender, opened));
        Ok(body)
    }

    /// The open connection, if it is young and takes another request.
    async fn reusable(&mut self) -> Option<(SendRequest<Empty<Bytes>>, Instant)> {
        let (mut sender, opened) = self.open.take()?;
        (opened.elapsed() < self.max_age && sender.ready().await.is_ok()).then_some((sender, opened))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(&self.authority).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn("shop-client", async move {
            // Its end shows at the sender; there is nothing to add here.
            let _ = connection.await;
        });
        Ok(sender)
    }
}
