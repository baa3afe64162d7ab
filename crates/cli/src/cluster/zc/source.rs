//! Which tunnel is asked, and how it is reached.

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::From;
use crate::cluster::access::{reach, within};
use crate::cluster::args::namespace_name;
use crate::cluster::pod_http::PodPort;
use crate::machine::control;
use crate::machine::tunnels;
use crate::output::note;

/// How the tunnels' pods are found (contract 11.2).
const TUNNEL_PODS: &str = "app=ztunnel";

/// A tunnel that can be asked.
pub(super) enum Tunnel {
    /// Only its dump is there.
    File(PathBuf),
    /// In a mesh on this machine.
    Local {
        /// Name of the mesh.
        mesh: String,
        /// Its node.
        node: String,
        /// Its admin port.
        port: u16,
    },
    /// In a cluster.
    Pod {
        /// How the cluster is reached.
        client: Client,
        /// Its admin port.
        port: PodPort,
        /// Its node.
        node: String,
    },
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Local { node, .. } => write!(f, "ztunnel-{node}"),
            Self::Pod { port, node, .. } => write!(f, "{}.{} on {node}", port.pod, port.namespace),
        }
    }
}

impl Tunnel {
    /// Its node, for columns.
    pub(super) fn node(&self) -> &str {
        match self {
            Self::File(_) => "",
            Self::Local { node, .. } | Self::Pod { node, .. } => node,
        }
    }

    /// Asks its admin port.
    pub(super) async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Bytes> {
        match self {
            Self::File(file) => {
                ensure!(method == Method::GET, "a file has no log; name a tunnel instead of --file");
                let mut text = Vec::new();
                if file.as_os_str() == "-" {
                    std::io::stdin().lock().read_to_end(&mut text).context("standard input")?;
                } else {
                    text = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
                }
                Ok(text.into())
            }
            Self::Local { mesh, node, port } => tunnels::ask(mesh, node, *port, method, path).await,
            Self::Pod { client, port, .. } => port.ask(client, method, path).await,
        }
    }
}

/// The tunnel that is meant, or the first one that is ready.
pub(super) async fn first(from: &From) -> anyhow::Result<Tunnel> {
    let chosen = from.pod.is_some() || from.node.is_some() || from.file.is_some();
    let tunnel = every(from).await?.into_iter().next().context("there is no ztunnel")?;
    if !chosen {
        note(&format!("as {tunnel} knows it; --node chooses another"));
    }
    Ok(tunnel)
}

/// The tunnel that is meant, or all of them. Never empty.
pub(super) async fn every(from: &From) -> anyhow::Result<Vec<Tunnel>> {
    if let Some(file) = &from.file {
        return Ok(vec![Tunnel::File(file.clone())]);
    }
    if let Some(mesh) = control::here(from.name.as_deref(), &from.access) {
        return every_local(from, &mesh).await;
    }
    let reached = reach(&from.access).await?;
    if from.name.is_none() && !from.access.chosen() {
        note(&format!("in the cluster at {}", reached.url()));
    }
    let client = reached.client();
    let namespace = from.namespace.as_deref().unwrap_or(&from.mesh.mesh_namespace);
    let made = |pod: &Pod, namespace: &str| Tunnel::Pod {
        client: client.clone(),
        port: PodPort { namespace: namespace.to_owned(), pod: pod.name_any(), port: from.proxy_admin_port },
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
    };
    if let Some(name) = &from.pod {
        let (name, namespace) = named(name, namespace)?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let pod = within(&format!("pod {namespace}/{name}"), pods.get(&name)).await?;
        return Ok(vec![made(&pod, &namespace)]);
    }
    let pods: Api<Pod> = Api::all(client.clone());
    let mut found = within("pods of ztunnel", pods.list(&ListParams::default().labels(TUNNEL_PODS))).await?.items;
    found.retain(|pod| {
        running(pod) && from.namespace.as_deref().is_none_or(|wanted| pod.namespace().as_deref() == Some(wanted))
    });
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let mut nodes: Vec<String> = found.iter().map(node).collect();
    if let Some(wanted) = &from.node {
        found.retain(|pod| node(pod) == *wanted);
        if found.is_empty() {
            nodes.sort();
            nodes.dedup();
            let there = if nodes.is_empty() {
                "none is there at all".to_owned()
            } else {
                format!("there are on {}", nodes.join(", "))
            };
            bail!("no ztunnel runs on a node named {wanted:?}; {there}");
        }
    }
    if found.is_empty() {
        let (place, hint) = match &from.namespace {
            Some(namespace) => (
                format!("namespace {namespace}"),
                "--namespace is the tunnels' own; --workload-namespace, --service-namespace and --policy-namespace choose rows",
            ),
            None => ("this cluster".to_owned(), "`stillmesh check` says more"),
        };
        bail!("no ztunnel runs in {place} (no running pod labelled {TUNNEL_PODS}); {hint}");
    }
    // While one is replaced there are two on a node: the newer one is the one that goes on.
    found.sort_by_key(|pod| (node(pod), !ready(pod), pod.creation_timestamp().map(|time| std::cmp::Reverse(time.0))));
    found.dedup_by_key(|pod| node(pod));
    found.sort_by_key(|pod| (!ready(pod), node(pod)));
    Ok(found.iter().map(|pod| made(pod, &pod.namespace().unwrap_or_default())).collect())
}

async fn every_local(from: &From, mesh: &str) -> anyhow::Result<Vec<Tunnel>> {
    let nodes = tunnels::nodes(mesh).await?;
    let wanted = match (&from.node, &from.pod) {
        (Some(node), _) => Some(node.as_str()),
        (None, Some(pod)) => {
            let (name, _) = named(pod, "")?;
            let node = nodes.iter().find(|node| format!("ztunnel-{node}") == name);
            Some(node.with_context(|| format!("there is no tunnel named {name:?}; they are ztunnel-NODE"))?.as_str())
        }
        (None, None) => None,
    };
    if let Some(wanted) = wanted {
        ensure!(
            nodes.iter().any(|node| node == wanted),
            "mesh {mesh:?} has no node named {wanted:?}; its nodes are {}",
            nodes.join(", ")
        );
    }
    let meant = nodes.iter().filter(|node| wanted.is_none_or(|wanted| wanted == *node));
    let tunnel =
        |node: &String| Tunnel::Local { mesh: mesh.to_owned(), node: node.clone(), port: from.proxy_admin_port };
    Ok(meant.map(tunnel).collect())
}

/// `[TYPE/]name[.namespace]`.
pub(super) fn named(text: &str, namespace: &str) -> anyhow::Result<(String, String)> {
    let rest = match text.split_once('/') {
        Some(("pod" | "pods" | "po", rest)) => rest,
        Some((kind, _)) => bail!("{text:?}: a ztunnel is a pod, not a {kind}; write the pod's name, or --node"),
        None => text,
    };
    let (name, namespace) = rest.rsplit_once('.').unwrap_or((rest, namespace));
    let good = |part: &str| part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(!name.is_empty() && good(name), "{text:?} names no pod; [TYPE/]name[.namespace] is accepted");
    if !namespace.is_empty() {
        namespace_name(namespace).map_err(|why| anyhow::anyhow!("{text:?}: {why}"))?;
    }
    Ok((name.to_owned(), namespace.to_owned()))
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
