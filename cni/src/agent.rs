//! The agent: one owner of every pod's task, told by the source of objects and by the plugin.
//!
//! Order at its start: what is believed is read, then the objects; pods that are to be captured and are not go under
//! the guard at once; pods that are go on undisturbed; only then may a tunnel connect, because it drops every pod that
//! it is not told of.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::{Method, StatusCode};
use stillmesh_api::zds;
use stillmesh_objects::directory::{DirectorySource, Options};
use stillmesh_objects::{Source, Update};
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::drain::Watch;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::sys::unix;
use stillmesh_runtime::telemetry::metrics::{CONTENT_TYPE, Metrics as Registry};
use stillmesh_runtime::{Tasks, accept};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::belief::{Belief, Beliefs};
use crate::enroll::pod::{Intent, Pod, Shared, Status, Times};
use crate::enroll::steps::Wanted;
use crate::handover::Handover;
use crate::intake::{self, Start, Started};
use crate::metrics::Metrics;
use crate::netns::{Directory, Locate};
use crate::world::{Verdict, World};
use crate::writeback::{PodName, Writer};

/// How often namespaces of pods are looked for that were not there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long tasks may take to end. They change nothing when cut: whatever is in place stays.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Runs the agent until `drain` starts or its source of objects ends. Rules stay in place: running pods do not notice.
pub async fn run(config: Config, drain: Watch) -> anyhow::Result<()> {
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry);
    let tasks = Tasks::new("agent");
    let health = Health::default();
    if let Some(address) = config.metrics_address {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address} (METRICS_ADDRESS)"))?;
        tasks.spawn("monitoring", monitoring(registry, health.clone()).serve(listener, drain.clone()));
    }
    let writer = Writer::default();
    let (api_socket, write_metrics) = (config.api_socket.clone(), metrics.clone());
    let writing = writer.clone();
    let write = async move { writing.serve(api_socket.as_deref(), write_metrics).await };
    tasks.spawn("writer", until_cancelled(tasks.token(), write));

    let beliefs = Beliefs::open(&config.state_dir)
        .with_context(|| format!("cannot use the state directory {}", config.state_dir.display()))?;
    let source = DirectorySource::open(&config.objects_dir, Options::default())
        .with_context(|| format!("cannot watch {}", config.objects_dir.display()))?;
    let handover = Handover::new(metrics.clone());
    let shared = Shared { handover: handover.clone(), beliefs, writer, metrics, times: Times::default() };
    let mut agent = Agent::new(&config, shared, Box::new(Directory::new(&config.netns_dir)), &tasks)?;
    let mut source = source;
    tokio::select! {
        known = agent.learn(&mut source) => known?,
        _ = drain.signaled() => return Ok(()),
    }

    let (starts, queue) = mpsc::channel(intake::QUEUE);
    let plugin = unix::listen(&config.plugin_socket, SOCKET_MODE)
        .and_then(tokio::net::UnixListener::from_std)
        .with_context(|| format!("cannot listen on {}", config.plugin_socket.display()))?;
    let tunnels = zds::Listener::bind(&config.zds_socket)
        .with_context(|| format!("cannot listen on {}", config.zds_socket.display()))?;
    let plugin = accept::Listener::from(plugin);
    let server = intake::server(starts, agent.shared.metrics.clone());
    tasks.spawn("plugin", server.serve(plugin, drain.clone()));
    tasks.spawn("zds", until_cancelled(tasks.token(), handover.serve(tunnels)));
    health.ready.store(true, Ordering::Release);
    tracing::info!(node = config.node, pods = agent.pods.len(), "the agent is ready");

    let ended = tokio::select! {
        ended = agent.work(&mut source, queue) => ended,
        _ = drain.signaled() => Ok(()),
    };
    health.ready.store(false, Ordering::Release);
    tracing::info!("the agent ends; what it put in place stays");
    tasks.shutdown(SHUTDOWN).await;
    ended
}

/// Only the agent's own user.
const SOCKET_MODE: u32 = 0o600;

#[derive(Clone, Default)]
struct Health {
    ready: Arc<AtomicBool>,
}

fn monitoring(registry: Registry, health: Health) -> Server {
    let metrics = move |_: Request| {
        let text = registry.encode();
        async move { Response::new(StatusCode::OK, CONTENT_TYPE, text) }
    };
    let ready = move |_: Request| {
        let ready = health.ready.load(Ordering::Acquire);
        async move {
            if ready {
                Response::text(StatusCode::OK, "ready\n")
            } else {
                Response::text(StatusCode::SERVICE_UNAVAILABLE, "not ready, pending: objects\n")
            }
        }
    };
    let alive = |_: Request| async { Response::text(StatusCode::OK, "ok\n") };
    Server::new("monitoring").route(Method::GET, "/metrics", metrics).route(Method::GET, "/readyz", ready).route(
        Method::GET,
        "/healthz",
        alive,
    )
}

/// Every pod of the node that is, was, or is to be in the mesh.
struct Agent {
    shared: Shared,
    world: World,
    locate: Box<dyn Locate>,
    /// What was believed at the start, of pods that have no task yet.
    believed: HashMap<String, Belief>,
    /// By UID.
    pods: HashMap<String, Handle>,
    /// Pods that are to be captured and have no namespace yet.
    homeless: BTreeSet<PodName>,
    /// A pod's task ended.
    ended: Arc<Notify>,
    tasks: Tasks,
}

struct Handle {
    name: PodName,
    intent: watch::Sender<Intent>,
    status: watch::Receiver<Status>,
}

impl Agent {
    fn new(config: &Config, shared: Shared, locate: Box<dyn Locate>, tasks: &Tasks) -> anyhow::Result<Self> {
        let beliefs = shared.beliefs.load().context("cannot read the state directory")?;
        let believed = beliefs.into_iter().map(|belief| (belief.uid.clone(), belief)).collect();
        let world = World::new(config.node.clone(), config.enrolment.clone(), config.dns);
        Ok(Self {
            shared,
            world,
            locate,
            believed,
            pods: HashMap::new(),
            homeless: BTreeSet::new(),
            ended: Arc::default(),
            tasks: tasks.child("pods"),
        })
    }

    /// Waits for the first complete set of objects and takes it as the truth: what is believed of other pods is
    /// deleted, and every pod that a tunnel may have is offered.
    async fn learn(&mut self, source: &mut DirectorySource) -> anyhow::Result<()> {
        loop {
            let update = source.next().await.context("the source of objects ended")?;
            let complete = update.complete;
            self.world.apply(update.changes, &self.shared.metrics);
            if complete {
                break;
            }
        }
        let names: Vec<PodName> = self.world.pods().cloned().collect();
        for name in &names {
            self.offer_believed(name);
            self.reconcile(name);
        }
        for (uid, belief) in std::mem::take(&mut self.believed) {
            tracing::info!(uid, pod = belief.name, "a pod that was believed captured is gone");
            if let Err(error) = self.shared.beliefs.delete(&uid) {
                tracing::warn!(uid, %error, "what is believed of a pod cannot be deleted");
            }
        }
        Ok(())
    }

    /// A tunnel may have this pod from an earlier agent: it must be told of it first thing.
    fn offer_believed(&mut self, name: &PodName) {
        let Some(verdict) = self.world.verdict(name) else { return };
        let believed = self.believed.get(&verdict.uid).is_some_and(|belief| belief.since.is_some());
        if verdict.wanted == Wanted::Captured && (believed || verdict.marked) {
            let netns = self.find(&verdict.uid);
            // Its task takes the answer.
            drop(self.shared.handover.offer(&verdict.uid, verdict.info, netns));
        }
    }

    async fn work(&mut self, source: &mut DirectorySource, mut starts: mpsc::Receiver<Start>) -> anyhow::Result<()> {
        let mut look_again = interval(LOOK_AGAIN);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = Arc::clone(&self.ended);
        loop {
            tokio::select! {
                update = source.next() => match update {
                    Some(update) => self.update(update),
                    None => anyhow::bail!("the source of objects ended"),
                },
                Some(start) = starts.recv() => self.start(start),
                () = ended.notified() => self.collect(),
                _ = look_again.tick() => {
                    for name in std::mem::take(&mut self.homeless) {
                        self.reconcile(&name);
                    }
                }
            }
        }
    }

    fn update(&mut self, update: Update) {
        for name in self.world.apply(update.changes, &self.shared.metrics) {
            self.reconcile(&name);
        }
    }

    /// The plugin has a pod that is about to start.
    fn start(&mut self, start: Start) {
        let answer = match self.world.verdict(&start.pod) {
            None => Started::Unknown,
            Some(verdict) => match verdict.reason {
                Some(reason) => Started::NotEnrolled(reason.to_string()),
                None => {
                    let uid = verdict.uid.clone();
                    self.wish(&start.pod, verdict, Some(start.netns));
                    match self.pods.get(&uid) {
                        Some(handle) => Started::Working(handle.status.clone()),
                        None => Started::Unknown,
                    }
                }
            },
        };
        // Who asked may have given up.
        let _ = start.answer.send(answer);
    }

    /// Makes a pod's task want what the objects say.
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
            return;
        };
        let netns = self.find(&verdict.uid);
        self.wish(name, verdict, netns);
    }

    fn wish(&mut self, name: &PodName, verdict: Verdict, netns: Option<Netns>) {
        let Verdict { uid, wanted, marked, info, facts, .. } = verdict;
        let belief = self.believed.remove(&uid);
        if let Some(handle) = self.pods.get(&uid) {
            handle.intent.send_if_modified(|intent| {
                let netns = netns.or_else(|| intent.netns.clone());
                let next = Intent { wanted, info, netns, facts };
                let changed = *intent != next;
                *intent = next;
                changed
            });
            return;
        }
        let has_state = marked || belief.is_some();
        match (wanted, &netns) {
            (Wanted::Captured, None) => {
                // Not running yet, or its namespace cannot be found: the plugin or the next look brings it.
                self.homeless.insert(name.clone());
                if !has_state {
                    return;
                }
            }
            (Wanted::Captured, Some(_)) => {
                self.homeless.remove(name);
            }
            (Wanted::Free | Wanted::Gone, _) => {
                self.homeless.remove(name);
                if !has_state {
                    return;
                }
            }
        }
        self.spawn(name, &uid, Intent { wanted, info, netns, facts }, belief);
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

    fn find(&self, uid: &str) -> Option<Netns> {
        self.locate.locate(uid).unwrap_or_else(|error| {
            tracing::warn!(uid, %error, "the network namespace of a pod cannot be opened");
            None
        })
    }
}

/// Runs until done or the agent ends, which may stop it anywhere.
async fn until_cancelled(token: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = token.cancelled() => {}
        () = work => {}
    }
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
