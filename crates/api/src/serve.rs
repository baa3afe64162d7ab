//! Serves gRPC over TLS: accepts with deadlines and limits, and drains.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
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
    /// Time without a byte from the peer, pings included.
    pub silence: Duration,
    /// Time for streams to end after `stop`.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshakes: 64,
            handshake: Duration::from_secs(10),
            authenticate: Duration::from_secs(30),
            silence: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves `routes` (see [`tonic::service::Routes`]) on `listener` until `stop`, then drains.
pub async fn serve(
    _listener: TcpListener,
    _tls: Arc<rustls::ServerConfig>,
    _routes: tonic::service::Routes,
    _limits: Limits,
    _stop: CancellationToken,
) -> io::Result<()> {
    todo!()
}
