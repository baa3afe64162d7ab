//! A client's HTTP/1.1 connection. hyper serves it while requests come; once it has waited for the next one for a while ([`CALM`])
//! nothing of it is held but its stream, and no buffers: hyper's part is taken apart, and what that has read goes back to the
//! stream, so that nothing is lost.

use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt as _;
use hyper::body::Incoming;
use hyper::rt::{Sleep as HyperSleep, Timer};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::last_words::{Clean, LastWords};
use super::pace::Pace;
use super::{ResponseBody, Rewound};
use crate::config::Limits;

/// Answers requests, each by a future of its own: an idle connection has no room for one.
#[derive(Clone)]
pub struct Requests(Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>);

/// A request that is being answered.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

impl Requests {
    /// Answered so.
    pub fn new<F>(answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<ResponseBody>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(answer(request).map(Ok))))
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        (self.0)(request)
    }
}

/// The connection; ready when it has ended, or has been upgraded.
pub struct KeepAlive<IO: AsyncRead + AsyncWrite + Unpin> {
    state: State<IO>,
    builder: http1::Builder,
    requests: Requests,
    pace: Arc<Pace>,
    clean: Clean,
    idle: Duration,
    /// When the head of the next request has been waited for too long.
    ends: Instant,
    /// It has been waited for longer than requests follow one another.
    calm: bool,
    /// Until it is calm, then until it ends.
    late: Pin<Box<Sleep>>,
    /// After how many requests that is.
    answered: u64,
}

/// How long the next request is waited for before hyper's part goes: to make it anew for each of many would cost more than it takes.
const CALM: Duration = Duration::from_millis(25);

enum State<IO: AsyncRead + AsyncWrite + Unpin> {
    /// hyper's turn.
    Serving(Box<Serving<IO>>),
    /// Between requests: nothing was read of the next one, and all answers are sent.
    Waiting(LastWords<IO>),
    /// Being ended.
    Ending(LastWords<IO>),
    /// Over.
    Ended,
}

type Serving<IO> = http1::UpgradeableConnection<TokioIo<LastWords<IO>>, Requests>;

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> KeepAlive<IO> {
    /// Over a stream whose first request has begun. `pace` is that by which requests are answered.
    pub fn new(stream: Rewound<IO>, requests: Requests, pace: Arc<Pace>, limits: &Limits) -> Self {
        let (stream, clean) = LastWords::new(stream, pace.clone(), limits.head);
        let mut builder = http1::Builder::new();
        builder.timer(Heads(pace.clone())).header_read_timeout(limits.idle).max_buf_size(limits.head_bytes);
        let (idle, ends, late) = (limits.idle, Instant::now() + limits.idle, Box::pin(sleep(limits.idle)));
        let (state, calm, answered) = (State::Ended, false, 0);
        let mut this = Self { state, builder, requests, pace, clean, idle, ends, calm, late, answered };
        this.serve(stream);
        this
    }

    /// Takes no further requests: one that waits ends, another one does after its answer.
    pub fn graceful_shutdown(&mut self) {
        match mem::replace(&mut self.state, State::Ended) {
            State::Serving(mut connection) => {
                Pin::new(&mut *connection).graceful_shutdown();
                self.state = State::Serving(connection);
            }
            State::Waiting(stream) | State::Ending(stream) => self.state = State::Ending(stream),
            State::Ended => {}
        }
    }

    fn serve(&mut self, stream: LastWords<IO>) {
        let connection = self.builder.serve_connection(TokioIo::new(stream), self.requests.clone());
        self.state = State::Serving(Box::new(connection.with_upgrades()));
    }

    /// hyper has nothing to do: its part goes.
    fn rest(&mut self) {
        let State::Serving(connection) = mem::replace(&mut self.state, State::Ended) else { return };
        let Some(parts) = connection.into_parts() else { return };
        let mut stream = parts.io.into_inner();
        if parts.read_buf.is_empty() {
            self.state = State::Waiting(stream);
        } else {
            // A part of a head came right behind the last request.
            stream.put_back(&parts.read_buf);
            self.serve(stream);
        }
    }

    /// Ends when the head of the next request has been waited for too long; sees when it is calm.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let begun = self.pace.begun();
        if mem::replace(&mut self.answered, begun) != begun {
            let now = Instant::now();
            (self.ends, self.calm) = (now + self.idle, false);
            self.late.as_mut().reset(now + CALM.min(self.idle));
        }
        loop {
            ready!(self.late.as_mut().poll(cx));
            if Instant::now() >= self.ends {
                tracing::debug!("no request came for too long");
                return Poll::Ready(());
            }
            self.calm = true;
            self.late.as_mut().reset(self.ends);
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> Future for KeepAlive<IO> {
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Serving(connection) => {
                    let mut polled = Pin::new(&mut **connection).poll(cx);
                    if polled.is_pending() && !this.pace.is_busy() && !this.pace.server().waits() {
                        // Having answered, it begins to wait for the next head when it is asked again.
                        polled = Pin::new(&mut **connection).poll(cx);
                    }
                    if let Poll::Ready(ended) = polled {
                        if ended.as_ref().is_err_and(hyper::Error::is_parse) {
                            // It was answered: what was wrong is the client's to know.
                            this.clean.set();
                        }
                        return Poll::Ready(ended);
                    }
                    if this.pace.is_busy() || !this.pace.server().waits() {
                        return Poll::Pending;
                    }
                    if this.poll_late(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    if !this.calm || !this.pace.server().rests() {
                        return Poll::Pending;
                    }
                    this.rest();
                }
                State::Waiting(stream) => match stream.poll_more(cx) {
                    Poll::Pending => return this.poll_late(cx).map(Ok),
                    Poll::Ready(more) => {
                        let State::Waiting(stream) = mem::replace(&mut this.state, State::Ended) else { continue };
                        match more {
                            Ok(true) => this.serve(stream),
                            Ok(false) => this.state = State::Ending(stream),
                            Err(error) => {
                                tracing::debug!(%error, "a client's HTTP connection broke");
                                return Poll::Ready(Ok(()));
                            }
                        }
                    }
                },
                State::Ending(stream) => {
                    if let Err(error) = ready!(Pin::new(stream).poll_shutdown(cx)) {
                        tracing::debug!(%error, "a client's HTTP connection broke");
                    }
                    this.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// What hyper's server shows of itself by what it asks its timer and its stream.
#[derive(Debug, Default)]
pub struct Server {
    waits: AtomicBool,
    has_begun: AtomicBool,
    has_unsent: AtomicBool,
}

impl Server {
    /// A head was read, and its request begins.
    pub fn took_head(&self) {
        self.waits.store(false, Ordering::Relaxed);
        self.has_begun.store(false, Ordering::Relaxed);
    }

    /// A part of a head was read.
    pub fn began_head(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    /// It has something to send, or nothing any more.
    pub fn sends(&self, has_unsent: bool) {
        self.has_unsent.store(has_unsent, Ordering::Relaxed);
    }

    /// Whether it waits for a request's head, or for the rest of it.
    fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Whether it waits for a head of which nothing was read, and everything is sent.
    fn rests(&self) -> bool {
        self.waits() && !self.has_begun.load(Ordering::Relaxed) && !self.has_unsent.load(Ordering::Relaxed)
    }
}

/// hyper's timer, which it asks while it waits for a head, and for nothing else. It keeps no time: how long a head may take and how
/// long a connection may be idle is looked after here and by [`LastWords`].
struct Heads(Arc<Pace>);

/// Never ends.
struct Waits(Arc<Pace>);

impl Timer for Heads {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Waits(self.0.clone()))
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Waits(self.0.clone()))
    }
}

impl Future for Waits {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.0.server().waits.store(true, Ordering::Relaxed);
        Poll::Pending
    }
}

impl HyperSleep for Waits {}

#[cfg(test)]
mod tests;
