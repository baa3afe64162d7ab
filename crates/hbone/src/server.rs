//! The accepting end: TLS, HTTP/2, and one [`Incoming`] per CONNECT.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_identity::{TlsError, peer_identity};
use stillmesh_runtime::drain;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval_at, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::headers::{self, ConnectHeaders};
use crate::{Limits, Stream};

/// An accepted TLS session and who is at its other end.
#[derive(Debug)]
pub struct Session<IO> {
    /// The session.
    pub tls: TlsStream<IO>,
    /// The peer's identity, from its certificate.
    pub peer: Identity,
}

/// Does the handshake. Errors: see [`TlsError`]; a peer that is silent or slow ends at `deadline`.
pub async fn accept_tls<IO>(io: IO, config: Arc<ServerConfig>, deadline: Duration) -> Result<Session<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let tls = timeout(deadline, TlsAcceptor::from(config).accept(io)).await;
    let tls = tls.map_err(|_| TlsError::Slow { limit: deadline })?.map_err(TlsError::from_handshake)?;
    let peer = tls.get_ref().1.peer_certificates().and_then(peer_identity).ok_or(TlsError::NoIdentity)?;
    Ok(Session { tls, peer })
}

/// How an HTTP/2 connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// HTTP/2 did not start in time.
    #[error("the peer did not start HTTP/2 within {0:?}")]
    SlowStart(Duration),
    /// The peer is silent: it does not answer PINGs.
    #[error("the peer did not answer a PING within {0:?}")]
    Silent(Duration),
    /// The peer broke the protocol, or the connection broke.
    #[error("the tunnel's connection broke")]
    Broken(#[from] h2::Error),
}

/// One CONNECT, waiting for its answer. Dropping it unanswered resets the stream.
#[derive(Debug)]
pub struct Incoming {
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
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
        Ok(Stream::new(send, self.request.into_body(), None))
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
/// When the drain starts, the peer is told (GOAWAY in two steps) and open streams run on to its deadline.
pub async fn serve<IO, F, Fut>(
    io: IO,
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
    let started = timeout(limits.handshake, limits.server().handshake::<_, Bytes>(io)).await;
    let mut connection = started.map_err(|_| ServeError::SlowStart(limits.handshake))??;
    let mut alive = Alive::new(connection.ping_pong(), limits);
    let mut deadline = None;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tasks.spawn("hbone-stream", handle(Incoming { request, respond }));
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
            () = alive.lost() => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                // What is left to write may go out; nobody waits for it.
                let _ = timeout(Duration::from_secs(1), std::future::poll_fn(|cx| connection.poll_closed(cx))).await;
                return Err(ServeError::Silent(limits.ping_patience));
            }
            signal = drain.signaled(), if deadline.is_none() => {
                connection.graceful_shutdown();
                deadline = Some(signal.deadline);
            }
            () = until(deadline), if deadline.is_some() => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let _ = timeout(Duration::from_secs(1), std::future::poll_fn(|cx| connection.poll_closed(cx))).await;
                return Ok(());
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Keeps asking the peer whether it is there.
pub(crate) struct Alive {
    pings: Option<h2::PingPong>,
    every: tokio::time::Interval,
    patience: Duration,
    /// When the PING that is on its way must have been answered.
    due: Option<Instant>,
}

impl Alive {
    pub(crate) fn new(pings: Option<h2::PingPong>, limits: &Limits) -> Self {
        let every = interval_at(Instant::now() + limits.ping_every, limits.ping_every);
        Self { pings, every, patience: limits.ping_patience, due: None }
    }

    /// Waits for the next time to look around. Cancel-safe.
    pub(crate) async fn beat(&mut self) -> Beat {
        loop {
            let Some(pings) = &mut self.pings else {
                self.every.tick().await;
                return Beat::Present;
            };
            let Some(due) = self.due else {
                self.every.tick().await;
                if pings.send_ping(h2::Ping::opaque()).is_err() {
                    // The connection's own future reports why.
                    return std::future::pending().await;
                }
                self.due = Some(Instant::now() + self.patience);
                continue;
            };
            tokio::select! {
                pong = std::future::poll_fn(|cx| pings.poll_pong(cx)) => match pong {
                    Ok(_) => { self.due = None; return Beat::Present }
                    Err(_) => return std::future::pending().await,
                },
                () = tokio::time::sleep_until(due) => return Beat::Lost,
            }
        }
    }

    /// Returns when the peer has not answered in time. Cancel-safe.
    async fn lost(&mut self) {
        while self.beat().await == Beat::Present {}
    }
}

/// What a look around showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// The peer answers.
    Present,
    /// The peer does not.
    Lost,
}
