//! Makes one connection: TCP, TLS, HTTP/2. Runs in a task of its own, so that whoever asked first may leave.

use std::sync::{Arc, Weak};
use std::time::Duration;

use stillmesh_http2::Role;
use stillmesh_identity::revocation::CertificateIds;
use stillmesh_identity::{Leaf, TlsError, client_config, expiry, tls};
use stillmesh_tls::Established;
use tokio::time::{Instant, timeout_at};

use super::slot::Promise;
use super::tunnel::{Driver, Tunnel};
use super::{Key, Shared, Transport};
use crate::TunnelError;
use crate::carrier::{Carrier, Turns};
use crate::pulse::{Pulse, drain_at};

/// How much longer than its deadline a dial is waited for, so that its own error is heard.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// Dials and keeps the promise. `limit` is for the whole of it.
pub(super) async fn run(pool: Weak<Shared>, key: Key, leaf: Arc<Leaf>, limit: Duration, promise: Promise) {
    let Some(shared) = pool.upgrade() else { return };
    let dialled = dial(&shared, &key, &leaf, limit).await;
    let outcome = dialled.map(|(turns, driver)| {
        let tunnel = Arc::clone(&driver.tunnel);
        shared.tasks.spawn("hbone-connection", turns);
        shared.tasks.spawn("hbone-tunnel", driver.run(Pulse::new(&shared.limits)));
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
) -> Result<(Turns, Driver), TunnelError> {
    let (limits, destination) = (&shared.limits, key.destination);
    let deadline = Instant::now() + limit;
    let tcp = timeout_at(deadline, shared.dial.dial(key))
        .await
        .map_err(|_| TunnelError::ConnectSlow { destination, limit })?
        .map_err(|source| TunnelError::Connect { destination, source: Arc::new(source) })?;
    let (tls, tcp) = handshake(tcp, key, leaf, deadline, limit).await?;
    let ids = CertificateIds::of(&tls.peer_certificates);
    let peer_expires = expiry(&tls.peer_certificates);
    let drain_at = drain_at(peer_expires.into_iter().chain([leaf.not_after()]), shared.secrets.clock().now())
        .map_err(|source| TunnelError::Tls { destination, source })?;
    let (carrier, turns) = Carrier::new(Role::Client, limits, tls, tcp);
    let driver = Driver {
        pool: Arc::downgrade(shared),
        key: key.clone(),
        tunnel: Arc::new(Tunnel::new(carrier, Arc::clone(leaf))),
        drain_at,
        ids,
        revocations: Arc::clone(leaf.revocations()),
        idle: limits.idle,
    };
    Ok((turns, driver))
}

async fn handshake(
    mut tcp: Box<dyn Transport>,
    key: &Key,
    leaf: &Leaf,
    deadline: Instant,
    limit: Duration,
) -> Result<(Established, Box<dyn Transport>), TunnelError> {
    let failed = |source| TunnelError::Tls { destination: key.destination, source };
    let config = client_config(leaf, &key.expected).map_err(failed)?;
    let connected = timeout_at(deadline, stillmesh_tls::connect(&mut tcp, config, tls::dummy_server_name())).await;
    let connected = connected.map_err(|_| failed(TlsError::Slow { limit }))?;
    let established = connected.map_err(|error| failed(TlsError::from_handshake(error.into())))?;
    Ok((established, tcp))
}
