//! The dialling end: tunnels shared by the connections that may share them (contract 3.3).
//!
//! One pool serves one worker. Of each key there are as many TLS connections as its streams need; while one is being dialled,
//! others who need one wait for it. A connection is not used for new streams once its peer said GOAWAY, its
//! certificate was replaced by a newer one, or it was idle for long; its streams go on to their own end.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use parking_lot::Mutex;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_identity::{Leaf, Secrets, TlsError, client_config, tls};
use stillmesh_runtime::tasks::Tasks;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::headers::{self, ConnectHeaders};
use crate::server::{Alive, Beat};
use crate::{Limits, Stream, TunnelError};

/// Opens a TCP connection, for example inside a pod's network namespace.
pub trait Dial: Send + Sync + 'static {
    /// Connects. The pool sets the deadline.
    fn dial<'a>(&'a self, key: &'a Key) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;
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
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

/// The connections of one key.
#[derive(Default)]
struct Slot {
    /// Held while one dials; others wait.
    dialling: tokio::sync::Mutex<()>,
    tunnels: Mutex<Vec<Arc<Tunnel>>>,
}

/// One TLS connection.
struct Tunnel {
    sender: SendRequest<Bytes>,
    leaf: Arc<Leaf>,
    /// Streams open or being opened.
    streams: AtomicUsize,
    /// No more new streams.
    retired: AtomicBool,
}

impl Pool {
    /// An empty pool. `dial` opens its TCP connections; its tasks run in `tasks`.
    pub fn new(limits: Limits, secrets: Secrets, dial: Arc<dyn Dial>, tasks: Tasks) -> Self {
        Self { shared: Arc::new(Shared { limits, secrets, dial, tasks, slots: Mutex::default() }) }
    }

    /// Opens a stream for `authority`, over a connection that is there or a new one. Errors: see [`TunnelError`]; in none of
    /// them was an application byte delivered. Bounded by the limits' `handshake` and `connect`.
    pub async fn open(
        &self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
    ) -> Result<Opened, TunnelError> {
        let leaf = self.shared.secrets.leaf(&key.source).await?;
        // A connection may say GOAWAY just as it is chosen: then nothing was sent, and the next one is tried.
        for _ in 0..3 {
            let place = self.place(key, &leaf).await?;
            match place.connect(key, authority, headers, self.shared.limits.connect).await {
                Err(Attempt::Unused) => {}
                Err(Attempt::Failed(error)) => return Err(error),
                Ok(opened) => return Ok(opened),
            }
        }
        let place = self.dial(key, &leaf).await?;
        place.connect(key, authority, headers, self.shared.limits.connect).await.map_err(|attempt| match attempt {
            Attempt::Failed(error) => error,
            Attempt::Unused => {
                TunnelError::Reset { destination: key.destination, source: Arc::new(h2::Reason::REFUSED_STREAM.into()) }
            }
        })
    }

    /// How many connections are open for new streams.
    pub fn tunnels(&self) -> usize {
        self.shared.slots.lock().values().map(|slot| slot.tunnels.lock().len()).sum()
    }

    /// Lets go of all connections: they end when their streams have.
    pub fn close(&self) {
        for (_, slot) in self.shared.slots.lock().drain() {
            for tunnel in slot.tunnels.lock().drain(..) {
                tunnel.retired.store(true, Ordering::Release);
            }
        }
    }

    /// A place for one stream: on an open connection, or on a new one.
    async fn place(&self, key: &Key, leaf: &Arc<Leaf>) -> Result<Place, TunnelError> {
        let slot = self.slot(key);
        if let Some(place) = slot.vacant(leaf, &self.shared.limits) {
            return Ok(place);
        }
        let _dialling = slot.dialling.lock().await;
        match slot.vacant(leaf, &self.shared.limits) {
            Some(place) => Ok(place),
            None => self.dial(key, leaf).await,
        }
    }

    fn slot(&self, key: &Key) -> Arc<Slot> {
        let mut slots = self.shared.slots.lock();
        match slots.get(key) {
            Some(slot) => Arc::clone(slot),
            None => Arc::clone(slots.entry(key.clone()).or_default()),
        }
    }

    async fn dial(&self, key: &Key, leaf: &Arc<Leaf>) -> Result<Place, TunnelError> {
        let (limits, destination) = (&self.shared.limits, key.destination);
        let deadline = Instant::now() + limits.handshake;
        let dialled = timeout_at(deadline, self.shared.dial.dial(key)).await;
        let tcp = dialled
            .map_err(|_| TunnelError::ConnectSlow { destination, limit: limits.handshake })?
            .map_err(|source| TunnelError::Connect { destination, source: Arc::new(source) })?;
        let tls_error = |source| TunnelError::Tls { destination, source };
        let config = client_config(leaf, &key.expected).map_err(tls_error)?;
        let handshake = TlsConnector::from(config).connect(tls::dummy_server_name(), tcp);
        let stream = timeout_at(deadline, handshake)
            .await
            .map_err(|_| tls_error(TlsError::Slow { limit: limits.handshake }))?
            .map_err(|error| tls_error(TlsError::from_handshake(error)))?;
        let http2 = |source| TunnelError::Http2 { destination, source: Arc::new(source) };
        let started = timeout_at(deadline, limits.client().handshake::<_, Bytes>(stream)).await;
        let (sender, mut connection) =
            started.map_err(|_| http2(h2::Reason::SETTINGS_TIMEOUT.into()))?.map_err(http2)?;
        let alive = Alive::new(connection.ping_pong(), limits);
        let tunnel = Arc::new(Tunnel {
            sender,
            leaf: Arc::clone(leaf),
            streams: AtomicUsize::new(1),
            retired: AtomicBool::new(false),
        });
        let slot = self.slot(key);
        slot.tunnels.lock().push(Arc::clone(&tunnel));
        let watch = Watch {
            pool: Arc::downgrade(&self.shared),
            key: key.clone(),
            tunnel: Arc::downgrade(&tunnel),
            idle: limits.idle,
        };
        self.shared.tasks.spawn("hbone-tunnel", watch.drive(connection, alive));
        Ok(Place { tunnel })
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("tunnels", &self.tunnels()).finish_non_exhaustive()
    }
}

impl Slot {
    /// Takes a place on a connection that has one. Connections that must not be used any more are let go.
    fn vacant(&self, leaf: &Arc<Leaf>, limits: &Limits) -> Option<Place> {
        let mut tunnels = self.tunnels.lock();
        tunnels.retain(|tunnel| {
            if !Arc::ptr_eq(&tunnel.leaf, leaf) {
                tunnel.retired.store(true, Ordering::Release);
            }
            !tunnel.retired.load(Ordering::Acquire)
        });
        tunnels.iter().find_map(|tunnel| {
            let limit = limits.client_streams.min(tunnel.sender.current_max_send_streams());
            // The lock on the list makes this check and the count one step.
            (tunnel.streams.load(Ordering::Acquire) < limit).then(|| {
                tunnel.streams.fetch_add(1, Ordering::AcqRel);
                Place { tunnel: Arc::clone(tunnel) }
            })
        })
    }
}

/// The right to have one stream on a connection; given back when dropped.
struct Place {
    tunnel: Arc<Tunnel>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tunnel.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a stream did not open.
enum Attempt {
    /// The connection had ended before anything was sent.
    Unused,
    /// It failed.
    Failed(TunnelError),
}

impl Place {
    async fn connect(
        self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
        limit: Duration,
    ) -> Result<Opened, Attempt> {
        let destination = key.destination;
        let request = Request::builder().method(Method::CONNECT).uri(headers::authority_text(authority)).body(());
        let mut request = request
            .map_err(|source| Attempt::Failed(TunnelError::Request { destination, source: Arc::new(source) }))?;
        headers.write(request.headers_mut());
        let answered = timeout(limit, self.exchange(request)).await;
        let answered = answered.unwrap_or(Err(Exchange::Slow));
        let (send, response) = answered.map_err(|problem| match problem {
            Exchange::Unused => {
                self.tunnel.retired.store(true, Ordering::Release);
                Attempt::Unused
            }
            Exchange::Slow => Attempt::Failed(TunnelError::Slow { destination, limit }),
            Exchange::Reset(source) => {
                if source.is_go_away() || source.is_io() {
                    self.tunnel.retired.store(true, Ordering::Release);
                }
                Attempt::Failed(TunnelError::Reset { destination, source: Arc::new(source) })
            }
        })?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(Attempt::Failed(TunnelError::Refused { destination, status: head.status }));
        }
        Ok(Opened { stream: Stream::new(send, body, Some(Box::new(self))), response: head.headers })
    }

    async fn exchange(
        &self,
        request: Request<()>,
    ) -> Result<(h2::SendStream<Bytes>, http::Response<h2::RecvStream>), Exchange> {
        let mut sender = self.tunnel.sender.clone().ready().await.map_err(|_| Exchange::Unused)?;
        let (response, send) = sender.send_request(request, false).map_err(|_| Exchange::Unused)?;
        drop(sender);
        let response = response.await.map_err(Exchange::Reset)?;
        Ok((send, response))
    }
}

enum Exchange {
    Unused,
    Slow,
    Reset(h2::Error),
}

/// Drives one connection and looks after it.
struct Watch {
    pool: Weak<Shared>,
    key: Key,
    /// Weak: the connection ends by itself when nobody holds its sender.
    tunnel: Weak<Tunnel>,
    idle: Duration,
}

impl Watch {
    async fn drive<IO>(self, mut connection: h2::client::Connection<IO, Bytes>, mut alive: Alive)
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let mut idle_since = None;
        loop {
            tokio::select! {
                _ended = &mut connection => break,
                beat = alive.beat() => match beat {
                    // Dropping the connection resets its streams.
                    Beat::Lost => break,
                    Beat::Present => idle_since = self.look(idle_since),
                },
            }
        }
        self.retire();
    }

    /// Lets the connection go when it has been idle for long, or when its pool is gone. Says since when it is idle.
    fn look(&self, idle_since: Option<Instant>) -> Option<Instant> {
        let tunnel = self.tunnel.upgrade()?;
        if tunnel.streams.load(Ordering::Acquire) > 0 {
            return None;
        }
        let since = idle_since.unwrap_or_else(Instant::now);
        if since.elapsed() >= self.idle || self.pool.strong_count() == 0 {
            drop(tunnel);
            self.retire();
        }
        Some(since)
    }

    fn retire(&self) {
        let Some(tunnel) = self.tunnel.upgrade() else { return };
        tunnel.retired.store(true, Ordering::Release);
        let Some(pool) = self.pool.upgrade() else { return };
        let mut slots = pool.slots.lock();
        if let Some(slot) = slots.get(&self.key) {
            let empty = {
                let mut tunnels = slot.tunnels.lock();
                tunnels.retain(|other| !Arc::ptr_eq(other, &tunnel));
                tunnels.is_empty()
            };
            // Whoever dials holds the slot; only one that nobody holds is taken out.
            if empty && Arc::strong_count(slot) == 1 {
                slots.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
