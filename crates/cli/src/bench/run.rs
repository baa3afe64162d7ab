//! One run: a mesh of its own, every scenario raw and through the mesh in turn.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Bench;
use super::load::Measured;
use super::process::Process;
use super::report::{Report, Row, Spread};
use crate::driver::{self, Files, Mesh, until};

/// One thing to measure: name, scenario, connections.
const SCENARIOS: [(&str, &str, u32); 6] = [
    ("bulk, 1 stream", "bulk", 1),
    ("bulk, 8 streams", "bulk", 8),
    ("requests, 1 connection", "echo", 1),
    ("requests, 64 connections", "echo", 64),
    ("new connections, 1 at a time", "connect", 1),
    ("new connections, 16 at a time", "connect", 16),
];

/// Raw TCP and the mesh: the namespaces that their pods live in.
const SYSTEMS: [&str; 2] = ["raw", "mesh"];

/// What one measurement gave: the client's counters and the tunnels' CPU seconds meanwhile.
struct Sample {
    measured: Measured,
    cpu: f64,
}

pub(super) fn run(bench: &Bench) -> anyhow::Result<Report> {
    driver::clear_away_when_interrupted()?;
    let files = Files::temporary(&[("bench.yaml", &manifests()?)])?;
    let name = format!("bench-{:08x}", rand::random::<u32>());
    let mut mesh = Mesh::start(&name, files.path(), &[])?;
    mesh.ready()?;
    until(|| captured(&mesh))?;
    let tunnels = Process::tunnels_of(mesh.pid())?;
    ensure!(tunnels.len() == 2, "two node tunnels were to run, {} do", tunnels.len());
    let targets = [target(&mesh, "raw")?, target(&mesh, "mesh")?];
    let mut rows = Vec::new();
    let rss = |tunnels: &[Process]| -> anyhow::Result<f64> {
        let sum: u64 = tunnels.iter().map(|tunnel| tunnel.resident_bytes()).sum::<anyhow::Result<u64>>()?;
        Ok(sum as f64 / tunnels.len() as f64)
    };
    rows.push(single("resident memory of a node tunnel, idle", "MiB", rss(&tunnels)? / MIB));
    for (what, scenario, connections) in SCENARIOS {
        let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
        for round in 0..bench.rounds {
            crate::output::note(&format!("… {what}, round {} of {}", round + 1, bench.rounds));
            // The order turns each round, so that a drift of the machine favours neither.
            for index in [round as usize % 2, 1 - round as usize % 2] {
                let (Some(system), Some(target), Some(into)) =
                    (SYSTEMS.get(index), targets.get(index), samples.get_mut(index))
                else {
                    continue;
                };
                let before = cpu(&tunnels)?;
                let measured = client(&mesh, system, target, scenario, connections, bench.seconds)
                    .with_context(|| format!("{what}, {system}"))?;
                into.push(Sample { measured, cpu: cpu(&tunnels)? - before });
            }
        }
        rows.extend(report(what, scenario, &samples));
    }
    rows.extend(idle(bench, &mesh, &targets, &tunnels, rss)?);
    if bench.workloads > 0 {
        rows.extend(scale(bench, &mesh, rss)?);
    }
    mesh.down()?;
    Ok(Report {
        rounds: bench.rounds,
        seconds: bench.seconds,
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        optimized: !cfg!(debug_assertions),
        rows,
    })
}

const MIB: f64 = 1024.0 * 1024.0;

fn cpu(tunnels: &[Process]) -> anyhow::Result<f64> {
    tunnels.iter().map(|tunnel| tunnel.cpu_seconds()).sum()
}

fn single(what: &str, unit: &'static str, value: f64) -> Row {
    Row { what: what.to_owned(), unit, raw: None, mesh: Spread { median: value, low: value, high: value }, ratio: None }
}

/// The rows of one scenario.
fn report(what: &str, scenario: &str, [raw, mesh]: &[Vec<Sample>; 2]) -> Vec<Row> {
    let row = |name: String, unit, value: &dyn Fn(&Sample) -> f64| {
        let values = |samples: &[Sample]| samples.iter().map(value).collect::<Vec<_>>();
        let (raw, mesh) = (values(raw), values(mesh));
        let ratios: Vec<f64> =
            raw.iter().zip(&mesh).filter(|(raw, _)| **raw > 0.0).map(|(raw, mesh)| mesh / raw).collect();
        Some(Row { what: name, unit, raw: Spread::of(&raw), mesh: Spread::of(&mesh)?, ratio: Spread::of(&ratios) })
    };
    let own = |name: String, unit, value: &dyn Fn(&Sample) -> f64| {
        let values: Vec<f64> = mesh.iter().map(value).collect();
        Some(Row { what: name, unit, raw: None, mesh: Spread::of(&values)?, ratio: None })
    };
    let rate = |sample: &Sample| sample.measured.exchanges as f64 / sample.measured.seconds;
    let rows = if scenario == "bulk" {
        vec![
            row(what.to_owned(), "Gbit/s", &|sample| sample.measured.bytes as f64 * 8e-9 / sample.measured.seconds),
            own(format!("{what}: tunnels' CPU"), "s per GB", &|sample| sample.cpu * 1e9 / sample.measured.bytes as f64),
        ]
    } else {
        vec![
            row(what.to_owned(), "per s", &rate),
            row(format!("{what}: median"), "µs", &|sample| sample.measured.p50_us as f64),
            row(format!("{what}: 99th percentile"), "µs", &|sample| sample.measured.p99_us as f64),
            own(format!("{what}: tunnels' CPU"), "µs each", &|sample| {
                sample.cpu * 1e6 / sample.measured.exchanges as f64
            }),
        ]
    };
    rows.into_iter().flatten().collect()
}

fn load(mesh: &Mesh, system: &str, target: &str, scenario: &str, connections: u32, seconds: f64) -> Command {
    let (connections, seconds) = (connections.to_string(), seconds.to_string());
    mesh.command(&[
        "exec",
        "-n",
        system,
        "client",
        "--",
        &mesh.exe(),
        "bench-load",
        "client",
        "--target",
        target,
        "--scenario",
        scenario,
        "--connections",
        &connections,
        "--seconds",
        &seconds,
    ])
}

fn client(
    mesh: &Mesh,
    system: &str,
    target: &str,
    scenario: &str,
    connections: u32,
    seconds: f64,
) -> anyhow::Result<Measured> {
    let output = load(mesh, system, target, scenario, connections, seconds).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Memory while idle connections are held, and after.
fn idle(
    bench: &Bench,
    mesh: &Mesh,
    targets: &[String; 2],
    tunnels: &[Process],
    rss: impl Fn(&[Process]) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<Row>> {
    crate::output::note(&format!("… {} idle connections", bench.idle));
    let before = rss(tunnels)?;
    let mut holder = load(mesh, "mesh", &targets[1], "idle", bench.idle, 2.0).stdout(Stdio::piped()).spawn()?;
    let lines = holder.stdout.take().context("the client's output")?;
    let mut lines = BufReader::new(lines).lines();
    lines.next().context("the client ended")??;
    let held = rss(tunnels)?;
    ensure!(holder.wait()?.success(), "idle connections broke");
    let each = (held - before).max(0.0) / f64::from(bench.idle.max(1));
    Ok(vec![
        single(&format!("memory of an idle connection, of {}", bench.idle), "bytes per tunnel", each),
        single("resident memory after they are closed", "MiB", rss(tunnels)? / MIB),
    ])
}

/// Time to readiness and memory with many workloads in the configuration: they are put into the cluster directory, and a
/// node tunnel is started anew.
fn scale(bench: &Bench, mesh: &Mesh, rss: impl Fn(&[Process]) -> anyhow::Result<f64>) -> anyhow::Result<Vec<Row>> {
    crate::output::note(&format!("… {} workloads in the configuration", bench.workloads));
    let count = bench.workloads.to_string();
    let fill = [
        "exec",
        "-n",
        "istio-system",
        "stillmesh-controller",
        "--",
        &mesh.exe(),
        "bench-load",
        "fill",
        "--workloads",
        &count,
    ];
    mesh.must(&fill)?;
    let known = || -> anyhow::Result<usize> {
        let dump = mesh.fetch("istio-system", "ztunnel-node1", "127.0.0.1:15000", "/config_dump")?;
        let dump: serde_json::Value = serde_json::from_str(&dump)?;
        Ok(dump["workloads"].as_array().map_or(0, Vec::len))
    };
    let all = || {
        let known = known()?;
        ensure!(known >= bench.workloads as usize, "{known} workloads are known");
        Ok(())
    };
    until(all)?;
    let before = Process::tunnels_of(mesh.pid())?;
    // The program is process 2 of its container, behind the container's init.
    mesh.run(&["exec", "-n", "istio-system", "ztunnel-node1", "--", "sh", "-c", "kill -9 2"])?;
    let killed = Instant::now();
    let ready = || mesh.fetch("istio-system", "ztunnel-node1", "127.0.0.1:15021", "/healthz/ready");
    until(ready)?;
    let restart = killed.elapsed();
    // Ready means that it has every workload. Its memory is looked at before it writes them all down for `all`.
    let mut tunnels = Process::tunnels_of(mesh.pid())?;
    tunnels.retain(|tunnel| !before.contains(tunnel));
    ensure!(tunnels.len() == 1, "one node tunnel was to be started anew, {} were", tunnels.len());
    let fresh = rss(&tunnels)?;
    ensure!(known()? >= bench.workloads as usize, "the node tunnel was ready before it had every workload");
    Ok(vec![
        single(&format!("resident memory with {count} workloads"), "MiB", fresh / MIB),
        single(
            &format!("killed to ready again with {count} workloads, the runner's back-off included"),
            "s",
            seconds(restart),
        ),
    ])
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn captured(mesh: &Mesh) -> anyhow::Result<()> {
    let pods = mesh.pods("mesh")?;
    let open =
        pods.iter().filter(|pod| pod["metadata"]["annotations"]["ambient.istio.io/redirection"] != "enabled").count();
    ensure!(open == 0 && !pods.is_empty(), "{open} pods are not captured yet");
    Ok(())
}

fn target(mesh: &Mesh, namespace: &str) -> anyhow::Result<String> {
    let pods = mesh.pods(namespace)?;
    let server = pods.iter().find(|pod| pod["metadata"]["name"] == "server").context("the server is gone")?;
    Ok(format!("{}:7000", server["status"]["podIP"].as_str().context("the server has no address")?))
}

/// The same client and server twice: outside the mesh and in it, each client on node1 and each server on node2.
fn manifests() -> anyhow::Result<String> {
    let exe = serde_json::to_string(&std::env::current_exe()?.to_string_lossy())?;
    let mut all = String::new();
    for (namespace, labels) in [("raw", "{}"), ("mesh", "{istio.io/dataplane-mode: ambient}")] {
        all += &format!(
            "
---
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {labels}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {namespace}}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers: [{{name: server, command: [{exe}, bench-load, server]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{{name: client, command: [sleep, infinity]}}]
"
        );
    }
    Ok(all)
}
