//! One pod's way into the mesh and out of it: does what [`super::steps`] says, until the pod is as wanted or gone.
//!
//! One task per pod, owned by the agent. It never gives up: a failed step is tried again with growing delays, and
//! until capture is complete the guard stands. What the agent wants may change at any time and takes effect at once.

mod bypass;
mod follow;
mod show;
mod terms;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use stillmesh_runtime::Backoff;
use stillmesh_runtime::sys::netns::{Netns, NetnsThread};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::older::{self, Connection};
use super::steps::{Guard, Progress, Rules, Step, Told, Tunnel, Wanted, next};
use crate::belief::{Belief, MAX_OLDER};
use crate::handover::Taken;
use crate::metrics::Counted;
use crate::receipt;
use crate::rules::apply::{self, FoundRules, Outcome};
use crate::rules::plan::{self, Facts, Ipv6};

pub use terms::{Intent, Shared, Status, StepError, Times};

/// One pod's state, owned by its task.
pub struct Pod {
    uid: String,
    shared: Shared,
    intents: watch::Receiver<Intent>,
    status: watch::Sender<Status>,
    progress: Progress,
    intent: Intent,
    ipv6: Ipv6,
    older: Vec<Connection>,
    since: Option<String>,
    /// It was captured before any of its containers ran.
    at_start: bool,
    /// When the guard was put up.
    guarded: Option<Instant>,
    /// When the first part of leaving was done.
    left: Option<Instant>,
    taken: Option<watch::Receiver<Taken>>,
    thread: Option<NetnsThread>,
    counted: Counted,
    /// Delays between offers that a tunnel refuses.
    refusals: Backoff,
    /// Connections that the tunnel carried when a Bypass took the pod out.
    carried: usize,
}

/// How long the kernel may take for one step.
const KERNEL: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(5);

impl Pod {
    /// A pod of which nothing is done, or what `belief` says.
    pub fn new(
        uid: &str,
        shared: Shared,
        intents: watch::Receiver<Intent>,
        status: watch::Sender<Status>,
        belief: Option<Belief>,
    ) -> Self {
        let intent = intents.borrow().clone();
        let mut progress = Progress { believed: belief.is_some(), ..Progress::UNKNOWN };
        let inode = intent.netns.as_ref().map(Netns::inode);
        let (mut older, mut since, mut at_start) = (Vec::new(), None, false);
        if let Some(belief) = belief.filter(|belief| Some(belief.netns) == inode && belief.since.is_some()) {
            progress.counted = true;
            (older, since, at_start) = (belief.older, belief.since, belief.at_start);
        }
        let counted = Counted::new(shared.metrics.clone());
        Self {
            uid: uid.to_owned(),
            shared,
            intents,
            status,
            progress,
            ipv6: intent.facts.ipv6,
            intent,
            older,
            since,
            at_start,
            guarded: None,
            left: None,
            taken: None,
            thread: None,
            counted,
            refusals: Backoff::new(FIRST_RETRY, LAST_RETRY),
            carried: 0,
        }
    }

    /// Works until nothing is left to do for a pod that is free or gone. Dropped before that, everything stays as it
    /// is in the kernel.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            self.adopt();
            let wanted = self.wanted();
            if wanted == Wanted::Captured && self.intent.netns.is_none() {
                self.keep().await;
                continue;
            }
            let Some(step) = next(wanted, &self.progress) else {
                if wanted == Wanted::Captured {
                    self.watch().await;
                    continue;
                }
                break;
            };
            self.count(wanted);
            tracing::debug!(pod = %self.name(), ?step, "step");
            match self.perform(step).await {
                Ok(()) => {
                    backoff.reset();
                    self.status.send_if_modified(|status| status.failed.take().is_some());
                }
                Err(error) => {
                    let wait = backoff.next(1.0);
                    self.report(step, &error, wait);
                    tokio::select! {
                        () = sleep(wait) => {}
                        changed = self.intents.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
        self.shared.window.closed(&self.uid);
        let labels = self.labels();
        self.shared.metrics.older_connections.remove(&labels);
        match self.intent.wanted {
            Wanted::Gone => self.shared.writer.forget(&self.pod_name(), &self.uid),
            _ if self.intent.bypassed.is_some() => self.tell_out(),
            // Where its namespace was not at hand nothing has been said yet.
            _ => self.shared.writer.set(&self.pod_name(), &self.uid, receipt::annotations(Told::Nothing, None)),
        }
        tracing::info!(pod = %self.name(), wanted = ?self.wanted(), "the pod is out of the mesh");
    }

    /// A pod that should live on without capture, but whose namespace cannot be found, is beyond us.
    fn wanted(&self) -> Wanted {
        match (self.intent.wanted, &self.intent.netns) {
            (Wanted::Free, None) => Wanted::Gone,
            (wanted, _) => wanted,
        }
    }

    /// Takes over what the agent wants now.
    fn adopt(&mut self) {
        let mut intent = self.intents.borrow_and_update().clone();
        self.keep_told(&mut intent);
        if intent.netns.is_some() && intent.netns != self.intent.netns {
            // The sandbox was made anew: nothing of what was done holds there.
            let believed = self.progress.believed;
            self.progress = Progress { believed, ..Progress::UNKNOWN };
            self.thread = None;
            self.older.clear();
            self.since = None;
        } else if intent.facts != self.intent.facts {
            self.progress.inspected = false;
            // The receipt names the rules.
            self.progress.told = Told::Unknown;
        }
        let (captured, told) = (intent.wanted == Wanted::Captured, self.progress.told);
        let lost = intent.said != self.intent.said && self.intent.said.as_deref() == says(told);
        if captured && (lost || self.intent.wanted != Wanted::Captured) {
            // Somebody else has written, or may have meanwhile.
            self.progress.told = Told::Unknown;
        }
        self.intent = intent;
    }

    fn facts(&self) -> Facts {
        Facts { ipv6: self.ipv6, ..self.intent.facts.clone() }
    }

    async fn perform(&mut self, step: Step) -> Result<(), StepError> {
        match step {
            Step::Inspect => self.inspect().await,
            Step::Believe => self.believe().await,
            Step::RaiseGuard => {
                let facts = self.facts();
                self.inside(move || apply::raise_guard(&facts)).await??;
                self.progress.guard = Guard::Up;
                self.shared.window.guarded(&self.uid);
                self.guarded = Some(Instant::now());
                Ok(())
            }
            Step::CountOlder => self.count_older().await,
            Step::InstallRules => {
                let plan = plan::capture(&self.facts());
                let outcome = self.inside(move || apply::install(&plan)).await??;
                if outcome == Outcome::Changed {
                    tracing::info!(pod = %self.name(), older = self.older.len(), "rules are in force");
                }
                self.progress.rules = Rules::Capturing;
                Ok(())
            }
            Step::Offer => {
                let netns = self.intent.netns.clone();
                self.taken = Some(self.shared.handover.offer(&self.uid, self.intent.info.clone(), netns));
                self.progress.tunnel = Tunnel::Offered;
                Ok(())
            }
            Step::AwaitTunnel => {
                self.await_tunnel().await;
                Ok(())
            }
            Step::LowerGuard => {
                self.inside(apply::lower_guard).await??;
                self.progress.guard = Guard::Down;
                if let Some(since) = self.guarded.take() {
                    self.shared.metrics.guarded.observe(since.elapsed().as_secs_f64());
                }
                Ok(())
            }
            Step::Tell(told) => self.tell(told).await,
            Step::StopRedirects => {
                let plan = plan::leave(&self.facts());
                self.inside(move || apply::install(&plan)).await??;
                self.left = Some(Instant::now());
                let progress = &mut self.progress;
                (progress.rules, progress.counted) = (Rules::Leaving, false);
                (progress.settled, progress.drained) = (false, false);
                self.older.clear();
                self.since = None;
                self.count_carried().await;
                self.tell_out();
                Ok(())
            }
            Step::Settle => {
                if !self.wait_for(self.shared.times.settle).await {
                    self.progress.settled = true;
                }
                Ok(())
            }
            Step::TakeBack => {
                self.shared.handover.take_back(&self.uid);
                self.taken = None;
                self.progress.tunnel = Tunnel::Unoffered;
                Ok(())
            }
            Step::AwaitDrain => self.await_drain().await,
            Step::RemoveRules => {
                self.inside(apply::remove).await??;
                self.progress.rules = Rules::Absent;
                Ok(())
            }
            Step::Forget => {
                let (beliefs, uid) = (self.shared.beliefs.clone(), self.uid.clone());
                blocking(move || beliefs.delete(&uid)).await.map_err(StepError::Belief)?;
                self.progress.believed = false;
                Ok(())
            }
        }
    }

    async fn inspect(&mut self) -> Result<(), StepError> {
        let facts = self.intent.facts.clone();
        let found = self.inside(move || apply::inspect(&facts)).await??;
        self.ipv6 = found.ipv6;
        let before = self.progress.rules;
        let progress = &mut self.progress;
        progress.guard = if found.guard { Guard::Up } else { Guard::Down };
        progress.rules = match found.rules {
            FoundRules::Capturing => Rules::Capturing,
            FoundRules::Different => Rules::Stale,
            FoundRules::Leaving => Rules::Leaving,
            FoundRules::Nothing => Rules::Absent,
            // Parts that do not capture: for a pod that stays, as if absent; for one that leaves, to be taken out.
            FoundRules::Damaged if self.intent.wanted == Wanted::Captured => Rules::Absent,
            FoundRules::Damaged => Rules::Leaving,
        };
        if !matches!(progress.rules, Rules::Capturing | Rules::Stale) {
            // New connections may have opened in the clear.
            progress.counted = false;
        }
        if before == Rules::Capturing && progress.rules != Rules::Capturing {
            self.shared.metrics.repairs.inc();
            tracing::warn!(pod = %self.name(), found = ?found.rules, "the pod's rules were changed by somebody else");
        }
        self.progress.inspected = true;
        if found.guard || matches!(self.progress.rules, Rules::Capturing | Rules::Stale) {
            self.shared.window.closed(&self.uid);
        }
        Ok(())
    }

    async fn count_older(&mut self) -> Result<(), StepError> {
        let sockets = self.inside(older::sockets).await?.map_err(StepError::Sockets)?;
        self.older = older::uncaptured(&self.facts(), &sockets);
        self.progress.counted = true;
        self.show_older();
        Ok(())
    }

    async fn await_tunnel(&mut self) {
        let Some(taken) = &mut self.taken else {
            self.progress.tunnel = Tunnel::Unoffered;
            return;
        };
        let now = taken.borrow_and_update().clone();
        let reason: Arc<str> = match now {
            Taken::Accepted => {
                (self.progress.tunnel, self.progress.waited) = (Tunnel::Accepted, false);
                self.refusals.reset();
                return;
            }
            Taken::Waiting if self.shared.handover.tunnels() == 0 => "no ztunnel is connected".into(),
            Taken::Waiting => "ztunnel has not answered".into(),
            Taken::Refused(ref reason) => format!("ztunnel refused the pod: {reason}").into(),
        };
        self.status.send_modify(|status| status.waiting_for = Some(reason));
        let refused = matches!(now, Taken::Refused(_));
        let first = !refused && !self.progress.waited;
        let wait = match (refused, first) {
            (true, _) => self.refusals.next(1.0),
            (false, true) => FIRST_WAIT,
            (false, false) => self.shared.times.offer,
        };
        tokio::select! {
            _ = taken.changed() => {}
            _ = self.intents.changed() => {}
            () = sleep(wait) => {
                self.progress.waited = true;
                if !first {
                    self.progress.tunnel = Tunnel::Unoffered;
                }
            }
        }
    }

    async fn await_drain(&mut self) -> Result<(), StepError> {
        // An agent that finds a pod leaving gives it the whole time again.
        let left = *self.left.get_or_insert_with(Instant::now);
        let cut = self.shared.leaving.get().is_some_and(|cut| Instant::now() >= *cut);
        let over = cut || left.elapsed() >= self.shared.times.drain;
        let sockets = self.inside(older::sockets).await?.map_err(StepError::Sockets)?;
        let open = older::in_tunnel(&sockets);
        if open == 0 || over {
            if open > 0 {
                tracing::info!(pod = %self.name(), open, "the pod leaves with connections in the tunnel");
            }
            self.progress.drained = true;
            return Ok(());
        }
        self.wait_for(DRAIN_POLL).await;
        Ok(())
    }

    /// Writes what the annotation is to say; the rest happens in the background.
    async fn tell(&mut self, told: Told) -> Result<(), StepError> {
        // Before peers dial it in clear text it must take that, and redirects stop right after this.
        if told == Told::Nothing && self.waits_for_peers().await {
            return Ok(());
        }
        if told == Told::Enabled {
            if self.since.is_none() {
                self.since = Some(jiff::Timestamp::now().to_string());
                self.at_start = self.intent.starting;
            }
            self.save().await?;
        }
        let receipt = (told == Told::Enabled).then(|| self.receipt()).flatten();
        let mut annotations = receipt::annotations(told, receipt.as_ref());
        if told == Told::Nothing && self.intent.bypassed.is_some() {
            // It gets its receipt when it is out.
            annotations.remove(receipt::RECEIPT);
        }
        self.shared.writer.set(&self.pod_name(), &self.uid, annotations);
        self.progress.told = told;
        if let (Told::Enabled, Some(netns)) = (told, &self.intent.netns) {
            let inode = netns.inode();
            self.status.send_replace(Status { captured: Some(inode), ..Status::default() });
            tracing::info!(pod = %self.name(), older = self.older.len(), "the pod is captured");
        } else {
            self.status.send_modify(|status| status.captured = None);
        }
        Ok(())
    }

    async fn believe(&mut self) -> Result<(), StepError> {
        self.save().await?;
        self.progress.believed = true;
        Ok(())
    }

    async fn save(&self) -> Result<(), StepError> {
        let belief = Belief {
            uid: self.uid.clone(),
            namespace: self.intent.info.namespace.clone(),
            name: self.intent.info.name.clone(),
            netns: self.intent.netns.as_ref().map(Netns::inode).unwrap_or_default(),
            since: self.since.clone(),
            at_start: self.at_start,
            older: self.older.iter().take(MAX_OLDER).copied().collect(),
        };
        let beliefs = self.shared.beliefs.clone();
        blocking(move || beliefs.save(&belief)).await.map_err(StepError::Belief)
    }

    /// Whether the intent changed within the time. Cancel-safe.
    async fn wait_for(&mut self, time: Duration) -> bool {
        timeout(time, self.intents.changed()).await.is_ok()
    }

    /// Runs `work` in the pod's namespace.
    async fn inside<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StepError> {
        if self.thread.is_none() {
            let Some(netns) = self.intent.netns.clone() else {
                return Err(StepError::Namespace(io::ErrorKind::NotFound.into()));
            };
            self.thread = Some(NetnsThread::spawn("pod-netns", netns).map_err(StepError::Namespace)?);
        }
        let Some(thread) = &self.thread else {
            return Err(StepError::Namespace(io::ErrorKind::NotFound.into()));
        };
        let result = timeout(KERNEL, thread.run(work)).await;
        match result {
            Ok(Ok(value)) => Ok(value),
            failed => {
                // Whatever it is doing, the next step gets a thread that is not.
                self.thread = None;
                Err(failed.map_or(StepError::Slow(KERNEL), |result| match result {
                    Ok(_) => StepError::Slow(KERNEL),
                    Err(source) => StepError::Namespace(source),
                }))
            }
        }
    }
}

/// What the annotation says then.
fn says(told: Told) -> Option<&'static str> {
    match told {
        Told::Enabled => Some("enabled"),
        Told::Pending => Some("pending"),
        Told::Unknown | Told::Nothing => None,
    }
}

/// How long a tunnel may take before the pod is said to be pending.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const DRAIN_POLL: Duration = Duration::from_millis(250);

/// Work on the disk, off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
