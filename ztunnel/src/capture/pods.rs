//! All pods of this node: taken up, replaced, let go, retried. One owner ([`super::zds`]); others look on.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use stillmesh_api::zds::PodInfo;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::tasks::Tasks;

use super::pod::Pod;
use super::zds::Proxies;
use crate::node::Node;

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

    fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.lock().get(uid).cloned()
    }
}

/// Owns the pods.
#[derive(Debug)]
pub struct Pods {
    node: Arc<Node>,
    table: Table,
    tasks: Tasks,
    /// Those let go, until their last connection has ended.
    draining: Arc<Mutex<HashMap<u64, Arc<Pod>>>>,
    next: u64,
}

impl Pods {
    /// No pods yet. `tasks` owns everything that runs for them.
    pub fn new(node: Arc<Node>, tasks: Tasks) -> Self {
        Self { node, table: Table::default(), tasks, draining: Arc::default(), next: 0 }
    }

    /// The pods for those who look on.
    pub fn table(&self) -> Table {
        self.table.clone()
    }

    /// Lets a pod go: nothing new, what is open drains.
    fn let_go(&mut self, pod: Arc<Pod>) {
        self.next += 1;
        let number = self.next;
        self.draining.lock().insert(number, pod.clone());
        self.count();
        self.node.metrics.proxies_stopped.inc();
        self.forget_identity(&pod);
        let (draining, grace) = (self.draining.clone(), self.node.config.pod_drain);
        self.tasks.spawn("drain pod", async move {
            pod.stop(grace).await;
            draining.lock().remove(&number);
            tracing::info!(pod = %pod.info.name, namespace = %pod.info.namespace, "pod let go");
        });
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

    /// Ends all pods: listeners close at once, what is open goes on for at most `grace`.
    pub async fn stop_all(&mut self, grace: Duration) {
        let pods = std::mem::take(&mut *self.table.pods.lock());
        let stopping: Vec<_> = pods.into_values().collect();
        self.count();
        for pod in self.draining.lock().values() {
            pod.hurry(grace);
        }
        let left: Vec<_> = self.draining.lock().values().cloned().collect();
        let all = stopping.iter().chain(&left).map(|pod| pod.stop(grace));
        futures::future::join_all(all).await;
    }
}

impl Proxies for Pods {
    fn has(&self, uid: &str) -> bool {
        self.table.get(uid).is_some()
    }

    async fn start(&mut self, uid: &str, info: &PodInfo, netns: &OwnedFd) -> Result<(), String> {
        let netns = netns.try_clone().and_then(Netns::from_fd);
        let netns = netns.map_err(|error| format!("the descriptor is of no use: {error}"))?;
        if let Some(running) = self.table.get(uid) {
            if running.inode() == netns.inode() {
                return Ok(());
            }
            // The pod was started anew: what belongs to the old namespace goes first.
            self.stop(uid);
        }
        let started = Pod::start(&self.node, &self.tasks, uid.to_owned(), info.clone(), netns).await;
        let pod = started.map_err(|error| error.to_string())?;
        self.table.pods.lock().insert(uid.to_owned(), pod);
        self.count();
        self.node.metrics.proxies_started.inc();
        tracing::info!(pod = %info.name, namespace = %info.namespace, account = %info.service_account, "pod taken up");
        Ok(())
    }

    fn stop(&mut self, uid: &str) {
        let removed = self.table.pods.lock().remove(uid);
        if let Some(pod) = removed {
            self.let_go(pod);
        }
    }

    fn uids(&self) -> Vec<String> {
        self.table.pods.lock().keys().cloned().collect()
    }

    fn pending(&self, count: usize) {
        self.node.metrics.pending_proxies.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
