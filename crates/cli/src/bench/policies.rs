//! Policies for the destination: many of them, and changes of them under load.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::load::Measured;
use super::memory::{MIB, known, resident};
use super::place::{Client, Place, Stage, tunnel};
use super::report::Point;
use super::run::once;
use crate::driver::until;

/// Connections, and requests per second, while policies are pushed: those of `open-16`.
const CONNECTIONS: u32 = 16;
/// Time between two pushes.
const PUSH: Duration = Duration::from_millis(100);

/// What pushing policies did to the traffic.
pub(super) struct Pushed {
    /// Requests, meanwhile and alone before.
    pub(super) measured: Measured,
    /// Quantities beside those of the requests.
    pub(super) more: Vec<(&'static str, f64)>,
}

/// Puts so many policies into the namespace of each mesh's system: all of them refuse a client, none of them the one that there is, and
/// all are asked for every connection. How long until the destination's tunnel has them, and its memory.
pub(super) fn load(stage: &Stage, count: u32, points: &mut Vec<Point>) -> anyhow::Result<()> {
    for place in carried(stage) {
        crate::output::note(&format!("… {count} policies, {}", place.name));
        let refuse = |number: u32| refuse_one(&place.name, &format!("paper-{number}"), &format!("nobody-{number}"));
        let items: Vec<Value> = (0..count).map(refuse).collect();
        let written = Instant::now();
        place.mesh.apply("policies.json", &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        until(|| {
            let known = known(&place.mesh, "node2", "policies")?;
            ensure!(known >= usize::try_from(count)?, "{known} policies are known");
            Ok(())
        })
        .with_context(|| format!("{count} policies, {}", place.name))?;
        let took = written.elapsed().as_secs_f64();
        let memory = resident(&[tunnel(&place.mesh, "node2")?])?;
        points.push(once("policies", &place.name, [("rss-mib", memory / MIB), ("known-s", took)].into()));
    }
    Ok(())
}

/// The systems that meshes are about, with their ends on two nodes.
fn carried(stage: &Stage) -> impl Iterator<Item = &Place> {
    stage.places.iter().filter(|place| stage.meshes.iter().any(|(system, _)| *system == place.name))
}

/// Requests at a rate with new connections beside them, without pushes and with; then how long a policy takes from being written until it
/// refuses, and from being deleted until nobody is refused.
pub(super) fn push(place: &Place, seconds: f64) -> anyhow::Result<Pushed> {
    let both = |meanwhile: &dyn Fn(Instant) -> anyhow::Result<()>| -> anyhow::Result<(Measured, Measured)> {
        let mut requests = place.client("open", CONNECTIONS, seconds)?;
        let mut probe = place.client_with("probe", 1, seconds, &["--until", "end"])?;
        requests.begin()?;
        probe.begin()?;
        meanwhile(Instant::now())?;
        let measured = (requests.finish()?, probe.finish()?);
        requests.end()?;
        probe.end()?;
        Ok(measured)
    };
    let (alone, before) = both(&|_| Ok(()))?;
    let (requests, probed) = both(&|started| {
        let mut number = 0;
        while started.elapsed().as_secs_f64() < seconds {
            let object = refuse_one(&place.name, "pushed", &format!("pushed-{number}"));
            place.mesh.apply("pushed.json", &object.to_string())?;
            number += 1;
            std::thread::sleep(PUSH);
        }
        Ok(())
    })?;
    place.mesh.delete("pushed.json")?;
    let everybody = policy(&place.name, "everybody", &json!({}));
    let in_force = after(place, "refused", || place.mesh.apply("everybody.json", &everybody.to_string()))?;
    let lifted = after(place, "answered", || place.mesh.delete("everybody.json"))?;
    Ok(Pushed {
        measured: Measured { alone: Some(alone.latency), ..requests },
        more: vec![
            ("refused", (before.refused + probed.refused) as f64),
            ("in-force-ms", in_force.as_secs_f64() * 1e3),
            ("lifted-ms", lifted.as_secs_f64() * 1e3),
        ],
    })
}

/// How long from a change until new connections are refused, or answered.
fn after(place: &Place, until: &str, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let mut probe: Client = place.client_with("probe", 1, 0.0, &["--until", until])?;
    probe.begin()?;
    let changed = Instant::now();
    change()?;
    probe.finish()?;
    let took = changed.elapsed();
    probe.end()?;
    Ok(took)
}

fn refuse_one(namespace: &str, name: &str, account: &str) -> Value {
    let principal = format!("cluster.local/ns/paper/sa/{account}");
    policy(namespace, name, &json!({"from": [{"source": {"principals": [principal]}}]}))
}

fn policy(namespace: &str, name: &str, rule: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"action": "DENY", "rules": [rule]},
    })
}
