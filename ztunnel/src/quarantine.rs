//! Pods of this node that a Quarantine cuts off: how many of their connections were closed, told to the node agent, which writes
//! it on the pod. Decides nothing; a foreign agent, which takes no such word, is left alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
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

/// How often pods are looked at that came since. What the agent has not heard is told again after twice that, then ever
/// more seldom.
const LOOK: Duration = Duration::from_secs(1);
/// How often what has been told of a pod that is cut off is told again: an agent may have ended before it wrote it down.
const REPEAT: Duration = Duration::from_secs(60);
/// How often it is told again that a pod is cut off no more.
const REPEATS: u32 = 10;
/// How often, of a pod that was never cut off by this process: a former one may have said otherwise.
const FEW_REPEATS: u32 = 2;
/// How long a pass may go on to tell of more pods; what is under way takes [`probes::DEADLINE`] more. The next one begins with
/// what is new by then, so that an agent that hangs does not keep a new Quarantine's pods waiting behind others.
const PASS: Duration = Duration::from_millis(500);
/// Pods that are told of at a time; the agent answers 64 questions at a time, of probes, too.
const AT_ONCE: usize = 8;

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
    /// The UID of the Quarantine: one that is made again under its name is another one.
    order: Option<Str>,
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
        self.entry(snapshot, &workload.uid, policy, |cut| cut.closed = cut.closed.saturating_add(1));
    }

    /// What was touched has been decided again; it was heard of at `heard`.
    pub fn passed(&self, snapshot: &Snapshot, touched: &[WorkloadUid], heard: Instant) {
        for uid in touched {
            let workload = snapshot.workload(uid).filter(|workload| workload.node == self.node);
            match workload.and_then(|workload| workload.quarantine()) {
                Some(policy) => self.entry(snapshot, uid, policy, |cut| {
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

    fn entry(&self, snapshot: &Snapshot, uid: &WorkloadUid, policy: &PolicyKey, change: impl FnOnce(&mut Cut)) {
        let order = snapshot.policy(policy).and_then(|policy| policy.order.clone());
        let mut pods = self.pods.lock();
        let new = || Cut { policy: policy.clone(), order: order.clone(), closed: 0, took: Duration::ZERO };
        let cut = pods.entry(uid.clone()).or_insert_with(new);
        let is_another = cut.order.is_some() && order.is_some() && cut.order != order;
        if cut.policy != *policy || is_another {
            *cut = new();
        } else if cut.order.is_none() {
            // A controller of before did not say.
            cut.order = order.clone();
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
            order: cut.as_ref().and_then(|cut| cut.order.as_deref().map(str::to_owned)),
            cut: cut.as_ref().map(|cut| cut.closed).unwrap_or_default(),
            took: cut.map(|cut| cut.took).unwrap_or_default(),
        }
    }
}

/// Tells the agent of each pod whether it is cut off, until cancelled.
pub async fn tell(node: Arc<Node>, pods: Table, cut_off: Arc<CutOff>, token: CancellationToken) {
    let Some(path) = node.config.probes.as_deref() else { return };
    let mut words = Words::default();
    loop {
        let snapshot = node.snapshots.load();
        let mut notices = BTreeMap::new();
        for pod in pods.all() {
            let info = &pod.info;
            let found = snapshot.local_workload(&node.config.node, &info.namespace, &info.name, &info.service_account);
            if let Some(workload) = found {
                let pod_name = format!("{}/{}", info.namespace, info.name);
                notices.insert(pod_name, cut_off.notice(&pod.uid, &workload.uid));
            }
        }
        drop(snapshot);
        tokio::select! {
            () = token.cancelled() => return,
            () = words.pass(path, notices) => {}
        }
        tokio::select! {
            () = token.cancelled() => return,
            () = cut_off.news.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}

/// What the agent has heard of pods, by UID.
#[derive(Debug, Default)]
struct Words(BTreeMap<String, Word>);

/// The last word on a pod.
#[derive(Debug)]
struct Word {
    notice: Notice,
    /// When it is told again; never where that would be of no use.
    again: Option<Instant>,
    /// How often in a row nobody has heard it.
    failures: u32,
    /// How often it is told again that a pod is cut off no more.
    repeats: u32,
    /// What the agent has heard last.
    heard: Option<Notice>,
}

impl Words {
    /// Tells what is due, of each pod by its name: who is cut off first, then who has waited longest. That one is not heard of
    /// keeps nobody waiting for long, and what there was no time for is told in the next pass.
    async fn pass(&mut self, path: &Path, notices: BTreeMap<String, Notice>) {
        let uids: BTreeSet<&str> = notices.values().map(|notice| notice.uid.as_str()).collect();
        self.0.retain(|uid, _| uids.contains(uid.as_str()));
        let now = Instant::now();
        let mut due: Vec<_> = notices.into_iter().filter(|(_, notice)| self.is_due(notice, now)).collect();
        // What was never told comes before what is told again.
        due.sort_by_key(|(_, notice)| (notice.quarantine.is_none(), self.same(notice).and_then(|word| word.again)));
        let telling =
            due.into_iter().map(|(pod, notice)| async move { (probes::tell(path, &notice).await, pod, notice) });
        let telling = futures::stream::iter(telling.collect::<Vec<_>>()).take_until(sleep(PASS));
        let mut answers = std::pin::pin!(telling.buffer_unordered(AT_ONCE));
        while let Some((answer, pod, notice)) = answers.next().await {
            if let Err(error) = &answer {
                // Nobody is there, or one that takes no such word.
                tracing::debug!(%error, pod, "the agent has not heard where the pod stands");
            }
            let (connections, took) = (notice.cut, notice.took);
            if let Some(quarantine) = self.told(notice, answer.is_ok(), Instant::now()) {
                tracing::info!(target: "audit", quarantine, pod, connections, ?took, "the pod is cut off");
            }
        }
    }

    fn is_due(&self, notice: &Notice, now: Instant) -> bool {
        self.same(notice).is_none_or(|word| word.again.is_some_and(|again| again <= now))
    }

    /// What became of this very word.
    fn same(&self, notice: &Notice) -> Option<&Word> {
        self.0.get(&notice.uid).filter(|word| word.notice == *notice)
    }

    /// It was told, and heard or not. Returns the Quarantine where it is news.
    fn told(&mut self, notice: Notice, is_heard: bool, now: Instant) -> Option<&str> {
        let before = self.0.remove(&notice.uid);
        let is_cut = notice.quarantine.is_some();
        let (mut failures, mut repeats) = match &before {
            Some(word) if word.notice == notice => (word.failures, word.repeats),
            Some(word) if word.notice.quarantine.is_some() && !is_cut => (0, REPEATS),
            _ if is_cut => (0, 0),
            _ => (0, FEW_REPEATS),
        };
        let mut heard = before.and_then(|word| word.heard);
        let mut is_news = false;
        let again = if is_heard {
            failures = 0;
            is_news = is_cut && !heard.is_some_and(|heard| heard.is_of_same(&notice));
            heard = Some(notice.clone());
            let is_told_again = is_cut || repeats > 0;
            repeats = repeats.saturating_sub(1);
            is_told_again.then(|| now + REPEAT)
        } else {
            failures = failures.saturating_add(1);
            Some(now + LOOK.saturating_mul(1 << failures.min(6)).min(REPEAT))
        };
        let word = Word { again, failures, repeats, heard, notice };
        let word = self.0.entry(word.notice.uid.clone()).or_insert(word);
        word.heard.as_ref().filter(|_| is_news)?.quarantine.as_deref()
    }
}

#[cfg(test)]
mod tests;
