//! Makes one connection: TCP, TLS, HTTP/2. Runs in a task of its own, so that whoever asked first may leave.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use stillmesh_identity::revocation::CertificateIds;
use stillmesh_identity::{Leaf, TlsError, client_config, expiry, tls};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::slot::Promise;
use super::tunnel::{Driver, Tunnel};
use super::{Key, Shared, Transport};
use crate::TunnelError;
use crate::link::Link;
use crate::memory::Frame;
use crate::pulse::{Pulse, drain_at};

/// How much longer than its deadline a dial is waited for, so that its own error is heard.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// Dials and keeps the promise. `limit` is for the whole of it.
pub(super) async fn run(pool: Weak<Shared>, key: Key, leaf: Arc<Leaf>, limit: Duration, promise: Promise) {
    let Some(shared) = pool.upgrade() else { return };
    let dialled = dial(&shared, &key, &leaf, limit).await;
    let outcome = dialled.map(|(tunnel, driver)| {
        shared.tasks.spawn("hbone-tunnel", driver);
        tunnel
    });
    let failed = outcome.is_err();
    promise.keep(outcome);
    if failed {
        shared.tidy(&key);
    }
}

async fn dial(
    shared: &Arc<Shared>,
    key: &Key,
    leaf: &Arc<Leaf>,
    limit: Duration,
) -> Result<(Arc<Tunnel>, impl Future<Output = ()> + Send + use<>), TunnelError> {
    let (limits, destination) = (&shared.limits, key.destination);
    let deadline = Instant::now() + limit;
    let tcp = timeout_at(deadline, shared.dial.dial(key))
        .await
        .map_err(|_| TunnelError::ConnectSlow { destination, limit })?
        .map_err(|source| TunnelError::Connect { destination, source: Arc::new(source) })?;
    let tls = handshake(tcp, key, leaf, deadline, limit).await?;
    let ids = CertificateIds::of(tls.get_ref().1.peer_certificates().unwrap_or_default());
    let peer_expires = tls.get_ref().1.peer_certificates().and_then(expiry);
    let drain_at = drain_at(peer_expires.into_iter().chain([leaf.not_after()]), shared.secrets.clock().now())
        .map_err(|source| TunnelError::Tls { destination, source })?;
    let started = timeout_at(deadline, limits.client().handshake::<_, Frame>(tls)).await;
    let (sender, mut connection) = started
        .map_err(|_| http2(destination, h2::Reason::SETTINGS_TIMEOUT.into()))?
        .map_err(|error| http2(destination, error))?;
    let link = Arc::new(Link::new(limits));
    let pulse = Pulse::new(connection.ping_pong(), Arc::clone(&link), limits);
    let tunnel = Arc::new(Tunnel::new(sender, Arc::clone(leaf), Arc::clone(&link)));
    let driver = Driver {
        pool: Arc::downgrade(shared),
        key: key.clone(),
        tunnel: Arc::downgrade(&tunnel),
        link,
        drain_at,
        ids,
        revocations: Arc::clone(leaf.revocations()),
        idle: limits.idle,
    };
    Ok((tunnel, driver.run(connection, pulse)))
}

async fn handshake(
    tcp: Box<dyn Transport>,
    key: &Key,
    leaf: &Leaf,
    deadline: Instant,
    limit: Duration,
) -> Result<TlsStream<Box<dyn Transport>>, TunnelError> {
    let failed = |source| TunnelError::Tls { destination: key.destination, source };
    let config = client_config(leaf, &key.expected).map_err(failed)?;
    let connecting = TlsConnector::from(config).connect(tls::dummy_server_name(), tcp);
    let connected = timeout_at(deadline, connecting).await;
    connected.map_err(|_| failed(TlsError::Slow { limit }))?.map_err(|error| failed(TlsError::from_handshake(error)))
}

fn http2(destination: SocketAddr, source: h2::Error) -> TunnelError {
    TunnelError::Http2 { destination, source: Arc::new(source) }
}
