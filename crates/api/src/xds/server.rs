//! The control plane's side: one session per stream, each in a task that ends with its stream.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use prost::Message as _;
use stillmesh_core::model::Str;
use stillmesh_runtime::tasks::{CutOnDrop, Tasks};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::method::Method;
use super::store::Open;
use super::{Rejected, ResourceType, Store};
use crate::caller::authenticate;
use crate::delta::server::{ACK_DEADLINE, Event};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::proto::google::protobuf::value::Kind;
use crate::serve::Peer;
use crate::{Authenticate, Caller};

/// A connected node, told to observers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    /// `node.id` of the stream's first request.
    pub id: Str,
    /// The Kubernetes node's name (`NODE_NAME` of its metadata); may be empty.
    pub node: Str,
    /// The version of its program, as it says; may be empty.
    pub version: Str,
    /// Who authenticated.
    pub caller: Caller,
    /// Unique per stream in this process.
    pub stream: u64,
}

/// Hears how nodes take what is sent. Called from the streams' tasks: must not block.
pub trait Observer: Send + Sync + 'static {
    /// A node opened a stream.
    fn connected(&self, _node: &NodeId) {}
    /// A response has been handed to the connection: its size, and how long making and handing over took.
    fn sent(&self, _node: &NodeId, _kind: ResourceType, _bytes: usize, _took: Duration) {}
    /// A node has applied everything of a type that was published up to `generation`.
    fn acked(&self, _node: &NodeId, _kind: ResourceType, _generation: u64) {}
    /// A node refused some resources of a response; the others of it count as applied. The generation is as for
    /// [`Observer::acked`]; `None` where a part of it had been put off.
    fn nacked(&self, _node: &NodeId, _kind: ResourceType, _generation: Option<u64>, _rejected: &[Rejected]) {}
    /// All that was published in these generations, and concerns a node, has been acknowledged by now; what it refused was
    /// told before.
    fn confirmed(&self, _node: &NodeId, _generations: Range<u64>) {}
    /// A node answered a response of a type that is not waited for.
    fn expired(&self, _node: &NodeId, _kind: ResourceType) {}
    /// A node has not read a response for too long: its stream ends.
    fn stuck(&self, _node: &NodeId, _kind: ResourceType) {}
    /// A node's stream ended, and why.
    fn gone(&self, _node: &NodeId, _reason: &str) {}
}

impl Observer for () {}

/// A response about more names than this waits for its turn.
const LARGE: usize = 1000;
/// How long a turn lasts at most: a node that is slow does not keep others waiting.
const TURN: Duration = Duration::from_secs(5);
/// How long it is waited for; then the response goes all the same.
const PATIENCE: Duration = Duration::from_secs(30);

/// The turn to have a large response under way: until it is acknowledged.
struct Turn {
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    async fn wait(open: &Open) -> Option<Self> {
        let permit = timeout(PATIENCE, open.turn()).await.ok().flatten()?;
        Some(Self { until: Instant::now() + TURN, _permit: permit })
    }
}

/// How long a node may take for its first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// The gRPC service; add it to [`crate::serve::serve`].
pub struct Service {
    store: Arc<Store>,
    authenticate: Arc<dyn Authenticate>,
    observer: Arc<dyn Observer>,
    tasks: Tasks,
}

/// The xDS service over a store.
pub fn service(store: Arc<Store>, authenticate: Arc<dyn Authenticate>, observer: Arc<dyn Observer>) -> Method<Service> {
    let service = Service { store, authenticate, observer, tasks: Tasks::new("xds sessions") };
    Method::new(service)
}

type Sent = Result<DeltaDiscoveryResponse, Status>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let caller = authenticate(&request, &*self.authenticate).await?;
        let draining = request.extensions().get::<Peer>().map(|peer| peer.draining().clone()).unwrap_or_default();
        let (sender, receiver) = mpsc::channel(1);
        let stream = SessionTask {
            store: Arc::clone(&self.store),
            observer: Arc::clone(&self.observer),
            caller,
            draining,
            requests: request.into_inner(),
            responses: sender,
        };
        let task = self.tasks.spawn("xds session", stream.run());
        Ok(Response::new(Responses { receiver, _task: task.cut_on_drop() }))
    }
}

/// The responses of one stream. Dropping it ends the session.
pub struct Responses {
    receiver: mpsc::Receiver<Sent>,
    _task: CutOnDrop,
}

impl Stream for Responses {
    type Item = Sent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Sent>> {
        self.receiver.poll_recv(context)
    }
}

struct SessionTask {
    store: Arc<Store>,
    observer: Arc<dyn Observer>,
    caller: Caller,
    draining: CancellationToken,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Sent>,
}

impl SessionTask {
    async fn run(mut self) {
        if let Err(status) = self.session().await {
            // A peer that does not read does not get to know either.
            let _ = timeout(FIRST_REQUEST, self.responses.send(Err(status))).await;
        }
    }

    async fn session(&mut self) -> Result<(), Status> {
        let first = timeout(FIRST_REQUEST, self.requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no first request"))??;
        let Some(first) = first else { return Ok(()) };
        let node = first.node.as_ref().ok_or_else(|| Status::invalid_argument("node: absent in the first request"))?;
        let name = admit(node, &self.caller)?;
        let open = self.store.open(name.clone(), Instant::now().into_std());
        let version = claim(node, "ISTIO_VERSION").unwrap_or(&node.user_agent_version);
        let id = NodeId {
            id: node.id.as_str().into(),
            node: name,
            version: version.into(),
            caller: self.caller.clone(),
            stream: open.stream,
        };
        let mut told = Told { observer: Arc::clone(&self.observer), id, reason: "the node is gone".to_owned() };
        self.observer.connected(&told.id);
        let ended = self.exchange(&open, &told.id, first).await;
        told.reason = match &ended {
            Ok(reason) => (*reason).to_owned(),
            Err(status) => status.message().to_owned(),
        };
        ended.map(|_| ())
    }

    async fn exchange(
        &mut self,
        open: &Open,
        node: &NodeId,
        first: DeltaDiscoveryRequest,
    ) -> Result<&'static str, Status> {
        self.take(open, node, first)?;
        let mut turn: Option<Turn> = None;
        loop {
            loop {
                if turn.is_none() && open.next_names(Instant::now().into_std()) > LARGE {
                    turn = Turn::wait(open).await;
                }
                let begun = Instant::now();
                let Some(response) = open.next(begun.into_std()) else { break };
                let facts = ResourceType::from_url(&response.type_url).map(|kind| (kind, response.encoded_len()));
                match timeout(ACK_DEADLINE, self.responses.send(Ok(response))).await {
                    Ok(Ok(())) => {
                        if let Some((kind, bytes)) = facts {
                            self.observer.sent(node, kind, bytes, begun.elapsed());
                        }
                    }
                    Ok(Err(_)) => return Ok("the node is gone"),
                    Err(_) => {
                        if let Some((kind, _)) = facts {
                            self.observer.stuck(node, kind);
                        }
                        return Err(Status::deadline_exceeded("the node does not read"));
                    }
                }
            }
            turn = turn.filter(|turn| open.waits() && turn.until > Instant::now());
            let deadline = open.deadline().into_iter().chain(turn.iter().map(|turn| turn.until.into_std())).min();
            // Every arm is cancel-safe: requests stay in the stream's decoder, a wake-up stays stored.
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.take(open, node, request)?,
                    None => return Ok("the node closed the stream"),
                },
                () = open.woken() => {}
                () = wait_until(deadline) => {
                    let late = |error: crate::delta::server::SessionError| Status::deadline_exceeded(error.to_string());
                    open.check(Instant::now().into_std()).map_err(late)?;
                }
                () = self.draining.cancelled() => return Ok("the control plane drains"),
            }
        }
    }

    fn take(&self, open: &Open, node: &NodeId, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let event = open.request(request).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        match event {
            Event::None => {}
            Event::Expired(kind) => self.observer.expired(node, kind),
            Event::Acked(kind, generation) => {
                if let Some(generation) = generation {
                    self.observer.acked(node, kind, generation);
                }
            }
            Event::Nacked(kind, generation, rejected) => {
                tracing::warn!(node = %node.id, ?kind, resources = rejected.len(), "a node refused resources");
                self.observer.nacked(node, kind, generation, &rejected);
            }
        }
        if let Some(generations) = open.confirmed() {
            self.observer.confirmed(node, generations);
        }
        Ok(())
    }
}

async fn wait_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Tells the observer when the session ends, however it ends.
struct Told {
    observer: Arc<dyn Observer>,
    id: NodeId,
    reason: String,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.observer.gone(&self.id, &self.reason);
    }
}

/// What a node says of itself under a key.
fn claim<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// Contract 6.2: the node's claims must be those of its credentials. Returns its Kubernetes node's name.
fn admit(node: &Node, caller: &Caller) -> Result<Str, Status> {
    let claim = |key: &str| claim(node, key);
    let denied = |what: &str| Err(Status::permission_denied(format!("{what} is not that of the credentials")));
    if claim("NAMESPACE").is_some_and(|claimed| *claimed != *caller.namespace) {
        return denied("NAMESPACE");
    }
    if claim("SERVICE_ACCOUNT").is_some_and(|claimed| *claimed != *caller.service_account) {
        return denied("SERVICE_ACCOUNT");
    }
    match (claim("NODE_NAME"), &caller.node) {
        (Some(claimed), Some(known)) if *claimed != **known => denied("NODE_NAME"),
        (_, Some(known)) => Ok(known.clone()),
        (Some(claimed), None) => Ok(claimed.into()),
        (None, None) => Ok("".into()),
    }
}
