//! Serves gRPC over TLS: accepts with deadlines and limits, and drains. Used by the controller for xDS and CA.
//!
//! A peer that is slow, silent or not authenticated in time loses its connection; one that floods waits in the
//! kernel's queue.

mod connection;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use connection::Peer;
use connection::{Connection, Cut};
use stillmesh_runtime::accept::{Accepted, Acceptor};
use stillmesh_runtime::drain::{Mode, Watch};
use stillmesh_runtime::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// What one listener allows. The defaults suit a control plane of a thousand nodes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; more wait in the kernel's accept queue.
    pub connections: usize,
    /// TLS handshakes at once.
    pub handshakes: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time until a connection must have authenticated a call.
    pub authenticate: Duration,
    /// Time without a byte from the peer. Answers to our pings count, so a live peer is never silent.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshakes: 64,
            handshake: Duration::from_secs(10),
            authenticate: Duration::from_secs(30),
            silence: Duration::from_secs(60),
        }
    }
}

/// Serves `routes` on `listener` until `drain` is signalled, then lets calls end until the drain's deadline.
/// Streams are told to end by [`Peer::draining`]. The TLS configuration needs `h2` in its ALPN protocols.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    routes: tonic::service::Routes,
    limits: Limits,
    drain: Watch,
) -> io::Result<()> {
    let tasks = Tasks::new("grpc");
    let cut = CancellationToken::new();
    let _cut_when_done = cut.clone().drop_guard();
    let (sender, receiver) = mpsc::channel(limits.handshakes.max(1));
    let draining = CancellationToken::new();
    tasks.spawn("accept", accept(listener, tls, limits, tasks.child("handshakes"), sender, [draining.clone(), cut]));

    let signaled = async {
        let signal = drain.signaled().await;
        draining.cancel();
        signal
    };
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 << 10)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(receiver).map(Ok::<_, io::Error>), async {
            signaled.await;
        });
    let deadline = async {
        let signal = drain.signaled().await;
        if signal.mode == Mode::Graceful {
            tokio::select! {
                () = tokio::time::sleep_until(signal.deadline) => {}
                _ = drain.immediate() => {}
            }
        }
    };
    tokio::select! {
        served = server => served.map_err(io::Error::other),
        // Open connections end with `cut`.
        () = deadline => Ok(()),
    }
}

/// Accepts and shakes hands until cancelled by the end of its group.
async fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    limits: Limits,
    tasks: Tasks,
    sender: mpsc::Sender<Connection>,
    [draining, cut]: [CancellationToken; 2],
) {
    let acceptor = Acceptor::new("grpc", listener, limits.connections);
    let tls = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(limits.handshakes.max(1)));
    loop {
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = draining.cancelled() => return,
        };
        let (tls, sender, limits) = (tls.clone(), sender.clone(), limits.clone());
        let cut = Cut { draining: draining.clone(), cut: cut.clone() };
        tasks.spawn("handshake", async move {
            let peer = accepted.peer;
            match handshake(tls, accepted, &limits, cut).await {
                // Full: the server is busy taking others; this one waits its turn, still within the limits.
                Ok(connection) => drop(sender.send(connection).await),
                Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            }
            drop(turn);
        });
    }
}

async fn handshake(
    tls: TlsAcceptor,
    accepted: Accepted<TcpStream, std::net::SocketAddr>,
    limits: &Limits,
    cut: Cut,
) -> io::Result<Connection> {
    let Accepted { connection, peer, permit } = accepted;
    connection.set_nodelay(true)?;
    let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "slow handshake");
    let stream = tokio::time::timeout(limits.handshake, tls.accept(connection)).await.map_err(slow)??;
    Ok(Connection::new(stream, peer, permit, limits, cut))
}
