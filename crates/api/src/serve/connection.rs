//! One accepted connection: bytes with limits on the peer's silence.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use stillmesh_runtime::accept::Permit;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::Limits;

/// Who is on the other end of a connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer(Arc<State>);

#[derive(Debug)]
struct State {
    address: SocketAddr,
    certificates: Vec<CertificateDer<'static>>,
    authenticated: AtomicBool,
    draining: CancellationToken,
}

impl Peer {
    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Its certificates as verified by TLS, leaf first; empty without any.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    /// A call on this connection has been authenticated: it may stay.
    pub fn authenticated(&self) {
        self.0.authenticated.store(true, Ordering::Relaxed);
    }

    /// Cancelled when the server drains: streams should end.
    pub fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }
}

/// What ends a connection from our side.
pub(super) struct Cut {
    /// Told to the calls.
    pub(super) draining: CancellationToken,
    /// Ends it at once.
    pub(super) cut: CancellationToken,
}

pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    silence: Duration,
    silent: Pin<Box<Sleep>>,
    /// Until the peer is known to have authenticated.
    stranger: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: Permit,
}

impl Connection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        permit: Permit,
        limits: &Limits,
        cut: Cut,
    ) -> Self {
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|one| one.clone().into_owned()).collect();
        let authenticated = AtomicBool::new(false);
        Self {
            peer: Peer(Arc::new(State { address, certificates, authenticated, draining: cut.draining })),
            stream,
            silence: limits.silence,
            silent: Box::pin(sleep(limits.silence)),
            stranger: Some(Box::pin(sleep(limits.authenticate))),
            cut: Box::pin(cut.cut.cancelled_owned()),
            _permit: permit,
        }
    }

    /// Fails when the peer has used up its time. Registers for when it will have.
    fn limits(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let timed_out = |why| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        if self.cut.as_mut().poll(context).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server has ended"));
        }
        if self.silent.as_mut().poll(context).is_ready() {
            return timed_out("the peer is silent");
        }
        if self.stranger.as_mut().is_some_and(|stranger| stranger.as_mut().poll(context).is_ready()) {
            if !self.peer.0.authenticated.load(Ordering::Relaxed) {
                return timed_out("the peer has not authenticated");
            }
            self.stranger = None;
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.limits(context)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let until = Instant::now() + self.silence;
            self.silent.as_mut().reset(until);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.limits(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.limits(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.limits(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
