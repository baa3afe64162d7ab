//! What is open, decided again when what it was decided by changes: clients' connections by the policies that select the
//! waypoint itself, what is carried as it is (connections that are no HTTP, upgraded ones) by those attached to what it is
//! for. Those now denied are closed before the change is acknowledged, in one pass per 50 ms at most. When replicas are added,
//! as many clients as are theirs are asked to connect anew.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::decide::{self, Refusal, Verdict};
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Identity, ServiceKey, Workload};
use stillmesh_core::snapshot::{Snapshot, Touched};
use stillmesh_proxy::{Pass, Turns};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::path::Carried;
use crate::record::Metrics;
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

/// What is open of one kind; as much as is accepted.
#[derive(Debug)]
struct Table<T> {
    open: Mutex<HashMap<u64, Arc<Open<T>>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Open<T> {
    what: T,
    cut: CancellationToken,
    refusal: Mutex<Option<Refusal>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { open: Mutex::default(), next: AtomicU64::default() }
    }
}

impl<T> Table<T> {
    fn enter(self: &Arc<Self>, what: T) -> Entered<T> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Arc::new(Open { what, cut: CancellationToken::new(), refusal: Mutex::default() });
        self.open.lock().insert(number, open.clone());
        Entered { table: self.clone(), number, open }
    }

    fn select(&self, is_meant: impl Fn(&T) -> bool) -> Vec<Arc<Open<T>>> {
        self.open.lock().values().filter(|open| is_meant(&open.what)).cloned().collect()
    }
}

impl<T> Open<T> {
    /// Closes it; whether that was done now.
    fn close(&self, reason: Reason) -> bool {
        if self.cut.is_cancelled() {
            return false;
        }
        *self.refusal.lock() = Some(reason.into());
        self.cut.cancel();
        true
    }
}

/// All clients' connections, and all that is carried as it is.
#[derive(Debug, Default)]
pub struct Clients {
    connected: Arc<Table<Connected>>,
    carried: Arc<Table<Carried>>,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connected {
    peer: Peer,
    moves: CancellationToken,
}

impl Clients {
    /// A connection that opens; it is known until what is returned is dropped.
    pub fn enter(&self, peer: Peer) -> Entered<Connected> {
        self.connected.enter(Connected { peer, moves: CancellationToken::new() })
    }

    /// What is carried from now on, likewise.
    pub fn carry(&self, carried: Carried) -> Entered<Carried> {
        self.carried.enter(carried)
    }
}

impl Open<Carried> {
    /// Whether it was closed now.
    fn enforce(&self, snapshot: &Snapshot) -> bool {
        let verdict = self.what.verdict(snapshot);
        verdict.ends_open_connection() && self.close(verdict.reason)
    }
}

impl Entered<Carried> {
    /// Decides again at once, where it was decided before it was known: what has changed since is not missed.
    pub fn again(&self) {
        let waypoint = self.open.what.waypoint();
        if self.open.enforce(&waypoint.snapshots.load()) {
            waypoint.metrics.policy_closed.inc();
        }
    }
}

/// Something that is open.
#[derive(Debug)]
pub struct Entered<T> {
    table: Arc<Table<T>>,
    number: u64,
    open: Arc<Open<T>>,
}

impl<T> Entered<T> {
    /// What it is.
    pub fn what(&self) -> &T {
        &self.open.what
    }

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

impl Entered<Connected> {
    /// Waits until this client had better connect anew, a little later than others that had.
    pub async fn moves(&self) {
        self.open.what.moves.cancelled().await;
        sleep(SPREAD.mul_f64(rand::random_range(0.0..1.0))).await;
    }
}

/// Within what time all clients that are asked to are asked to connect anew.
const SPREAD: Duration = Duration::from_secs(4);

impl<T> Drop for Entered<T> {
    fn drop(&mut self) {
        self.table.open.lock().remove(&self.number);
    }
}

/// Decides again. Belongs to the writer of snapshots.
#[derive(Debug)]
pub struct Enforcer {
    clients: Arc<Clients>,
    /// Says which workload the waypoint is.
    config: Config,
    metrics: Arc<Metrics>,
    turns: Turns,
    /// Replicas of it, as of the last pass.
    replicas: usize,
    /// Services that it is behind, likewise: what is attached to them is about all that it carries.
    services: Vec<ServiceKey>,
}

impl Enforcer {
    /// Over what is open.
    pub fn new(clients: Arc<Clients>, config: Config, metrics: Arc<Metrics>) -> Self {
        Self { clients, config, metrics, turns: Turns::default(), replicas: 0, services: Vec::new() }
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
        for open in self.clients.connected.select(|_| true) {
            if rand::random_range(0..replicas) >= before {
                open.what.moves.cancel();
            }
        }
    }
}

/// What a change concerns.
struct Concerned<'a> {
    touched: &'a Touched,
    /// Whether policies about the waypoint's own port changed.
    connected: bool,
    /// Whether what is about all that the waypoint carries changed.
    carried: bool,
}

impl Concerned<'_> {
    fn connected(&self, clients: &Clients) -> Vec<Arc<Open<Connected>>> {
        if self.connected { clients.connected.select(|_| true) } else { Vec::new() }
    }

    fn carried(&self, clients: &Clients) -> Vec<Arc<Open<Carried>>> {
        if !self.carried && self.touched.services.is_empty() {
            return Vec::new();
        }
        let is_touched = |service: &ServiceKey| self.touched.services.binary_search(service).is_ok();
        clients.carried.select(|carried| self.carried || carried.service().is_some_and(is_touched))
    }
}

impl Pass for Enforcer {
    /// Waits only where something open is concerned.
    async fn pass(&mut self, snapshot: &Snapshot, touched: Touched) {
        // As with ztunnel, a workload that is gone keeps its connections.
        let Some(own) = own_in(&self.config, snapshot) else { return };
        self.share(snapshot, &own);
        let services: Vec<ServiceKey> = own.services.iter().map(|(service, _)| service.clone()).collect();
        let is_own = |service: &ServiceKey| services.contains(service);
        let concerned = Concerned {
            connected: touched.includes(&own),
            carried: touched.everything || services != self.services || touched.services.iter().any(is_own),
            touched: &touched,
        };
        self.services = services;
        if concerned.connected(&self.clients).is_empty() && concerned.carried(&self.clients).is_empty() {
            return;
        }
        self.turns.next().await;
        // Selected anew: connections come and go while a pass waits.
        let connected = concerned.connected(&self.clients).into_iter().filter(|open| {
            let verdict = open.what.peer.verdict(snapshot, &own);
            verdict.ends_open_connection() && open.close(verdict.reason)
        });
        let carried = concerned.carried(&self.clients).into_iter().filter(|open| open.enforce(snapshot));
        let closed = connected.count() + carried.count();
        self.turns.done();
        if closed > 0 {
            self.metrics.policy_closed.inc_by(closed as u64);
            tracing::info!(closed, generation = snapshot.generation(), "connections closed by a policy change");
        }
    }
}
