//! What holds for a mesh besides its objects: what its controller was told where it runs, else what the command line says. ConfigMap
//! `istio` comes before both, as for the controller; the builder reads it.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::Value;
use stillmesh_controller::config;
use stillmesh_core::model::TrustDomain;
use stillmesh_k8s::translate::Mesh;
use stillmesh_runtime::env::{Problems, Reader};

use crate::cluster::args::{MeshNamespace, namespace_name};
use crate::cluster::objects::{Objects, Resource};
use crate::cluster::value::{list, map, text};
use crate::output::note;
use crate::why::place::Place;

/// Labels of a controller's Deployment and pods in a cluster.
pub(crate) const CONTROLLERS: &str = "app.kubernetes.io/name=stillmesh-controller";
/// The controller's container, as the chart names it.
const CONTAINER: &str = "controller";

/// What can be said of a mesh on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// Trust domain of identities, where ConfigMap istio names none; absent: that of the mesh that runs, of files cluster.local
    #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
    trust_domain: Option<TrustDomain>,
    /// Namespace whose policies hold for the whole mesh; absent: that of the mesh that runs, of files istio-system
    #[arg(long, value_name = "NAMESPACE", value_parser = namespace_name)]
    root_namespace: Option<String>,
    #[command(flatten)]
    system: MeshNamespace,
}

impl Settings {
    /// Of files: Istio's defaults, unless something else is said.
    pub(crate) fn of_files(&self) -> Mesh {
        self.over(Mesh::default())
    }

    /// Of a mesh that runs, with what had to be assumed because its controller's settings could not be read.
    pub(crate) async fn of(&self, place: &Place) -> (Mesh, Option<String>) {
        // On one machine the controller is told nothing else than its defaults.
        let Place::Cluster { objects } = place else { return (self.of_files(), None) };
        let namespace = &self.system.mesh_namespace;
        let why = match of_cluster(objects, namespace).await {
            Ok(Some(told)) => {
                let mesh = self.over(told.mesh.clone());
                let assumed = told.assumed(&mesh, Some(&self.given()));
                return (mesh, assumed);
            }
            Ok(None) => {
                format!(
                    "namespace {namespace} has no Deployment labelled {CONTROLLERS} (--mesh-namespace names another)"
                )
            }
            Err(error) => format!("{error:#}"),
        };
        let mesh = self.of_files();
        let Mesh { trust_domain, root_namespace, .. } = &mesh;
        let assumed = format!(
            "what the controller was told is not known: {why}; assumed are trust domain {trust_domain} (--trust-domain) and \
             root namespace {root_namespace} (--root-namespace)"
        );
        (mesh, Some(assumed))
    }

    /// What is said here, by the controller's names.
    fn given(&self) -> Vec<&'static str> {
        let domain = self.trust_domain.as_ref().map(|_| "TRUST_DOMAIN");
        domain.into_iter().chain(self.root_namespace.as_ref().map(|_| "ROOT_NAMESPACE")).collect()
    }

    fn over(&self, mut mesh: Mesh) -> Mesh {
        if let Some(domain) = &self.trust_domain {
            mesh.trust_domain = domain.clone();
        }
        if let Some(root) = &self.root_namespace {
            mesh.root_namespace = root.as_str().into();
        }
        mesh
    }
}

/// What a cluster's controller was told.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    /// As far as it can be read; where not, defaults.
    mesh: Mesh,
    /// Settings that cannot be read, and where they come from.
    unread: BTreeMap<String, String>,
}

impl Told {
    /// What had to be assumed, in a sentence. What is `given` on the command line was not; `None` where it has no flags for that.
    fn assumed(&self, mesh: &Mesh, given: Option<&[&str]>) -> Option<String> {
        let flag = |flag: &str| given.map_or(String::new(), |_| format!(" ({flag})"));
        let one = |(key, from): (&String, &String)| {
            let assumed = match key.as_str() {
                "TRUST_DOMAIN" => format!("assumed is {}{}", mesh.trust_domain, flag("--trust-domain")),
                "ROOT_NAMESPACE" => format!("assumed is {}{}", mesh.root_namespace, flag("--root-namespace")),
                _ => "its default is assumed".to_owned(),
            };
            format!("{key} comes from {from}: {assumed}")
        };
        let given = given.unwrap_or_default();
        let unread = self.unread.iter().filter(|(key, _)| !given.contains(&key.as_str()));
        let all: Vec<String> = unread.map(one).collect();
        (!all.is_empty()).then(|| format!("of what the controller was told, not all can be read: {}", all.join("; ")))
    }
}

/// What a cluster's controller was told; `None` where none is there.
async fn of_cluster(objects: &Objects, mesh_namespace: &str) -> anyhow::Result<Option<Told>> {
    let controllers = objects.list(&Resource::new("apps/v1", "Deployment"), mesh_namespace, CONTROLLERS).await?;
    let Some(container) = controllers.first().and_then(container) else { return Ok(None) };
    let mut maps = Maps::new();
    for name in map_names(container) {
        let map = objects.get(&Resource::new("v1", "ConfigMap"), mesh_namespace, name).await;
        maps.insert(name.to_owned(), map.map(Option::unwrap_or_default).map_err(|error| format!("{error:#}")));
    }
    Ok(Some(told(container, &maps)?))
}

/// What holds for a cluster; what its controller was told and cannot be read is noted, and assumed to be the default.
pub(crate) async fn assumed(objects: &Objects, mesh_namespace: &str) -> anyhow::Result<Mesh> {
    let Some(told) = of_cluster(objects, mesh_namespace).await? else { return Ok(Mesh::default()) };
    told.assumed(&told.mesh, None).into_iter().for_each(|assumed| note(&assumed));
    Ok(told.mesh)
}

/// ConfigMaps by name, null where there is none; else why it cannot be read.
type Maps = BTreeMap<String, Result<Value, String>>;

/// The container that the controller runs in; others were put beside it.
fn container(deployment: &Value) -> Option<&Value> {
    let all = || list(&deployment["spec"]["template"]["spec"]["containers"]);
    all().find(|one| one["name"] == CONTAINER).or_else(|| all().next())
}

fn map_names(container: &Value) -> BTreeSet<&str> {
    let whole = list(&container["envFrom"]).map(|one| &one["configMapRef"]);
    let keys = list(&container["env"]).map(|one| &one["valueFrom"]["configMapKeyRef"]);
    whole.chain(keys).map(|map| text(&map["name"])).filter(|name| !name.is_empty()).collect()
}

/// What a container tells its controller, by variables and then by flags. Errors: the controller would not start with it.
fn told(container: &Value, maps: &Maps) -> Result<Told, Problems> {
    let mut said = Said::default();
    for from in list(&container["envFrom"]) {
        let prefix = text(&from["prefix"]);
        let (of_map, of_secret) = (text(&from["configMapRef"]["name"]), text(&from["secretRef"]["name"]));
        match maps.get(of_map) {
            Some(Ok(found)) => {
                map(&found["data"]).for_each(|(key, value)| said.is(&format!("{prefix}{key}"), text(value)))
            }
            Some(Err(why)) => config::MESH_KEYS.iter().for_each(|key| said.may_be(key, &unreadable(of_map, why))),
            None if of_secret.is_empty() => {}
            None => config::MESH_KEYS
                .iter()
                .for_each(|key| said.may_be(key, &format!("Secret {of_secret}, if it is there"))),
        }
    }
    for one in list(&container["env"]) {
        let (key, value, from) = (text(&one["name"]), text(&one["value"]), &one["valueFrom"]);
        let of_map = &from["configMapKeyRef"];
        match (maps.get(text(&of_map["name"])), from.is_null()) {
            (_, true) if value.contains("$(") => said.may_be(key, &format!("other variables ({value})")),
            (_, true) => said.is(key, value),
            (Some(Ok(found)), _) => {
                if let Some(value) = found["data"][text(&of_map["key"])].as_str() {
                    said.is(key, value);
                }
            }
            (Some(Err(why)), _) => said.may_be(key, &unreadable(text(&of_map["name"]), why)),
            (None, _) => match text(&from["secretKeyRef"]["name"]) {
                "" => said.may_be(key, "the pod itself"),
                secret => said.may_be(key, &format!("Secret {secret}")),
            },
        }
    }
    let words: Vec<&str> = list(&container["command"]).chain(list(&container["args"])).map(text).collect();
    let flags = words.iter().position(|word| word.starts_with("--")).and_then(|at| words.get(at..)).unwrap_or_default();
    let mut laid_over = BTreeMap::new();
    // What is no flag of it keeps it from starting, and does not matter here.
    let _unknown = config::overlay(&mut laid_over, flags.iter().map(|flag| (*flag).to_owned()));
    for (key, value) in laid_over {
        match value.contains("$(") {
            true => said.may_be(&key, &format!("other variables ({value})")),
            false => said.is(&key, &value),
        }
    }
    let Said { values, mut unread } = said;
    unread.retain(|key, _| config::MESH_KEYS.contains(&key.as_str()));
    let mut reader = Reader::from_values(values);
    let mesh = config::mesh(&mut reader);
    reader.finish().map(|()| Told { mesh, unread })
}

fn unreadable(of_map: &str, why: &str) -> String {
    format!("ConfigMap {of_map}, which cannot be read ({why})")
}

/// Variables so far: what is set last holds.
#[derive(Default)]
struct Said {
    values: BTreeMap<String, String>,
    unread: BTreeMap<String, String>,
}

impl Said {
    fn is(&mut self, key: &str, value: &str) {
        self.unread.remove(key);
        self.values.insert(key.to_owned(), value.to_owned());
    }

    /// Something that is not known, from there.
    fn may_be(&mut self, key: &str, from: &str) {
        self.values.remove(key);
        self.unread.insert(key.to_owned(), from.to_owned());
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
