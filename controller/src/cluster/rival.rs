//! Whether another control plane runs in this cluster: what it keeps is left to it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use stillmesh_cluster::Cluster;
use tokio::time::timeout;

/// How long the API server may take to say.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked whether it is gone.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Whether pods of an istiod run here. Where the API server does not say, the answer is yes.
pub(super) async fn runs(cluster: &Cluster) -> bool {
    let pods: Api<Pod> = Api::all(cluster.client());
    let istiods = ListParams::default().labels("app=istiod,app.kubernetes.io/part-of!=stillmesh");
    let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
    match timeout(DEADLINE, pods.list(&istiods)).await {
        Ok(Ok(found)) => found.items.iter().any(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !phase.is_some_and(ended)
        }),
        _ => true,
    }
}
