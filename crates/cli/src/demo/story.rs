//! The story: what is claimed and how it is checked.

mod waypoint;

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Teller;
use crate::driver::{Mesh, until};

/// What the page asks of reviews, as it stands on the wire.
const IN_CLEAR: &str = "GET /reviews";
const NAMESPACES: &str = include_str!("manifests/namespaces.yaml");
const STRICT: &str = include_str!("manifests/strict.yaml");
const POLICY: &str = include_str!("manifests/policy.yaml");
/// The annotation that says whether a pod is captured (contract 1.3).
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The annotation with a pod's receipt.
const RECEIPT: &str = "stillmesh.io/receipt";

/// Tells it. The first claim that does not hold ends it.
pub(super) fn tell(mesh: &mut Mesh, teller: &mut Teller) -> anyhow::Result<()> {
    teller.check("a shop runs on two nodes of this machine", || {
        mesh.ready()?;
        let pods = mesh.pods("shop")?;
        let on = |node: &str| pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
        Ok(format!("{} pods, {} on node1 and {} on node2", pods.len(), on("node1"), on("node2")))
    })?;
    let mesh = &*mesh;
    teller.check("outside the mesh its traffic crosses the nodes' link in the clear", || {
        // Which of the reviews a keep-alive connection leads to is drawn anew every few seconds: not all are far.
        let seen = until(|| {
            let seen = mesh.capture("2", IN_CLEAR)?;
            ensure!(seen.found > 0, "nothing of {IN_CLEAR:?} in {} clear bytes", seen.clear_bytes);
            Ok(seen)
        })?;
        Ok(format!("{} clear bytes, for example\n{}", seen.clear_bytes, seen.sample.unwrap_or_default()))
    })?;
    let before = Apps::look(mesh)?;
    teller.check("a label brings running pods into the mesh: no restart, no broken connection", || {
        mesh.apply("namespaces.yaml", &ambient())?;
        let pods = until(|| captured(mesh))?;
        until(|| Apps::look(mesh)?.busier_than(&before))?;
        Apps::look(mesh)?.unharmed_since(&before)?;
        Ok(format!("istio.io/dataplane-mode: ambient; {pods} pods captured, {}", Apps::look(mesh)?))
    })?;
    teller.check("connections older than capture end by themselves", || {
        let counts = until(|| {
            let counts = older(mesh)?;
            let open: u64 = counts.values().sum();
            ensure!(open == 0, "{open} are open: {counts:?}");
            Ok(counts)
        })?;
        Ok(format!("0 left on all {} pods", counts.len()))
    })?;
    teller.check("now not one clear byte of the application is on the wire", || {
        let seen = mesh.capture("3", IN_CLEAR)?;
        ensure!(seen.dropped == 0, "the capture lost {} frames", seen.dropped);
        ensure!(seen.tunnel_bytes > 0, "nothing went through the tunnel");
        ensure!(seen.found == 0, "{:?} is still on the wire: {:?}", IN_CLEAR, seen.sample);
        ensure!(seen.clear_bytes == 0, "{} clear bytes: {:?}", seen.clear_bytes, seen.clear_flows);
        Apps::look(mesh)?.unharmed_since(&before)?;
        Ok(format!("{} bytes in TLS, 0 in the clear", seen.tunnel_bytes))
    })?;
    teller.check("both ends have a SPIFFE identity", || {
        let (page, details) = ("spiffe://cluster.local/ns/shop/sa/page", "spiffe://cluster.local/ns/shop/sa/details");
        until(|| logged(mesh, "node2", &[page, details]))?;
        Ok(format!("{page}\n→ {details}"))
    })?;
    strictness(mesh, teller)?;
    policy(mesh, teller)?;
    waypoint::tell(mesh, teller)?;
    teller.check("certificates are renewed under load without an error", || {
        let first = serials(mesh)?;
        let rotated = until(|| {
            let now = serials(mesh)?;
            let rotated =
                first.iter().filter(|(identity, serial)| now.get(*identity).is_some_and(|now| now != *serial));
            let rotated = rotated.count();
            ensure!(rotated == first.len() && rotated > 0, "{rotated} of {} are renewed", first.len());
            Ok(rotated)
        })?;
        let apps = Apps::look(mesh)?;
        until(|| Apps::look(mesh)?.busier_than(&apps))?;
        Apps::look(mesh)?.unharmed_since(&before)?;
        Ok(format!("{rotated} certificates on node1 renewed; {}", Apps::look(mesh)?))
    })?;
    teller.check("the label is removed: traffic is plain again, open connections live on", || {
        mesh.apply("namespaces.yaml", NAMESPACES)?;
        until(|| {
            let still =
                mesh.pods("shop")?.iter().filter(|pod| !pod["metadata"]["annotations"][REDIRECTION].is_null()).count();
            ensure!(still == 0, "{still} pods are still captured");
            Ok(())
        })?;
        let seen = until(|| {
            let seen = mesh.capture("1", IN_CLEAR)?;
            ensure!(seen.found > 0, "nothing in the clear yet");
            Ok(seen)
        })?;
        let apps = Apps::look(mesh)?;
        until(|| Apps::look(mesh)?.busier_than(&apps))?;
        Apps::look(mesh)?.unharmed_since(&before)?;
        Ok(format!("{} clear bytes again; {}", seen.clear_bytes, Apps::look(mesh)?))
    })
}

fn strictness(mesh: &Mesh, teller: &mut Teller) -> anyhow::Result<()> {
    let outsider = || mesh.fetch("outside", "outsider", "details.shop:9080", "/details");
    teller.check("STRICT refuses a client outside the mesh, and nobody else", || {
        outsider().context("the outsider must be let in before STRICT")?;
        let before = Apps::look(mesh)?;
        mesh.apply("strict.yaml", STRICT)?;
        until(|| {
            ensure!(outsider().is_err(), "the outsider is still let in");
            Ok(())
        })?;
        mesh.fetch("shop", "curious", "details:9080", "/details").context("a client inside the mesh")?;
        until(|| Apps::look(mesh)?.busier_than(&before))?;
        Apps::look(mesh)?.unharmed_since(&before)?;
        let line = until(|| logged(mesh, "node2", &["MUTUAL_TLS_REQUIRED"]))?;
        Ok(format!("the outsider is refused: {}", brief(&line, REFUSAL)))
    })?;
    mesh.delete("strict.yaml")
}

fn policy(mesh: &Mesh, teller: &mut Teller) -> anyhow::Result<()> {
    let curious = || mesh.fetch("shop", "curious", "details:9080", "/details");
    teller.check("a policy denies one caller, and the log says which policy and why", || {
        curious().context("the caller must be let in before the policy")?;
        let before = Apps::look(mesh)?;
        mesh.apply("policy.yaml", POLICY)?;
        until(|| {
            ensure!(curious().is_err(), "the caller is still let in");
            Ok(())
        })?;
        let words = ["shop/curiosity-ends-here", "DENIED_BY", "spiffe://cluster.local/ns/shop/sa/curious"];
        let line = until(|| logged(mesh, "node2", &words))?;
        until(|| Apps::look(mesh)?.busier_than(&before))?;
        Apps::look(mesh)?.unharmed_since(&before)?;
        Ok(brief(&line, REFUSAL))
    })?;
    teller.check("the policy's file is deleted: traffic flows again", || {
        mesh.delete("policy.yaml")?;
        until(curious)?;
        Ok("details answers the caller".to_owned())
    })
}

/// The manifest of the namespaces with the label on the shop's.
fn ambient() -> String {
    NAMESPACES.replacen("  name: shop\n", "  name: shop\n  labels:\n    istio.io/dataplane-mode: ambient\n", 1)
}

fn captured(mesh: &Mesh) -> anyhow::Result<usize> {
    let mut pods = mesh.pods("shop")?;
    // Waypoints are the mesh's own.
    pods.retain(|pod| pod["metadata"]["labels"]["istio.io/dataplane-mode"] != "none");
    let captured = pods.iter().filter(|pod| pod["metadata"]["annotations"][REDIRECTION] == "enabled").count();
    ensure!(captured == pods.len(), "{captured} of {} pods are captured", pods.len());
    Ok(captured)
}

/// Connections older than capture, by pod, from the pods' receipts.
fn older(mesh: &Mesh) -> anyhow::Result<BTreeMap<String, u64>> {
    let count = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let receipt =
            pod["metadata"]["annotations"][RECEIPT].as_str().with_context(|| format!("{name} has no receipt"))?;
        let receipt: Value = serde_json::from_str(receipt)?;
        let open =
            receipt["olderConnections"].as_u64().with_context(|| format!("the receipt of {name} has no count"))?;
        Ok((name, open))
    };
    mesh.pods("shop")?.iter().map(count).collect()
}

/// The last line of a node's tunnel log that has all these words.
fn logged(mesh: &Mesh, node: &str, words: &[&str]) -> anyhow::Result<String> {
    let log = mesh.must(&["logs", "-n", "istio-system", &format!("ztunnel-{node}")])?;
    last_line(&log, &format!("ztunnel-{node}"), words)
}

/// The last line of somebody's log that has all these words.
fn last_line(log: &str, whose: &str, words: &[&str]) -> anyhow::Result<String> {
    let line = log.lines().rev().find(|line| words.iter().all(|word| line.contains(word)));
    line.map(str::to_owned).with_context(|| format!("no line with {words:?} in the log of {whose}"))
}

/// The telling part of a log line: from the first of these marks that it has.
fn brief(line: &str, marks: &[&str]) -> String {
    let at = marks.iter().find_map(|mark| line.find(mark)).unwrap_or(0);
    line.get(at..).unwrap_or(line).chars().take(220).collect()
}

/// What refuses begins so in a log line.
const REFUSAL: &[&str] = &["error=", "\"error\""];

/// Serial numbers of the leaf certificates on node1, by identity.
fn serials(mesh: &Mesh) -> anyhow::Result<BTreeMap<String, String>> {
    let dump = mesh.fetch("istio-system", "ztunnel-node1", "127.0.0.1:15000", "/config_dump")?;
    let dump: Value = serde_json::from_str(&dump).context("config_dump")?;
    let mut serials = BTreeMap::new();
    for certificate in dump["certificates"].as_array().into_iter().flatten() {
        let serial = &certificate["certChain"][0]["serialNumber"];
        if let (Some(identity), Some(serial)) = (certificate["identity"].as_str(), serial.as_str()) {
            serials.insert(identity.to_owned(), serial.to_owned());
        }
    }
    ensure!(!serials.is_empty(), "node1's tunnel shows no certificates");
    Ok(serials)
}

/// How the applications fare: nothing may get worse.
#[derive(Clone, Debug)]
struct Apps {
    requests: u64,
    errors: u64,
    lines: u64,
    connections: u64,
    broken: u64,
    last_error: Value,
    /// Restarts and start times of every container.
    starts: BTreeMap<String, String>,
}

impl Apps {
    fn look(mesh: &Mesh) -> anyhow::Result<Self> {
        let visitor = until(|| mesh.counters("visitor"))?;
        let watcher = until(|| mesh.counters("watcher"))?;
        let count = |of: &Value, what: &str| of[what].as_u64().unwrap_or(0);
        let mut starts = BTreeMap::new();
        for pod in mesh.pods("shop")? {
            for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                let name = format!("{}/{}", pod["metadata"]["name"], container["name"]);
                starts.insert(
                    name,
                    format!("{} {}", container["restartCount"], container["state"]["running"]["startedAt"]),
                );
            }
        }
        let last_error = if visitor["last-error"].is_null() { &watcher["last-error"] } else { &visitor["last-error"] };
        Ok(Self {
            requests: count(&visitor, "requests"),
            errors: count(&visitor, "errors"),
            lines: count(&watcher, "lines"),
            connections: count(&watcher, "connections"),
            broken: count(&watcher, "broken") + count(&watcher, "refused"),
            last_error: last_error.clone(),
            starts,
        })
    }

    /// Whether both applications have gone on meanwhile.
    fn busier_than(&self, before: &Self) -> anyhow::Result<()> {
        ensure!(self.requests > before.requests + 20, "the visitor has not asked 20 times more yet");
        let moved = self.connections > before.connections || self.lines > before.lines;
        ensure!(moved, "the watcher has heard nothing more yet");
        Ok(())
    }

    fn unharmed_since(&self, before: &Self) -> anyhow::Result<()> {
        let errors = self.errors - before.errors.min(self.errors);
        ensure!(errors == 0, "{errors} of the visitor's requests failed, the last: {}", self.last_error);
        let broken = self.broken - before.broken.min(self.broken);
        ensure!(broken == 0, "{broken} of the watcher's connections broke, the last: {}", self.last_error);
        for (container, start) in &before.starts {
            let now = self.starts.get(container);
            ensure!(now == Some(start), "container {container} was restarted: {start}, then {now:?}");
        }
        Ok(())
    }
}

impl std::fmt::Display for Apps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests, {} failed; {} long connections, {} broken",
            self.requests, self.errors, self.connections, self.broken
        )
    }
}
