//! Memory of proxies: fresh, with idle connections, with a large configuration.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::place::{Place, Stage, tunnel};
use super::process::Process;
use super::report::Point;
use super::run::once;
use super::scenario::Scenario;
use crate::driver::{Mesh, until, until_every};

pub(super) const MIB: f64 = 1024.0 * 1024.0;
/// How long memory of closed connections may take to be given back before it is said what is left.
const GIVEN_BACK: Duration = Duration::from_secs(15);
/// How long proxies are left alone before they count as unused: one that gives back every 10 s what nobody used meanwhile has done so.
const LEFT_ALONE: Duration = Duration::from_secs(21);
/// How long they are looked at then.
const LOOKED_AT: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions whether a tunnel is ready again; each takes some 10 ms itself.
const SOON: Duration = Duration::from_millis(2);

/// Resident memory per proxy, bytes, by system.
pub(super) type Fresh = BTreeMap<String, f64>;

/// Measures it before there was any traffic but a request or two: the most within a while in which nobody uses them.
pub(super) fn fresh(stage: &Stage, points: &mut Vec<Point>) -> anyhow::Result<Fresh> {
    crate::output::note("… proxies that nobody uses");
    std::thread::sleep(LEFT_ALONE);
    let mut fresh = Fresh::new();
    let end = Instant::now() + LOOKED_AT;
    while Instant::now() < end {
        for place in with_proxies(stage) {
            let most = fresh.entry(place.name.clone()).or_default();
            *most = resident(&place.proxies)?.max(*most);
        }
        std::thread::sleep(LOOK);
    }
    points.extend(fresh.iter().map(|(system, bytes)| once("fresh", system, [("rss-mib", bytes / MIB)].into())));
    Ok(fresh)
}

fn with_proxies(stage: &Stage) -> impl Iterator<Item = &Place> {
    stage.places.iter().filter(|place| !place.proxies.is_empty())
}

/// Bytes per proxy.
pub(super) fn resident(proxies: &[Process]) -> anyhow::Result<f64> {
    mean(proxies, |proxy| proxy.resident_bytes())
}

/// Bytes per proxy that are its own, not those of its program: these are what connections need.
pub(super) fn own(proxies: &[Process]) -> anyhow::Result<f64> {
    mean(proxies, |proxy| proxy.own_bytes())
}

fn mean(proxies: &[Process], bytes: impl Fn(&Process) -> anyhow::Result<u64>) -> anyhow::Result<f64> {
    let sum = proxies.iter().map(bytes).sum::<anyhow::Result<u64>>()?;
    Ok(sum as f64 / proxies.len().max(1) as f64)
}

/// While connections are idle, and after they were closed.
pub(super) fn idle(
    stage: &Stage,
    scenario: &Scenario,
    connections: u32,
    fresh: &Fresh,
    points: &mut Vec<Point>,
) -> anyhow::Result<()> {
    for place in with_proxies(stage) {
        crate::output::note(&format!("… {}, {}", scenario.what, place.name));
        let before = own(&place.proxies)?;
        let client =
            place.client("idle", connections, 0.0).with_context(|| format!("{}, {}", scenario.what, place.name))?;
        let (held, resident_then) = (own(&place.proxies)?, resident(&place.proxies)?);
        client.measure()?;
        let at_rest = fresh.get(&place.name).copied().unwrap_or_default();
        let end = Instant::now() + GIVEN_BACK;
        let mut after = resident(&place.proxies)?;
        while after > at_rest && Instant::now() < end {
            std::thread::sleep(LOOK);
            after = resident(&place.proxies)?;
        }
        let values = [
            ("rss-mib", resident_then / MIB),
            ("bytes-per-connection", (held - before).max(0.0) / f64::from(connections.max(1))),
            ("rss-after-mib", after / MIB),
            ("rss-after-over-fresh", after / at_rest.max(1.0)),
        ];
        points.push(once(scenario.name, &place.name, values.into()));
    }
    Ok(())
}

/// Time to readiness and memory with many workloads in the configuration ([`fill`]): a node tunnel is started anew.
pub(super) fn scale(stage: &Stage, workloads: u32, points: &mut Vec<Point>) -> anyhow::Result<()> {
    for (system, mesh) in &stage.meshes {
        points.push(once("scale", system, scaled(mesh, workloads).with_context(|| format!("scale, {system}"))?));
    }
    Ok(())
}

/// Puts many workloads into every mesh's configuration, and waits until node1's tunnels have them.
pub(super) fn fill(stage: &Stage, workloads: u32) -> anyhow::Result<()> {
    for (system, mesh) in &stage.meshes {
        crate::output::note(&format!("… {workloads} workloads in the configuration, {system}"));
        let (count, exe) = (workloads.to_string(), mesh.exe());
        let fill = ["bench-load", "fill", "--workloads", &count];
        mesh.must(&[&["exec", "-n", "istio-system", "stillmesh-controller", "--", &exe], &fill[..]].concat())?;
        until(|| {
            let known = known(mesh, "node1", "workloads")?;
            ensure!(known >= workloads as usize, "{known} workloads are known");
            Ok(())
        })
        .with_context(|| format!("{workloads} workloads, {system}"))?;
    }
    Ok(())
}

/// How many workloads or policies a node's tunnel has.
pub(super) fn known(mesh: &Mesh, node: &str, what: &str) -> anyhow::Result<usize> {
    let dump = mesh.fetch("istio-system", &format!("ztunnel-{node}"), "127.0.0.1:15000", "/config_dump")?;
    let dump: serde_json::Value = serde_json::from_str(&dump)?;
    Ok(dump[what].as_array().map_or(0, Vec::len))
}

fn scaled(mesh: &Mesh, workloads: u32) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let before = tunnel(mesh, "node1")?;
    // The program is process 2 of its container, behind the container's init.
    mesh.run(&["exec", "-n", "istio-system", "ztunnel-node1", "--", "sh", "-c", "kill -9 2"])?;
    let killed = Instant::now();
    until_every(SOON, || mesh.fetch("istio-system", "ztunnel-node1", "127.0.0.1:15021", "/healthz/ready"))?;
    let restart = killed.elapsed();
    // Ready means that it has every workload. Its memory is looked at before it writes them all down for `known`.
    let after = tunnel(mesh, "node1")?;
    ensure!(after != before, "the node tunnel was not started anew");
    let memory = resident(&[after])?;
    ensure!(
        known(mesh, "node1", "workloads")? >= workloads as usize,
        "the node tunnel was ready before it had every workload"
    );
    Ok([("rss-mib", memory / MIB), ("restart-s", restart.as_secs_f64())].into())
}
