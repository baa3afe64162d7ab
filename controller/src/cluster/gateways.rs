//! Waypoints in a cluster: their GatewayClasses, what runs each Gateway of these classes, and what its status says
//! (contract 7.1, 7.2, 7.6). Written by the leader, repaired when somebody changes or deletes it; what a deleted Gateway
//! leaves is the garbage collector's.
//!
//! Classes of Istio's controller are left alone while an istiod runs in this cluster; so is what somebody else has made
//! under a name that a waypoint's object would have. The Gateway API need not be installed: its kinds are looked for.

mod known;
mod same;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use stillmesh_cluster::{Cluster, KubernetesSource, Leader, Watch};
use stillmesh_k8s::gateway::binding::{MANAGED, MANAGERS};
use stillmesh_k8s::gateway::generate::{ASKED_FOR, GATEWAY_NAME, Settings};
use stillmesh_k8s::gateway::overlay::DEFAULTS_FOR;
use stillmesh_k8s::gateway::{Gateway, GatewayClass, revision};
use stillmesh_k8s::translate::Mesh;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use stillmesh_objects::Source;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::rival;
use known::{Due, Key, Known, Whose, Write};

/// As whom the objects are applied (contract 7.2).
const MANAGER: &str = "istio.io/gateway-controller";
/// How long the API server may take for one write.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often it is looked whether an overlay has changed. Only single ConfigMaps by name may be read: no watch tells.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked for one that is not there.
const LOOK_FOR: Duration = Duration::from_secs(1);
/// How many ConfigMaps are asked for at a time.
const AT_ONCE: usize = 8;

/// Who keeps the waypoints.
#[derive(Clone)]
pub(crate) struct Gateways {
    pub cluster: Cluster,
    /// Leads this revision: what runs its Gateways, and what is said of them.
    pub leader: Leader,
    /// Leads the mesh: classes.
    pub mesh_leader: Leader,
    pub settings: Settings,
    pub mesh: Mesh,
    /// The system namespace.
    pub namespace: String,
    pub revision: String,
}

/// Why a write was not made.
enum Failure {
    /// The API server does not have the kind, or the namespace is gone: it may come.
    Absent,
    /// What is there is somebody else's, or is not accepted; it is said in the Gateway's status.
    Refused(String),
    /// It is tried again.
    Passing(String),
}

impl Gateways {
    /// Keeps the waypoints, for ever.
    pub async fn keep(self) {
        let ours = format!("{MANAGED}={}", MANAGERS.first().copied().unwrap_or_default());
        let made = [Kind::Deployment, Kind::Service, Kind::ServiceAccount].into_iter().chain(ASKED_FOR);
        let made = made.map(|kind| Watch::labelled(kind, &ours));
        let read = [Kind::GatewayClass, Kind::Gateway, Kind::Namespace].map(Watch::all);
        let defaults = Watch::labelled_in(Kind::ConfigMap, &self.namespace, DEFAULTS_FOR);
        let watches = read.into_iter().chain(made).chain([defaults]).collect();
        let mut source = KubernetesSource::open(&self.cluster, watches);
        let whose = Whose {
            revision: self.revision.clone(),
            leads_mesh: self.mesh_leader.leads(),
            default_runs: !revision::is_default(&self.revision),
        };
        let mut known = Known::new(self.settings.clone(), self.mesh.clone(), whose);
        let mut mesh_leader = self.mesh_leader.clone();
        let mut complete = false;
        let mut asked: Option<Instant> = None;
        let mut looked: Option<Instant> = None;
        let mut later = None;
        loop {
            let mut missing = None;
            if complete {
                if asked.is_none_or(|at| at.elapsed() >= rival::ASK_AGAIN) {
                    self.look(&mut known).await;
                    asked = Some(Instant::now());
                }
                known.whose.leads_mesh = self.mesh_leader.leads();
                let all = looked.is_none_or(|at| at.elapsed() >= LOOK);
                if all {
                    looked = Some(Instant::now());
                }
                self.ask(&mut known, all).await;
                missing = (!known.overlays_to_ask_for(false).is_empty()).then(|| Instant::now() + LOOK_FOR);
                later = self.write_due(&mut known).await;
            }
            // Classes may be somebody else's only for now.
            let again = asked.map(|at| at + rival::ASK_AGAIN);
            let overlays = looked.filter(|_| known.has_overlays()).map(|at| at + LOOK);
            let wake = [later, again, missing, overlays].into_iter().flatten().min();
            tokio::select! {
                update = source.next() => match update {
                    Some(update) => {
                        complete |= update.complete;
                        known.take(update);
                    }
                    None => return,
                },
                () = differs(&mut mesh_leader, known.whose.leads_mesh) => {}
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Asks for the overlays that Gateways name.
    async fn ask(&self, known: &mut Known, all: bool) {
        let answers = futures::stream::iter(known.overlays_to_ask_for(all)).map(|key| async move {
            let api: Api<ConfigMap> = Api::namespaced(self.cluster.client(), &key.namespace);
            let asked = match timeout(DEADLINE, api.get_opt(&key.name)).await {
                Ok(Ok(map)) => Some(Ok(map.map(Arc::new))),
                Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                    Some(Err(format!("{key} cannot be read: {}", status.message)))
                }
                Ok(Err(error)) => {
                    warn!(%key, error = super::chain(&error), "an overlay cannot be asked for; what is known stays");
                    None
                }
                Err(_) => None,
            };
            (key, asked)
        });
        let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
        for (key, asked) in answers {
            if let Some(asked) = asked {
                known.told(key, asked);
            }
        }
    }

    /// Looks whether Istio's classes are an istiod's.
    async fn look(&self, known: &mut Known) {
        let runs = rival::runs(&self.cluster).await;
        if runs && !known.rival {
            warn!(
                error.code = "MAN018",
                "GatewayClasses of istio.io/mesh-controller are left to the istiod that runs in this cluster; \
                 stillmesh-waypoint is served"
            );
        }
        known.rival = runs;
        if !revision::is_default(&self.revision) {
            known.whose.default_runs = rival::default_runs(&self.cluster).await;
        }
    }

    /// Writes what differs. Says when to look again for what has to wait.
    async fn write_due(&self, known: &mut Known) -> Option<Instant> {
        let time = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now());
        let (due, mut later) = known.due(Instant::now(), &time.to_string());
        for Due { key, write } in due {
            let result = self.write(&write).await;
            let absent = matches!(result, Err(Failure::Absent));
            let again = known.written(&key, absent, Instant::now());
            match result {
                Ok(object) => known.succeeded(&key, write, object),
                Err(Failure::Absent) => later = Some(later.map_or(again, |later| later.min(again))),
                Err(Failure::Refused(problem)) => {
                    if known.refused(&key, &problem) {
                        warn!(%key, problem, "a waypoint's object cannot be made");
                    }
                    later = Some(later.map_or(again, |later| later.min(again)));
                }
                Err(Failure::Passing(problem)) => {
                    warn!(%key, problem, "a write for a waypoint failed; it will be tried again");
                    later = Some(later.map_or(again, |later| later.min(again)));
                }
            }
        }
        // What was just written may call for more, such as a status.
        known.unsettled().then(Instant::now).or(later)
    }

    async fn write(&self, write: &Write) -> Result<Option<Object>, Failure> {
        match write {
            Write::Class(own) => {
                let spec = json!({"controllerName": own.controller, "description": own.description});
                let class = json!({
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "GatewayClass",
                    "metadata": {"name": own.name},
                    "spec": spec,
                });
                self.apply(&ObjectKey::new(Kind::GatewayClass, "", own.name), &class).await?;
                info!(class = own.name, "GatewayClass made");
                Ok(None)
            }
            Write::Object { key, object, fresh } => {
                if *fresh {
                    self.not_somebody_elses(key).await?;
                }
                let applied = self.apply(key, object).await?;
                let applied = match key.kind {
                    Kind::Deployment => applied.try_parse::<Deployment>().ok().map(Object::from),
                    Kind::Service => applied.try_parse::<Service>().ok().map(Object::from),
                    Kind::ServiceAccount => applied.try_parse::<ServiceAccount>().ok().map(Object::from),
                    Kind::HorizontalPodAutoscaler => {
                        applied.try_parse::<HorizontalPodAutoscaler>().ok().map(Object::from)
                    }
                    _ => applied.try_parse::<PodDisruptionBudget>().ok().map(Object::from),
                };
                debug!(%key, "applied");
                Ok(applied)
            }
            Write::Delete { key, uid } => {
                let uid = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let parameters = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
                let api = self.api(key, &resource_of(key.kind));
                match self.bounded(&self.leader, api.delete(&key.name, &parameters)).await {
                    Ok(_) => info!(%key, "deleted: no overlay asks for it any more"),
                    Err(Failure::Absent) => {}
                    Err(failure) => return Err(failure),
                }
                Ok(None)
            }
            Write::Status { key, version, status } => {
                let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "status": status}));
                let parameters =
                    PatchParams { field_manager: Some(super::MANAGER.to_owned()), ..PatchParams::default() };
                let api = self.api(key, &resource_of(key.kind));
                match self.bounded(self.leader_of(key), api.patch_status(&key.name, &parameters, &patch)).await {
                    Ok(_) => debug!(%key, "status written"),
                    // It has changed or gone meanwhile: whatever comes next tells.
                    Err(Failure::Absent) => {}
                    Err(failure) => return Err(failure),
                }
                Ok(None)
            }
        }
    }

    /// Who may write about a kind.
    fn leader_of(&self, key: &ObjectKey) -> &Leader {
        if key.kind == Kind::GatewayClass { &self.mesh_leader } else { &self.leader }
    }

    async fn apply(&self, key: &ObjectKey, object: &Value) -> Result<DynamicObject, Failure> {
        let api = self.api(key, &resource_of(key.kind));
        let parameters = PatchParams::apply(MANAGER).force();
        self.bounded(self.leader_of(key), api.patch(&key.name, &parameters, &Patch::Apply(object))).await
    }

    /// Objects that nobody has labelled as a waypoint's are not watched, and not taken from whoever made them.
    async fn not_somebody_elses(&self, key: &ObjectKey) -> Result<(), Failure> {
        let named = ListParams::default().fields(&format!("metadata.name={}", key.name));
        let list = self.api(key, &resource_of(key.kind));
        let found = self.bounded(&self.leader, list.list(&named)).await?;
        let foreign = |object: &DynamicObject| {
            let labels = object.metadata.labels.as_ref();
            !labels.is_some_and(|labels| labels.contains_key(MANAGED) && labels.contains_key(GATEWAY_NAME))
        };
        match found.items.iter().any(foreign) {
            true => Err(Failure::Refused(format!("{key} is there already, and is not a waypoint's"))),
            false => Ok(()),
        }
    }

    fn api(&self, key: &ObjectKey, resource: &ApiResource) -> Api<DynamicObject> {
        match key.kind.namespaced() {
            true => Api::namespaced_with(self.cluster.client(), &key.namespace, resource),
            false => Api::all_with(self.cluster.client(), resource),
        }
    }

    async fn bounded<T>(
        &self,
        leader: &Leader,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        match leader.write(timeout(DEADLINE, call)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(kube::Error::Api(status)))) => Err(match status.code {
                404 | 409 | 410 => Failure::Absent,
                403 if status.message.contains("being terminated") => Failure::Absent,
                400 | 403 | 422 => Failure::Refused(status.message.clone()),
                _ => Failure::Passing(status.message.clone()),
            }),
            Ok(Ok(Err(error))) => Err(Failure::Passing(super::chain(&error))),
            Ok(Err(_)) => Err(Failure::Passing(format!("no answer within {DEADLINE:?}"))),
            Err(not_leading) => Err(Failure::Passing(not_leading.to_string())),
        }
    }
}

/// Waits until a replica's leadership is not what it was taken for.
async fn differs(leader: &mut Leader, leads: bool) {
    while leader.leads() == leads {
        leader.changed().await;
    }
}

fn resource_of(kind: Kind) -> ApiResource {
    match kind {
        Kind::Gateway => ApiResource::erase::<Gateway>(&()),
        Kind::GatewayClass => ApiResource::erase::<GatewayClass>(&()),
        Kind::Deployment => ApiResource::erase::<Deployment>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::HorizontalPodAutoscaler => ApiResource::erase::<HorizontalPodAutoscaler>(&()),
        Kind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
        _ => ApiResource::erase::<ServiceAccount>(&()),
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Object(key) => key.fmt(f),
            Self::Status(key) => write!(f, "status of {key}"),
        }
    }
}
