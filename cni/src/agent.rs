//! The agent: one owner of every pod's task, told by the source of objects and by the plugin.
//!
//! Order at its start: what is believed is read, and probes are told by it; then the objects; pods that are to be captured and are not go under
//! the guard at once; pods that are go on undisturbed; only then may a tunnel connect, because it drops every pod that
//! it is not told of. In a cluster the plugin is installed last: by then somebody answers it.

mod ending;
mod health;
mod node;
mod pods;
pub mod precheck;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stillmesh_api::zds;
use stillmesh_objects::Source;
use stillmesh_objects::directory::{DirectorySource, Options};
use stillmesh_runtime::drain::Watch;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::sys::{socket, unix};
use stillmesh_runtime::telemetry::metrics::Metrics as Registry;
use stillmesh_runtime::{Tasks, accept};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::belief::Beliefs;
use crate::config::{Around, Machine};
use crate::enroll::pod::{Shared, Times};
use crate::handover::Handover;
use crate::intake::{self, Ask, Desk};
use crate::metrics::Metrics;
use crate::netns::{Directory, Opener};
use crate::writeback::{Sink, Writer};
use health::Health;
use pods::Pods;

/// How long tasks may take to end. They change nothing when cut: whatever is in place stays.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Beside the socket of tunnels: where they ask about probes.
const PROBES_SOCKET: &str = "probes.sock";
/// Where the node's tunnel keeps its flows, beside its socket.
const FLOWS: &str = "flows.json";
/// Only the agent's own user.
const SOCKET_MODE: u32 = 0o600;

/// Runs the agent until `drain` starts or its source of objects ends. Rules stay in place, so that running pods do not
/// notice, unless the agent is being taken out of its cluster.
pub async fn run(config: Config, drain: Watch) -> anyhow::Result<()> {
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry);
    let tasks = Tasks::new("agent");
    let health = Health::pending("objects");
    if let Some(address) = config.metrics_address {
        let listener = socket::listen(address);
        let listener = listener.with_context(|| format!("cannot listen on {address} (METRICS_ADDRESS)"))?;
        tasks.spawn("monitoring", health::monitoring(registry, health.clone()).serve(listener, drain.clone()));
    }
    if let Some(address) = config.health_address {
        let listener = socket::listen(address);
        let listener = listener.with_context(|| format!("cannot listen on {address} (HEALTH_ADDRESS)"))?;
        tasks.spawn("health", health::probes("health", health.clone()).serve(listener, drain.clone()));
    }
    let beliefs = Beliefs::open(&config.state_dir)
        .with_context(|| format!("cannot use the state directory {}", config.state_dir.display()))?;
    let shared = Shared {
        handover: Handover::new(metrics.clone()),
        beliefs,
        writer: Writer::default(),
        window: crate::enroll::window::Window::new(metrics.clone()),
        metrics,
        times: Times::default(),
        leaving: Arc::default(),
    };
    let agent = Agent { config, shared, tasks, health, drain };
    let around = agent.config.around.clone();
    let ended = match around {
        Around::Machine(machine) => agent.on_machine(&machine).await,
        Around::Node(node) => agent.on_node(&node).await,
    };
    agent.health.set("running", Some("the agent ends".to_owned()));
    agent.tasks.shutdown(SHUTDOWN).await;
    ended
}

struct Agent {
    config: Config,
    shared: Shared,
    tasks: Tasks,
    health: Health,
    drain: Watch,
}

impl Agent {
    async fn on_machine(&self, machine: &Machine) -> anyhow::Result<()> {
        self.write_to(machine.api_socket.as_deref().map_or(Sink::None, Sink::machine));
        let mut source = DirectorySource::open(&machine.objects_dir, Options::default())
            .with_context(|| format!("cannot watch {}", machine.objects_dir.display()))?;
        let locate = Arc::new(Directory::new(&machine.netns_dir));
        let mut pods = Pods::new(&self.config, self.shared.clone(), locate, &self.tasks)?;
        let (asks, mut asked) = mpsc::channel(intake::QUEUE);
        let desk = Desk {
            asks,
            questions: None,
            opener: Opener::default(),
            writer: self.shared.writer.clone(),
            metrics: self.shared.metrics.clone(),
        };
        if self.begin(&mut pods, &mut source, desk).await? {
            self.health.set("objects", None);
            tracing::info!(node = self.config.node, pods = pods.len(), "the agent is ready");
            self.work(&mut pods, &mut source, &mut asked).await?;
        }
        tracing::info!("the agent ends; what it put in place stays");
        Ok(())
    }

    fn write_to(&self, sink: Sink) {
        let (writer, metrics) = (self.shared.writer.clone(), self.shared.metrics.clone());
        self.tasks.spawn("writer", until_cancelled(self.tasks.token(), writer.serve(sink, metrics)));
    }

    /// Learns what there is, then listens. `false`: the agent is to end before that.
    async fn begin(&self, pods: &mut Pods, source: &mut impl Source, desk: Desk) -> anyhow::Result<bool> {
        let (early, asks) = (pods.knows_probes(), desk.asks.clone());
        if early {
            self.answer_probes(pods, asks.clone())?;
        }
        tokio::select! {
            known = pods.learn(source) => known?,
            _ = self.drain.signaled() => return Ok(false),
        }
        if !early {
            self.answer_probes(pods, asks)?;
        }
        let (plugin, zds) = (&self.config.plugin_socket, &self.config.zds_socket);
        let tunnels = zds::Listener::bind(zds).with_context(|| {
            format!("cannot listen on {}; no other agent may serve this node's ztunnel", zds.display())
        })?;
        let plugin = unix::listen(plugin, SOCKET_MODE)
            .and_then(tokio::net::UnixListener::from_std)
            .with_context(|| format!("cannot listen on {}", plugin.display()))?;
        let server = intake::server(desk);
        self.tasks.spawn("plugin", server.serve(accept::Listener::from(plugin), self.drain.clone()));
        let handover = self.shared.handover.clone();
        self.tasks.spawn("zds", until_cancelled(self.tasks.token(), handover.serve(tunnels)));
        Ok(true)
    }

    /// Tells tunnels which connections are probes, and hears which pods they have cut off.
    fn answer_probes(&self, pods: &Pods, asks: mpsc::Sender<Ask>) -> anyhow::Result<()> {
        let host = Netns::current().context("cannot open the node's network namespace")?;
        let proc = match &self.config.around {
            Around::Machine(_) => PathBuf::from("/proc"),
            Around::Node(node) => node.proc_dir.clone(),
        };
        let socket = self.config.zds_socket.with_file_name(PROBES_SOCKET);
        let answering = pods.probes().serve(socket, host, proc, asks);
        self.tasks.spawn("probes", until_cancelled(self.tasks.token(), answering));
        Ok(())
    }

    /// Until the agent is to end.
    async fn work(
        &self,
        pods: &mut Pods,
        source: &mut impl Source,
        asked: &mut mpsc::Receiver<Ask>,
    ) -> anyhow::Result<()> {
        tokio::select! {
            ended = pods.work(source, asked) => ended,
            _ = self.drain.signaled() => Ok(()),
        }
    }
}

/// Runs until done or the agent ends, which may stop it anywhere.
async fn until_cancelled(token: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = token.cancelled() => {}
        () = work => {}
    }
}
