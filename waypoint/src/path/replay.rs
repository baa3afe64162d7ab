//! A request's body that can be sent again: what was taken of it is kept up to a bound, so that a request that an endpoint
//! refused can go to another one. Beyond the bound there is no other try.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::record::grpc::Messages;

/// The body of one request, from which each try takes its own [`RequestBody`].
#[derive(Clone)]
pub struct Replay {
    shared: Arc<Mutex<State>>,
    received: Arc<Received>,
    /// Nothing comes, or it is known how much.
    hint: SizeHint,
    is_empty: bool,
}

struct State {
    /// The client's body; `None`: all of it is kept.
    source: Option<Incoming>,
    kept: Vec<Kept>,
    kept_bytes: usize,
    most: usize,
    /// More came than is kept.
    is_over: bool,
    ended: bool,
    /// The try that may read. An earlier one may still be held by a connection that is going away.
    current: u32,
    /// Cancelled when nothing more comes.
    whole: Option<CancellationToken>,
    /// Who wants all of it.
    copies: Vec<oneshot::Sender<Copied>>,
}

/// What was received of a body.
#[derive(Debug, Default)]
pub struct Received {
    bytes: AtomicU64,
    /// Of a body of gRPC's.
    messages: Option<Mutex<Messages>>,
}

impl Received {
    fn of(is_grpc: bool) -> Self {
        Self { bytes: AtomicU64::new(0), messages: is_grpc.then(Mutex::default) }
    }

    pub(super) fn see(&self, piece: &[u8]) {
        self.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        if let Some(messages) = &self.messages {
            messages.lock().see(piece);
        }
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many messages, if it is gRPC.
    pub fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.lock().count())
    }
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Bytes.
    Data(Bytes),
    /// What comes after them.
    Trailers(HeaderMap),
}

/// A whole body.
pub type Copied = Vec<Kept>;

impl Replay {
    /// Of a client's body; at most `most` bytes of it are kept.
    pub fn new(source: Incoming, most: usize, is_grpc: bool) -> Self {
        let (hint, is_empty) = (source.size_hint(), source.is_end_stream());
        Self::with(State::new(Some(source), Vec::new(), most, is_empty), hint, is_grpc)
    }

    /// Of a body that is there already.
    pub fn of(kept: Copied) -> Self {
        let length = |kept: &Kept| match kept {
            Kept::Data(bytes) => bytes.len() as u64,
            Kept::Trailers(_) => 0,
        };
        let hint = SizeHint::with_exact(kept.iter().map(length).sum());
        Self::with(State::new(None, kept, 0, true), hint, false)
    }

    fn with(state: State, hint: SizeHint, is_grpc: bool) -> Self {
        let is_empty = state.ended && state.kept.is_empty();
        let received = Arc::new(Received::of(is_grpc));
        Self { shared: Arc::new(Mutex::new(state)), received, hint, is_empty }
    }

    /// All of the body, when it has come and if all of it is kept.
    pub fn copy(&self) -> oneshot::Receiver<Copied> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        if state.is_over {
            return receiver;
        }
        state.copies.push(sender);
        if state.ended {
            state.end();
        }
        receiver
    }

    /// What the client has sent so far.
    pub fn received(&self) -> Arc<Received> {
        self.received.clone()
    }

    /// Whether all that was taken so far is kept.
    pub fn may_repeat(&self) -> bool {
        !self.shared.lock().is_over
    }

    /// Cancelled when the client has sent all, or nobody reads what it sends any more.
    pub fn whole(&self) -> CancellationToken {
        let mut state = self.shared.lock();
        let whole = state.whole.get_or_insert_with(CancellationToken::new).clone();
        if state.ended {
            whole.cancel();
        }
        whole
    }

    /// The body from its beginning, for the next try; those before get no more. With `gate` nothing is read before it
    /// opens.
    pub fn again(&self, gate: Option<Gate>) -> RequestBody {
        let mut state = self.shared.lock();
        state.current += 1;
        RequestBody { replay: self.clone(), number: state.current, next: 0, gate, sent: 0 }
    }
}

/// What a body waits for before its first byte is asked for.
pub type Gate = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The body as one try sends it.
pub struct RequestBody {
    replay: Replay,
    number: u32,
    next: usize,
    gate: Option<Gate>,
    sent: u64,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client broke off.
    #[error("the client's request broke off")]
    Client(#[from] hyper::Error),
    /// The request goes another way.
    #[error("the request was sent to another endpoint")]
    Superseded,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        let this = self.get_mut();
        let mut state = this.replay.shared.lock();
        if state.current != this.number {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = state.kept.get(this.next).cloned() {
            this.next += 1;
            return Poll::Ready(Some(Ok(match kept {
                Kept::Data(bytes) => {
                    this.sent += bytes.len() as u64;
                    Frame::data(bytes)
                }
                Kept::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        let Some(source) = &mut state.source else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(source).poll_frame(cx)) {
            Some(frame) => frame?,
            None => {
                state.end();
                return Poll::Ready(None);
            }
        };
        if let Some(bytes) = frame.data_ref() {
            this.replay.received.see(bytes);
            this.sent += bytes.len() as u64;
            state.keep(Kept::Data(bytes.clone()), bytes.len());
        } else if let Some(trailers) = frame.trailers_ref() {
            let length = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            state.keep(Kept::Trailers(trailers.clone()), length);
        }
        this.next = if state.is_over { 0 } else { state.kept.len() };
        if state.source.as_ref().is_none_or(Body::is_end_stream) {
            state.end();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.replay.is_empty || {
            let state = self.replay.shared.lock();
            state.ended && self.next >= state.kept.len()
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.replay.hint.exact() {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.sent)),
            None => SizeHint::new(),
        }
    }
}

impl State {
    fn new(source: Option<Incoming>, kept: Vec<Kept>, most: usize, ended: bool) -> Self {
        Self { source, kept, kept_bytes: 0, most, is_over: false, ended, current: 0, whole: None, copies: Vec::new() }
    }

    fn end(&mut self) {
        self.ended = true;
        self.whole.iter().for_each(CancellationToken::cancel);
        for copy in self.copies.drain(..) {
            // Who does not wait any more does not want it.
            let _ = copy.send(self.kept.clone());
        }
    }

    fn keep(&mut self, kept: Kept, length: usize) {
        if self.is_over {
            return;
        }
        self.kept_bytes = self.kept_bytes.saturating_add(length);
        if self.kept_bytes > self.most {
            self.is_over = true;
            self.kept = Vec::new();
            self.copies = Vec::new();
        } else {
            self.kept.push(kept);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // What is not whole by now never will be.
        self.copies = Vec::new();
        self.end();
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("received", &self.received).finish_non_exhaustive()
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("number", &self.number).field("sent", &self.sent).finish_non_exhaustive()
    }
}
