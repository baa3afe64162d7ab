//! What holds for a mesh besides its objects: what its controller was told where it runs, else what the command line says. ConfigMap
//! `istio` comes before both, as for the controller; the builder reads it.

use clap::Args;
use serde_json::Value;
use stillmesh_controller::config;
use stillmesh_core::model::TrustDomain;
use stillmesh_k8s::translate::Mesh;
use stillmesh_runtime::env::{Problems, Reader};

use crate::cluster::args::{MeshNamespace, namespace_name};
use crate::cluster::objects::{Objects, Resource};
use crate::cluster::value::{list, text};
use crate::why::place::Place;

/// Labels of a controller's Deployment and pods in a cluster.
pub(crate) const CONTROLLERS: &str = "app.kubernetes.io/name=stillmesh-controller";

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
            Ok(Some(mesh)) => return (self.over(mesh), None),
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

/// What a cluster's controller was told; `None` where none is there.
pub(crate) async fn of_cluster(objects: &Objects, mesh_namespace: &str) -> anyhow::Result<Option<Mesh>> {
    let controllers = objects.list(&Resource::new("apps/v1", "Deployment"), mesh_namespace, CONTROLLERS).await?;
    Ok(controllers.first().map(told).transpose()?)
}

/// What a Deployment tells its controller. Errors: the controller would not start with it.
fn told(deployment: &Value) -> Result<Mesh, Problems> {
    let containers = list(&deployment["spec"]["template"]["spec"]["containers"]);
    let variables = containers.flat_map(|container| list(&container["env"]));
    let mut reader = Reader::from_values(variables.map(|one| (text(&one["name"]), text(&one["value"]))));
    let mesh = config::mesh(&mut reader);
    reader.finish().map(|()| mesh)
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
