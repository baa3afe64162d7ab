//! The dialling end: tunnels shared by the connections that may share them (contract 3.3).
//!
//! One pool serves one worker. Of each key there are as many TLS connections as its streams need; while one is being
//! dialled, others who need one wait for it. A connection is not used for new streams once its peer said GOAWAY, its
//! certificate was replaced by a newer one or is near its end, or it was idle for long; its streams go on to their own
//! end.

mod dial;
mod slot;
mod tunnel;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use foldhash::quality::RandomState;
use http::HeaderMap;
use parking_lot::Mutex;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_identity::{Leaf, Secrets};
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use crate::headers::ConnectHeaders;
use crate::{Early, Limits, Stream, TunnelError};
use slot::{Slot, Vacancy};
use tunnel::{Attempt, Place};

/// What a tunnel runs over: a TCP connection, or bytes that another tunnel carries.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// What [`Dial::dial`] returns.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Transport>>> + Send + 'a>>;

/// Opens a TCP connection, for example inside a pod's network namespace.
pub trait Dial: Send + Sync + 'static {
    /// Connects. The pool sets the deadline.
    fn dial<'a>(&'a self, key: &'a Key) -> Dialling<'a>;
}

/// Which connections may be shared (contract 3.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whose certificate is shown.
    pub source: Identity,
    /// The workload's own address; part of the key, so that one pod's connections are never another's.
    pub source_ip: IpAddr,
    /// What is dialled.
    pub destination: SocketAddr,
    /// The peer must be one of these.
    pub expected: Vec<Identity>,
}

/// An open stream.
#[derive(Debug)]
pub struct Opened {
    /// The tunnelled connection.
    pub stream: Stream,
    /// The headers of the 200.
    pub response: HeaderMap,
}

/// Tunnels to peers. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    secrets: Secrets,
    dial: Arc<dyn Dial>,
    tasks: Tasks,
    slots: Mutex<HashMap<Key, Arc<Slot>, RandomState>>,
}

/// How often one opening is tried when shared connections end just as they are chosen.
const TRIES: usize = 3;

impl Pool {
    /// An empty pool. `dial` opens its TCP connections; its tasks run in `tasks`.
    pub fn new(limits: Limits, secrets: Secrets, dial: Arc<dyn Dial>, tasks: Tasks) -> Self {
        Self { shared: Arc::new(Shared { limits, secrets, dial, tasks, slots: Mutex::default() }) }
    }

    /// Opens a stream for `authority`, over a connection that is there or a new one. Errors: see [`TunnelError`]; in none of
    /// them was an application byte delivered. Bounded by [`Limits::connect`].
    pub async fn open(
        &self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
    ) -> Result<Opened, TunnelError> {
        self.open_with(key, authority, headers, None).await
    }

    /// As [`Pool::open`], and sends the first bytes of the application's connection behind the CONNECT where the peer takes that.
    /// [`Early::sent`] of them are gone from the socket once it is open. Errors: with [`TunnelError::Sent`] they may have been
    /// delivered; who gives up while they are on their way does not know either.
    pub async fn open_early(
        &self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
        early: &Early<'_>,
    ) -> Result<Opened, TunnelError> {
        self.open_with(key, authority, headers, Some(early)).await
    }

    async fn open_with(
        &self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
        early: Option<&Early<'_>>,
    ) -> Result<Opened, TunnelError> {
        let limits = &self.shared.limits;
        let (destination, limit) = (key.destination, limits.connect);
        if limits.memory.refuses() {
            return Err(TunnelError::Full { destination });
        }
        let deadline = Instant::now() + limit;
        let slow = |_| TunnelError::Slow { destination, limit };
        let leaf = timeout_at(deadline, self.shared.secrets.leaf(&key.source)).await.map_err(slow)??;
        let mut last = None;
        for _ in 0..TRIES {
            let attempt = match self.place(key, &leaf, deadline).await {
                Ok(place) => place.connect(key, authority, headers, early, (deadline, limit)).await,
                Err(attempt) => Err(attempt),
            };
            match attempt {
                Ok(opened) => return Ok(opened),
                Err(Attempt::Failed(error)) => return Err(error),
                // The connection ended before the peer looked at the request: the next one is tried.
                Err(Attempt::Stale(error)) => last = Some(error),
            }
        }
        Err(last.unwrap_or(TunnelError::Slow { destination, limit }))
    }

    /// How many connections are open for new streams.
    pub fn tunnels(&self) -> usize {
        self.shared.slots.lock().values().map(|slot| slot.tunnels()).sum()
    }

    /// Lets go of all connections: they end when their streams have.
    pub fn close(&self) {
        for (_, slot) in self.shared.slots.lock().drain() {
            slot.retire_all();
        }
    }

    /// A place for one stream: on an open connection, or on a new one. Every turn ends with a place, an error, or after a
    /// connection was made that others filled.
    async fn place(&self, key: &Key, leaf: &Arc<Leaf>, deadline: Instant) -> Result<Place, Attempt> {
        let (limits, destination) = (&self.shared.limits, key.destination);
        let slow = || Attempt::Failed(TunnelError::Slow { destination, limit: limits.connect });
        while Instant::now() < deadline {
            let mut dialled = match self.slot(key).vacancy(leaf, limits) {
                Vacancy::Place(place) => return Ok(place),
                Vacancy::Dialled(dialled) => dialled,
                Vacancy::None(promise) => {
                    let dialled = promise.follow();
                    let limit = limits.handshake.min(deadline.saturating_duration_since(Instant::now()));
                    let dial = dial::run(Arc::downgrade(&self.shared), key.clone(), Arc::clone(leaf), limit, promise);
                    self.shared.tasks.spawn("hbone-dial", dial);
                    dialled
                }
            };
            // The dial has its own deadline, and its error says more than ours.
            let outcome = timeout_at(deadline + dial::GRACE, dialled.outcome()).await.map_err(|_| slow())?;
            match outcome {
                // With TLS 1.3 a peer refuses our certificate only after our end of the handshake.
                Some(Ok(tunnel)) if tunnel.is_retired() => return Err(Attempt::Stale(tunnel.stillborn(destination))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Attempt::Failed(error)),
                // The dial was cut: whoever owns the tasks is ending them.
                None => return Err(slow()),
            }
        }
        Err(slow())
    }

    fn slot(&self, key: &Key) -> Arc<Slot> {
        let mut slots = self.shared.slots.lock();
        match slots.get(key) {
            Some(slot) => Arc::clone(slot),
            None => Arc::clone(slots.entry(key.clone()).or_default()),
        }
    }
}

impl Shared {
    /// Forgets a key that has neither connections nor a dial under way.
    fn tidy(&self, key: &Key) {
        let mut slots = self.slots.lock();
        // Whoever is about to use a slot holds it; the map's lock is held, so nobody begins to.
        if slots.get(key).is_some_and(|slot| Arc::strong_count(slot) == 1 && slot.is_empty()) {
            slots.remove(key);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("tunnels", &self.tunnels()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
