//! The accepting end: TLS, HTTP/2, and one [`Incoming`] per CONNECT.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, StatusCode};
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_core::{Diagnose, Fault};
use stillmesh_http2::{Reason, Request, Role};
use stillmesh_identity::revocation::{CertificateIds, Revocations, Side};
use stillmesh_identity::{Leaf, TlsError, expiry, peer_identity, server_config};
use stillmesh_runtime::drain;
use stillmesh_runtime::tasks::Tasks;
use stillmesh_tls::Established;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::carrier::{Carrier, LINGER, Next};
use crate::headers::{self, ConnectHeaders};
use crate::pulse::{Beat, Pulse, drain_at};
use crate::stream::Slot;
use crate::{Ending, Limits, Stream, Transport};

/// An accepted TLS session and who is at its other end.
#[derive(Debug)]
pub struct Session<IO> {
    io: IO,
    tls: Established,
    peer: Identity,
    ids: CertificateIds,
    revocations: Arc<Revocations>,
    drain_at: Instant,
    leave: CancellationToken,
}

impl<IO> Session<IO> {
    /// The peer's identity, from its certificate.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// Takes no new streams from then on; open ones go on. Never later than the certificates want it.
    pub fn retire(&mut self, at: Instant) {
        self.drain_at = self.drain_at.min(at);
    }

    /// Cancelled, it has the session take no new streams; open ones go on.
    pub fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }
}

/// Does the handshake as the holder of `leaf`. Errors: see [`TlsError`]; a peer that is silent or slow ends at `deadline`.
///
/// `now` is the wall time: before the first of both certificates expires, the session stops to take new streams.
pub async fn accept_tls<IO>(
    mut io: IO,
    leaf: &Leaf,
    now: SystemTime,
    deadline: Duration,
) -> Result<Session<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = server_config(leaf)?;
    let tls = timeout(deadline, stillmesh_tls::accept(&mut io, config)).await;
    let tls = tls.map_err(|_| TlsError::Slow { limit: deadline })?;
    let tls = tls.map_err(|error| TlsError::from_handshake(error.into()))?;
    let chain = &tls.peer_certificates;
    let peer = peer_identity(chain).ok_or(TlsError::NoIdentity)?;
    let drain_at = drain_at(expiry(chain).into_iter().chain([leaf.not_after()]), now)?;
    let ids = CertificateIds::of(chain);
    Ok(Session {
        io,
        tls,
        peer,
        ids,
        revocations: Arc::clone(leaf.revocations()),
        drain_at,
        leave: CancellationToken::new(),
    })
}

/// How an HTTP/2 connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// HTTP/2 did not start in time.
    #[error("the peer did not start HTTP/2 within {0:?}")]
    SlowStart(Duration),
    /// The peer is silent: it does not answer PINGs.
    #[error("the peer did not answer a PING within {0:?}")]
    Silent(Duration),
    /// The peer's certificate was revoked meanwhile.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// The peer broke the protocol, or the connection broke.
    #[error("the tunnel's connection broke")]
    Broken(#[source] Ending),
}

impl Diagnose for ServeError {
    fn code(&self) -> &'static str {
        match self {
            Self::SlowStart(_) => "TUN020",
            Self::Silent(_) => "TUN021",
            Self::Broken(_) => "TUN022",
            Self::Revoked => "TUN023",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Downstream
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::SlowStart(_) => "check that what dials this port is a part of the mesh",
            Self::Silent(_) => "check whether the peer's node is up and reachable",
            Self::Revoked => "if the peer is what it should be, restart it: it then gets another certificate",
            Self::Broken(_) => "check whether the peer's ztunnel was just restarted",
        }
    }
}

/// One CONNECT, waiting for its answer. Dropping it unanswered resets the stream.
#[derive(Debug)]
pub struct Incoming {
    id: u32,
    request: Request,
    /// Taken when it is answered.
    slot: Option<Slot>,
}

impl Incoming {
    /// What is asked for; `None`: not a CONNECT, or a malformed authority, to be refused with 400.
    pub fn authority(&self) -> Option<Authority> {
        (self.request.method == Method::CONNECT).then(|| headers::parse_authority(self.authority_text()))?
    }

    /// The authority as it was sent, for logs.
    pub fn authority_text(&self) -> &str {
        self.request.authority.as_deref().unwrap_or_default()
    }

    /// What else it says.
    pub fn headers(&self) -> ConnectHeaders {
        ConnectHeaders::read(&self.request.headers)
    }

    /// Opens the tunnel: answers 200 with these headers. Errors: the peer is gone.
    pub fn accept(mut self, headers: &ConnectHeaders) -> io::Result<Stream> {
        let mut response = HeaderMap::new();
        headers.write(&mut response);
        let slot = self.slot.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let responded = slot.carrier().lock().respond(self.id, StatusCode::OK, &response);
        // From here on the stream gives back what it has.
        let stream = Stream::new(self.id, true, slot);
        responded?;
        Ok(stream)
    }

    /// Refuses with a status. A peer that is gone does not mind.
    pub fn refuse(mut self, status: StatusCode) {
        if let Some(slot) = self.slot.take() {
            let mut carrier = slot.carrier().lock();
            let _ = carrier.respond(self.id, status, &HeaderMap::new());
            carrier.forget(self.id, Reason::NO_ERROR);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            slot.carrier().lock().forget(self.id, Reason::CANCEL);
        }
    }
}

/// Serves one connection until it ends. Every CONNECT is given to `handle`, in a task of `tasks`.
///
/// When the drain starts, the peer is told (GOAWAY in two steps) and open streams run on to its deadline. When a certificate
/// of the session nears its end, or when there was no stream for long, the peer is told likewise, without a deadline.
pub async fn serve<IO, F, Fut>(
    session: Session<IO>,
    limits: &Limits,
    tasks: &Tasks,
    drain: drain::Watch,
    handle: F,
) -> Result<(), ServeError>
where
    IO: Transport + 'static,
    F: Fn(Incoming) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (carrier, turns) = Carrier::new(Role::Server, limits, session.tls, Box::new(session.io));
    tasks.spawn("hbone-connection", turns);
    let carrier = Held(carrier);
    if timeout(limits.handshake, carrier.0.greeted()).await.is_err() {
        return Err(ServeError::SlowStart(limits.handshake));
    }
    let carrier = &carrier.0;
    let mut idle = Idle { since: Instant::now(), limit: limits.idle * 2 };
    let (mut leaving, mut deadline) = (false, None);
    // Made once: requests come often, and the rest hardly ever.
    let pulse = Pulse::new(limits);
    let mut beat = pin!(pulse.beat(carrier));
    let mut drained = pin!(drain.signaled());
    let mut left = pin!(async {
        tokio::select! {
            () = sleep_until(session.drain_at) => {}
            () = session.leave.cancelled() => {}
        }
    });
    let mut revoked = pin!(session.revocations.revoked(&session.ids, Side::Destination));
    loop {
        tokio::select! {
            next = carrier.next() => match next {
                Next::Request(id, request) => {
                    idle.since = Instant::now();
                    let incoming = Incoming { id, request, slot: Some(Slot::take(carrier)) };
                    if limits.memory.refuses() {
                        tracing::warn!(held = limits.memory.held(), "stream refused: no memory");
                        incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
                    } else {
                        tasks.spawn("hbone-stream", handle(incoming));
                    }
                }
                // A client that goes away opens nothing more; it closes the connection when it is done.
                Next::GoneAway => {}
                Next::Ended(ending) => {
                    let streams = carrier.places();
                    carrier.finish(LINGER).await;
                    return how_it_ended(ending, streams);
                }
            },
            heard = &mut beat => match heard {
                Beat::Lost => {
                    carrier.close().await;
                    return Err(ServeError::Silent(limits.ping_patience));
                }
                Beat::Present => {
                    if idle.is_over(carrier.places()) {
                        carrier.leave();
                    }
                    beat.set(pulse.beat(carrier));
                }
            },
            signal = &mut drained, if deadline.is_none() => {
                carrier.leave();
                deadline = Some(signal.deadline);
            }
            () = &mut left, if !leaving => {
                leaving = true;
                carrier.leave();
            }
            () = &mut revoked => {
                carrier.close().await;
                return Err(ServeError::Revoked);
            }
            () = until(deadline) => {
                carrier.close().await;
                return Ok(());
            }
        }
    }
}

/// Ends its connection when it is dropped.
struct Held(Arc<Carrier>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for the drain's deadline, once there is one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A peer that leaves when nothing is open has done nothing wrong, however it closed.
fn how_it_ended(ending: Ending, streams: usize) -> Result<(), ServeError> {
    let left = match &ending {
        Ending::Here => return Ok(()),
        Ending::Io(_) => true,
        Ending::GoneAway { reason, .. } => *reason == Reason::NO_ERROR,
        _ => false,
    };
    if left && streams == 0 { Ok(()) } else { Err(ServeError::Broken(ending)) }
}

/// How long a connection has had no streams.
struct Idle {
    since: Instant,
    limit: Duration,
}

impl Idle {
    fn is_over(&mut self, streams: usize) -> bool {
        if streams > 0 {
            self.since = Instant::now();
        }
        self.since.elapsed() >= self.limit
    }
}

#[cfg(test)]
mod tests;
