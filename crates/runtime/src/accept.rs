//! Accept loops that survive: errors never end them, they wait when descriptors run out, and at most so many
//! accepted connections live at a time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backoff::Backoff;

/// What can be accepted from.
pub trait Accept: Send {
    /// The accepted connection.
    type Connection: Send;
    /// Who connected.
    type Peer: Send;

    /// Waits for the next connection. Cancel-safe.
    fn accept_one(&self) -> impl Future<Output = io::Result<(Self::Connection, Self::Peer)>> + Send;
}

impl Accept for TcpListener {
    type Connection = TcpStream;
    type Peer = SocketAddr;

    async fn accept_one(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

impl Accept for UnixListener {
    type Connection = UnixStream;
    type Peer = Peer;

    async fn accept_one(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        let peer = Peer::of_unix(&stream)?;
        Ok((stream, peer))
    }
}

impl<L: Accept + Sync> Accept for Arc<L> {
    type Connection = L::Connection;
    type Peer = L::Peer;

    fn accept_one(&self) -> impl Future<Output = io::Result<(L::Connection, L::Peer)>> + Send {
        (**self).accept_one()
    }
}

/// An accepted connection that is limited in number: it counts until the permit is dropped.
#[derive(Debug)]
pub struct Accepted<C, P> {
    /// The connection.
    pub connection: C,
    /// Who connected.
    pub peer: P,
    /// Held as long as the connection counts against the limit.
    pub permit: Permit,
}

/// One place among the connections that an [`Acceptor`] allows at a time.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
}

/// An accept loop's state.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    name: &'static str,
    places: Arc<Semaphore>,
    limit: usize,
    stats: Arc<Stats>,
}

/// What an [`Acceptor`] has seen.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicU64,
    errors: AtomicU64,
    exhausted: AtomicU64,
    full: AtomicU64,
}

impl Stats {
    /// Connections accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Accepts that failed and were repeated.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Those of the failed accepts that had no descriptor or memory left.
    #[must_use]
    pub fn exhausted(&self) -> u64 {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// How often all places were taken, so that new connections waited in the kernel's queue.
    #[must_use]
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }
}

impl<L: Accept> Acceptor<L> {
    /// Accepts from `listener`, at most `limit` connections at a time (at least one). When all places are taken,
    /// connections wait in the kernel's queue.
    pub fn new(name: &'static str, listener: L, limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(limit));
        Self { listener, name, places, limit, stats: Arc::default() }
    }

    /// Waits for the next connection; errors are logged, counted and waited out. Cancel-safe: no connection is lost.
    pub async fn accept(&self) -> Accepted<L::Connection, L::Peer> {
        let permit = self.place().await;
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match self.listener.accept_one().await {
                Ok((connection, peer)) => {
                    self.stats.accepted.fetch_add(1, Ordering::Relaxed);
                    return Accepted { connection, peer, permit };
                }
                Err(error) => {
                    self.stats.errors.fetch_add(1, Ordering::Relaxed);
                    if Failure::of(&error) == Failure::Connection {
                        tracing::debug!(listener = self.name, %error, "a connection ended before it was accepted");
                        tokio::task::yield_now().await;
                        continue;
                    }
                    self.stats.exhausted.fetch_add(1, Ordering::Relaxed);
                    let wait = backoff.next(1.0);
                    tracing::warn!(listener = self.name, %error, ?wait, "cannot accept, waiting");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn place(&self) -> Permit {
        if self.places.available_permits() == 0 {
            self.stats.full.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(listener = self.name, limit = self.limit, "all places are taken, new connections wait");
        }
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(place) => Permit { _place: place },
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Connections that count against the limit now.
    pub fn open(&self) -> usize {
        self.limit.saturating_sub(self.places.available_permits())
    }

    /// Counters that outlive the acceptor.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// The listener itself.
    pub fn listener(&self) -> &L {
        &self.listener
    }
}

const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What a failed accept says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Only the connection at hand was bad.
    Connection,
    /// The process or the machine lacks something.
    Exhausted,
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENOPROTOOPT
                | libc::ENONET,
            ) => Self::Connection,
            _ => Self::Exhausted,
        }
    }
}

/// Who is on the other end of a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP peer.
    Tcp(SocketAddr),
    /// A process of this machine, as the kernel saw it when it connected.
    Unix {
        /// Its process id in our pid namespace, if it has one there.
        pid: Option<i32>,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl Peer {
    fn of_unix(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self::Unix { pid: credentials.pid().filter(|pid| *pid > 0), uid: credentials.uid(), gid: credentials.gid() })
    }
}

/// A TCP or unix listener, where the same server runs on either.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix, stream.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Accept for Listener {
    type Connection = Stream;
    type Peer = Peer;

    async fn accept_one(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept_one().await?;
                Ok((Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            Self::Unix(listener) => {
                let (stream, peer) = listener.accept_one().await?;
                Ok((Stream::Unix(stream), peer))
            }
        }
    }
}

/// A TCP or unix connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers with the planted errors first, then with connections.
    struct Planted(Mutex<Vec<i32>>);

    impl Accept for Planted {
        type Connection = ();
        type Peer = ();

        async fn accept_one(&self) -> io::Result<((), ())> {
            match self.0.lock().unwrap().pop() {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Ok(((), ())),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_survived_and_exhaustion_is_waited_out() {
        let planted = vec![libc::ENFILE, libc::EMFILE, libc::ECONNABORTED];
        let acceptor = Acceptor::new("test", Planted(Mutex::new(planted)), 8);
        let begin = tokio::time::Instant::now();
        let _accepted = acceptor.accept().await;
        assert_eq!(begin.elapsed(), Duration::from_millis(30));
        let stats = acceptor.stats();
        assert_eq!((stats.accepted(), stats.errors(), stats.exhausted()), (1, 3, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_holds_until_a_permit_is_dropped() {
        let acceptor = Acceptor::new("test", Planted(Mutex::default()), 1);
        let first = acceptor.accept().await;
        assert!(tokio::time::timeout(Duration::from_secs(9), acceptor.accept()).await.is_err());
        assert_eq!((acceptor.open(), acceptor.stats().full()), (1, 1));
        drop(first);
        let _second = acceptor.accept().await;
    }
}
