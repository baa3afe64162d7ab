//! The nodes' side: real xDS clients that note when a change reaches them, and forget it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use stillmesh_api::ControlPlane;
use stillmesh_api::control_plane::{Root, Token};
use stillmesh_api::xds::{Batch, Client, NodeInfo, Rejected, Sink, Status};
use stillmesh_core::snapshot::Change;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::crowd::{SYSTEM, node_name};

/// All clients.
pub struct Fleet {
    shared: Arc<Shared>,
    statuses: Vec<watch::Receiver<Status>>,
    clients: JoinSet<()>,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Shared {
    bytes: AtomicU64,
    resources: AtomicU64,
    responses: AtomicU64,
    /// Changes that are waited for: how many nodes have applied them, and when the last did.
    awaited: Mutex<HashMap<String, Vec<Instant>>>,
    news: Notify,
}

/// What all nodes together have received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    pub bytes: u64,
    pub resources: u64,
    pub responses: u64,
}

impl std::ops::Sub for Received {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            bytes: self.bytes - other.bytes,
            resources: self.resources - other.resources,
            responses: self.responses - other.responses,
        }
    }
}

impl Fleet {
    /// Starts a client per token; node `i` has token `i`.
    pub fn start(address: &str, root: &str, tokens: Vec<String>) -> Self {
        let shared = Arc::new(Shared::default());
        let cancel = CancellationToken::new();
        let (mut clients, mut statuses) = (JoinSet::new(), Vec::new());
        for (node, token) in tokens.into_iter().enumerate() {
            let control_plane = ControlPlane {
                address: address.to_owned(),
                root: Root::Pem(root.to_owned()),
                alt_hostname: Some(format!("stillmesh-controller.{SYSTEM}.svc")),
                token: Token::Literal(token),
                cluster_id: "Kubernetes".to_owned(),
                headers: Vec::new(),
            };
            let info =
                NodeInfo::ztunnel(&format!("ztunnel-{node:03}"), SYSTEM, &node_name(node), None, "cluster.local");
            let client = Client::new(control_plane, info);
            statuses.push(client.status());
            clients.spawn(client.run(Noting(Arc::clone(&shared)), cancel.clone()));
        }
        Self { shared, statuses, clients, cancel }
    }

    pub fn len(&self) -> usize {
        self.statuses.len()
    }

    /// Waits until every client has had its first complete state.
    pub async fn ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let all = async {
            for status in &mut self.statuses {
                status.wait_for(|status| status.ready && status.connected).await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(patience, all).await.context("not every client was served in time")?
    }

    /// Waits until every client has lost its stream, after the controller went.
    pub async fn disconnected(&mut self, patience: Duration) -> anyhow::Result<()> {
        let all = async {
            for status in &mut self.statuses {
                status.wait_for(|status| !status.connected).await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(patience, all).await.context("not every client has noticed in time")?
    }

    pub fn received(&self) -> Received {
        Received {
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            resources: self.shared.resources.load(Ordering::Relaxed),
            responses: self.shared.responses.load(Ordering::Relaxed),
        }
    }

    /// From now on notes who applies a change of this resource.
    pub fn expect(&self, name: &str) {
        self.shared.awaited.lock().insert(name.to_owned(), Vec::new());
    }

    /// Waits until every node has applied it, and returns when each did.
    pub async fn applied(&self, name: &str, patience: Duration) -> anyhow::Result<Vec<Instant>> {
        let all = async {
            loop {
                let news = self.shared.news.notified();
                if self.shared.awaited.lock().get(name).is_some_and(|nodes| nodes.len() >= self.len()) {
                    return;
                }
                news.await;
            }
        };
        let done = tokio::time::timeout(patience, all).await;
        let nodes = self.shared.awaited.lock().remove(name).unwrap_or_default();
        done.with_context(|| format!("{name} reached {} of {} nodes", nodes.len(), self.len()))?;
        Ok(nodes)
    }

    pub async fn stop(mut self) {
        self.cancel.cancel();
        while self.clients.join_next().await.is_some() {}
    }
}

/// Notes and forgets.
struct Noting(Arc<Shared>);

impl Sink for Noting {
    async fn apply(&mut self, batch: Batch) -> Vec<Rejected> {
        let now = Instant::now();
        self.0.bytes.fetch_add(batch.bytes as u64, Ordering::Relaxed);
        self.0.resources.fetch_add(batch.changes.len() as u64, Ordering::Relaxed);
        self.0.responses.fetch_add(1, Ordering::Relaxed);
        let mut awaited = self.0.awaited.lock();
        if !awaited.is_empty() {
            for change in &batch.changes {
                let name = match change {
                    Change::Policy(policy) => policy.key.to_string(),
                    Change::Workload(workload) => workload.uid.to_string(),
                    _ => continue,
                };
                if let Some(nodes) = awaited.get_mut(&name) {
                    nodes.push(now);
                }
            }
            drop(awaited);
            self.0.news.notify_waiters();
        }
        Vec::new()
    }
}
