//! Start and end of the process: constructs, connects, spawns. No logic of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stillmesh_api::ca;
use stillmesh_api::xds::{Client, NodeInfo};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_identity::ca::OwnIdentity;
use stillmesh_identity::{Revocations, SecretLimits, Secrets, SystemClock};
use stillmesh_proxy::flows;
use stillmesh_proxy::series::Budget;
use stillmesh_proxy::{Readiness, Snapshots, Writer, readiness, revocations};
use stillmesh_runtime::drain::{self, Mode, Watch};
use stillmesh_runtime::sys::socket;
use stillmesh_runtime::tasks::Tasks;
use stillmesh_runtime::telemetry;
use stillmesh_runtime::telemetry::metrics::Metrics as Registered;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::clients::{Clients, Enforcer};
use crate::config::Config;
use crate::record::Metrics;
use crate::waypoint::{Parts, Waypoint};
use crate::{admin, capture};

/// Names of the readiness page's tasks.
const STATE_MANAGER: &str = "state manager";
const CERTIFICATE: &str = "certificate";
const DRAIN: &str = "drain";

/// The target of our own access log.
const ACCESS: &str = "access";

/// How long access logs are waited for at the end.
const LAST_LINES: Duration = Duration::from_millis(500);

/// How long collectors of spans and logs are waited for at the end.
const LAST_EXPORTS: Duration = Duration::from_secs(2);

/// The whole program: environment, log, runtime, signals, [`run`]. Blocks until it has drained.
pub fn main() -> anyhow::Result<()> {
    telemetry::init("waypoint")?;
    // Before the runtime: what ends with it still has its line.
    let _last_lines = telemetry::defer(ACCESS).context("no thread for the access log")?;
    let config = Config::from_env()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("waypoint")
        .enable_all()
        .build()
        .context("the runtime does not start")?;
    let grace = config.drain;
    runtime.block_on(drain::until_signalled(grace, |watch| run(config, watch)))
}

/// The ports, taken before anything is started.
#[derive(Debug)]
pub struct Listeners {
    hbone: TcpListener,
    admin: TcpListener,
    stats: TcpListener,
    readiness: TcpListener,
}

/// Where a waypoint listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "see Config")]
pub struct Addresses {
    pub hbone: SocketAddr,
    pub admin: SocketAddr,
    pub stats: SocketAddr,
    pub readiness: SocketAddr,
}

impl Listeners {
    /// Takes the configured ports.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = |address| socket::listen(address).with_context(|| format!("cannot listen on {address}"));
        Ok(Self {
            hbone: bind(config.listen)?,
            admin: bind(config.admin)?,
            stats: bind(config.stats)?,
            readiness: bind(config.readiness)?,
        })
    }

    /// Which ones they are: the kernel chooses where 0 is configured.
    pub fn addresses(&self) -> anyhow::Result<Addresses> {
        Ok(Addresses {
            hbone: self.hbone.local_addr()?,
            admin: self.admin.local_addr()?,
            stats: self.stats.local_addr()?,
            readiness: self.readiness.local_addr()?,
        })
    }
}

/// Runs the waypoint until `watch` says that it is time to end; then drains until the signal's deadline.
pub async fn run(config: Config, watch: Watch) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config)?;
    serve(config, listeners, watch).await
}

/// [`run`] with ports that are taken already.
pub async fn serve(config: Config, listeners: Listeners, watch: Watch) -> anyhow::Result<()> {
    let tasks = Tasks::new("waypoint");
    let readiness = Readiness::default();
    readiness.wait_for(STATE_MANAGER);
    readiness.wait_for(CERTIFICATE);

    let registered = Registered::new();
    let metrics =
        registered.register(|registry| Metrics::new(registry, &config.version, &Budget::new(config.max_series)));
    let runtime = telemetry::metrics::runtimes(vec![Handle::current()]);
    registered.register(|registry| registry.register_collector(runtime));
    let counted = metrics.clone();
    telemetry::on_lost(move |lines| counted.lost_many("access_log", lines));
    let initial = Snapshot::empty(config.network.as_str());
    let snapshots = Arc::new(Snapshots::new(initial.clone()));
    let xds_metrics = metrics.xds.clone();
    let open = Arc::new(Clients::default());
    let enforcer = Enforcer::new(open.clone(), config.clone(), metrics.clone());
    let (writer, publisher) =
        Writer::new(initial, config.unknown_policies, snapshots.clone(), enforcer, xds_metrics.clone());
    tasks.spawn("snapshots", writer.run());

    let secrets = secrets(&config, &tasks);
    secrets.prefetch(&config.identity).context("the waypoint's certificate")?;
    let client = Client::new(config.xds.clone(), node_info(&config));
    let status = client.status();
    tasks.spawn("xds", client.run(publisher, tasks.token()));
    tasks.spawn("xds status", xds_metrics.count_terminations(status.clone()));

    let clients = tasks.child("clients");
    let upstream = tasks.child("upstream");
    let watched = watch.clone();
    let parts = Parts { config, snapshots, secrets, metrics, open, watch: watched, tasks: clients, upstream };
    let waypoint = Waypoint::new(parts);
    if let Some(path) = waypoint.config.flows.clone() {
        flows::restore(waypoint.records.up_to_date(), &path);
        let counted = waypoint.clone();
        tasks.spawn("flows", flows::keep(move || counted.records.up_to_date().flows(), path, tasks.token()));
    }
    let (servers_end, servers) = drain::channel();
    let Listeners { hbone, admin, stats, readiness: ready } = listeners;
    tasks.spawn(
        "admin",
        admin::server(waypoint.clone(), telemetry::init("waypoint").ok()).serve(admin, servers.clone()),
    );
    tasks.spawn("metrics", admin::metrics_server(waypoint.clone(), registered).serve(stats, servers.clone()));
    tasks.spawn("readiness", readiness::server(readiness.clone()).serve(ready, servers));
    tasks.spawn("idle", until_cancelled(tasks.token(), waypoint.connections.clone().tidy()));
    let namespace = waypoint.config.identity.namespace.clone();
    let known = waypoint.clusters.clone().tidy(waypoint.snapshots.clone(), namespace);
    tasks.spawn("endpoints", until_cancelled(tasks.token(), known));
    tasks.spawn("readiness of certificate", {
        let (waypoint, readiness) = (waypoint.clone(), readiness.clone());
        until_cancelled(tasks.token(), async move {
            while waypoint.secrets.leaf(&waypoint.config.identity).await.is_err() {}
            readiness.done(CERTIFICATE);
        })
    });

    let mut ready = status;
    let serving = async {
        // Nothing is taken before it is known what is bound here: it would be refused.
        if ready.wait_for(|status| status.ready).await.is_err() {
            return;
        }
        readiness.done(STATE_MANAGER);
        capture::listen(waypoint.clone(), hbone).await;
    };
    let signal = tokio::select! {
        signal = watch.signaled() => signal,
        () = serving => anyhow::bail!("the control plane's client ended"),
    };
    // Not ready first: who chooses among waypoints should stop choosing this one.
    readiness.wait_for(DRAIN);
    tracing::info!(grace = ?signal.left(), "draining");
    waypoint.tasks.shutdown(signal.left()).await;
    waypoint.tellings.export(LAST_EXPORTS).await;
    waypoint.pool.close();
    let last = waypoint.clone();
    // Who fails to write the last lines fails alone.
    drop(tokio::task::spawn_blocking(move || last.tellings.flush(LAST_LINES)).await);
    servers_end.start(Mode::Immediate, Duration::ZERO);
    tasks.shutdown(Duration::from_secs(1)).await;
    tracing::info!("drained");
    Ok(())
}

async fn until_cancelled(cancel: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = cancel.cancelled() => {}
    }
}

fn secrets(config: &Config, tasks: &Tasks) -> Secrets {
    let limits = SecretLimits { ttl: config.secret_ttl, ..SecretLimits::default() };
    let signer = Arc::new(OwnIdentity(ca::Client::new(config.ca.clone())));
    let revoked = Arc::new(Revocations::default());
    if let Some(path) = &config.crl {
        tasks.spawn("crl", revocations::follow(path.clone(), revoked.clone()));
    }
    Secrets::minding(signer, Arc::new(SystemClock), limits, tasks, revoked)
}

fn node_info(config: &Config) -> NodeInfo {
    NodeInfo::waypoint(
        &config.pod_name,
        &config.pod_namespace,
        &config.node,
        config.instance_ip,
        &config.cluster_domain,
    )
    .with(config.metadata.clone())
}
