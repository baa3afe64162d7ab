//! A node's tunnel as the controller sees it.

use stillmesh_api::ControlPlane;
use stillmesh_api::xds::{Batch, Client, NodeInfo, Rejected, ResourceType, Sink};
use stillmesh_core::snapshot::Change;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{LIMIT, World};

/// What one response said.
pub type Said = (ResourceType, Vec<String>);

pub struct Node {
    receiver: mpsc::Receiver<Said>,
    stop: CancellationToken,
}

impl Node {
    /// Connects and follows.
    pub fn connect(world: &World, control_plane: ControlPlane, pod: &str, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let info = NodeInfo::ztunnel(pod, &world.namespace, node, None, "cluster.local");
        let client = Client::new(control_plane, info);
        let (sink, stopped) = (Told { sender }, stop.clone());
        world.tasks.spawn("node", async move { client.run(sink, stopped).await });
        Self { receiver, stop }
    }

    pub async fn next(&mut self) -> Said {
        tokio::time::timeout(LIMIT, self.receiver.recv()).await.expect("a response comes").expect("the node runs")
    }

    /// Waits for a response that tells something.
    pub async fn hears(&mut self, what: &str) -> Said {
        loop {
            let said = self.next().await;
            if said.1.iter().any(|one| one.contains(what)) {
                return said;
            }
        }
    }

    /// What has come meanwhile.
    pub fn heard(&mut self) -> Vec<Said> {
        std::iter::from_fn(|| self.receiver.try_recv().ok()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Told {
    sender: mpsc::Sender<Said>,
}

impl Sink for Told {
    async fn apply(&mut self, batch: Batch) -> Vec<Rejected> {
        let one = |change: &Change| match change {
            Change::Workload(one) => format!("workload {}", one.uid),
            Change::WorkloadRemoved(uid) => format!("no workload {uid}"),
            Change::Service(one) => format!("service {}", one.key),
            Change::ServiceRemoved(key) => format!("no service {key}"),
            Change::Policy(one) => format!("policy {} {:?} {:?}", one.key, one.scope, one.action),
            Change::PolicyRemoved(key) => format!("no policy {key}"),
            Change::Route(one) => format!("route {}", one.key),
            Change::RouteRemoved(key) => format!("no route {key}"),
            Change::Access(one) => format!("access {}", one.key()),
            Change::AccessRemoved(key) => format!("no access {key}"),
            Change::Destination(one) => format!("destination {}", one.key),
            Change::DestinationRemoved(key) => format!("no destination {key}"),
        };
        let _ = self.sender.send((batch.kind, batch.changes.iter().map(one).collect())).await;
        Vec::new()
    }
}

/// A response.
pub fn said(kind: ResourceType, changes: &[&str]) -> Said {
    (kind, changes.iter().map(|one| (*one).to_owned()).collect())
}

/// A new key's signing request.
pub fn csr() -> String {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}
