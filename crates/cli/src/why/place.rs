//! The mesh that is asked: one on this machine, or a cluster's, through its API server and with the caller's own rights.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::bail;
use bytes::Bytes;
use futures::StreamExt as _;
use http::Method;
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::who::names;
use crate::cluster::access::reach;
use crate::cluster::args::WhichMesh;
use crate::cluster::objects::{Objects, Resource};
use crate::cluster::pod_http::PodPort;
use crate::cluster::value;
pub(crate) use crate::machine::system::MONITORING;
use crate::machine::{control, tunnels};
use crate::output::note;
use stillmesh_k8s::gateway::generate::GATEWAY_NAME;

/// The admin port of tunnels and waypoints.
pub(crate) const ADMIN: u16 = 15000;
/// Their port of metrics (contract 9.1).
pub(crate) const STATS: u16 = 15020;
/// Proxies that are asked at a time.
const AT_ONCE: usize = 8;
/// Most proxies that one question is put to.
pub(crate) const MOST_PROXIES: usize = 200;

/// Where objects and proxies are.
pub(crate) enum Place {
    /// On this machine.
    Here { mesh: String },
    /// In a cluster.
    Cluster { objects: Objects },
    /// Nowhere: objects that no mesh runs.
    Objects(Vec<Value>),
}

/// A proxy that can be asked.
pub(crate) enum Proxy {
    /// On this machine.
    Here { mesh: String, namespace: String, pod: String },
    /// In a cluster.
    Cluster { client: Client, pod: PodPort, shown: String },
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here { namespace, pod, .. } if namespace == tunnels::NAMESPACE => f.write_str(pod),
            Self::Here { namespace, pod, .. } => write!(f, "{namespace}/{pod}"),
            Self::Cluster { shown, .. } => f.write_str(shown),
        }
    }
}

impl Proxy {
    /// Gets a page of one of its ports.
    pub(crate) async fn page(&self, port: u16, path: &str) -> anyhow::Result<Bytes> {
        self.send(port, Method::GET, path).await
    }

    /// Asks one of its ports.
    pub(crate) async fn send(&self, port: u16, method: Method, path: &str) -> anyhow::Result<Bytes> {
        match self {
            Self::Here { mesh, namespace, pod } => tunnels::send(mesh, (namespace, pod), port, method, path).await,
            Self::Cluster { client, pod, .. } => PodPort { port, ..pod.clone() }.ask(client, method, path).await,
        }
    }
}

/// Gets a page of all, a few at a time: what each has answered, in their order.
pub(crate) async fn pages(proxies: &[Proxy], port: u16, path: &str) -> Vec<(String, anyhow::Result<Bytes>)> {
    let asked = futures::stream::iter(proxies.iter().enumerate());
    let asked = asked.map(|(place, proxy)| async move { (place, (proxy.to_string(), proxy.page(port, path).await)) });
    let mut answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Gets a page of all admin ports that is JSON, likewise.
pub(crate) async fn answers<T: DeserializeOwned>(proxies: &[Proxy], path: &str) -> Vec<(String, anyhow::Result<T>)> {
    let read = |page: anyhow::Result<Bytes>| page.and_then(|page| Ok(serde_json::from_slice(&page)?));
    pages(proxies, ADMIN, path).await.into_iter().map(|(by, page)| (by, read(page))).collect()
}

impl Place {
    /// The mesh that is named or runs here, else the cluster.
    pub(crate) async fn find(which: &WhichMesh) -> anyhow::Result<Self> {
        if let Some(mesh) = control::here(which.name.as_deref(), &which.access) {
            return Ok(Self::Here { mesh });
        }
        Ok(Self::Cluster { objects: Objects::new(reach(&which.access).await?.client()) })
    }

    /// Objects of a kind, in a namespace or, where that is empty, everywhere.
    pub(crate) async fn list(&self, kind: &str, namespace: &str, labels: &str) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Here { mesh } => {
                let mut all = control::objects(mesh, kind, namespace).await?;
                if let Some((label, value)) = labels.split_once('=') {
                    all.retain(|object| object["metadata"]["labels"][label] == value);
                } else if !labels.is_empty() {
                    all.retain(|object| !object["metadata"]["labels"][labels].is_null());
                }
                Ok(all)
            }
            Self::Objects(all) => {
                let is_meant = |object: &&Value| {
                    object["kind"] == kind && (namespace.is_empty() || object["metadata"]["namespace"] == namespace)
                };
                Ok(all.iter().filter(is_meant).cloned().collect())
            }
            Self::Cluster { objects } => {
                let version = match kind {
                    "Deployment" => "apps/v1",
                    "Quarantine" => "stillmesh.io/v1alpha1",
                    "Gateway" | "GatewayClass" => "gateway.networking.k8s.io/v1",
                    _ => "v1",
                };
                objects.list(&Resource::new(version, kind), namespace, labels).await
            }
        }
    }

    /// A namespace; `None` where there is none of that name.
    pub(crate) async fn namespace(&self, wanted: &str) -> anyhow::Result<Option<Value>> {
        match self {
            Self::Cluster { objects } => objects.get(&Resource::new("v1", "Namespace"), "", wanted).await,
            _ => Ok(self.list("Namespace", "", "").await?.into_iter().find(|one| value::name(one) == wanted)),
        }
    }

    /// Fails where there is no such namespace. Whoever may not see namespaces is taken at their word.
    pub(crate) async fn must_have_namespace(&self, wanted: &str) -> anyhow::Result<()> {
        if !matches!(self.namespace(wanted).await, Ok(None)) {
            return Ok(());
        }
        match self.list("Namespace", "", "").await {
            Ok(all) => bail!("there is no namespace {wanted:?}; there are {}", names(&all)),
            Err(_) => bail!("there is no namespace {wanted:?}"),
        }
    }

    /// Who answers at the ports of a pod; nobody where no mesh runs.
    pub(crate) fn proxy(&self, pod: &Value) -> Option<Proxy> {
        let (namespace, pod) = (value::namespace(pod).to_owned(), value::name(pod).to_owned());
        match self {
            Self::Here { mesh } => Some(Proxy::Here { mesh: mesh.clone(), namespace, pod }),
            Self::Cluster { objects } => {
                let shown = format!("{namespace}/{pod}");
                let at = PodPort { namespace, pod, port: ADMIN };
                Some(Proxy::Cluster { client: objects.client().clone(), pod: at, shown })
            }
            Self::Objects(_) => None,
        }
    }

    /// Pods of waypoints, everywhere.
    pub(crate) async fn waypoints(&self) -> anyhow::Result<Vec<Value>> {
        let mut pods = self.list("Pod", "", GATEWAY_NAME).await?;
        pods.retain(value::is_waypoints);
        Ok(pods)
    }

    /// Tunnels of these nodes, or all where none is named, and waypoints.
    pub(crate) async fn proxies(&self, nodes: &BTreeSet<String>) -> anyhow::Result<Vec<Proxy>> {
        let runs = |pod: &Value| pod["status"]["phase"] == "Running";
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut proxies = Vec::new();
        match self {
            Self::Objects(_) => {}
            Self::Here { mesh } => {
                let all = tunnels::nodes(mesh).await?;
                proxies.extend(all.into_iter().map(|node| Proxy::Here {
                    mesh: mesh.clone(),
                    namespace: tunnels::NAMESPACE.to_owned(),
                    pod: format!("ztunnel-{node}"),
                }));
                for pod in self.waypoints().await?.iter().filter(|pod| runs(pod)) {
                    let (namespace, pod) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
                    proxies.push(Proxy::Here { mesh: mesh.clone(), namespace, pod });
                }
            }
            Self::Cluster { objects } => {
                let of = |pod: &Value, what: &str| {
                    let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
                    let shown = format!("{what} {namespace}/{name} on {}", text(&pod["spec"]["nodeName"]));
                    let pod = PodPort { namespace, pod: name, port: ADMIN };
                    Proxy::Cluster { client: objects.client().clone(), pod, shown }
                };
                let tunnels = self.list("Pod", "", "app=ztunnel").await?;
                let is_meant =
                    |pod: &&Value| runs(pod) && (nodes.is_empty() || nodes.contains(&text(&pod["spec"]["nodeName"])));
                proxies.extend(tunnels.iter().filter(is_meant).map(|pod| of(pod, "ztunnel")));
                let waypoints = self.waypoints().await?;
                proxies.extend(waypoints.iter().filter(|pod| runs(pod)).map(|pod| of(pod, "waypoint")));
            }
        }
        if proxies.len() > MOST_PROXIES {
            note(&format!("{} tunnels and waypoints could have seen it; {MOST_PROXIES} are asked", proxies.len()));
            proxies.truncate(MOST_PROXIES);
        }
        Ok(proxies)
    }
}
