//! Whether another control plane runs in this cluster, somebody else's or another revision of ours: what it keeps is left
//! to it.

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
    any(cluster, "app=istiod,app.kubernetes.io/part-of!=stillmesh").await
}

/// Whether pods of our own default revision run here; also yes where it is not known.
pub(super) async fn default_runs(cluster: &Cluster) -> bool {
    any(cluster, "app.kubernetes.io/name=stillmesh-controller,istio.io/rev=default").await
}

async fn any(cluster: &Cluster, selector: &str) -> bool {
    let pods: Api<Pod> = Api::all(cluster.client());
    let wanted = ListParams::default().labels(selector);
    let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
    match timeout(DEADLINE, pods.list(&wanted)).await {
        Ok(Ok(found)) => found.items.iter().any(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !phase.is_some_and(ended)
        }),
        _ => true,
    }
}
