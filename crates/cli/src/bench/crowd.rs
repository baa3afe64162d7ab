//! Many pods on both nodes of each mesh: what they cost a node tunnel, and whom a new pod needs new tunnels to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::memory::{own, resident};
use super::place::{Place, Stage, pod_is_up};
use super::report::Point;
use super::run::once;
use super::systems::PORT;
use crate::driver::{Mesh, until};

/// Their namespace, and the file that they are in.
const NAMESPACE: &str = "crowd";
const FILE: &str = "crowd.json";
/// How long it may take until one more of them is ready.
const NEXT: Duration = Duration::from_secs(60);
/// Time between two looks: each lists all of them.
const LOOK: Duration = Duration::from_millis(500);

/// Pods that are there beside the systems. Each serves as the systems' servers do.
pub(super) struct Crowd {
    /// Where those on node2 listen, by mesh.
    far: BTreeMap<String, Vec<String>>,
}

impl Crowd {
    /// Starts them in every mesh, so many on each node, and waits until all are captured. Memory of tunnels is measured before and after.
    pub(super) fn gather(stage: &Stage, pods: u32, points: &mut Vec<Point>) -> anyhow::Result<Self> {
        let mut far = BTreeMap::new();
        for (system, mesh) in &stage.meshes {
            crate::output::note(&format!("… {pods} pods on each node, {system}"));
            let place = stage.places.iter().find(|place| place.name == *system).context("a mesh carries a system")?;
            let before = own(&place.proxies)?;
            mesh.apply(FILE, &manifest(pods, &mesh.exe()))?;
            let all = usize::try_from(pods)? * 2;
            far.insert(mesh.name().to_owned(), all_ready(mesh, all).with_context(|| format!("{all} pods, {system}"))?);
            let with = own(&place.proxies)?;
            let values = [
                ("rss-mib", resident(&place.proxies)? / super::memory::MIB),
                ("bytes-per-pod", (with - before).max(0.0) / f64::from(pods.max(1))),
            ];
            points.push(once("crowd", system, values.into()));
        }
        Ok(Self { far })
    }

    /// Where those listen that are not on a client's node.
    pub(super) fn far(&self, place: &Place) -> &[String] {
        self.far.get(place.mesh.name()).map_or(&[], Vec::as_slice)
    }

    /// Ends them.
    pub(super) fn leave(self, stage: &Stage) -> anyhow::Result<()> {
        for (_, mesh) in &stage.meshes {
            mesh.delete(FILE)?;
            until(|| match mesh.pods(NAMESPACE)?.len() {
                0 => Ok(()),
                left => bail!("{left} pods of the crowd are still there"),
            })?;
        }
        Ok(())
    }
}

/// Addresses of those on node2, once all are ready and captured.
fn all_ready(mesh: &Mesh, count: usize) -> anyhow::Result<Vec<String>> {
    let (mut most, mut since) = (0, Instant::now());
    loop {
        let pods = mesh.pods(NAMESPACE)?;
        let waits: Vec<anyhow::Error> = pods.iter().filter_map(|pod| pod_is_up(pod, true).err()).collect();
        let ready = pods.len() - waits.len();
        if ready == count {
            let far = pods.iter().filter(|pod| pod["spec"]["nodeName"] == "node2");
            return Ok(far.filter_map(|pod| Some(format!("{}:{PORT}", pod["status"]["podIP"].as_str()?))).collect());
        }
        if ready > most {
            (most, since) = (ready, Instant::now());
        }
        if since.elapsed() > NEXT {
            let why = waits.first().map(ToString::to_string).unwrap_or_default();
            bail!("{ready} are ready, and no further one for {NEXT:?}: {why}");
        }
        std::thread::sleep(LOOK);
    }
}

fn manifest(pods: u32, exe: &str) -> String {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"istio.io/dataplane-mode": "ambient"}},
    });
    let pod = |node: &str, number: u32| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{node}-{number}"), "namespace": NAMESPACE},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "server", "command": [exe, "bench-load", "server"]}],
            },
        })
    };
    let of_node = |node: &'static str| (0..pods).map(move |number| pod(node, number));
    let items: Vec<Value> = std::iter::once(namespace).chain(of_node("node1")).chain(of_node("node2")).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
