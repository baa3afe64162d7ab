//! Start and end of the process: constructs, connects, spawns. No logic of its own.

use std::sync::Arc;

use anyhow::Context as _;
use stillmesh_api::xds::{Client, NodeInfo, Status};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_proxy::decisions::now_us;
use stillmesh_proxy::flows;
use stillmesh_proxy::series::Budget;
use stillmesh_proxy::{Publisher, Readiness, Writer, readiness};
use stillmesh_records::Recorder;
use stillmesh_runtime::drain::{self, Mode, Watch};
use stillmesh_runtime::sys::socket;
use stillmesh_runtime::tasks::Tasks;
use stillmesh_runtime::telemetry;
use stillmesh_runtime::telemetry::metrics::Metrics as Registered;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::capture::{Pods, zds};
use crate::config::{self, Config};
use crate::dns::resolv::Resolv;
use crate::enforce::Enforcer;
use crate::lookup::Snapshots;
use crate::memory;
use crate::node::{Node, Parts};
use crate::quarantine::{self, CutOff};
use crate::record::metrics::Metrics;
use crate::record::span::{self, Hops};
use crate::record::{ACCESS, Ledger};
use crate::tunnel::Identities;
use crate::workers::Workers;

/// Names of the readiness page's tasks.
const STATE_MANAGER: &str = "state manager";
const WORKLOAD_PROXY_MANAGER: &str = "workload proxy manager";

/// How long a collector of spans is waited for at the end.
const LAST_SPANS: std::time::Duration = std::time::Duration::from_secs(2);

/// The whole program: environment, log, runtime, signals, [`run`]. Blocks until it has drained.
pub fn main() -> anyhow::Result<()> {
    telemetry::init("ztunnel")?;
    // Before the runtime: what ends with it still has its line.
    let _last_lines = telemetry::defer(ACCESS).context("no thread for the access log")?;
    let config = Config::from_env()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the runtime does not start")?;
    let grace = config.drain;
    runtime.block_on(async move {
        let (trigger, watch) = drain::channel();
        let running = run(config, watch);
        tokio::pin!(running);
        let mut terminate = signal(SignalKind::terminate()).context("signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
        tokio::select! {
            ended = &mut running => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(?grace, "draining");
        trigger.start(Mode::Graceful, grace);
        tokio::select! {
            ended = &mut running => ended,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

/// Runs the node tunnel until `watch` says that it is time to end; then drains until the signal's deadline.
pub async fn run(config: Config, watch: Watch) -> anyhow::Result<()> {
    let tasks = Tasks::new("ztunnel");
    let readiness = Readiness::default();
    readiness.wait_for(STATE_MANAGER);
    readiness.wait_for(WORKLOAD_PROXY_MANAGER);

    let registered = Registered::new();
    let budget = Budget::new(config.max_series);
    let metrics = registered.register(|registry| Metrics::new(registry, &config.version, &budget));
    let counted = metrics.clone();
    telemetry::on_lost(move |lines| {
        counted.lines_lost.inc_by(lines);
    });
    let ledger = Ledger::new(metrics.clone(), recorder(&config));
    let initial = Snapshot::empty(config.network.as_str());
    let snapshots = Arc::new(Snapshots::new(initial.clone()));
    let cut_off = Arc::new(CutOff::new(&config.node));
    let enforcer = Enforcer::new(ledger.clone(), cut_off.clone());
    let (writer, publisher) =
        Writer::new(initial, config.unknown_policies, snapshots.clone(), enforcer, metrics.xds.clone());
    tasks.spawn("snapshots", writer.run());

    let workers = Workers::start(config.workers.0).context("worker threads")?;
    let runtimes = workers.handles().chain([Handle::current()]).collect();
    registered.register(|registry| registry.register_collector(telemetry::metrics::runtimes(runtimes)));
    let identities = Identities::new(&config, &tasks);
    let resolv = Resolv::read(Resolv::PATH);
    let node = Node::new(Parts { config, snapshots, identities, ledger, workers, resolv });

    if let Some(path) = node.config.flows.clone() {
        let ledger = node.ledger.clone();
        tasks.spawn("flows", flows::keep(move || ledger.records().flows(), path, tasks.token()));
    }

    if let Some(told) = &node.config.hop_spans {
        let batches = Hops::begin(&node.ledger, told);
        tasks.spawn("spans", until_cancelled(tasks.token(), span::run(batches, node.clone(), told.clone())));
    }

    let pods = Pods::new(node.clone(), tasks.child("pods"));
    tasks.spawn("quarantines", quarantine::tell(node.clone(), pods.table(), cut_off, tasks.token()));
    tasks.spawn("memory", until_cancelled(tasks.token(), memory::let_go(node.clone(), readiness.clone())));
    let quit = CancellationToken::new();
    let (servers_end, servers) = drain::channel();
    let levels = telemetry::init("ztunnel").ok();
    let admin = Admin { node: node.clone(), pods: pods.table(), levels, quit: quit.clone() };
    serve(&tasks, admin, registered, readiness.clone(), &servers)?;
    drop(servers);

    let mut status = control_plane(&tasks, &node, publisher);
    let serving = async {
        if status.wait_for(|status| status.ready).await.is_err() {
            return;
        }
        readiness.done(STATE_MANAGER);
        if node.config.mode == config::Mode::Off {
            readiness.done(WORKLOAD_PROXY_MANAGER);
            return std::future::pending().await;
        }
        let (ready, is_ready) = watch::channel(false);
        let following = follow(is_ready, readiness.clone());
        let mut agents = pods.clone();
        agents.find_predecessor().await;
        tokio::join!(zds::run(&node.config.zds, &mut agents, &ready), following);
    };
    let grace = tokio::select! {
        signal = watch.signaled() => signal.left(),
        () = quit.cancelled() => node.config.drain,
        () = serving => anyhow::bail!("the control plane's client ended"),
    };
    // Not ready first: who chooses among ztunnels should stop choosing this one.
    readiness.wait_for("drain");
    pods.stop_all(grace).await;
    if let Some(hops) = node.ledger.hops() {
        hops.flush(LAST_SPANS).await;
    }
    servers_end.start(Mode::Immediate, std::time::Duration::ZERO);
    tasks.shutdown(std::time::Duration::from_secs(1)).await;
    tracing::info!("drained");
    Ok(())
}

/// What is kept of what was decided, with the flows of the process before.
fn recorder(config: &Config) -> Recorder {
    let recorder = Recorder::with_flows(config.records_bytes, config.flows_bytes, now_us());
    if let Some(path) = &config.flows {
        flows::restore(&recorder, path);
    }
    recorder
}

fn serve(
    tasks: &Tasks,
    admin: Admin,
    registered: Registered,
    readiness: Readiness,
    watch: &Watch,
) -> anyhow::Result<()> {
    let node = admin.node.clone();
    let config = &node.config;
    let bind = |address| socket::listen(address).with_context(|| format!("cannot listen on {address}"));
    let (admin_port, stats, ready) = (bind(config.admin)?, bind(config.stats)?, bind(config.readiness)?);
    tasks.spawn("admin", admin::server(admin).serve(admin_port, watch.clone()));
    tasks.spawn("metrics", admin::metrics_server(node.clone(), registered).serve(stats, watch.clone()));
    tasks.spawn("readiness", readiness::server(readiness).serve(ready, watch.clone()));
    Ok(())
}

/// Follows the control plane for ever.
fn control_plane(tasks: &Tasks, node: &Arc<Node>, publisher: Publisher) -> watch::Receiver<Status> {
    let config = &node.config;
    let info = NodeInfo::ztunnel(
        &config.pod_name,
        &config.pod_namespace,
        &config.node,
        config.instance_ip,
        &config.cluster_domain,
    )
    .with(config.metadata.clone());
    let client = Client::new(config.xds.clone(), info);
    let status = client.status();
    tasks.spawn("xds", client.run(publisher, tasks.token()));
    tasks.spawn("xds status", node.metrics.xds.clone().count_terminations(status.clone()));
    status
}

async fn until_cancelled(cancel: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = cancel.cancelled() => {}
    }
}

async fn follow(mut ready: watch::Receiver<bool>, readiness: Readiness) {
    loop {
        readiness.set(WORKLOAD_PROXY_MANAGER, *ready.borrow_and_update());
        if ready.changed().await.is_err() {
            return;
        }
    }
}
