//! The accepting end: TLS, HTTP/2, and one [`Incoming`] per CONNECT.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_core::{Diagnose, Fault};
use stillmesh_identity::revocation::{CertificateIds, Revocations, Side};
use stillmesh_identity::{Leaf, TlsError, expiry, peer_identity, server_config};
use stillmesh_runtime::drain;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::headers::{self, ConnectHeaders};
use crate::link::Link;
use crate::memory::Frame;
use crate::pulse::{Beat, Pulse, drain_at};
use crate::stream::Slot;
use crate::{Limits, Stream};

/// An accepted TLS session and who is at its other end.
#[derive(Debug)]
pub struct Session<IO> {
    tls: TlsStream<IO>,
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
pub async fn accept_tls<IO>(io: IO, leaf: &Leaf, now: SystemTime, deadline: Duration) -> Result<Session<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let config = server_config(leaf)?;
    let tls = timeout(deadline, TlsAcceptor::from(config).accept(io)).await;
    let tls = tls.map_err(|_| TlsError::Slow { limit: deadline })?.map_err(TlsError::from_handshake)?;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = peer_identity(chain).ok_or(TlsError::NoIdentity)?;
    let drain_at = drain_at(expiry(chain).into_iter().chain([leaf.not_after()]), now)?;
    let ids = CertificateIds::of(chain);
    Ok(Session {
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
    Broken(#[from] h2::Error),
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
    request: Request<RecvStream>,
    respond: SendResponse<Frame>,
    slot: Slot,
}

impl Incoming {
    /// What is asked for; `None`: not a CONNECT, or a malformed authority, to be refused with 400.
    pub fn authority(&self) -> Option<Authority> {
        let authority = self.request.uri().authority()?.as_str();
        (self.request.method() == Method::CONNECT).then(|| headers::parse_authority(authority))?
    }

    /// The authority as it was sent, for logs.
    pub fn authority_text(&self) -> &str {
        self.request.uri().authority().map_or("", |authority| authority.as_str())
    }

    /// What else it says.
    pub fn headers(&self) -> ConnectHeaders {
        ConnectHeaders::read(self.request.headers())
    }

    /// Opens the tunnel: answers 200 with these headers. Errors: the peer is gone.
    pub fn accept(mut self, headers: &ConnectHeaders) -> io::Result<Stream> {
        let mut response = Response::new(());
        headers.write(response.headers_mut());
        let send = self.respond.send_response(response, false).map_err(io::Error::other)?;
        Ok(Stream::new(send, self.request.into_body(), self.slot))
    }

    /// Refuses with a status. A peer that is gone does not mind.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // Nothing of the request's body is wanted: dropping the stream after its end resets it with NO_ERROR once the
        // answer is sent (RFC 9113 section 8.1). A reset from here would take the place of the answer.
        let _ = self.respond.send_response(response, true);
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
    IO: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Incoming) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let started = timeout(limits.handshake, limits.server().handshake::<_, Frame>(session.tls)).await;
    let mut connection = started.map_err(|_| ServeError::SlowStart(limits.handshake))??;
    let link = Arc::new(Link::new(limits));
    let mut pulse = Pulse::new(connection.ping_pong(), Arc::clone(&link), limits);
    let mut idle = Idle { since: Instant::now(), limit: limits.idle * 2 };
    let (mut draining, mut deadline) = (false, None);
    let mut revoked = std::pin::pin!(session.revocations.revoked(&session.ids, Side::Destination));
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    idle.since = Instant::now();
                    let incoming = Incoming { request, respond, slot: Slot::take(&link) };
                    if limits.memory.refuses() {
                        tracing::warn!(held = limits.memory.held(), "stream refused: no memory");
                        incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
                    } else {
                        tasks.spawn("hbone-stream", handle(incoming));
                    }
                }
                Some(Err(error)) => return how_it_ended(error, link.streams()),
                None => return Ok(()),
            },
            beat = pulse.beat() => match beat {
                Beat::Lost => {
                    close(&mut connection).await;
                    return Err(ServeError::Silent(limits.ping_patience));
                }
                Beat::Window(window) => {
                    // Not now: the last change is still on its way. It is asked again.
                    if connection.set_initial_window_size(window).is_ok() {
                        link.window_changed(window);
                    }
                }
                Beat::Connection(window) => {
                    connection.set_target_window_size(window);
                    link.connection_window_changed(window);
                }
                Beat::Present => {
                    if idle.is_over(link.streams()) {
                        connection.graceful_shutdown();
                    }
                }
            },
            signal = drain.signaled(), if deadline.is_none() => {
                connection.graceful_shutdown();
                deadline = Some(signal.deadline);
            }
            () = sleep_until(session.drain_at), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = session.leave.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut revoked => {
                close(&mut connection).await;
                return Err(ServeError::Revoked);
            }
            () = until(deadline) => {
                close(&mut connection).await;
                return Ok(());
            }
        }
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
fn how_it_ended(error: h2::Error, streams: usize) -> Result<(), ServeError> {
    let left = error.is_io() || (error.is_go_away() && error.reason() == Some(Reason::NO_ERROR));
    if left && streams == 0 { Ok(()) } else { Err(error.into()) }
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

/// How long the last frames of a connection may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ends a connection now. What is left to write may go out; nobody waits long for it.
async fn close<IO>(connection: &mut Connection<IO, Frame>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    connection.abrupt_shutdown(Reason::NO_ERROR);
    // An error here is the end as well.
    let _ = timeout(LAST_WORDS, poll_fn(|cx| connection.poll_closed(cx))).await;
}

#[cfg(test)]
mod tests;
