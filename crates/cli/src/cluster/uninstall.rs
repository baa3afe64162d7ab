//! `stillmesh uninstall`: pods leave the mesh first, then everything of ours goes. Nothing is left.
//!
//! What to do next is read from what is there, so that a run that was interrupted is finished by the next one.

mod found;

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::access::{reach, within};
use super::args::{Access, Report};
use super::install::MADE;
use super::install::apply::{self, Applied, Change, applied_by, helm_owned, helm_release};
use super::install::bundle::{Group, title};
use super::objects::{MANAGER, Objects, Resource};
use super::progress::{Channel, LOOK, Teller, took};
use super::value::{annotation, holds, list, name, namespace, text};
use crate::output::{Mark, line, note};
use found::Found;

/// Annotation of a pod that is captured (contract 1.1).
const CAPTURED: &str = "ambient.istio.io/redirection";
/// How long pods may stay marked as captured when the agents have ended.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// `stillmesh uninstall`.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Do not ask
    #[arg(long = "skip-confirmation", short = 'y', visible_alias = "yes")]
    yes: bool,
    /// Delete the kinds that came with the mesh too, and with them every policy, VirtualService and DestinationRule in the cluster
    #[arg(long)]
    purge: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Go on where pods cannot be taken out of the mesh: they keep their capture, and no connections, until they are
    /// started again
    #[arg(long)]
    force: bool,
    /// How long to wait at most
    #[arg(long, default_value = "5m", value_parser = super::args::duration)]
    timeout: Duration,
    /// Print a report; what happens is then said on standard error
    #[arg(long, short, value_enum)]
    output: Option<Report>,
    /// Cluster.
    #[command(flatten)]
    access: Access,
    /// Namespace of the mesh itself
    #[arg(
        long = "mesh-namespace",
        short = 'i',
        visible_short_alias = 'n',
        visible_aliases = ["namespace", "istioNamespace"],
        value_name = "NAMESPACE",
        default_value = super::args::MESH_NAMESPACE,
        value_parser = super::args::namespace_name,
        help_heading = "Cluster"
    )]
    mesh_namespace: String,
}

/// What was done, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    cluster: String,
    namespace: String,
    dry_run: bool,
    objects: Vec<Applied>,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Carries it out.
pub(crate) async fn run(args: &Uninstall) -> anyhow::Result<ExitCode> {
    let reached = reach(&args.access).await?;
    let objects = Objects::new(reached.client());
    let found = Found::look(&objects, &args.mesh_namespace, args.purge).await?;
    let channel = if args.output.is_some() { Channel::Err } else { Channel::Out };
    let mut work = Work {
        args,
        objects,
        found,
        teller: Teller::new(channel),
        deadline: Instant::now() + args.timeout,
        done: Done {
            cluster: reached.url().to_owned(),
            namespace: args.mesh_namespace.clone(),
            dry_run: args.dry_run,
            objects: Vec::new(),
            complete: false,
            problem: None,
        },
    };
    let result = work.carry_out().await;
    if let Some(format) = args.output {
        work.done.complete = result.is_ok();
        work.done.problem = result.as_ref().err().map(|error| format!("{error:#}"));
        line(&format.of(&work.done)?);
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// A removal on its way.
struct Work<'a> {
    args: &'a Uninstall,
    objects: Objects,
    found: Found,
    teller: Teller,
    deadline: Instant,
    done: Done,
}

impl Work<'_> {
    async fn carry_out(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let place = format!("namespace {} of {}", self.done.namespace, self.done.cluster);
        if self.found.is_empty() {
            self.teller.say(&format!("nothing of Stillmesh is in {place}"));
            return self.kept().await;
        }
        let living = apply::living(&self.objects, self.found.all()).await?;
        let owned = |one| Some((one, helm_release(one).filter(|release| living.contains(release))?));
        if let Some((object, release)) = self.found.all().find_map(owned) {
            bail!("{}", helm_owned(object, &release));
        }
        self.teller.say(&format!("from {place}:"));
        for text in self.found.lines() {
            self.teller.say(&format!("  {text}"));
        }
        let stuck = self.stuck().await?;
        if !stuck.is_empty() && !self.args.force {
            bail!(
                "pods cannot be taken out of the mesh:\n  {}\nmend that first, or go on with --force: these pods keep \
                 their capture, and no connections, until they are started again",
                stuck.join("\n  ")
            );
        }
        if self.args.dry_run {
            let all: Vec<Applied> = self.found.all().map(|object| Applied::new(object, Change::Removed)).collect();
            self.done.objects = all;
            self.teller.say("nothing has been deleted (--dry-run)");
            return Ok(());
        }
        self.confirm()?;
        self.delete(|object| Group::of(object) == Group::Webhook).await?;
        self.release_pods().await?;
        self.delete(|object| matches!(Group::of(object), Group::Tunnel | Group::Controller)).await?;
        self.pods_gone("ztunnel and the controller to end", &["ztunnel", "stillmesh-controller"]).await?;
        self.delete(|object| !matches!(text(&object["kind"]), "Namespace" | "CustomResourceDefinition")).await?;
        self.clear_statuses().await?;
        self.delete(|object| object["kind"] == "CustomResourceDefinition").await?;
        self.delete(|_| true).await?;
        self.release_namespace().await?;
        self.nothing_left().await?;
        self.teller.fact(Mark::Good, &format!("Stillmesh is uninstalled; nothing of it is left ({})", took(began)));
        self.kept().await
    }

    /// Says what stays on purpose.
    async fn kept(&mut self) -> anyhow::Result<()> {
        let kept = found::definitions(&self.objects).await?;
        if !kept.is_empty() && !self.args.purge {
            let names: Vec<&str> = kept.iter().map(name).collect();
            self.teller.say(&format!(
                "  kept: {} with {} policies; --purge deletes them too",
                names.join(", "),
                found::policies(&self.objects).await?.len()
            ));
        }
        Ok(())
    }

    fn confirm(&self) -> anyhow::Result<()> {
        if self.args.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        ensure!(stdin.is_terminal(), "nothing has been deleted: nobody can be asked here; say -y to go on");
        note("Delete all of this? [y/N]");
        let mut answer = String::new();
        stdin.lock().read_line(&mut answer)?;
        ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing has been deleted");
        Ok(())
    }

    /// Deletes what is left of some kind, and says so.
    async fn delete(&mut self, which: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        for object in self.found.take(which) {
            self.objects.delete(&object, false).await?;
            self.done.objects.push(Applied::new(&object, Change::Removed));
        }
        Ok(())
    }

    /// Pods that no agent can take out of the mesh, by node.
    async fn stuck(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.objects.list(&Resource::new("v1", "Pod"), "", "").await?;
        let agents: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| {
                namespace(pod) == self.args.mesh_namespace && is_part(pod, "stillmesh-cni") && holds(pod, "Ready")
            })
            .map(|pod| text(&pod["spec"]["nodeName"]))
            .collect();
        let mut nodes: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
        for pod in pods.iter().filter(|pod| captured(pod)) {
            let node = text(&pod["spec"]["nodeName"]);
            if !agents.contains(node) {
                nodes.entry(node).or_default().push(format!("{}/{}", namespace(pod), name(pod)));
            }
        }
        let words = nodes.iter().map(|(node, pods)| {
            format!("node {node}: no agent is ready there for {} captured pods: {}", pods.len(), some(pods))
        });
        Ok(words.collect())
    }

    /// Ends the agents: each takes its node's pods out, and what it put on the node.
    async fn release_pods(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.delete(|object| Group::of(object) == Group::Agent).await?;
        self.pods_gone("node agents to take their pods out and to end", &["stillmesh-cni"]).await?;
        let ended = Instant::now();
        loop {
            let pods = self.objects.list(&Resource::new("v1", "Pod"), "", "").await?;
            let left: Vec<String> = pods
                .iter()
                .filter(|pod| captured(pod))
                .map(|pod| format!("{}/{} on {}", namespace(pod), name(pod), text(&pod["spec"]["nodeName"])))
                .collect();
            if left.is_empty() {
                self.teller.fact(Mark::Good, &format!("every pod has left the mesh ({})", took(began)));
                return Ok(());
            }
            if ended.elapsed() >= AFTERWARDS {
                let text =
                    format!("{} pods are still captured although their agent has ended: {}", left.len(), some(&left));
                if self.args.force {
                    self.teller.fact(Mark::Doubt, &text);
                    return Ok(());
                }
                bail!("{text}; start them again (or the agent: `stillmesh install`), or go on with --force");
            }
            self.teller.waiting("pods to leave the mesh", &left);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until no pod of these parts is left. A pod on a node that does not answer is not waited for.
    async fn pods_gone(&mut self, what: &str, parts: &[&str]) -> anyhow::Result<()> {
        loop {
            let nodes = self.objects.list(&Resource::new("v1", "Node"), "", "").await?;
            let silent: BTreeSet<&str> = nodes.iter().filter(|node| !holds(node, "Ready")).map(name).collect();
            let pods = self.objects.list(&Resource::new("v1", "Pod"), &self.args.mesh_namespace, "").await?;
            let left = pods.iter().filter(|pod| parts.iter().any(|part| is_part(pod, part)));
            let (lost, left): (Vec<&Value>, Vec<&Value>) =
                left.partition(|pod| silent.contains(text(&pod["spec"]["nodeName"])));
            if left.is_empty() {
                for pod in lost {
                    let node = text(&pod["spec"]["nodeName"]);
                    let text = format!("node {node} does not answer: what the mesh put there goes when it is back");
                    self.teller.fact(Mark::Doubt, &text);
                }
                return Ok(());
            }
            let names: Vec<String> =
                left.iter().map(|pod| format!("{} on {}", name(pod), text(&pod["spec"]["nodeName"]))).collect();
            ensure!(
                Instant::now() < self.deadline,
                "not within {:?}: {what}: {}; the same command goes on from here",
                self.args.timeout,
                some(&names)
            );
            self.teller.waiting(what, &names);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What our controller wrote into users' policies would be untrue from now on.
    async fn clear_statuses(&mut self) -> anyhow::Result<()> {
        if self.args.purge {
            return Ok(());
        }
        for policy in found::policies(&self.objects).await? {
            let ours = |condition: &&Value| found::CONDITIONS.contains(&text(&condition["type"]));
            if list(&policy["status"]["conditions"]).any(|condition| ours(&condition)) {
                let rest: Vec<&Value> = list(&policy["status"]["conditions"]).filter(|one| !ours(one)).collect();
                let patch = if rest.is_empty() {
                    json!({"status": null})
                } else {
                    json!({"status": {"conditions": rest, "observedGeneration": null}})
                };
                self.objects.merge_status(&policy, &patch).await?;
            }
        }
        Ok(())
    }

    /// A namespace that was there before stays, without what we set at it.
    async fn release_namespace(&mut self) -> anyhow::Result<()> {
        let kind = Resource::new("v1", "Namespace");
        let there = self.objects.get(&kind, "", &self.args.mesh_namespace).await?;
        if let Some(there) = there.filter(|there| annotation(there, MADE).is_none() && applied_by(there, MANAGER)) {
            let bare = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name(&there)}});
            within("giving the namespace back", self.objects.apply(&bare, false, true)).await?;
        }
        Ok(())
    }

    /// Looks until nothing is left.
    async fn nothing_left(&mut self) -> anyhow::Result<()> {
        loop {
            let found = Found::look(&self.objects, &self.args.mesh_namespace, self.args.purge).await?;
            if found.is_empty() {
                return Ok(());
            }
            let names: Vec<String> = found.all().map(title).collect();
            ensure!(
                Instant::now() < self.deadline,
                "still there after {:?}: {}; the same command goes on from here",
                self.args.timeout,
                some(&names)
            );
            // Something may have come back: a controller that was still ending has written it.
            for object in found.all().filter(|object| object["metadata"]["deletionTimestamp"].is_null()) {
                self.objects.delete(object, false).await?;
            }
            self.teller.waiting("the last objects to go", &names);
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a pod is captured. One that has ended, or is about to, has no connections whatever its mark says.
fn captured(pod: &Value) -> bool {
    let ended = matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed");
    annotation(pod, CAPTURED).is_some() && pod["metadata"]["deletionTimestamp"].is_null() && !ended
}

/// Whether a pod is of a part of ours.
fn is_part(pod: &Value, part: &str) -> bool {
    super::value::label(pod, "app.kubernetes.io/name") == Some(part)
}

/// The first names of many.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
