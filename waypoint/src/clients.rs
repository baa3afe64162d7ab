//! Who is connected: whether policies that select the waypoint itself let a client in, decided for each CONNECT, and again for
//! open connections when what was decided by changes. Those now denied are closed before the change is acknowledged. When
//! replicas are added, as many clients as are theirs are asked to connect anew.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide::{self, Refusal, Verdict};
use stillmesh_core::model::{Identity, Workload};
use stillmesh_core::snapshot::{Snapshot, Touched};
use stillmesh_proxy::Pass;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::waypoint::own_in;

/// A client's connection, as policies see it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The address and port that it dialled.
    pub local: SocketAddr,
    /// Who it is, by its certificate.
    pub identity: Identity,
}

impl Peer {
    fn verdict(&self, snapshot: &Snapshot, own: &Workload) -> Verdict {
        let attrs = InboundAttrs {
            destination: own,
            upstream: self.local,
            source_ip: self.address.ip(),
            source_identity: Some(&self.identity),
        };
        decide::authorize_at_waypoint(snapshot, &attrs)
    }

    /// Whether policies let it in.
    pub fn admit(&self, snapshot: &Snapshot, own: &Workload) -> Result<(), Refusal> {
        let verdict = self.verdict(snapshot, own);
        for reason in &verdict.dry_run {
            tracing::info!(target: "policy", %reason, source = %self.identity, "a dry-run policy would have decided otherwise");
        }
        for policy in &verdict.skipped {
            tracing::warn!(target: "policy", %policy, "policy not known: skipped");
        }
        if verdict.allowed { Ok(()) } else { Err(verdict.reason.into()) }
    }
}

/// All open connections; as many as are accepted.
#[derive(Debug, Default)]
pub struct Clients {
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Open {
    peer: Peer,
    cut: CancellationToken,
    moves: CancellationToken,
    refusal: Mutex<Option<Refusal>>,
}

impl Clients {
    /// A connection that opens; it is known until what is returned is dropped.
    pub fn enter(self: &Arc<Self>, peer: Peer) -> Entered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (cut, moves) = (CancellationToken::new(), CancellationToken::new());
        let open = Arc::new(Open { peer, cut, moves, refusal: Mutex::default() });
        self.open.lock().insert(number, open.clone());
        Entered { clients: self.clone(), number, open }
    }

    fn all(&self) -> Vec<Arc<Open>> {
        self.open.lock().values().cloned().collect()
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Entered {
    clients: Arc<Clients>,
    number: u64,
    open: Arc<Open>,
}

impl Entered {
    /// Waits until a policy closes it; says why.
    pub async fn refused(&self) -> Refusal {
        loop {
            self.open.cut.cancelled().await;
            if let Some(refusal) = self.open.refusal.lock().take() {
                return refusal;
            }
            // It was said already, and there is nobody to say it to.
            std::future::pending::<()>().await;
        }
    }
}

impl Entered {
    /// Waits until this client had better connect anew, a little later than others that had.
    pub async fn moves(&self) {
        self.open.moves.cancelled().await;
        sleep(SPREAD.mul_f64(rand::random_range(0.0..1.0))).await;
    }
}

/// Within what time all clients that are asked to are asked to connect anew.
const SPREAD: Duration = Duration::from_secs(4);

impl Drop for Entered {
    fn drop(&mut self) {
        self.clients.open.lock().remove(&self.number);
    }
}

/// Decides again. Belongs to the writer of snapshots.
#[derive(Debug)]
pub struct Enforcer {
    /// What is open.
    pub clients: Arc<Clients>,
    /// Says which workload the waypoint is.
    pub config: Config,
    /// Replicas of it, as of the last pass.
    pub replicas: usize,
}

impl Enforcer {
    /// Over what is open.
    pub fn new(clients: Arc<Clients>, config: Config) -> Self {
        Self { clients, config, replicas: 0 }
    }

    /// Where there are more replicas than before, each client is asked to connect anew with the chance that it belongs to one
    /// of the new ones.
    fn share(&mut self, snapshot: &Snapshot, own: &Workload) {
        let services = own.services.iter();
        let replicas = services.map(|(service, _)| snapshot.endpoints(service).count()).max().unwrap_or_default();
        let before = std::mem::replace(&mut self.replicas, replicas);
        if before == 0 || replicas <= before {
            return;
        }
        for open in self.clients.all() {
            if rand::random_range(0..replicas) >= before {
                open.moves.cancel();
            }
        }
    }
}

impl Pass for Enforcer {
    async fn pass(&mut self, snapshot: &Snapshot, touched: Touched) {
        // As with ztunnel, a workload that is gone keeps its connections.
        let Some(own) = own_in(&self.config, snapshot) else { return };
        self.share(snapshot, &own);
        if !touched.everything && !touched.namespaces.contains(&own.namespace) && !touched.workloads.contains(&own.uid)
        {
            return;
        }
        let mut closed = 0usize;
        for open in self.clients.all() {
            let verdict = open.peer.verdict(snapshot, &own);
            if verdict.ends_open_connection() && !open.cut.is_cancelled() {
                *open.refusal.lock() = Some(verdict.reason.into());
                open.cut.cancel();
                closed += 1;
            }
        }
        if closed > 0 {
            tracing::info!(closed, generation = snapshot.generation(), "connections closed by a policy change");
        }
    }
}
