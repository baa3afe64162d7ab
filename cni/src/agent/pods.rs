//! Every pod of the node that is, was, or is to be in the mesh: what the objects say becomes what its task wants.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stillmesh_api::probes::Notice;
use stillmesh_k8s::steering::OutReceipt;
use stillmesh_objects::{Source, Update};
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::{Backoff, Tasks};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{precheck, until_cancelled};
use crate::Config;
use crate::api::{Questions, Seen};
use crate::belief::Belief;
use crate::enroll::pod::{Intent, Pod, Shared, Status};
use crate::enroll::steps::{Told, Wanted};
use crate::intake::{Ask, Start, Started};
use crate::known::{Keeper, Known};
use crate::netns::Locate;
use crate::probe_source::ProbeSource;
use crate::probes::Probes;
use crate::receipt;
use crate::world::{Bypassed, Verdict, World};
use crate::writeback::PodName;

/// How often namespaces of pods are looked for that were not there: at first, and where they stay away.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOK_SELDOM: Duration = Duration::from_secs(30);
/// How often the API server is asked again when it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long annotations may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// The owner of all pods' tasks.
pub struct Pods {
    shared: Shared,
    world: World,
    locate: Arc<dyn Locate>,
    /// What was believed at the start, of pods that have no task yet.
    believed: HashMap<String, Belief>,
    /// By UID.
    pods: HashMap<String, Handle>,
    /// Pods whose namespace is to be looked for.
    wanted: BTreeSet<PodName>,
    /// Those that a search is looking for.
    search: Option<Search>,
    /// Pods that are to be captured and whose namespace was not found.
    homeless: BTreeSet<PodName>,
    look_again: Instant,
    look_wait: Backoff,
    /// A pod's task ended.
    ended: Arc<Notify>,
    tasks: Tasks,
    /// What the plugin goes by without the agent; absent where there is no such plugin.
    keeper: Option<Keeper>,
    /// Whether probe ports are known before the objects are.
    knows_probes: bool,
    /// Where the node's ztunnel is a foreign one.
    probe_source: Option<ProbeSource>,
    /// To ask the API server on the agent's own account.
    questions: Option<(Questions, mpsc::Sender<Ask>)>,
}

struct Handle {
    name: PodName,
    intent: watch::Sender<Intent>,
    status: watch::Receiver<Status>,
}

/// When a pod's task is told what is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// None of its containers has run.
    Start,
    /// They may have.
    Later,
}

struct Search {
    names: BTreeSet<PodName>,
    found: JoinHandle<HashMap<String, Netns>>,
}

impl Pods {
    /// No pods yet; what is believed is read.
    pub fn new(config: &Config, shared: Shared, locate: Arc<dyn Locate>, tasks: &Tasks) -> anyhow::Result<Self> {
        let beliefs = shared.beliefs.load().context("cannot read the state directory")?;
        let believed = beliefs.into_iter().map(|belief| (belief.uid.clone(), belief)).collect();
        let socket_probes = precheck::socket_probes();
        if !socket_probes {
            tracing::warn!(
                "tcpSocket probes of captured pods pass even where nobody listens: load the kernel module nft_socket"
            );
        }
        let world = World::new(config.node.clone(), config.enrolment.clone(), config.dns, socket_probes);
        Ok(Self {
            shared,
            world,
            locate,
            believed,
            pods: HashMap::new(),
            wanted: BTreeSet::new(),
            search: None,
            homeless: BTreeSet::new(),
            look_again: Instant::now(),
            look_wait: Backoff::new(LOOK_AGAIN, LOOK_SELDOM),
            ended: Arc::default(),
            tasks: tasks.child("pods"),
            keeper: None,
            knows_probes: false,
            probe_source: None,
            questions: None,
        })
    }

    /// Writes what the plugin goes by into the state directory, and takes the probe ports that are there.
    pub fn keep_known(&mut self, state_dir: &Path) {
        let keeper = Keeper::new(state_dir);
        if let Some(ports) = keeper.kept().and_then(|known| known.probe_ports) {
            self.world.probes().restore(ports);
            self.knows_probes = true;
        }
        self.keeper = Some(keeper);
    }

    /// Whether probe ports are known before the objects are: those of every pod that was captured by then.
    pub fn knows_probes(&self) -> bool {
        self.knows_probes
    }

    /// Gives the node's own connections to captured pods the address of probes; the calling thread is in the node's
    /// namespace.
    pub fn translate_probes(&mut self) {
        self.probe_source = Some(ProbeSource::default());
    }

    /// Asks the API server where the watch leaves doubts.
    pub fn ask(&mut self, questions: Questions, asks: mpsc::Sender<Ask>) {
        self.questions = Some((questions, asks));
    }

    /// The probe ports of this node's pods.
    pub fn probes(&self) -> Probes {
        self.world.probes()
    }

    /// How many pods have a task.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Waits for the first complete set of objects and takes it as the truth: what is believed of other pods is
    /// deleted, and every pod that a tunnel may have is offered.
    pub async fn learn(&mut self, source: &mut impl Source) -> anyhow::Result<()> {
        loop {
            let update = source.next().await.context("the source of objects ended")?;
            let complete = update.complete;
            self.world.apply(update.changes, &self.shared.metrics);
            if complete {
                break;
            }
        }
        self.world.forget_other_probes();
        self.remember();
        self.keep_probe_source();
        let names: Vec<PodName> = self.world.pods().cloned().collect();
        let mut verdicts: Vec<(PodName, Verdict)> = Vec::new();
        for name in names {
            if let Some(verdict) = self.world.verdict(&name).filter(|verdict| self.concerns(verdict)) {
                verdicts.push((name, verdict));
            }
        }
        let sought = verdicts.iter().filter_map(|(_, verdict)| verdict.sought());
        let uids: HashSet<String> = sought.map(str::to_owned).collect();
        let locate = Arc::clone(&self.locate);
        let mut found = tokio::task::spawn_blocking(move || locate.locate(&uids)).await.unwrap_or_default();
        // Tunnels must be told first thing of pods that they may have from an earlier agent.
        for (_, verdict) in &verdicts {
            let believed = self.believed.get(&verdict.uid).is_some_and(|belief| belief.since.is_some());
            if verdict.wanted == Wanted::Captured && (believed || verdict.marked) {
                let netns = found.get(&verdict.sandbox).cloned();
                // Its task takes the answer.
                drop(self.shared.handover.offer(&verdict.uid, verdict.info.clone(), netns));
            }
        }
        let runs = |verdict: &Verdict| verdict.wanted == Wanted::Captured && found.contains_key(&verdict.sandbox);
        let open = verdicts.iter().filter(|(_, verdict)| runs(verdict)).map(|(_, verdict)| verdict.uid.clone());
        self.shared.window.expect(open.collect());
        for (name, verdict) in verdicts {
            let netns = found.remove(&verdict.sandbox);
            self.wish(&name, verdict, netns);
        }
        for (uid, belief) in std::mem::take(&mut self.believed) {
            tracing::info!(uid, pod = belief.name, "a pod that was believed captured is gone");
            if let Err(error) = self.shared.beliefs.delete(&uid) {
                tracing::warn!(uid, %error, "what is believed of a pod cannot be deleted");
            }
        }
        Ok(())
    }

    /// Whether there is, or may be, anything to do for a pod.
    fn concerns(&self, verdict: &Verdict) -> bool {
        verdict.wanted == Wanted::Captured || verdict.marked || self.believed.contains_key(&verdict.uid)
    }

    /// Works until the source of objects ends.
    pub async fn work(&mut self, source: &mut impl Source, asks: &mut mpsc::Receiver<Ask>) -> anyhow::Result<()> {
        let ended = Arc::clone(&self.ended);
        loop {
            self.begin_search();
            tokio::select! {
                update = source.next() => match update {
                    Some(update) => self.update(update),
                    None => anyhow::bail!("the source of objects ended"),
                },
                Some(ask) = asks.recv() => match ask {
                    Ask::Start(start) => self.start(start),
                    Ask::Seen(name, seen) => self.seen(&name, *seen),
                    Ask::CutOff(notice) => self.cut_off(&notice),
                },
                () = ended.notified() => self.collect(),
                found = found(&mut self.search) => self.found(found),
                () = sleep_until(self.look_again), if !self.homeless.is_empty() => {
                    self.wanted.append(&mut self.homeless);
                    self.look_again = Instant::now() + self.look_wait.next(1.0);
                }
            }
        }
    }

    fn update(&mut self, update: Update) {
        let touched = self.world.apply(update.changes, &self.shared.metrics);
        self.touch(touched);
        for notice in self.world.early() {
            self.cut_off(&notice);
        }
    }

    fn seen(&mut self, name: &PodName, seen: Seen) {
        let touched = self.world.learn(name, seen);
        self.touch(touched);
    }

    /// The tunnel says where a pod stands: what is new is written on it, and into the audit log.
    fn cut_off(&mut self, notice: &Notice) {
        let now = || jiff::Timestamp::now().to_string();
        let Some((name, receipt)) = self.world.cut_off(notice, now) else { return };
        let quarantine = receipt.as_ref().map(|receipt| receipt.quarantine.as_str());
        let order = quarantine.and_then(|name| self.world.quarantine(name));
        tracing::info!(
            target: "audit",
            order = quarantine,
            by = order.map(|order| order.requested_by.as_str()),
            reason = order.map(|order| order.reason.as_str()),
            pod = format!("{}/{}", name.namespace, name.name),
            connections = notice.cut,
            took = ?notice.took,
            "{}",
            if receipt.is_some() { "the pod is cut off" } else { "the pod is cut off no more" }
        );
        self.shared.writer.set(&name, &notice.uid, receipt::cut_off(receipt.as_ref()));
    }

    fn touch(&mut self, touched: BTreeSet<PodName>) {
        self.remember();
        self.keep_probe_source();
        for name in touched {
            self.reconcile(&name);
        }
        let doubtful = self.world.doubtful();
        let Some((questions, asks)) = &self.questions else { return };
        for name in doubtful {
            let (questions, asks) = (questions.clone(), asks.clone());
            let work = async move {
                loop {
                    match questions.look(&name).await {
                        // The agent's end ends this, too.
                        Ok(seen) => return drop(asks.send(Ask::Seen(name, Box::new(seen))).await),
                        Err(_) => sleep(ASK_AGAIN).await,
                    }
                }
            };
            self.tasks.spawn("doubtful pod", until_cancelled(self.tasks.token(), work));
        }
    }

    /// What the plugin goes by without the agent.
    fn remember(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let known = Known { enrolled: self.world.enrolled(), probe_ports: Some(self.world.probes().known()) };
        if let Err(error) = keeper.keep(known) {
            tracing::error!(%error, "what is known of the mesh cannot be written (STATE_DIR)");
        }
    }

    fn keep_probe_source(&mut self) {
        let Some(source) = &mut self.probe_source else { return };
        if let Err(error) = source.keep(self.world.captured_addresses()) {
            tracing::error!(%error, "probes of captured pods do not pass: the node's rules cannot be written");
        }
    }

    /// The plugin has a pod that is about to start.
    fn start(&mut self, start: Start) {
        let is_it =
            |verdict: &Verdict| start.uid.as_ref().is_none_or(|uid| *uid == verdict.uid || *uid == verdict.sandbox);
        let unknown = Started::Unknown { enrolled: self.world.is_enrolled(&start.pod.namespace) };
        let answer = match self.world.verdict(&start.pod).filter(is_it) {
            None => unknown,
            Some(verdict) if self.may_be_another(&verdict, &start) => unknown,
            Some(verdict) => match verdict.reason {
                Some(reason) => Started::NotEnrolled(reason),
                None => {
                    let uid = verdict.uid.clone();
                    self.house(&start.pod, verdict, Some(start.netns), Moment::Start);
                    self.pods.get(&uid).map_or(unknown, |handle| Started::Working(handle.status.clone()))
                }
            },
        };
        // Who asked may have given up.
        let _ = start.answer.send(answer);
    }

    /// Without a UID, a pod in another namespace is the one before of that name, or this one in a new sandbox: the API
    /// server knows.
    fn may_be_another(&self, verdict: &Verdict, start: &Start) -> bool {
        let known = || self.pods.get(&verdict.uid).and_then(|handle| handle.intent.borrow().netns.clone());
        let can_ask = self.questions.is_some() && !start.looked && start.uid.is_none();
        can_ask && known().is_some_and(|known| known != start.netns)
    }

    /// Makes a pod's task want what the objects say, once its namespace is known.
    fn reconcile(&mut self, name: &PodName) {
        let verdict = self.world.verdict(name);
        let uid = verdict.as_ref().map(|verdict| verdict.uid.as_str());
        // Whoever had this name before is gone.
        for (other, handle) in &self.pods {
            if handle.name == *name && uid != Some(other.as_str()) {
                handle.intent.send_modify(|intent| intent.wanted = Wanted::Gone);
            }
        }
        let Some(verdict) = verdict else {
            self.homeless.remove(name);
            self.wanted.remove(name);
            return;
        };
        let handle = self.pods.get(&verdict.uid);
        let housed = handle.is_some_and(|handle| handle.intent.borrow().netns.is_some());
        let lives = verdict.wanted != Wanted::Gone;
        if lives && verdict.placed && !housed && (handle.is_some() || self.concerns(&verdict)) {
            self.wanted.insert(name.clone());
        } else {
            self.wish(name, verdict, None);
        }
    }

    /// One search at a time, for all that are wanted.
    fn begin_search(&mut self) {
        if self.search.is_some() || self.wanted.is_empty() {
            return;
        }
        let names = std::mem::take(&mut self.wanted);
        let sought = |name| Some(self.world.verdict(name)?.sought()?.to_owned());
        let uids: HashSet<String> = names.iter().filter_map(sought).collect();
        let locate = Arc::clone(&self.locate);
        let found = tokio::task::spawn_blocking(move || locate.locate(&uids));
        self.search = Some(Search { names, found });
    }

    fn found(&mut self, (names, mut found): (BTreeSet<PodName>, HashMap<String, Netns>)) {
        if !found.is_empty() {
            self.look_wait.reset();
        }
        for name in names {
            let Some(verdict) = self.world.verdict(&name) else { continue };
            let netns = found.remove(&verdict.sandbox);
            self.wish(&name, verdict, netns);
        }
    }

    fn wish(&mut self, name: &PodName, verdict: Verdict, netns: Option<Netns>) {
        self.house(name, verdict, netns, Moment::Later);
    }

    /// As [`Pods::wish`], saying whether the pod is about to start.
    fn house(&mut self, name: &PodName, verdict: Verdict, netns: Option<Netns>, moment: Moment) {
        self.keep_receipt(name, &verdict);
        let Verdict { uid, wanted, marked, said, bypassed, quarantined, placed, info, facts, .. } = verdict;
        let belief = self.believed.remove(&uid);
        let has_state = marked || belief.is_some();
        let handle = self.pods.get(&uid);
        let housed = netns.is_some() || handle.is_some_and(|handle| handle.intent.borrow().netns.is_some());
        if wanted == Wanted::Captured && placed && !housed {
            // Its sandbox is being made, or cannot be found: the plugin or the next look brings it.
            if self.homeless.insert(name.clone()) && self.homeless.len() == 1 {
                self.look_wait.reset();
                self.look_again = Instant::now() + self.look_wait.next(1.0);
            }
        } else {
            self.homeless.remove(name);
        }
        if let Some(handle) = handle {
            handle.intent.send_if_modified(|intent| {
                // In a namespace that nobody announced, its containers may have run before.
                let is_found = netns.is_some() && netns != intent.netns;
                let netns = netns.or_else(|| intent.netns.clone());
                let both_captured = wanted == Wanted::Captured && intent.wanted == Wanted::Captured;
                let starting = moment == Moment::Start || intent.starting && both_captured && !is_found;
                let next = Intent { wanted, info, netns, facts, said, bypassed, quarantined, starting };
                let changed = *intent != next;
                *intent = next;
                changed
            });
            return;
        }
        if has_state || wanted == Wanted::Captured && netns.is_some() {
            let starting = moment == Moment::Start;
            let intent = Intent { wanted, info, netns, facts, said, bypassed, quarantined, starting };
            self.spawn(name, &uid, intent, belief);
        }
    }

    /// The receipt of a Bypass on a pod that no task is about: one that started meanwhile gets it, and one that is not in the
    /// mesh at all any more loses it.
    fn keep_receipt(&self, name: &PodName, verdict: &Verdict) {
        let has_task =
            self.pods.contains_key(&verdict.uid) || self.believed.contains_key(&verdict.uid) || verdict.marked;
        if has_task || verdict.wanted != Wanted::Free {
            return;
        }
        match &verdict.bypassed {
            Some(Bypassed { order, told: None, .. }) if verdict.placed => {
                let receipt = OutReceipt {
                    bypass: order.name(),
                    order: order.uid.clone(),
                    time: jiff::Timestamp::now().to_string(),
                    took_ms: 0,
                    carried: 0,
                };
                self.shared.writer.set(name, &verdict.uid, receipt::out(&receipt));
            }
            None if verdict.was_bypassed => {
                self.shared.writer.set(name, &verdict.uid, receipt::annotations(Told::Nothing, None));
            }
            _ => {}
        }
    }

    fn spawn(&mut self, name: &PodName, uid: &str, intent: Intent, belief: Option<Belief>) {
        let (intent, intents) = watch::channel(intent);
        let (status_sender, status) = watch::channel(Status::default());
        let pod = Pod::new(uid, self.shared.clone(), intents, status_sender, belief);
        let ended = Arc::clone(&self.ended);
        let work = async move {
            let _notify = NotifyOnDrop(ended);
            pod.run().await;
        };
        self.tasks.spawn("pod", until_cancelled(self.tasks.token(), work));
        self.pods.insert(uid.to_owned(), Handle { name: name.clone(), intent, status });
    }

    /// Tasks that ended: forgotten, or begun again where the wish changed at the last moment.
    fn collect(&mut self) {
        let ended: Vec<String> =
            self.pods.iter().filter(|(_, handle)| handle.intent.is_closed()).map(|(uid, _)| uid.clone()).collect();
        for uid in ended {
            let Some(handle) = self.pods.remove(&uid) else { continue };
            let intent = handle.intent.borrow().clone();
            if intent.wanted == Wanted::Captured {
                self.spawn(&handle.name, &uid, intent, None);
            }
        }
    }

    /// Takes every pod out of the mesh and forgets what is known; returns when all are out, which the caller bounds.
    pub async fn leave(&mut self) {
        for handle in self.pods.values() {
            handle.intent.send_modify(|intent| {
                if intent.wanted == Wanted::Captured {
                    intent.wanted = Wanted::Free;
                }
            });
        }
        while !self.pods.is_empty() {
            self.ended.notified().await;
            self.pods.retain(|_, handle| !handle.intent.is_closed());
        }
        if let Some(source) = &mut self.probe_source
            && let Err(error) = source.remove()
        {
            tracing::warn!(%error, "the node's rules for probes stay");
        }
        // The account that may write can be gone by now.
        if timeout(LAST_WRITES, self.shared.writer.idle()).await.is_err() {
            tracing::warn!("not every annotation could be taken back");
        }
    }
}

/// The end of a search; never, where there is none. Cancel-safe.
async fn found(search: &mut Option<Search>) -> (BTreeSet<PodName>, HashMap<String, Netns>) {
    let Some(running) = search else { return std::future::pending().await };
    let found = (&mut running.found).await.unwrap_or_default();
    let names = std::mem::take(&mut running.names);
    *search = None;
    (names, found)
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
