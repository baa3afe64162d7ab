//! All pods of this node: taken up, replaced, let go, retried. The agent's connection ([`super::zds`]) says which, a
//! successor ([`super::succession`]) takes them over; others look on.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stillmesh_api::succession::{Place, Predecessor, SuccessionError};
use stillmesh_api::zds::PodInfo;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::tasks::Tasks;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::pod::Pod;
use super::succession;
use super::zds::Proxies;
use crate::node::Node;

/// How long a pod's connections may go on after it left the mesh by a node agent of ours, which keeps its rules so long.
const POD_DRAIN: Duration = Duration::from_secs(60);

/// The pods, shared with those who look on.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pods: Arc<Mutex<BTreeMap<String, Arc<Pod>>>>,
}

impl Table {
    /// All pods that are served, those that drain left out.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().values().cloned().collect()
    }

    /// The only one of this namespace and name.
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.lock();
        let mut found = pods.values().filter(|pod| pod.info.name == name && pod.info.namespace == namespace);
        found.next().filter(|_| found.next().is_none()).cloned()
    }

    pub(super) fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.lock().get(uid).cloned()
    }
}

/// A pod that a successor serves. Its sockets are kept open, so that nothing is lost should the successor end first.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) info: PodInfo,
    pub(super) netns: Netns,
    pub(super) sockets: Vec<(Place, OwnedFd)>,
}

/// Where a hand-over to a successor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heir {
    /// Nobody is there.
    None,
    /// Somebody takes pods over.
    Taking,
    /// Somebody serves all pods.
    Serves,
}

/// Owns the pods. Clones share them.
#[derive(Clone, Debug)]
pub struct Pods {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node: Arc<Node>,
    pub(super) table: Table,
    pub(super) tasks: Tasks,
    pub(super) given: Mutex<BTreeMap<String, Given>>,
    pub(super) heir: watch::Sender<Heir>,
    /// A successor may connect.
    pub(super) offered: AtomicBool,
    /// This process ends.
    ending: AtomicBool,
    /// Those let go, until their last connection has ended.
    draining: Mutex<HashMap<u64, Arc<Pod>>>,
    next: AtomicU64,
    /// Who served this node's pods before.
    predecessor: AsyncMutex<Option<Predecessor>>,
}

impl Pods {
    /// No pods yet. `tasks` owns everything that runs for them.
    pub fn new(node: Arc<Node>, tasks: Tasks) -> Self {
        let shared = Shared {
            table: node.pods.clone(),
            node,
            tasks,
            given: Mutex::default(),
            heir: watch::Sender::new(Heir::None),
            offered: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            draining: Mutex::default(),
            next: AtomicU64::new(0),
            predecessor: AsyncMutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The pods for those who look on.
    pub fn table(&self) -> Table {
        self.shared.table.clone()
    }

    /// Looks for a ztunnel that serves this node's pods already, to take them over from it.
    pub async fn find_predecessor(&self) {
        let Some(path) = &self.shared.node.config.handover else { return };
        match Predecessor::connect(path).await {
            Ok(Some(predecessor)) => {
                tracing::info!(path = %path.display(), "taking over from the ztunnel before");
                *self.shared.predecessor.lock().await = Some(predecessor);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "listening beside the ztunnel before"),
        }
    }

    /// Ends all pods: what is open goes on for at most `grace`. Listeners close at once; where a successor is about to
    /// take them it is waited for, at most half of that time.
    pub async fn stop_all(&self, grace: Duration) {
        let until = tokio::time::Instant::now() + grace;
        let mut heir = self.shared.heir.subscribe();
        // The sender lives as long as `self`; past the deadline nothing is lost but what the successor had not taken.
        let _ = tokio::time::timeout(grace / 2, heir.wait_for(|heir| *heir != Heir::Taking)).await;
        let grace = until.saturating_duration_since(tokio::time::Instant::now());
        self.shared.ending.store(true, Ordering::Release);
        let pods = std::mem::take(&mut *self.shared.table.pods.lock());
        let stopping: Vec<_> = pods.into_values().collect();
        self.shared.count();
        let left: Vec<_> = self.shared.draining.lock().values().cloned().collect();
        for pod in &left {
            pod.hurry(grace);
        }
        let all = stopping.iter().chain(&left).map(|pod| pod.stop(grace));
        futures::future::join_all(all).await;
    }
}

impl Shared {
    /// Lets a pod go: nothing new, what is open drains.
    fn let_go(self: &Arc<Self>, pod: Arc<Pod>) {
        self.node.metrics.proxies_stopped.inc();
        self.forget_identity(&pod);
        // A foreign agent takes the pod's rules out before it says so: what is open could not go on.
        let config = &self.node.config;
        let ours = config.probes.as_ref().is_some_and(|socket| socket.exists());
        let grace = config.pod_drain.unwrap_or(if ours { POD_DRAIN } else { Duration::ZERO });
        self.drain(pod, Some(grace));
    }

    /// Gives a pod away to a successor that serves it: nothing new, what is open goes on. Its sockets stay open here.
    /// Nothing happens where the pod is not served here any more.
    pub(super) fn give_away(self: &Arc<Self>, uid: &str) -> Result<(), String> {
        let Some(pod) = self.table.get(uid) else { return Ok(()) };
        let sockets = pod.pass_on().map_err(|error| format!("cannot keep the sockets: {error}"))?;
        let given = Given { info: pod.info.clone(), netns: pod.thread.netns().clone(), sockets };
        let removed = self.table.pods.lock().remove(uid);
        let Some(pod) = removed else { return Ok(()) };
        self.given.lock().insert(uid.to_owned(), given);
        self.node.metrics.proxies_stopped.inc();
        pod.give_away();
        self.drain(pod, None);
        Ok(())
    }

    /// Waits for what is open at a pod, for ever where no time is given.
    fn drain(self: &Arc<Self>, pod: Arc<Pod>, grace: Option<Duration>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.draining.lock().insert(number, pod.clone());
        self.count();
        let shared = Arc::downgrade(self);
        self.tasks.spawn("drain pod", async move {
            match grace {
                Some(grace) => pod.stop(grace).await,
                None => pod.drained().await,
            }
            if let Some(shared) = shared.upgrade() {
                shared.draining.lock().remove(&number);
            }
            tracing::info!(pod = %pod.info.name, namespace = %pod.info.namespace, "pod let go");
        });
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Takes a pod up, with sockets that somebody else had.
    pub(super) async fn take_up(
        &self,
        uid: &str,
        info: PodInfo,
        netns: Netns,
        inherited: Vec<(Place, OwnedFd)>,
    ) -> Result<Arc<Pod>, String> {
        let (name, namespace) = (info.name.clone(), info.namespace.clone());
        let started = Pod::start(&self.node, &self.tasks, uid.to_owned(), info, netns, inherited).await;
        let pod = started.map_err(|error| error.to_string())?;
        self.table.pods.lock().insert(uid.to_owned(), pod.clone());
        self.count();
        self.node.metrics.proxies_started.inc();
        tracing::info!(pod = %name, %namespace, inherited = pod.has_inherited(), "pod taken up");
        Ok(pod)
    }

    /// The certificate goes when no pod of its account is left.
    fn forget_identity(&self, pod: &Pod) {
        let same = |other: &Arc<Pod>| {
            other.info.namespace == pod.info.namespace && other.info.service_account == pod.info.service_account
        };
        if !self.table.all().iter().any(same) {
            self.node.identities.forget_account(&pod.info.namespace, &pod.info.service_account);
        }
    }

    fn count(&self) {
        let count = i64::try_from(self.table.pods.lock().len()).unwrap_or(i64::MAX);
        self.node.metrics.active_proxies.set(count);
    }

    /// What the predecessor gives for a pod: nothing where there is none, or it does not serve the pod.
    async fn inherit(&self, uid: &str, inode: u64) -> Vec<(Place, OwnedFd)> {
        let mut predecessor = self.predecessor.lock().await;
        let Some(asked) = predecessor.as_mut() else { return Vec::new() };
        match asked.take(uid, inode).await {
            Ok(given) => given,
            Err(SuccessionError::Refused(why)) => {
                tracing::debug!(uid, why, "the ztunnel before does not give a pod");
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(%error, "the ztunnel before gives no more");
                *predecessor = None;
                Vec::new()
            }
        }
    }

    /// Tells the predecessor something; one that is not there any more is forgotten.
    async fn tell(&self, tell: impl AsyncFnOnce(&mut Predecessor) -> Result<(), SuccessionError>) {
        let mut predecessor = self.predecessor.lock().await;
        let Some(told) = predecessor.as_mut() else { return };
        match tell(told).await {
            Ok(()) => {}
            Err(SuccessionError::Refused(why)) => tracing::warn!(why, "the ztunnel before does not let go"),
            Err(error) => {
                tracing::info!(%error, "the ztunnel before is gone");
                *predecessor = None;
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The node knows the pods, whose tasks know the node.
        let pods = std::mem::take(&mut *self.table.pods.lock());
        drop(pods);
    }
}

impl Proxies for Pods {
    fn has(&self, uid: &str) -> bool {
        self.shared.table.get(uid).is_some()
    }

    async fn start(&mut self, uid: &str, info: &PodInfo, netns: &OwnedFd) -> Result<(), String> {
        let netns = netns.try_clone().and_then(Netns::from_fd);
        let netns = netns.map_err(|error| format!("the descriptor is of no use: {error}"))?;
        if let Some(running) = self.shared.table.get(uid) {
            if running.inode() == netns.inode() {
                return Ok(());
            }
            // The pod was started anew: what belongs to the old namespace goes first.
            self.stop(uid);
        }
        let mut inherited = self.shared.inherit(uid, netns.inode()).await;
        let own = self.shared.given.lock().remove(uid).filter(|given| given.netns == netns);
        if let Some(given) = own.filter(|_| inherited.is_empty()) {
            inherited = given.sockets;
        }
        let pod = self.shared.take_up(uid, info.clone(), netns, inherited).await?;
        if !pod.has_inherited() {
            // Whoever else listens there goes on until it ends.
            return Ok(());
        }
        self.shared.tell(async |predecessor: &mut Predecessor| predecessor.serving(uid).await).await;
        Ok(())
    }

    fn stop(&mut self, uid: &str) {
        self.shared.given.lock().remove(uid);
        let removed = self.shared.table.pods.lock().remove(uid);
        if let Some(pod) = removed {
            self.shared.let_go(pod);
        }
        let (shared, uid) = (self.shared.clone(), uid.to_owned());
        self.shared.tasks.spawn("forget pod", async move {
            shared.tell(async |predecessor: &mut Predecessor| predecessor.forget(&uid).await).await;
        });
    }

    fn uids(&self) -> Vec<String> {
        self.shared.table.pods.lock().keys().cloned().collect()
    }

    fn pending(&self, count: usize) {
        self.shared.node.metrics.pending_proxies.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    async fn complete(&mut self) {
        if self.shared.offered.swap(true, Ordering::AcqRel) {
            return;
        }
        self.shared.tell(async |predecessor: &mut Predecessor| predecessor.ready().await).await;
        succession::offer(&self.shared);
    }

    async fn may_connect(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.heir.subscribe().wait_for(|heir| *heir != Heir::Serves).await;
    }
}
