//! What replicas tell each other about receipts, in one ConfigMap with a key for each: written at most once a second and only
//! where there is news, or every 10 s as a sign of life; read every second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use stillmesh_cluster::{Cluster, Leader};
use stillmesh_core::model::Str;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::{MANAGER, chain};
use crate::build::Running;
use crate::receipts::{Receipts, Summary};

/// The ConfigMap, in the mesh's own namespace.
const MAP: &str = "stillmesh-receipts";
/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// A sign of life without news.
const ALIVE: Duration = Duration::from_secs(10);
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// One replica's part in it.
pub(crate) struct Summaries {
    api: Api<ConfigMap>,
    /// The replica: namespace and name of its pod.
    own: (Str, String),
    receipts: Arc<Receipts>,
    running: Arc<Running>,
    /// Who takes away what dead replicas have left.
    leader: Leader,
}

impl Summaries {
    pub fn new(
        cluster: &Cluster,
        own: (Str, String),
        receipts: Arc<Receipts>,
        running: Arc<Running>,
        leader: Leader,
    ) -> Self {
        Self { api: Api::namespaced(cluster.client(), &own.0), own, receipts, running, leader }
    }

    /// Tells and listens, for ever. What fails is tried again with the next turn.
    pub async fn keep(self) {
        let (mut said, mut at, mut turn, mut failing) = (None, Instant::now(), 0_u64, false);
        loop {
            let summary = self.receipts.summary();
            let mut result = Ok(());
            if said.as_ref() != Some(&summary) || at.elapsed() >= ALIVE {
                turn += 1;
                result = self.write(&summary, turn).await;
                if result.is_ok() {
                    (said, at) = (Some(summary), Instant::now());
                }
            }
            let result = match result {
                Ok(()) => self.read().await,
                Err(error) => Err(error),
            };
            match &result {
                Err(error) if !failing => warn!(map = MAP, error, "replicas cannot tell each other about receipts"),
                _ => {}
            }
            failing = result.is_err();
            sleep(EVERY).await;
        }
    }

    async fn write(&self, summary: &Summary, turn: u64) -> Result<(), String> {
        let mut said = serde_json::to_value(summary).map_err(|error| chain(&error))?;
        said["turn"] = turn.into();
        let data = BTreeMap::from([(&self.own.1, said.to_string())]);
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MAP}, "data": data});
        let parameters = PatchParams::apply(&format!("{MANAGER}-{}", self.own.1)).force();
        answer(timeout(DEADLINE, self.api.patch(MAP, &parameters, &Patch::Apply(map))).await).map(|_| ())
    }

    async fn read(&self) -> Result<(), String> {
        let map = answer(timeout(DEADLINE, self.api.get_opt(MAP)).await)?;
        let mut texts: BTreeMap<String, String> = map.and_then(|map| map.data).unwrap_or_default();
        texts.remove(&self.own.1);
        let is_gone = |name: &String| !self.running.is_there(&(self.own.0.clone(), name.as_str().into()));
        let gone: Vec<String> = texts.keys().filter(|name| is_gone(name)).cloned().collect();
        texts.retain(|name, _| !gone.contains(name));
        self.receipts.hear(texts);
        if gone.is_empty() {
            return Ok(());
        }
        let nothing: BTreeMap<&String, Option<()>> = gone.iter().map(|name| (name, None)).collect();
        let patch = Patch::Merge(json!({"data": nothing}));
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let write = timeout(DEADLINE, self.api.patch(MAP, &parameters, &patch));
        // Who does not lead leaves it to who does.
        if let Ok(written) = self.leader.write(write).await {
            answer(written)?;
            debug!(map = MAP, ?gone, "what replicas have left that are gone is taken away");
        }
        Ok(())
    }
}

fn answer<T>(result: Result<Result<T, kube::Error>, tokio::time::error::Elapsed>) -> Result<T, String> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    }
}
