//! One TLS connection: places for streams on it, the CONNECT, and the task that drives it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use stillmesh_core::attrs::Authority;
use stillmesh_http2::{Reason, SendError};
use stillmesh_identity::Leaf;
use stillmesh_identity::revocation::{CertificateIds, Revocations, Side};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Key, Opened, Shared};
use crate::carrier::{Carrier, LINGER, Next};
use crate::headers::{self, ConnectHeaders};
use crate::pulse::{Beat, Pulse};
use crate::stream::Slot as StreamSlot;
use crate::{Early, Ending, Limits, Stream, TunnelError};

/// One TLS connection.
pub(super) struct Tunnel {
    carrier: Arc<Carrier>,
    leaf: Arc<Leaf>,
    /// No more new streams.
    retired: AtomicBool,
}

impl Tunnel {
    pub(super) fn new(carrier: Arc<Carrier>, leaf: Arc<Leaf>) -> Self {
        Self { carrier, leaf, retired: AtomicBool::new(false) }
    }

    pub(super) fn leaf(&self) -> &Arc<Leaf> {
        &self.leaf
    }

    /// Takes no new streams but those that have a place; ends when it has none.
    pub(super) fn retire(&self) {
        if !self.retired.swap(true, Ordering::AcqRel) {
            self.carrier.leave();
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Why it took no stream although it was just dialled.
    pub(super) fn stillborn(&self, destination: SocketAddr) -> TunnelError {
        let ended = self.carrier.lock().ended().cloned();
        TunnelError::Reset { destination, source: ended.unwrap_or(Ending::NotProcessed) }
    }

    /// Takes a place, if there is one. The caller holds the lock under which places are taken.
    pub(super) fn place(self: &Arc<Self>, limits: &Limits) -> Option<Place> {
        let limit = limits.client_streams.min(self.carrier.lock().most_streams());
        let free = self.carrier.places() < limit;
        free.then(|| Place { tunnel: Arc::clone(self), slot: Some(StreamSlot::take(&self.carrier)) })
    }
}

/// The right to have one stream on a connection; given back when dropped.
pub(super) struct Place {
    tunnel: Arc<Tunnel>,
    /// The stream's, once it is open.
    slot: Option<StreamSlot>,
}

/// Why a stream did not open.
pub(super) enum Attempt {
    /// The connection ended before the peer looked at the request.
    Stale(TunnelError),
    /// It failed.
    Failed(TunnelError),
}

impl Place {
    /// Sends the CONNECT, and early bytes behind it, and waits for its answer. `limit` is what the deadline came from.
    pub(super) async fn connect(
        self,
        key: &Key,
        authority: &Authority,
        headers: &ConnectHeaders,
        early: Option<&Early<'_>>,
        (deadline, limit): (Instant, Duration),
    ) -> Result<Opened, Attempt> {
        let destination = key.destination;
        let mut request = HeaderMap::new();
        headers.write(&mut request);
        early.inspect(|early| early.begin());
        let opening = Opening { place: self, id: None };
        let authority = headers::authority_text(authority);
        let answered = timeout_at(deadline, opening.exchange(&authority, &request, early)).await;
        let sent = early.is_some_and(|early| early.sent() > 0);
        let failed = |error| if sent { TunnelError::Sent { source: Box::new(error) } } else { error };
        let answered = answered.map_err(|_| Attempt::Failed(failed(TunnelError::Slow { destination, limit })))?;
        match answered {
            Ok((StatusCode::OK, response, stream)) => {
                early.inspect(|early| early.take());
                Ok(Opened { stream, response })
            }
            Ok((status, ..)) => Err(Attempt::Failed(TunnelError::Refused { destination, status })),
            Err(Ending::Send(
                source @ (SendError::Authority | SendError::Head | SendError::HeadersTooLarge { .. }),
            )) => Err(Attempt::Failed(TunnelError::Request { destination, source })),
            Err(source) => {
                let (is_stale, is_unsure) = (source.is_stale(), sent && !source.is_unseen());
                let error = TunnelError::Reset { destination, source };
                Err(match (is_stale, is_unsure) {
                    (_, true) => Attempt::Failed(failed(error)),
                    (true, false) => Attempt::Stale(error),
                    (false, false) => Attempt::Failed(error),
                })
            }
        }
    }
}

/// A place whose stream is being opened; dropped before it is open, the stream is cancelled.
struct Opening {
    place: Place,
    id: Option<u32>,
}

impl Opening {
    async fn exchange(
        mut self,
        authority: &str,
        headers: &HeaderMap,
        early: Option<&Early<'_>>,
    ) -> Result<(StatusCode, HeaderMap, Stream), Ending> {
        let answer = poll_fn(|cx| {
            let mut carrier = self.place.tunnel.carrier.lock();
            let id = match self.id {
                Some(id) => id,
                None => *self.id.insert(carrier.connect(authority, headers).map_err(Ending::Send)?),
            };
            let Some(entry) = carrier.entry(id) else { return Poll::Ready(Err(Ending::Here)) };
            entry.reader.clone_from(cx.waker());
            if let Some(response) = entry.response.take() {
                return Poll::Ready(Ok((id, response)));
            }
            match &entry.received {
                Some(Err(ending)) => Poll::Ready(Err((**ending).clone())),
                // A reset without a complaint is none the less no answer.
                Some(Ok(())) => Poll::Ready(Err(entry.stopped.as_deref().cloned().unwrap_or(Ending::NotProcessed))),
                None => {
                    early.inspect(|early| early.send(cx, &mut carrier, id));
                    Poll::Pending
                }
            }
        });
        let answer = answer.await;
        if answer.as_ref().is_err_and(Ending::is_stale) {
            self.place.tunnel.retire();
        }
        let (id, answer) = answer?;
        let (status, response) = *answer;
        self.id = None;
        let slot = self.place.slot.take().ok_or(Ending::Here)?;
        Ok((status, response, Stream::new(id, false, slot)))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.place.tunnel.carrier.lock().forget(id, Reason::CANCEL);
        }
    }
}

/// Looks after one connection.
pub(super) struct Driver {
    pub(super) pool: Weak<Shared>,
    pub(super) key: Key,
    pub(super) tunnel: Arc<Tunnel>,
    /// From here on it takes no new streams.
    pub(super) drain_at: Instant,
    pub(super) idle: Duration,
    /// The peer's certificates.
    pub(super) ids: CertificateIds,
    pub(super) revocations: Arc<Revocations>,
}

impl Driver {
    /// Runs until the connection has ended.
    pub(super) async fn run(self, pulse: Pulse) {
        let carrier = Arc::clone(&self.tunnel.carrier);
        let (mut idle_since, mut draining) = (None, false);
        let mut beat = pin!(pulse.beat(&carrier));
        let mut revoked = pin!(self.revocations.revoked(&self.ids, Side::Source));
        loop {
            tokio::select! {
                next = carrier.next() => match next {
                    // Only servers are asked for something.
                    Next::Request(..) => {}
                    Next::GoneAway => self.retire(),
                    Next::Ended(ending) => {
                        tracing::debug!(%ending, destination = %self.key.destination, "tunnel ended");
                        self.retire();
                        carrier.finish(LINGER).await;
                        break;
                    }
                },
                heard = &mut beat => match heard {
                    Beat::Lost => {
                        tracing::warn!(destination = %self.key.destination, "tunnel closed: its peer is silent");
                        break;
                    }
                    Beat::Present => {
                        idle_since = self.look(idle_since);
                        beat.set(pulse.beat(&carrier));
                    }
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
        carrier.close().await;
    }

    /// Lets the connection go when it has been idle for long, or when its pool is gone. Says since when it is idle.
    fn look(&self, idle_since: Option<Instant>) -> Option<Instant> {
        if self.tunnel.carrier.places() > 0 {
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
        self.tunnel.retire();
        let Some(pool) = self.pool.upgrade() else { return };
        let slot = pool.slots.lock().get(&self.key).cloned();
        slot.iter().for_each(|slot| slot.remove(&self.tunnel));
        drop(slot);
        pool.tidy(&self.key);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tunnel.carrier.abort();
    }
}
