//! The node's side: one stream, all its types, reconnecting for ever.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use stillmesh_core::{Diagnose, Fault};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::{Batch, Rejected, ResourceType};
use crate::control_plane::MAX_MESSAGE_BYTES;
use crate::delta::client::{Client as Machine, Ended};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::google::protobuf::value::Kind;
use crate::proto::google::protobuf::{Struct, Value};
use crate::{ControlPlane, ControlPlaneError};

/// Who this node says it is (contract 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// `<type>~<ip>~<pod>.<namespace>~<namespace>.svc.<domain>`.
    pub id: String,
    /// `NAME`, `NAMESPACE`, `INSTANCE_IPS`, `NODE_NAME` and what else is configured.
    pub metadata: BTreeMap<String, String>,
    /// What it subscribes to.
    pub kinds: &'static [ResourceType],
}

impl NodeInfo {
    /// The node of a ztunnel.
    pub fn ztunnel(pod: &str, namespace: &str, node: &str, ip: Option<IpAddr>, domain: &str) -> Self {
        Self::of("ztunnel", &ResourceType::NODE, (pod, namespace), node, ip, domain)
    }

    /// The node of a waypoint, which is told of routes too.
    pub fn waypoint(pod: &str, namespace: &str, node: &str, ip: Option<IpAddr>, domain: &str) -> Self {
        Self::of("waypoint", &ResourceType::ALL, (pod, namespace), node, ip, domain)
    }

    fn of(
        kind: &str,
        kinds: &'static [ResourceType],
        (pod, namespace): (&str, &str),
        node: &str,
        ip: Option<IpAddr>,
        domain: &str,
    ) -> Self {
        let ip = ip.map_or_else(|| "1.1.1.1".to_owned(), |ip| ip.to_string());
        let metadata = [("NAME", pod), ("NAMESPACE", namespace), ("INSTANCE_IPS", &ip), ("NODE_NAME", node)];
        Self {
            id: format!("{kind}~{ip}~{pod}.{namespace}~{namespace}.svc.{domain}"),
            metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            kinds,
        }
    }

    /// With what `ISTIO_META_*` says of this node; its own names stay.
    #[must_use]
    pub fn with(mut self, metadata: BTreeMap<String, String>) -> Self {
        for (key, value) in metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self
    }

    fn wire(&self) -> Node {
        let text = |value: &String| Value { kind: Some(Kind::StringValue(value.clone())) };
        let fields = self.metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        Node {
            id: self.id.clone(),
            metadata: Some(Struct { fields }),
            user_agent_name: "stillmesh".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Node::default()
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

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No stream: the control plane cannot be reached.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    /// The control plane ended the stream.
    #[error("the control plane answered {:?}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    /// The control plane is there but silent.
    #[error("the control plane did not {what} within {limit:?}")]
    Slow {
        /// What it should have done.
        what: &'static str,
        /// The deadline.
        limit: Duration,
    },
}

impl Diagnose for StreamError {
    fn code(&self) -> &'static str {
        match self {
            Self::ControlPlane(error) => error.code(),
            Self::Status(_) => "API020",
            Self::Slow { .. } => "API021",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::ControlPlane(error) => error.fault(),
            Self::Status(_) | Self::Slow { .. } => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::ControlPlane(error) => error.remedy(),
            Self::Status(_) => "see the controller's log; check that this node's token is valid for its namespace",
            Self::Slow { .. } => "check that the controller is healthy",
        }
    }
}

/// How long the control plane may take to open a stream, or to take a request off it.
pub const STREAM_DEADLINE: Duration = Duration::from_secs(30);

/// The client.
pub struct Client {
    control_plane: ControlPlane,
    machine: Machine,
    status: watch::Sender<Status>,
}

impl Client {
    /// A client that has not dialled yet.
    pub fn new(control_plane: ControlPlane, node: NodeInfo) -> Self {
        let machine = Machine::new(node.wire(), node.kinds);
        Self { control_plane, machine, status: watch::Sender::new(Status::default()) }
    }

    /// Follows readiness and connection.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until cancelled: dials, subscribes, applies, acknowledges, reconnects. A batch that is being applied
    /// when it is cancelled is dropped half-way, if the sink can be.
    pub async fn run(mut self, mut sink: impl Sink, cancel: CancellationToken) {
        let cancelled = cancel.clone();
        let forever = async {
            loop {
                let ended = self.stream(&mut sink).await;
                let how = if ended.is_ok() { Ended::Clean } else { Ended::Failed };
                let wait = self.machine.ended(how, Instant::now().into_std(), rand::random());
                if let Err(error) = &ended {
                    let causes = causes(error);
                    warn!(error.code = error.code(), error = %causes, ?wait, "no stream to the control plane");
                    self.status.send_modify(|status| status.last_error = Some(causes));
                }
                self.status.send_modify(|status| status.connected = false);
                sleep(wait).await;
            }
        };
        tokio::select! {
            () = forever => {}
            () = cancelled.cancelled() => {}
        }
    }

    /// One stream, from dialling to its end.
    async fn stream(&mut self, sink: &mut impl Sink) -> Result<(), StreamError> {
        let channel = self.control_plane.connect().await?;
        self.exchange(channel, sink).await
    }

    async fn exchange(&mut self, channel: Channel, sink: &mut impl Sink) -> Result<(), StreamError> {
        let mut service = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let request = self.control_plane.request(ReceiverStream::new(receiver)).await?;
        for first in self.machine.opened(Instant::now().into_std()) {
            send(&requests, first).await?;
        }
        let slow = |_| StreamError::Slow { what: "open a stream", limit: STREAM_DEADLINE };
        let responses = timeout(STREAM_DEADLINE, service.delta_aggregated_resources(request)).await.map_err(slow)??;
        let mut responses = responses.into_inner();
        self.status.send_modify(|status| status.connected = true);
        info!(address = %self.control_plane.address, "connected to the control plane");
        let slow = |_| StreamError::Slow { what: "answer", limit: Machine::FIRST_RESPONSE };
        let mut response = timeout(Machine::FIRST_RESPONSE, responses.message()).await.map_err(slow)??;
        while let Some(received) = response {
            let answer = match self.machine.receive(received) {
                Err(refusal) => *refusal,
                Ok((batch, ticket)) => {
                    let refused = sink.apply(batch).await;
                    self.machine.acknowledge(ticket, refused)
                }
            };
            if let Some(problem) = &answer.error_detail {
                warn!(resources = %problem.message, "resources of the control plane refused");
            }
            send(&requests, answer).await?;
            let ready = self.machine.ready();
            self.status.send_if_modified(|status| std::mem::replace(&mut status.ready, ready) != ready);
            // From here on silence is normal; a dead connection is found by pings.
            response = responses.message().await?;
        }
        Ok(())
    }
}

/// Room for requests that the control plane has not read: two types with one answer each need two.
const REQUESTS: usize = 8;

async fn send(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    request: DeltaDiscoveryRequest,
) -> Result<(), StreamError> {
    match timeout(STREAM_DEADLINE, requests.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(tonic::Status::unavailable("the stream is closed").into()),
        Err(_) => Err(StreamError::Slow { what: "read", limit: STREAM_DEADLINE }),
    }
}

/// An error with its causes, on one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
