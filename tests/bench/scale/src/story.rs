//! What is done and measured, in order.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use stillmesh_cluster::Cluster;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::Options;
use crate::bare::Bare;
use crate::crowd::{Crowd, SYSTEM, node_name};
use crate::fleet::Fleet;
use crate::process::{Controller, Ports, Process};
use crate::report::Report;

/// How long anything may take before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory and its targets are in MB.
const MB: f64 = 1e6;

pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let cluster = Cluster::connect().await?;
    let crowd = Crowd::new(cluster.client(), options);
    eprintln!(
        "making {} nodes, {} pods, {} services, {} policies on {}",
        options.nodes,
        options.pods,
        options.services,
        options.policies,
        cluster.url()
    );
    let begun = Instant::now();
    crowd.make().await?;
    let mut heart = JoinSet::new();
    heart.spawn(beat(crowd.clone()));
    crowd.settle().await?;
    eprintln!("  made in {:.0} s", begun.elapsed().as_secs_f64());
    let measured = measure(options, &crowd).await;
    heart.shutdown().await;
    if !options.keep {
        crowd.clear().await?;
    }
    measured
}

/// Keeps the nodes alive.
async fn beat(crowd: Crowd) {
    let mut ticks = interval(Duration::from_secs(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) =
            crowd.each(crowd.options.nodes, |crowd, node| async move { crowd.heartbeat(node).await }).await
        {
            eprintln!("  a node's heartbeat was not taken: {error:#}");
        }
    }
}

async fn measure(options: &Options, crowd: &Crowd) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let scratch = tempfile::tempdir()?;
    let log = scratch.path().join("controller.log");

    eprintln!("start");
    let ports = Ports::free()?;
    let (mut controller, ready) = Controller::start(&options.stillmesh, ports, &log).await?;
    report.add("controller ready", ready.as_secs_f64(), "s", Some(10.0));
    let root = root(crowd).await?;
    let tokens =
        stream::iter(0..options.nodes).map(|node| crowd.token(node)).buffered(16).try_collect::<Vec<_>>().await?;
    let begun = Instant::now();
    let mut fleet = Fleet::start(&ports.address(), &root, tokens.clone());
    fleet.ready(PATIENCE).await?;
    report.add("every node has everything", begun.elapsed().as_secs_f64(), "s", None);
    let first = fleet.received();
    report.add("bytes to a node at its start", first.bytes as f64 / fleet.len() as f64 / MB, "MB", None);
    report.add("controller CPU so far", controller.process.cpu_seconds()?, "s", None);

    eprintln!("quiet: {} changes", options.changes);
    let before = (fleet.received(), controller.process.cpu_seconds()?);
    let bare = Bare::start(crowd.client.clone()).await?;
    let mut times = Changes::default();
    for change in 0..options.changes {
        let (number, port) = (change % options.policies.max(1), 9000 + (change % 1000) as u16);
        times.policy(crowd, &fleet, &bare, number, port).await?;
        sleep(Duration::from_millis(50)).await;
    }
    let changes = options.changes.max(1) as f64;
    let sent = fleet.received() - before.0;
    times.report(&mut report, "policy applied to in force on every node, quiet", 250.0);
    report.add("resources per change and node", sent.resources as f64 / changes / fleet.len() as f64, "", Some(2.0));
    report.add("bytes per change and node", sent.bytes as f64 / changes / fleet.len() as f64, "bytes", None);
    report.add("controller CPU per change", (controller.process.cpu_seconds()? - before.1) * 1e3 / changes, "ms", None);

    let before = fleet.received();
    let mut times = Changes::default();
    let replaced = options.changes.min(options.pods);
    for pod in 0..replaced {
        times.pod(crowd, &fleet, pod).await?;
    }
    let sent = fleet.received() - before;
    times.report(&mut report, "pod started to known on every node, quiet", 250.0);
    report.add(
        "bytes per replaced pod and node",
        sent.bytes as f64 / replaced.max(1) as f64 / fleet.len() as f64,
        "bytes",
        None,
    );

    eprintln!("churn: {} pods a second for {} s", options.churn, options.seconds);
    let before = (fleet.received(), controller.process.cpu_seconds()?, Instant::now());
    let churn = Churn::start(crowd.clone());
    let mut times = Changes::default();
    let mut change = 0;
    while before.2.elapsed() < Duration::from_secs(options.seconds) {
        let (number, port) = (change % options.policies.max(1), 10_000 + (change % 1000) as u16);
        times.policy(crowd, &fleet, &bare, number, port).await?;
        change += 1;
        sleep(Duration::from_millis(100)).await;
    }
    let elapsed = before.2.elapsed().as_secs_f64();
    let replaced = churn.stop().await?;
    report.add("pods replaced per second", replaced as f64 / elapsed, "", None);
    times.report(&mut report, "policy applied to in force on every node, churn", 1000.0);
    let sent = fleet.received() - before.0;
    report.add(
        "bytes per replaced pod and node, churn",
        sent.bytes as f64 / replaced.max(1) as f64 / fleet.len() as f64,
        "bytes",
        None,
    );
    report.add(
        "controller CPU, churn",
        (controller.process.cpu_seconds()? - before.1) / elapsed * 100.0,
        "% of a core",
        None,
    );
    report.add("controller memory", controller.process.resident_bytes()? as f64 / MB, "MB", Some(300.0));
    report.add("controller memory, most", controller.process.peak_bytes()? as f64 / MB, "MB", Some(300.0));

    eprintln!("controller killed and started again");
    let before = fleet.received();
    controller.process.kill();
    fleet.disconnected(PATIENCE).await?;
    let (controller, ready) = Controller::start(&options.stillmesh, ports, &log).await?;
    report.add("controller ready again", ready.as_secs_f64(), "s", Some(10.0));
    let begun = Instant::now();
    fleet.ready(PATIENCE).await?;
    Changes::default().policy(crowd, &fleet, &bare, 0, 8081).await?;
    report.add("every node follows again", begun.elapsed().as_secs_f64(), "s", None);
    let again = fleet.received() - before;
    let share = again.bytes as f64 / first.bytes.max(1) as f64;
    report.add("sent again, of what a start costs", share * 100.0, "%", Some(5.0));
    fleet.stop().await;

    eprintln!("a real ztunnel with everything known");
    let tunnel = tunnel(options, scratch.path(), ports, &root, &tokens).await?;
    report.add("ztunnel memory with everything known", tunnel.resident_bytes()? as f64 / MB, "MB", Some(60.0));
    drop(tunnel);
    drop(controller);
    Ok(report)
}

/// How long changes took until the last node had them.
#[derive(Default)]
struct Changes {
    whole: Vec<Duration>,
    /// Until the API server passed them on, which is before anybody could have acted.
    server: Vec<Duration>,
    /// From there on.
    mesh: Vec<Duration>,
}

impl Changes {
    async fn policy(
        &mut self,
        crowd: &Crowd,
        fleet: &Fleet,
        bare: &Bare,
        number: usize,
        port: u16,
    ) -> anyhow::Result<()> {
        let (namespace, name) = crowd.service(number);
        let key = format!("{namespace}/{name}");
        fleet.expect(&key);
        bare.expect(&key);
        let begun = Instant::now();
        crowd.change_policy(number, port).await?;
        let heard = bare.heard(&key, PATIENCE).await?;
        self.add(begun, heard, &fleet.applied(&key, PATIENCE).await?)
    }

    /// A pod of another name, so that nothing of its own is replaced.
    async fn pod(&mut self, crowd: &Crowd, fleet: &Fleet, pod: usize) -> anyhow::Result<()> {
        let life = 1000;
        let (namespace, name) = crowd.pod_name(pod, life);
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        fleet.expect(&uid);
        let begun = Instant::now();
        crowd.pod(pod, life).await?;
        let written = Instant::now();
        let done = self.add(begun, written, &fleet.applied(&uid, PATIENCE).await?);
        crowd.end_pod(pod, life).await?;
        done
    }

    fn add(&mut self, begun: Instant, passed_on: Instant, nodes: &[Instant]) -> anyhow::Result<()> {
        let last = nodes.iter().max().context("no nodes")?;
        self.whole.push(last.duration_since(begun));
        self.server.push(passed_on.duration_since(begun));
        self.mesh.push(last.saturating_duration_since(passed_on));
        Ok(())
    }

    fn report(self, report: &mut Report, what: &str, p99_at_most: f64) {
        report.times(what, self.whole, Some(p99_at_most));
        report.times("  of it the API server's own", self.server, None);
        report.times("  of it the mesh's", self.mesh, None);
    }
}

/// Pods that come and go.
struct Churn {
    work: JoinSet<anyhow::Result<()>>,
    replaced: Arc<AtomicUsize>,
}

impl Churn {
    fn start(crowd: Crowd) -> Self {
        let replaced = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&replaced);
        let work = async move {
            let every = Duration::from_secs_f64(1.0 / crowd.options.churn.max(1) as f64);
            let (pods, at_once) = (crowd.options.pods.max(1), crowd.options.at_once.max(1));
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let jobs = stream::unfold((0_usize, ticks), |(number, mut ticks)| async move {
                ticks.tick().await;
                Some((number, (number + 1, ticks)))
            });
            jobs.map(Ok)
                .try_for_each_concurrent(at_once, |number| {
                    let (crowd, counter) = (crowd.clone(), Arc::clone(&counter));
                    async move {
                        let (pod, life) = (number % pods, number / pods);
                        crowd.end_pod(pod, life).await?;
                        crowd.pod(pod, life + 1).await?;
                        counter.fetch_add(1, Ordering::Relaxed);
                        anyhow::Ok(())
                    }
                })
                .await
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(work);
        Self { work: tasks, replaced }
    }

    /// Ends it, and says how many were replaced.
    async fn stop(mut self) -> anyhow::Result<usize> {
        // It only ends by itself when it fails.
        if let Some(failed) = self.work.try_join_next() {
            failed??;
        }
        self.work.shutdown().await;
        Ok(self.replaced.load(Ordering::Relaxed))
    }
}

/// What nodes trust, as they get it.
async fn root(crowd: &Crowd) -> anyhow::Result<String> {
    let maps = Api::<ConfigMap>::namespaced(crowd.client.clone(), SYSTEM);
    let begun = Instant::now();
    loop {
        let map = maps.get_opt("istio-ca-root-cert").await?;
        if let Some(root) = map.and_then(|map| map.data?.remove("root-cert.pem")) {
            return Ok(root);
        }
        anyhow::ensure!(
            begun.elapsed() < PATIENCE,
            "the controller has not written ConfigMap {SYSTEM}/istio-ca-root-cert"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// A node tunnel without pods, once it knows everything.
async fn tunnel(
    options: &Options,
    scratch: &std::path::Path,
    ports: Ports,
    root: &str,
    tokens: &[String],
) -> anyhow::Result<Process> {
    let (root_file, token_file) = (scratch.join("root.pem"), scratch.join("token"));
    std::fs::write(&root_file, root)?;
    std::fs::write(&token_file, tokens.first().context("no nodes")?)?;
    let mut command = Command::new(&options.stillmesh);
    command
        .arg("ztunnel")
        .env("XDS_ADDRESS", ports.address())
        .env("XDS_ROOT_CA", &root_file)
        .env("ALT_XDS_HOSTNAME", format!("stillmesh-controller.{SYSTEM}.svc"))
        .env("ALT_CA_HOSTNAME", format!("stillmesh-controller.{SYSTEM}.svc"))
        .env("AUTH_TOKEN", &token_file)
        .env("NODE_NAME", node_name(0))
        .env("POD_NAME", "ztunnel-000")
        .env("POD_NAMESPACE", SYSTEM)
        .env("INPOD_UDS", scratch.join("zds.sock"))
        .env("ADMIN_ADDRESS", "127.0.0.1:0")
        .env("STATS_ADDRESS", "127.0.0.1:0")
        .env("READINESS_ADDRESS", "127.0.0.1:0");
    let tunnel = Process::start(&mut command, &scratch.join("ztunnel.log"))?;
    // It says nothing of its own when it knows everything: its memory stops growing.
    let (mut most, mut still) = (0, 0);
    while still < 20 {
        sleep(Duration::from_millis(250)).await;
        let now = tunnel.resident_bytes()?;
        still = if now > most + (64 << 10) { 0 } else { still + 1 };
        most = most.max(now);
    }
    Ok(tunnel)
}
