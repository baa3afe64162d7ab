//! One TLS connection: places for streams on it, the CONNECT, and the task that drives it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use h2::client::{Connection, SendRequest};
use http::{Method, Request, Response, StatusCode};
use stillmesh_core::attrs::Authority;
use stillmesh_identity::Leaf;
use stillmesh_identity::revocation::{CertificateIds, Revocations, Side};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Key, Opened, Shared};
use crate::headers::{self, ConnectHeaders};
use crate::link::Link;
use crate::memory::Frame;
use crate::pulse::{Beat, Pulse};
use crate::stream::Slot as StreamSlot;
use crate::{Limits, Stream, TunnelError};

/// One TLS connection.
pub(super) struct Tunnel {
    sender: SendRequest<Frame>,
    leaf: Arc<Leaf>,
    link: Arc<Link>,
    /// No more new streams.
    retired: AtomicBool,
    /// What broke it.
    broke: OnceLock<Arc<h2::Error>>,
}

impl Tunnel {
    pub(super) fn new(sender: SendRequest<Frame>, leaf: Arc<Leaf>, link: Arc<Link>) -> Self {
        Self { sender, leaf, link, retired: AtomicBool::new(false), broke: OnceLock::new() }
    }

    pub(super) fn leaf(&self) -> &Arc<Leaf> {
        &self.leaf
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Why it took no stream although it was just dialled.
    pub(super) fn stillborn(&self, destination: SocketAddr) -> TunnelError {
        let refused = || Arc::new(h2::Reason::REFUSED_STREAM.into());
        TunnelError::Reset { destination, source: self.broke.get().cloned().unwrap_or_else(refused) }
    }

    /// Takes a place, if there is one. The caller holds the lock under which places are taken.
    pub(super) fn place(self: &Arc<Self>, limits: &Limits) -> Option<Place> {
        let limit = limits.client_streams.min(self.sender.current_max_send_streams());
        let free = self.link.streams() < limit;
        free.then(|| Place { tunnel: Arc::clone(self), slot: StreamSlot::take(&self.link) })
    }
}

/// The right to have one stream on a connection; given back when dropped.
pub(super) struct Place {
    tunnel: Arc<Tunnel>,
    slot: StreamSlot,
}

/// Why a stream did not open.
pub(super) enum Attempt {
    /// The connection ended before the peer looked at the request.
    Stale(TunnelError),
    /// It failed.
    Failed(TunnelError),
}

impl Place {
    /// Sends the CONNECT and waits for its answer. `limit` is what the deadline came from.
    pub(super) async fn connect(
        self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Opened, Attempt> {
        let destination = key.destination;
        let request = Request::builder().method(Method::CONNECT).uri(headers::authority_text(authority)).body(());
        let mut request = request
            .map_err(|source| Attempt::Failed(TunnelError::Request { destination, source: Arc::new(source) }))?;
        headers.write(request.headers_mut());
        let answered = timeout_at(deadline, self.exchange(request)).await;
        let answered = answered.map_err(|_| Attempt::Failed(TunnelError::Slow { destination, limit }))?;
        let (send, response) = answered.map_err(|source| {
            let stale = source.is_go_away() || source.is_io() || source.reason() == Some(h2::Reason::REFUSED_STREAM);
            if stale {
                self.tunnel.retire();
            }
            let error = TunnelError::Reset { destination, source: Arc::new(source) };
            if stale { Attempt::Stale(error) } else { Attempt::Failed(error) }
        })?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(Attempt::Failed(TunnelError::Refused { destination, status: head.status }));
        }
        Ok(Opened { stream: Stream::new(send, body, self.slot), response: head.headers })
    }

    async fn exchange(
        &self,
        request: Request<()>,
    ) -> Result<(h2::SendStream<Frame>, Response<h2::RecvStream>), h2::Error> {
        let mut sender = self.tunnel.sender.clone().ready().await?;
        let (response, send) = sender.send_request(request, false)?;
        drop(sender);
        Ok((send, response.await?))
    }
}

/// Drives one connection and looks after it.
pub(super) struct Driver {
    pub(super) pool: Weak<Shared>,
    pub(super) key: Key,
    /// Weak: the connection ends by itself when nobody holds its sender.
    pub(super) tunnel: Weak<Tunnel>,
    pub(super) link: Arc<Link>,
    /// From here on it takes no new streams.
    pub(super) drain_at: Instant,
    pub(super) idle: Duration,
    /// The peer's certificates.
    pub(super) ids: CertificateIds,
    pub(super) revocations: Arc<Revocations>,
}

impl Driver {
    /// Runs until the connection has ended. Dropping the connection resets its streams.
    pub(super) async fn run<IO>(self, mut connection: Connection<IO, Frame>, mut pulse: Pulse)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut idle_since, mut draining) = (None, false);
        let mut revoked = std::pin::pin!(self.revocations.revoked(&self.ids, Side::Source));
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, destination = %self.key.destination, "tunnel broke");
                        if let Some(tunnel) = self.tunnel.upgrade() {
                            let _ = tunnel.broke.set(Arc::new(error));
                        }
                    }
                    break;
                }
                beat = pulse.beat() => match beat {
                    Beat::Lost => {
                        tracing::warn!(destination = %self.key.destination, "tunnel closed: its peer is silent");
                        break;
                    }
                    Beat::Window(window) => {
                        // Not now: the last change is still on its way. It is asked again.
                        if connection.set_initial_window_size(window).is_ok() {
                            self.link.window_changed(window);
                        }
                    }
                    Beat::Connection(window) => {
                        connection.set_target_window_size(window);
                        self.link.connection_window_changed(window);
                    }
                    Beat::Present => idle_since = self.look(idle_since),
                },
                () = &mut revoked => {
                    tracing::warn!(destination = %self.key.destination, "tunnel closed: its peer's certificate is revoked");
                    break;
                }
                () = sleep_until(self.drain_at), if !draining => {
                    draining = true;
                    self.retire();
                }
            }
        }
        self.retire();
    }

    /// Lets the connection go when it has been idle for long, or when its pool is gone. Says since when it is idle.
    fn look(&self, idle_since: Option<Instant>) -> Option<Instant> {
        if self.link.streams() > 0 {
            return None;
        }
        let since = idle_since.unwrap_or_else(Instant::now);
        if since.elapsed() >= self.idle || self.pool.strong_count() == 0 {
            self.retire();
        }
        Some(since)
    }

    /// Takes the connection out of its pool.
    fn retire(&self) {
        let tunnel = self.tunnel.upgrade();
        if let Some(tunnel) = &tunnel {
            tunnel.retire();
        }
        let Some(pool) = self.pool.upgrade() else { return };
        if let Some(tunnel) = &tunnel {
            let slot = pool.slots.lock().get(&self.key).cloned();
            slot.iter().for_each(|slot| slot.remove(tunnel));
        }
        pool.tidy(&self.key);
    }
}
