//! Writes status conditions back to where the objects come from. What waits is at most one condition per object, and
//! only where it differs from what the object has: a restart writes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Method;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use stillmesh_cluster::{Cluster, Leader};
use stillmesh_k8s::istio::{AuthorizationPolicy, PeerAuthentication, StatusCondition};
use stillmesh_k8s::{Kind, ObjectKey, status};
use stillmesh_runtime::Backoff;
use stillmesh_runtime::admin::client::Client;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::build::Verdict;
use crate::cluster::chain;
use crate::metrics::Metrics;

/// The least time between two writes: a thousand changed policies do not keep the API server busy.
const PACE: Duration = Duration::from_millis(20);
/// How long one write may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What is to be written, the newest per object.
pub(crate) struct Statuses {
    waiting: Mutex<BTreeMap<ObjectKey, Verdict>>,
    news: Notify,
    metrics: Arc<Metrics>,
}

impl Statuses {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { waiting: Mutex::default(), news: Notify::new(), metrics }
    }

    /// Takes over what policies' statuses should say.
    pub fn take(&self, verdicts: Vec<Verdict>) {
        let mut waiting = self.waiting.lock();
        for verdict in verdicts {
            match conditions(&verdict) {
                Some(_) => waiting.insert(verdict.object.clone(), verdict),
                None => waiting.remove(&verdict.object),
            };
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// Writes, for ever. What cannot be written now is tried again.
    pub async fn write(&self, writer: &dyn Writer) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        loop {
            let next = self.waiting.lock().pop_first();
            let Some((key, verdict)) = next else {
                self.news.notified().await;
                continue;
            };
            // Dropped on the way, it waits again for the next leader.
            let mut pending = Pending { statuses: self, verdict: Some(verdict) };
            let result = match pending.verdict.as_ref().and_then(|verdict| Some((verdict, conditions(verdict)?))) {
                Some((verdict, conditions)) => writer.write(verdict, conditions).await,
                None => Ok(()),
            };
            if let Err(reason) = result {
                self.metrics.statuses_failed.inc();
                if backoff.tries() == 0 {
                    warn!(object = %key, reason, "a status cannot be written; it will be tried again");
                }
                drop(pending);
                tokio::time::sleep(backoff.next(rand::random())).await;
            } else {
                pending.verdict = None;
                backoff.reset();
                tokio::time::sleep(PACE).await;
            }
        }
    }
}

/// A verdict that is being written.
struct Pending<'a> {
    statuses: &'a Statuses,
    verdict: Option<Verdict>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(verdict) = self.verdict.take() {
            // Unless something newer waits by now.
            self.statuses.waiting.lock().entry(verdict.object.clone()).or_insert(verdict);
            self.statuses.news.notify_one();
        }
    }
}

/// The conditions that an object should have; `None` where it has them.
fn conditions(verdict: &Verdict) -> Option<Vec<StatusCondition>> {
    let condition = verdict.condition.as_ref()?;
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string();
    status::merged(&verdict.existing, condition, verdict.generation, &now)
}

/// Where statuses are written to.
pub(crate) trait Writer: Send + Sync {
    /// Writes the conditions of one object. An object that is gone or has changed meanwhile is no failure: whatever
    /// comes next tells.
    fn write<'a>(&'a self, verdict: &'a Verdict, conditions: Vec<StatusCondition>)
    -> BoxFuture<'a, Result<(), String>>;
}

/// The API of a one-machine mesh.
pub(crate) struct Socket(Client);

impl Socket {
    pub fn new(path: &Path) -> Self {
        Self(Client::unix(path).deadline(DEADLINE))
    }
}

impl Writer for Socket {
    fn write<'a>(
        &'a self,
        verdict: &'a Verdict,
        conditions: Vec<StatusCondition>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let key = &verdict.object;
            let path = format!("/status/{}/{}/{}", key.kind, key.namespace, key.name);
            let body = json!({"conditions": conditions}).to_string();
            let answer = self.0.request(Method::PATCH, &path, body).await.map_err(|error| chain(&error))?;
            match answer.status.as_u16() {
                200..=299 => {
                    debug!(object = %key, "status written");
                    Ok(())
                }
                404 | 409 | 410 => Ok(()),
                _ => Err(format!("{}: {}", answer.status, answer.text())),
            }
        })
    }
}

/// The status subresources of the Kubernetes API; the leader writes.
pub(crate) struct Api {
    cluster: Cluster,
    leader: Leader,
}

impl Api {
    pub fn new(cluster: &Cluster, leader: Leader) -> Self {
        Self { cluster: cluster.clone(), leader }
    }
}

impl Writer for Api {
    fn write<'a>(
        &'a self,
        verdict: &'a Verdict,
        conditions: Vec<StatusCondition>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let key = &verdict.object;
            let resource = match key.kind {
                Kind::AuthorizationPolicy => ApiResource::erase::<AuthorizationPolicy>(&()),
                Kind::PeerAuthentication => ApiResource::erase::<PeerAuthentication>(&()),
                _ => return Ok(()),
            };
            let api: kube::Api<DynamicObject> =
                kube::Api::namespaced_with(self.cluster.client(), &key.namespace, &resource);
            // Lists are replaced whole by a merge: with the version that was read, nobody else's condition is lost.
            let patch = json!({
                "metadata": {"resourceVersion": verdict.version},
                "status": {"conditions": conditions, "observedGeneration": verdict.generation},
            });
            let parameters =
                PatchParams { field_manager: Some(crate::cluster::MANAGER.to_owned()), ..PatchParams::default() };
            let patch = Patch::Merge(patch);
            let write = timeout(DEADLINE, api.patch_status(&key.name, &parameters, &patch));
            match self.leader.write(write).await {
                Ok(Ok(Ok(_))) => {
                    debug!(object = %key, "status written");
                    Ok(())
                }
                Ok(Ok(Err(kube::Error::Api(status)))) if matches!(status.code, 404 | 409 | 410) => Ok(()),
                // An object that the server would refuse today takes no status either. What is wrong is logged.
                Ok(Ok(Err(kube::Error::Api(status)))) if status.code == 422 => {
                    warn!(object = %key, problem = status.message, "the object does not take a status");
                    Ok(())
                }
                Ok(Ok(Err(error))) => Err(chain(&error)),
                Ok(Err(_)) => Err(format!("no answer within {DEADLINE:?}")),
                Err(not_leading) => Err(not_leading.to_string()),
            }
        })
    }
}
