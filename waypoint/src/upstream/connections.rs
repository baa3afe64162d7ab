//! HTTP connections to endpoints, kept for further requests: one request at a time on an HTTP/1.1 connection, many on an
//! HTTP/2 one.
//!
//! A connection is kept per endpoint, way of reaching it and version. It takes no new requests once it was idle for long
//! or is old, so that none outlives the certificates and policies that it was opened under by much.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use futures::task::AtomicWaker;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use stillmesh_core::decide::{Dial, OutboundPlan, OutboundProtocol};
use stillmesh_runtime::tasks::Tasks;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::{Upstream, dial};
use crate::capture::Downstream;
use crate::config::Limits;
use crate::path::{PathError, RequestBody, Version};

/// Runs an HTTP/2 connection's parts in tasks with an owner.
#[derive(Clone, Debug)]
pub struct Owned(pub Tasks);

impl<F> Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("http2", future);
    }
}

/// Which connections may serve a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    dial: Dial,
    protocol: OutboundProtocol,
    version: Version,
    kept: Kept,
}

/// How long and for how much connections are kept, where a DestinationRule says it; absent: as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kept {
    /// How long without requests; zero: as long as it lives.
    pub idle: Option<Duration>,
    /// How long in all.
    pub age: Option<Duration>,
    /// For how many requests.
    pub requests: Option<u32>,
    /// For how many at a time, on HTTP/2.
    pub streams: Option<u32>,
}

/// All of them.
#[derive(Debug)]
pub struct Connections {
    slots: Mutex<HashMap<Key, Arc<Slot>, RandomState>>,
    limits: Limits,
    tasks: Tasks,
}

/// The connections of one key.
#[derive(Debug)]
struct Slot {
    bounds: Bounds,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    /// Whoever makes an HTTP/2 connection; others wait for it.
    dialling: Semaphore,
}

/// What holds for the connections of one key.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    idle: Duration,
    age: Duration,
    requests: usize,
    streams: usize,
}

impl Bounds {
    fn new(limits: &Limits, kept: Kept) -> Self {
        Self {
            idle: match kept.idle {
                Some(Duration::ZERO) => Duration::MAX,
                idle => idle.unwrap_or(limits.upstream_idle),
            },
            age: kept.age.map_or(limits.upstream_age, |age| age.min(limits.upstream_age)),
            requests: kept.requests.filter(|most| *most > 0).map_or(usize::MAX, |most| most as usize),
            streams: kept.streams.map_or(limits.concurrent, |most| most.clamp(1, limits.concurrent)) as usize,
        }
    }

    fn is_over(&self, made: Instant, since: Instant) -> bool {
        since.elapsed() >= self.idle || made.elapsed() >= self.age
    }
}

/// An HTTP/1.1 connection without a request.
#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    /// Of the CONNECT that it goes through.
    trace: u128,
    /// Requests that it has carried.
    carried: usize,
    made: Instant,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// Of the CONNECT that it goes through.
    trace: u128,
    connect: TakesConnect,
    made: Instant,
    used: Arc<Mutex<Instant>>,
    requests: Arc<AtomicUsize>,
    /// Requests that it was given in all.
    carried: AtomicUsize,
}

/// Whether an endpoint has said that it takes CONNECT for other protocols. Its connection looks at its settings when it is
/// woken, and their arrival does not wake it: who wants to know does.
#[derive(Clone, Debug)]
struct TakesConnect {
    announced: watch::Receiver<bool>,
    asked: Arc<AtomicWaker>,
}

/// The connection that a request wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// To where.
    pub plan: &'a OutboundPlan,
    /// Of which HTTP version.
    pub version: Version,
    /// A new one in any case.
    pub fresh: bool,
    /// The trace of the CONNECT of a new one ([`dial::trace`]).
    pub trace: u128,
    /// When it is too late.
    pub deadline: Instant,
}

/// Idle HTTP/1.1 connections that are kept per endpoint; what is more is closed.
const MOST_IDLE: usize = 64;

impl Connections {
    /// None yet. Their tasks run in `tasks`.
    pub fn new(limits: Limits, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::default(), limits, tasks })
    }

    /// How many are idle or shared.
    pub fn open(&self) -> usize {
        let slots = self.slots.lock();
        slots.values().map(|slot| slot.idle.lock().len() + slot.shared.lock().len()).sum()
    }

    /// A connection for one request: one that is there, or a new one.
    pub async fn lease(
        self: &Arc<Self>,
        downstream: &Downstream,
        upstream: &Upstream,
        wanted: Wanted<'_>,
    ) -> Result<Lease, PathError> {
        let Wanted { plan, version, fresh, .. } = wanted;
        let key = Key { dial: plan.dial.clone(), protocol: plan.protocol.clone(), version, kept: upstream.kept() };
        let slot = self.slot(&key);
        if !fresh {
            let known = match version {
                Version::One => self.idle(&slot).map(|idle| Lease::one(slot.clone(), idle)),
                Version::Two => self.shared(&slot),
            };
            if let Some(lease) = known {
                return Ok(lease);
            }
        }
        // Few requests need it.
        Box::pin(self.dial(downstream, slot, wanted)).await
    }

    async fn dial(
        self: &Arc<Self>,
        downstream: &Downstream,
        slot: Arc<Slot>,
        wanted: Wanted<'_>,
    ) -> Result<Lease, PathError> {
        let Wanted { plan, version, fresh, trace, deadline } = wanted;
        if version == Version::One {
            let way = dial::way(downstream.waypoint(), &downstream.own, plan, None, trace, deadline).await?;
            let io = TokioIo::new(way);
            let handshake = http1::Builder::new().max_buf_size(self.limits.head_bytes).handshake(io).await;
            let (sender, connection) = handshake.map_err(broken)?;
            self.tasks.spawn("http1", async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "a connection to an endpoint ended early");
                }
            });
            let now = Instant::now();
            return Ok(Lease::one(slot, Idle { sender, trace, carried: 0, made: now, since: now }));
        }
        let slow = |_| PathError::Slow { to: "the endpoint".to_owned(), limit: self.limits.connect };
        let dialling = timeout_at(deadline, slot.dialling.acquire()).await.map_err(slow)?;
        // Whoever dialled meanwhile did so for all who waited.
        if !fresh && let Some(lease) = self.shared(&slot) {
            return Ok(lease);
        }
        let way = dial::way(downstream.waypoint(), &downstream.own, plan, None, trace, deadline).await?;
        let mut builder = http2::Builder::new(Owned(self.tasks.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX));
        let handshake = timeout_at(deadline, builder.handshake(TokioIo::new(way))).await.map_err(slow)?;
        let (sender, connection) = handshake.map_err(broken)?;
        let (announces, announced) = watch::channel(false);
        let asked = Arc::new(AtomicWaker::new());
        let connect = TakesConnect { announced, asked: asked.clone() };
        self.tasks.spawn("http2", async move {
            let mut connection = std::pin::pin!(connection);
            let ended = std::future::poll_fn(|cx| {
                asked.register(cx.waker());
                let polled = connection.as_mut().poll(cx);
                if polled.is_pending() && connection.is_extended_connect_protocol_enabled() {
                    announces.send_if_modified(|is_announced| !std::mem::replace(is_announced, true));
                }
                polled
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection to an endpoint ended early");
            }
        });
        let now = Instant::now();
        let requests = Arc::new(AtomicUsize::new(0));
        let carried = AtomicUsize::new(0);
        let shared = Shared { sender, trace, connect, made: now, used: Arc::new(Mutex::new(now)), requests, carried };
        let lease = shared.lease(false);
        slot.shared.lock().push(shared);
        drop(dialling);
        Ok(lease)
    }

    fn slot(&self, key: &Key) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        match slots.get(key) {
            Some(slot) => slot.clone(),
            None => {
                let slot = Arc::new(Slot::new(Bounds::new(&self.limits, key.kept)));
                slots.entry(key.clone()).or_insert(slot).clone()
            }
        }
    }

    /// The connection that was idle for the shortest time. One whose last response was given up is not ready before it is
    /// closed.
    fn idle(&self, slot: &Slot) -> Option<Idle> {
        let mut idle = slot.idle.lock();
        let at = idle.iter().rposition(|idle| idle.sender.is_ready() && !slot.bounds.is_over(idle.made, idle.since))?;
        Some(idle.remove(at))
    }

    fn shared(&self, slot: &Slot) -> Option<Lease> {
        let mut all = slot.shared.lock();
        let Bounds { age, requests, streams, .. } = slot.bounds;
        // What is taken out here ends when its last request has.
        all.retain(|shared| {
            let may_more = shared.carried.load(Ordering::Relaxed) < requests;
            !shared.sender.is_closed() && shared.made.elapsed() < age && may_more
        });
        let free = all.iter().find(|shared| shared.requests.load(Ordering::Relaxed) < streams);
        free.map(|shared| shared.lease(true))
    }

    /// Closes what has been idle for long. Runs for ever.
    pub async fn tidy(self: Arc<Self>) {
        let every = (self.limits.upstream_idle / 2).clamp(Duration::from_millis(10), TIDY);
        loop {
            tokio::time::sleep(every).await;
            self.slots.lock().retain(|_, slot| {
                let mut idle = slot.idle.lock();
                idle.retain(|idle| !idle.sender.is_closed() && !slot.bounds.is_over(idle.made, idle.since));
                let mut shared = slot.shared.lock();
                shared.retain(|shared| {
                    let busy = shared.requests.load(Ordering::Relaxed) > 0;
                    let since = *shared.used.lock();
                    !shared.sender.is_closed() && (busy || !slot.bounds.is_over(shared.made, since))
                });
                // The map's lock is held: nobody begins to use a slot.
                let is_used = !idle.is_empty() || !shared.is_empty();
                drop((idle, shared));
                is_used || Arc::strong_count(slot) > 1
            });
        }
    }
}

/// Longest time between two looks for connections that have ended.
const TIDY: Duration = Duration::from_secs(30);

/// Receive windows and buffers of HTTP/2 inside the tunnels, bytes.
pub const STREAM_WINDOW: u32 = 128 << 10;
/// See [`STREAM_WINDOW`]. All streams together fit into it: one whose reader has stopped never stops its neighbours.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * CONCURRENT;
/// See [`STREAM_WINDOW`].
pub const SEND_BUFFER: usize = 128 << 10;
/// Requests at a time on one HTTP/2 connection, either side.
pub const CONCURRENT: u32 = 100;

/// How long the settings of an endpoint are waited for, from its connection's begin on.
const SETTINGS: Duration = Duration::from_secs(1);
/// Between two looks for them.
const LOOK: Duration = Duration::from_millis(10);

impl Slot {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, idle: Mutex::default(), shared: Mutex::default(), dialling: Semaphore::new(1) }
    }

    /// Keeps a connection whose response has ended, or was given up: then it closes by itself.
    fn take_back(&self, mut connection: Idle) {
        connection.carried = connection.carried.saturating_add(1);
        connection.since = Instant::now();
        if connection.carried >= self.bounds.requests || connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() >= MOST_IDLE {
            idle.retain(|idle| !idle.sender.is_closed());
        }
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
    }
}

fn broken(error: hyper::Error) -> PathError {
    PathError::Upstream { source: Arc::new(error) }
}

impl Shared {
    fn lease(&self, reused: bool) -> Lease {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.carried.fetch_add(1, Ordering::Relaxed);
        let in_use = InUse(Held::Two { requests: self.requests.clone(), used: self.used.clone() });
        Lease {
            sender: Sender::Two { sender: self.sender.clone(), made: self.made, connect: self.connect.clone(), in_use },
            reused,
            trace: self.trace,
        }
    }
}

/// A place on a connection, kept until its response's body has ended; given back when dropped.
#[derive(Debug)]
pub struct InUse(Held);

#[derive(Debug)]
enum Held {
    /// All of an HTTP/1.1 connection; `None` once it was given back.
    One { connection: Option<Idle>, slot: Arc<Slot> },
    /// One of the places on an HTTP/2 connection.
    Two { requests: Arc<AtomicUsize>, used: Arc<Mutex<Instant>> },
}

impl Drop for InUse {
    fn drop(&mut self) {
        match &mut self.0 {
            Held::One { connection, slot } => {
                if let Some(connection) = connection.take() {
                    slot.take_back(connection);
                }
            }
            Held::Two { requests, used } => {
                *used.lock() = Instant::now();
                requests.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// The right to send one request on a connection.
#[derive(Debug)]
pub struct Lease {
    sender: Sender,
    /// Whether other requests were sent on it before: the endpoint may be about to close it.
    pub reused: bool,
    /// The trace of the CONNECT that it goes through; 0: none.
    pub trace: u128,
}

#[derive(Debug)]
enum Sender {
    One { connection: Idle, slot: Arc<Slot> },
    Two { sender: http2::SendRequest<RequestBody>, made: Instant, connect: TakesConnect, in_use: InUse },
}

impl Lease {
    fn one(slot: Arc<Slot>, connection: Idle) -> Self {
        let (reused, trace) = (connection.carried > 0, connection.trace);
        Self { sender: Sender::One { connection, slot }, reused, trace }
    }

    /// Whether the endpoint takes CONNECT for other protocols (RFC 8441): it says so in its settings, which are the first that
    /// it sends on a new connection, and are waited for during its first second.
    pub async fn takes_connect(&self) -> bool {
        let Sender::Two { made, connect, .. } = &self.sender else { return false };
        let mut announced = connect.announced.clone();
        loop {
            connect.asked.wake();
            let next = (Instant::now() + LOOK).min(*made + SETTINGS);
            match timeout_at(next, announced.wait_for(|is_announced| *is_announced)).await {
                Ok(announced) => return announced.is_ok(),
                Err(_) if made.elapsed() >= SETTINGS => return false,
                Err(_) => {}
            }
        }
    }

    /// Sends a request and waits for the head of its response. What is returned beside it is to be kept until the
    /// response's body has ended. Dropped before its end, the request is cancelled.
    pub async fn send(
        self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Option<InUse>), TrySendError<Request<RequestBody>>> {
        match self.sender {
            Sender::One { mut connection, slot } => {
                let response = connection.sender.try_send_request(request).await?;
                let is_http = response.status() != http::StatusCode::SWITCHING_PROTOCOLS;
                let held = is_http.then(|| InUse(Held::One { connection: Some(connection), slot }));
                Ok((response, held))
            }
            Sender::Two { mut sender, in_use, .. } => {
                let response = sender.try_send_request(request).await?;
                Ok((response, Some(in_use)))
            }
        }
    }
}
