//! Pods of this node that a Quarantine cuts off: how many of their connections were closed, told to the node agent, which writes
//! it on the pod. Decides nothing; a foreign agent, which takes no such word, is left alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use stillmesh_api::probes::{self, Notice};
use stillmesh_core::model::{PolicyKey, Str, WorkloadUid};
use stillmesh_core::snapshot::Snapshot;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::capture::pods::Table;
use crate::node::Node;
use crate::record::{Direction, Facts};

/// How often pods are looked at that came since, and an agent that has not heard is told again.
const LOOK: Duration = Duration::from_secs(1);
/// How often what has been told is told again: an agent may have ended before it wrote it down.
const REPEAT: Duration = Duration::from_secs(60);

/// This node's pods that are cut off.
#[derive(Debug)]
pub struct CutOff {
    node: Str,
    pods: Mutex<HashMap<WorkloadUid, Cut>>,
    news: Notify,
}

#[derive(Clone, Debug)]
struct Cut {
    policy: PolicyKey,
    closed: u64,
    took: Duration,
}

impl CutOff {
    /// None yet, of this node.
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), pods: Mutex::default(), news: Notify::new() }
    }

    /// Counts a connection that was closed, where it was for one of these pods.
    pub fn closed(&self, snapshot: &Snapshot, facts: &Facts) {
        let own = match facts.direction {
            Direction::Inbound => &facts.destination,
            Direction::Outbound => &facts.source,
        };
        let Some(workload) = own.as_ref().and_then(|own| snapshot.workload(&own.uid)) else { return };
        let Some(policy) = workload.quarantine() else { return };
        self.entry(&workload.uid, policy, |cut| cut.closed = cut.closed.saturating_add(1));
    }

    /// What was touched has been decided again; it was heard of at `heard`.
    pub fn passed(&self, snapshot: &Snapshot, touched: &[WorkloadUid], heard: Instant) {
        for uid in touched {
            let workload = snapshot.workload(uid).filter(|workload| workload.node == self.node);
            match workload.and_then(|workload| workload.quarantine()) {
                Some(policy) => self.entry(uid, policy, |cut| {
                    if cut.took.is_zero() {
                        cut.took = heard.elapsed();
                    }
                }),
                None => drop(self.pods.lock().remove(uid)),
            }
        }
        self.pods.lock().retain(|uid, _| snapshot.workload(uid).is_some());
        self.news.notify_one();
    }

    fn entry(&self, uid: &WorkloadUid, policy: &PolicyKey, change: impl FnOnce(&mut Cut)) {
        let mut pods = self.pods.lock();
        let new = || Cut { policy: policy.clone(), closed: 0, took: Duration::ZERO };
        let cut = pods.entry(uid.clone()).or_insert_with(new);
        if cut.policy != *policy {
            *cut = new();
        }
        change(cut);
    }

    /// What there is to say of a pod.
    pub(crate) fn notice(&self, uid: &str, workload: &WorkloadUid) -> Notice {
        let cut = self.pods.lock().get(workload).cloned();
        let name = |cut: &Cut| Some(format!("{}/{}", cut.policy.namespace, cut.policy.quarantine()?));
        Notice {
            uid: uid.to_owned(),
            quarantine: cut.as_ref().and_then(name),
            cut: cut.as_ref().map(|cut| cut.closed).unwrap_or_default(),
            took: cut.map(|cut| cut.took).unwrap_or_default(),
        }
    }
}

/// Tells the agent of each pod whether it is cut off, until cancelled.
pub async fn tell(node: Arc<Node>, pods: Table, cut_off: Arc<CutOff>, token: CancellationToken) {
    let Some(path) = node.config.probes.as_deref() else { return };
    let mut told: BTreeMap<String, (Notice, Instant)> = BTreeMap::new();
    loop {
        let snapshot = node.snapshots.load();
        let all = pods.all();
        told.retain(|uid, _| all.iter().any(|pod| pod.uid == *uid));
        for pod in all {
            let info = &pod.info;
            let found = snapshot.local_workload(&node.config.node, &info.namespace, &info.name, &info.service_account);
            let Some(workload) = found else { continue };
            let notice = cut_off.notice(&pod.uid, &workload.uid);
            let is_told = |(before, at): &(Notice, Instant)| *before == notice && at.elapsed() < REPEAT;
            if told.get(&pod.uid).is_some_and(is_told) {
                continue;
            }
            let is_news = told.get(&pod.uid).is_none_or(|(before, _)| before.quarantine != notice.quarantine);
            match probes::tell(path, &notice).await {
                Ok(()) => {
                    if is_news && let Some(quarantine) = &notice.quarantine {
                        let pod = format!("{}/{}", info.namespace, info.name);
                        let (connections, took) = (notice.cut, notice.took);
                        tracing::info!(target: "audit", quarantine, pod, connections, ?took, "the pod is cut off");
                    }
                    told.insert(pod.uid.clone(), (notice, Instant::now()));
                }
                // Nobody is there, or one that takes no such word: the next look tells the others, too.
                Err(error) => {
                    tracing::debug!(%error, "the agent has not heard where its pods stand");
                    break;
                }
            }
        }
        drop(snapshot);
        tokio::select! {
            () = token.cancelled() => return,
            () = cut_off.news.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}
