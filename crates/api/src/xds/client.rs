//! The node's side: one stream, both types, reconnecting for ever.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Batch, Rejected};
use crate::ControlPlane;

/// Who this node says it is (contract 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>`.
    pub id: String,
    /// `NAME`, `NAMESPACE`, `INSTANCE_IPS`, `NODE_NAME` and what else is configured.
    pub metadata: BTreeMap<String, String>,
}

impl NodeInfo {
    /// The node of a ztunnel.
    pub fn ztunnel(pod: &str, namespace: &str, node: &str, ip: Option<IpAddr>, domain: &str) -> Self {
        let ip = ip.map_or_else(|| "1.1.1.1".to_owned(), |ip| ip.to_string());
        let metadata = [("NAME", pod), ("NAMESPACE", namespace), ("INSTANCE_IPS", &ip), ("NODE_NAME", node)];
        Self {
            id: format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.{domain}"),
            metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }
    }
}

/// Takes what the control plane sends.
pub trait Sink: Send {
    /// Applies a batch. The response is acknowledged when this returns; what is returned is reported as refused,
    /// the rest counts as applied.
    fn apply(&mut self, batch: Batch) -> impl Future<Output = Vec<Rejected>> + Send;
}

/// What the client says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// One response of each type has been acknowledged since the process started; never unset again.
    pub ready: bool,
    /// A stream is open now.
    pub connected: bool,
    /// Why the last stream ended or could not be opened.
    pub last_error: Option<String>,
}

/// The client.
pub struct Client {
    control_plane: ControlPlane,
    node: NodeInfo,
    status: watch::Sender<Status>,
}

impl Client {
    /// A client that has not dialled yet.
    pub fn new(control_plane: ControlPlane, node: NodeInfo) -> Self {
        Self { control_plane, node, status: watch::Sender::new(Status::default()) }
    }

    /// Follows readiness and connection.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until cancelled: dials, subscribes, applies, acknowledges, reconnects.
    pub async fn run(self, _sink: impl Sink, _cancel: CancellationToken) {
        let _ = (&self.control_plane, &self.node);
        todo!()
    }
}
