//! The mesh that is steered: one on this machine, or a cluster's, through its API server and with the caller's own rights.

use anyhow::{Context as _, bail, ensure};
use http::Method;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Api;
use kube::api::PostParams;
use nix::unistd::{User, getuid};
use serde_json::{Value, json};

use super::How;
use crate::cluster::access::{reach, within};
use crate::cluster::args::WhichMesh;
use crate::cluster::objects::{Objects, Resource};
use crate::cluster::value::{name, namespace, text};
use crate::machine::{control, tunnels};
use crate::why::place;
use crate::why::who::names;

/// API version of orders.
pub(super) const VERSION: &str = "stillmesh.io/v1alpha1";

/// Where orders are written.
pub(super) enum Place {
    /// On this machine.
    Here { mesh: String },
    /// In a cluster.
    Cluster { objects: Objects },
}

impl Place {
    /// The mesh that is named or runs here, else the cluster.
    pub(super) async fn find(which: &WhichMesh) -> anyhow::Result<Self> {
        if let Some(mesh) = control::here(which.name.as_deref(), &which.access) {
            return Ok(Self::Here { mesh });
        }
        Ok(Self::Cluster { objects: Objects::new(reach(&which.access).await?.client()) })
    }

    /// The namespace of the mesh itself.
    pub(super) fn system(&self, how: &How) -> String {
        match self {
            Self::Here { .. } => tunnels::NAMESPACE.to_owned(),
            Self::Cluster { .. } => how.mesh_namespace.mesh_namespace.clone(),
        }
    }

    /// Who asks: in a cluster as its API server has it.
    pub(super) async fn who(&self) -> anyhow::Result<String> {
        match self {
            Self::Here { .. } => {
                let uid = getuid();
                let login = User::from_uid(uid).ok().flatten().map(|user| user.name);
                Ok(login.map_or_else(|| format!("uid {uid}"), |login| format!("{login} (uid {uid})")))
            }
            Self::Cluster { objects } => {
                let api: Api<SelfSubjectReview> = Api::all(objects.client().clone());
                let review = SelfSubjectReview::default();
                let (doing, params) = ("asking who you are", PostParams::default());
                let answer = within(doing, api.create(&params, &review)).await?;
                let user = answer.status.and_then(|status| status.user_info).and_then(|user| user.username);
                user.filter(|name| !name.is_empty()).context("the API server does not say who you are")
            }
        }
    }

    /// The objects of a kind, in a namespace or, where that is empty, everywhere.
    pub(super) async fn objects(&self, version: &str, kind: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Here { mesh } => control::objects(mesh, kind, namespace).await,
            Self::Cluster { objects } => objects.list(&Resource::new(version, kind), namespace, "").await,
        }
    }

    /// The orders of a kind and namespace; of all where that is empty.
    pub(super) async fn list(&self, kind: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
        self.objects(VERSION, kind, namespace).await
    }

    /// An order.
    pub(super) async fn get(&self, kind: &str, namespace: &str, order: &str) -> anyhow::Result<Option<Value>> {
        match self {
            Self::Here { .. } => Ok(self.list(kind, namespace).await?.into_iter().find(|one| name(one) == order)),
            Self::Cluster { objects } => objects.get(&Resource::new(VERSION, kind), namespace, order).await,
        }
    }

    /// Fails where there is no such namespace.
    pub(super) async fn must_have_namespace(&self, wanted: &str) -> anyhow::Result<()> {
        let mesh = match self {
            Self::Here { mesh } => place::Place::Here { mesh: mesh.clone() },
            Self::Cluster { objects } => place::Place::Cluster { objects: objects.clone() },
        };
        mesh.must_have_namespace(wanted).await
    }

    /// Fails where one of these pods of a namespace is not there: an order for nobody would look like one that is carried out.
    pub(super) async fn must_have_pods(&self, namespace: &str, wanted: &[String]) -> anyhow::Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        // Whoever may steer a namespace need not be allowed to see its pods.
        let Ok(pods) = self.objects("v1", "Pod", namespace).await else { return Ok(()) };
        if let Some(absent) = wanted.iter().find(|wanted| !pods.iter().any(|pod| name(pod) == wanted.as_str())) {
            bail!("there is no pod {absent:?} in namespace {namespace:?}; its pods are {}", names(&pods));
        }
        Ok(())
    }

    /// Writes an order.
    pub(super) async fn create(&self, order: &Value) -> anyhow::Result<()> {
        match self {
            Self::Here { mesh } => {
                let answer = control::client(mesh)?.request(Method::POST, "/orders", order.to_string()).await?;
                ensure!(answer.status.is_success(), "{}", answer.text().trim());
            }
            Self::Cluster { objects } => {
                let doing = format!("writing {} {}", text(&order["kind"]), namespace(order));
                within(&doing, objects.apply(order, false, false)).await.with_context(|| {
                    format!("writing {0}s takes ClusterRole stillmesh-{0}", text(&order["kind"]).to_lowercase())
                })?;
            }
        }
        Ok(())
    }

    /// Ends an order.
    pub(super) async fn end(&self, order: &Value, by: &str) -> anyhow::Result<()> {
        match self {
            Self::Here { mesh } => {
                let path = format!("/orders/{}/{}/{}/end", text(&order["kind"]), namespace(order), name(order));
                let body = json!({"by": by}).to_string();
                let answer = control::client(mesh)?.request(Method::POST, &path, body).await?;
                ensure!(answer.status.is_success(), "{}", answer.text().trim());
                Ok(())
            }
            Self::Cluster { objects } => objects.merge(order, &json!({"spec": {"ended": true, "endedBy": by}})).await,
        }
    }
}
