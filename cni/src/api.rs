//! Single questions to the Kubernetes API, for what the watches may not have brought yet.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

use crate::writeback::PodName;

/// How long one question may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// A pod and its namespace as they are now; `None` for what is not there.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When this was asked.
    pub asked: Instant,
    /// The pod.
    pub pod: Option<Pod>,
    /// Its namespace.
    pub namespace: Option<Namespace>,
}

/// Asks the API server. Clones share connections.
#[derive(Clone)]
pub struct Questions {
    client: Client,
}

impl Questions {
    /// Asks through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Looks at a pod and its namespace, both within the deadline. The error is in words.
    pub async fn look(&self, name: &PodName) -> Result<Seen, String> {
        let asked = Instant::now();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let both = async { tokio::try_join!(pods.get_opt(&name.name), namespaces.get_opt(&name.namespace)) };
        match timeout(DEADLINE, both).await {
            Ok(Ok((pod, namespace))) => Ok(Seen { asked, pod, namespace }),
            Ok(Err(error)) => Err(format!("the API server: {error}")),
            Err(_) => Err(format!("the API server did not answer within {DEADLINE:?}")),
        }
    }
}
