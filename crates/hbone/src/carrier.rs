//! One connection: TLS, HTTP/2 and what its streams have received or want to send, behind one lock.
//!
//! ```text
//!            ┌ turn: the connection's task ────────────────────────────────┐
//!   socket ──▶ read ▶ open records ▶ HTTP/2 ▶ application's socket, or queue ──▶ stream's task
//!   socket ◀── write ◀ seal records ◀──────── frames in records ◀──────────────── stream's task
//!            └─────────────────────────────────────────────────────────────┘
//! ```
//!
//! Only the connection's task ([`Turns`]) touches the connection's socket, and it does not hold the lock while it reads and writes: where
//! streams are other threads', they go on. It runs when something came, or when a stream has put
//! something into [`Outgoing`]; so what all streams that were ready together have sent leaves in one write. What is received for a
//! stream is written to the application's socket at once where the stream has one that takes it ([`Outlet`]), without waking
//! anybody; the rest waits in the stream's queue for the stream's task.
//!
//! Everything that waits is bounded: what is received, by the windows; what is sent, by one buffer, and another one where the socket has not
//! taken all of the first; streams queue up for room in order.

mod buffers;
mod entry;
mod outgoing;
mod receive;
mod send;
mod windows;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::fast::FixedState;
use http::{HeaderMap, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use stillmesh_http2::{Config, Connection, Reason, Request, Role, SendError};
use stillmesh_tls::{Established, Session};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::early;
use crate::memory::Holding;
use crate::{Ending, Limits, Transport};
pub(crate) use entry::{Entry, Outlet};
use outgoing::Outgoing;
use windows::Windows;

/// The PING that asks whether the peer is there.
const ALIVE: [u8; 8] = *b"alive???";
/// The PING that measures a round trip.
const MEASURE: [u8; 8] = *b"measure?";

/// How long the last frames of a connection may take that is ended here.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long an answer waits for what its application says first: what a timer takes at least, which may be twice as long.
const PATIENCE: Duration = Duration::from_millis(1);

/// As many answers do not wait after one that waited in vain.
const PROMPT: u8 = 15;

/// How long a connection that has ended by itself waits for its peer's end. What it sent last may still be on its way, and would
/// be lost with a socket that is closed before the peer has said its last.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// A connection, as its streams and whoever looks after it hold it.
pub(crate) struct Carrier {
    inner: Mutex<Inner>,
}

/// All of a connection but its socket.
pub(crate) struct Inner {
    tls: Session,
    http2: Connection,
    /// Each in a box: the map has room for up to twice as many.
    streams: HashMap<u32, Box<Entry>, FixedState>,
    /// Requests that nobody has looked at.
    requests: VecDeque<(u32, Request)>,
    windows: Windows,
    limits: Limits,
    // What comes.
    /// When something came last.
    heard: Instant,
    /// A part of a record.
    partial: Vec<u8>,
    // What goes.
    outgoing: Outgoing,
    /// Streams that wait for room in `outgoing`, in order.
    queue: VecDeque<u32>,
    /// Streams that wait for the connection's window.
    starved: Vec<u32>,
    /// Nothing is to be sent but answers that wait for what their applications say first.
    answers_wait: bool,
    /// So many answers do not wait, since an application took its time.
    prompt: u8,
    // How it goes on.
    /// No new streams from here: it ends when there are none.
    leaving: bool,
    /// The peer said that it goes away.
    gone_away: Option<Ending>,
    gone_away_told: bool,
    ended: Option<Ending>,
    /// The end may be told to the peer.
    closing: Closing,
    /// PINGs answered.
    pongs: u64,
    holding: Holding,
    // Who is to be woken.
    turns: Waker,
    woken: bool,
    watcher: Waker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Not yet.
    No,
    /// What is left, and the alert, are on their way.
    Said,
    /// They are gone, and our end behind them. What comes until the peer's end is thrown away.
    Shut,
    /// Nothing more is written.
    Done,
}

/// What whoever looks after a connection is told.
pub(crate) enum Next {
    /// A request came.
    Request(u32, Request),
    /// The peer takes no new streams.
    GoneAway,
    /// It is over.
    Ended(Ending),
}

impl Carrier {
    /// A connection after its handshake, and its task.
    pub(crate) fn new(
        role: Role,
        limits: &Limits,
        established: Established,
        io: Box<dyn Transport>,
    ) -> (Arc<Self>, Turns) {
        let config = Config {
            initial_window: limits.first_window(),
            connection_window: limits.connection_window,
            max_frame: limits.frame,
            max_streams: match role {
                Role::Client => u32::try_from(limits.client_streams).unwrap_or(u32::MAX),
                Role::Server => limits.server_streams,
            },
            max_header_list: match role {
                Role::Client => limits.client_headers,
                Role::Server => limits.server_headers,
            },
            // A server's streams are read by nobody before they are accepted.
            early_data: early::MOST,
            ..Config::client()
        };
        let http2 = match role {
            Role::Client => Connection::client(config),
            Role::Server => Connection::server(config),
        };
        let inner = Inner {
            tls: established.session,
            http2,
            streams: HashMap::default(),
            requests: VecDeque::new(),
            windows: Windows::new(limits),
            limits: limits.clone(),
            heard: Instant::now(),
            partial: established.leftover,
            outgoing: Outgoing::default(),
            queue: VecDeque::new(),
            starved: Vec::new(),
            answers_wait: false,
            prompt: 0,
            leaving: false,
            gone_away: None,
            gone_away_told: false,
            ended: None,
            closing: Closing::No,
            pongs: 0,
            holding: limits.memory.holding(),
            turns: Waker::noop().clone(),
            woken: false,
            watcher: Waker::noop().clone(),
        };
        let carrier = Arc::new(Self { inner: Mutex::new(inner) });
        (Arc::clone(&carrier), Turns { carrier, io, fresh: true, patience: None })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    // ---- for whoever looks after it ----

    /// Waits for what is next. Cancel-safe.
    pub(crate) async fn next(&self) -> Next {
        poll_fn(|cx| {
            let mut inner = self.lock();
            inner.watch(cx);
            if let Some((stream, request)) = inner.requests.pop_front() {
                return Poll::Ready(Next::Request(stream, request));
            }
            if let Some(ending) = &inner.ended {
                return Poll::Ready(Next::Ended(ending.clone()));
            }
            if inner.gone_away.is_some() && !std::mem::replace(&mut inner.gone_away_told, true) {
                return Poll::Ready(Next::GoneAway);
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the peer's SETTINGS have come, or all is over. Cancel-safe.
    pub(crate) async fn greeted(&self) {
        poll_fn(|cx| {
            let mut inner = self.lock();
            inner.watch(cx);
            if inner.is_greeted() || inner.ended.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Sends a PING; says how many were answered before. Since the last one at least [`Limits::ping_every`] has passed.
    pub(crate) fn ping(&self) -> u64 {
        let mut inner = self.lock();
        let passed = u32::try_from(inner.limits.ping_every.as_secs()).unwrap_or(u32::MAX);
        inner.http2.elapsed(passed);
        inner.http2.ping(ALIVE);
        inner.wake();
        inner.pongs
    }

    /// Waits until more PINGs than these were answered. Cancel-safe.
    pub(crate) async fn answered(&self, before: u64) {
        poll_fn(|cx| {
            let mut inner = self.lock();
            inner.watch(cx);
            if inner.pongs > before { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Goes away as soon as no place is taken; a server tells its peer now (RFC 9113 section 6.8).
    pub(crate) fn leave(&self) {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.leaving, true) && inner.http2.role() == Role::Server {
            inner.http2.go_away();
        }
        inner.wake();
    }

    /// Ends everything now. What says so to the peer may still go out; nobody waits long for it.
    pub(crate) async fn close(&self) {
        {
            let mut inner = self.lock();
            inner.http2.close(Reason::NO_ERROR, "closed here");
            inner.end(Ending::Here);
            inner.wake();
        }
        self.finish(LAST_WORDS).await;
    }

    /// Waits until what says that it is over is written and the peer has ended as well, but not for longer than this.
    pub(crate) async fn finish(&self, limit: Duration) {
        let done = poll_fn(|cx| {
            let mut inner = self.lock();
            inner.watch(cx);
            if inner.closing == Closing::Done { Poll::Ready(()) } else { Poll::Pending }
        });
        if timeout(limit, done).await.is_err() {
            self.abort();
        }
    }

    /// Ends everything at once.
    pub(crate) fn abort(&self) {
        let mut inner = self.lock();
        inner.end(Ending::Here);
        inner.done();
        inner.wake();
    }

    /// Streams open or being opened.
    pub(crate) fn places(&self) -> usize {
        self.lock().windows.places
    }
}

impl Inner {
    fn watch(&mut self, cx: &Context<'_>) {
        self.watcher.clone_from(cx.waker());
    }

    pub(crate) fn is_greeted(&self) -> bool {
        self.http2.is_greeted()
    }

    /// Why it is over, if it is.
    pub(crate) fn ended(&self) -> Option<&Ending> {
        self.ended.as_ref()
    }

    /// Has the connection's task run, and what waits sent.
    fn wake(&mut self) {
        self.answers_wait = false;
        if !std::mem::replace(&mut self.woken, true) {
            self.turns.wake_by_ref();
        }
    }

    /// Has it run if HTTP/2 has something to say.
    fn wake_for_output(&mut self) {
        if self.http2.has_output() {
            self.wake();
        }
    }

    // ---- streams ----

    /// The most streams that may be open at a time.
    pub(crate) fn most_streams(&self) -> usize {
        self.http2.most_streams() as usize
    }

    /// A place for a stream is taken.
    pub(crate) fn take_place(&mut self) {
        self.windows.places += 1;
        self.resize_streams();
        self.wake_for_output();
    }

    /// A place was given back.
    pub(crate) fn give_place(&mut self) {
        self.windows.places = self.windows.places.saturating_sub(1);
        if self.leaving && self.windows.places == 0 {
            self.wake();
        }
    }

    /// What the peer takes of a stream before it has answered, bytes; 0 where it was not heard for so long.
    pub(crate) fn early_data(&self, fresh: Duration) -> usize {
        if self.heard.elapsed() <= fresh { self.http2.early_data().min(early::MOST) as usize } else { 0 }
    }

    /// Opens a stream.
    pub(crate) fn connect(&mut self, authority: &str, headers: &HeaderMap) -> Result<u32, SendError> {
        if self.ended.is_some() {
            return Err(SendError::Over);
        }
        let stream = self.http2.connect(authority, headers)?;
        self.streams.insert(stream, Box::new(Entry::new(&self.limits.memory)));
        self.wake();
        Ok(stream)
    }

    /// Answers a request. A 200 waits for a moment where the application's first bytes may go with it: who has sent its own behind the
    /// CONNECT does not wait for the answer.
    pub(crate) fn respond(&mut self, stream: u32, status: StatusCode, headers: &HeaderMap) -> Result<(), Ending> {
        let entry = self.streams.get(&stream);
        if let Some(ending) = entry.and_then(|entry| entry.stopped.as_deref().cloned()) {
            return Err(ending);
        }
        // Who has sent nearly as much as is taken may have more, which waits for the answer.
        let is_early = entry.is_some_and(|entry| (1..early::MOST as usize / 2).contains(&entry.unread.len()));
        let is_alone = self.answers_wait || self.says_nothing();
        let end = status != StatusCode::OK;
        let responded = self.http2.respond(stream, status, headers, end).map_err(Ending::Send);
        if end {
            // Nothing of what the peer may still send is wanted (RFC 9113 section 8.1).
            self.http2.reset(stream, Reason::NO_ERROR);
        }
        if end || !is_early || !is_alone || self.limits.memory.is_short() || !self.is_patient() || !self.put_output() {
            self.wake();
        } else {
            self.answers_wait = true;
            // It looks at the time.
            self.turns.wake_by_ref();
        }
        responded
    }

    /// Whether nothing is on its way to the peer, and nobody waits for that.
    fn says_nothing(&self) -> bool {
        !self.woken && !self.http2.has_output() && self.outgoing.is_empty() && self.queue.is_empty()
    }

    /// Whether applications here have said something at once lately.
    fn is_patient(&mut self) -> bool {
        let is_patient = self.prompt == 0;
        self.prompt = self.prompt.saturating_sub(1);
        is_patient
    }

    pub(crate) fn entry(&mut self, stream: u32) -> Option<&mut Entry> {
        self.streams.get_mut(&stream).map(Box::as_mut)
    }

    /// The first unread bytes of a stream were passed on: the peer gets its credit back.
    pub(crate) fn take(&mut self, stream: u32, bytes: usize) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let bytes = entry.unread.advance(bytes);
        entry.account.take(bytes);
        self.windows.taken(&mut entry.taken, bytes);
        self.http2.release(stream, u32::try_from(bytes).unwrap_or(u32::MAX));
        self.resize_connection();
        self.wake_for_output();
    }

    /// Nobody holds the stream any more: what is unread goes back, and the peer is told that it is over if it is not.
    pub(crate) fn forget(&mut self, stream: u32, reason: Reason) {
        self.reset(stream, reason);
        self.streams.remove(&stream);
        self.starved.retain(|starved| *starved != stream);
        if self.streams.is_empty() {
            // What many streams needed is not kept.
            self.streams = HashMap::default();
        }
    }

    /// Ends both directions.
    pub(crate) fn reset(&mut self, stream: u32, reason: Reason) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            let unread = entry.clear();
            self.http2.release(stream, u32::try_from(unread).unwrap_or(u32::MAX));
        }
        self.http2.reset(stream, reason);
        self.resize_connection();
        self.wake_for_output();
    }

    // ---- windows ----

    /// The windows that there ought to be.
    fn resize(&mut self) {
        self.resize_connection();
        self.resize_streams();
        if self.windows.measures() {
            self.http2.ping(MEASURE);
        }
    }

    fn resize_connection(&mut self) {
        if let Some(window) = self.windows.other_connection(self.http2.unread()) {
            self.http2.set_connection_window(window);
            self.windows.connection = window;
        }
    }

    /// Makes windows smaller when there are more streams or less memory. Not while the last change is on its way: it is looked at
    /// again in every turn.
    fn resize_streams(&mut self) {
        if let Some(window) = self.windows.smaller()
            && self.http2.set_initial_window(window)
        {
            self.windows.window = window;
        }
    }

    fn pong(&mut self, payload: [u8; 8]) {
        if payload == MEASURE {
            if let Some(window) = self.windows.measured()
                && self.http2.set_initial_window(window)
            {
                self.windows.window = window;
            }
        } else {
            self.pongs += 1;
            self.watcher.wake_by_ref();
        }
    }

    // ---- the end ----

    /// It is over, for all streams. The first reason stays.
    fn end(&mut self, ending: Ending) {
        if self.ended.is_some() {
            return;
        }
        for entry in self.streams.values_mut() {
            entry.break_off(&ending);
        }
        for (stream, _) in self.requests.drain(..) {
            self.streams.remove(&stream);
        }
        self.ended = Some(ending);
        self.watcher.wake_by_ref();
        // There may be last words.
        self.wake();
    }

    /// Nothing is written any more.
    fn done(&mut self) {
        // Streams may be held for long after.
        self.outgoing = Outgoing::default();
        self.partial = Vec::new();
        self.holding.set(0);
        self.closing = Closing::Done;
        self.watcher.wake_by_ref();
    }
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carrier").finish_non_exhaustive()
    }
}

/// The connection's task: moves bytes between its socket and [`Inner`] until all is over.
pub(crate) struct Turns {
    carrier: Arc<Carrier>,
    io: Box<dyn Transport>,
    /// Something may lie in `partial` that was not looked at.
    fresh: bool,
    /// While answers wait.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Turns {
    /// Whether nothing is to be written yet.
    fn waits(inner: &mut Inner, patience: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
        if inner.http2.has_output() {
            inner.answers_wait = false;
        }
        if inner.answers_wait {
            let left = patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
            if left.as_mut().poll(cx).is_pending() {
                return true;
            }
            inner.answers_wait = false;
            inner.prompt = PROMPT;
        }
        *patience = None;
        false
    }
}

impl Future for Turns {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut inner = this.carrier.inner.lock();
        inner.turns.clone_from(cx.waker());
        inner.woken = false;
        if inner.ended.is_none() && Inner::receive(&mut inner, cx, &mut *this.io, std::mem::take(&mut this.fresh)) {
            // There may be more: others first.
            inner.wake();
        }
        inner.resize();
        if Self::waits(&mut inner, &mut this.patience, cx) {
            return Poll::Pending;
        }
        Inner::flush(&mut inner, cx, &mut *this.io)
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        let mut inner = self.carrier.inner.lock();
        inner.end(Ending::Here);
        inner.done();
    }
}
