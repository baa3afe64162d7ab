//! Inbound HBONE: what peers send to 15008. The tunnel is opened first, since who asks and what for is inside it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use stillmesh_core::attrs::{ConnectAttrs, InboundAttrs};
use stillmesh_core::decide::InboundPlan;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Identity, Workload};
use stillmesh_hbone::Limits;
use stillmesh_hbone::headers::ConnectHeaders;
use stillmesh_hbone::server::{Incoming, accept_tls, serve};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::PathError;
use crate::capture::pod::Held;
use crate::capture::{self, Pod};
use crate::deliver::copy::Carried;
use crate::deliver::{connect, proxy_header};
use crate::node::Node;
use crate::record::labels::Party;
use crate::record::{self, Direction, Early, Ending, Facts, Id, Protocol, Record};
use crate::tunnel::{Stream, Upstream, pools};
use crate::{decide, lookup};

/// Takes an accepted connection over. Never fails silently: what cannot be carried is written down.
pub fn start(pod: Arc<Pod>, node: Arc<Node>, stream: TcpStream, peer: SocketAddr, held: Held) {
    let local = stream.local_addr().map_or(peer, capture::canonical);
    let Ok(handshake) = node.handshakes.clone().try_acquire_owned() else {
        node.metrics.refuse("handshakes");
        let error = PathError::Full { what: "TLS handshakes", limit: node.config.limits.handshakes };
        return failed_early(&pod, &node, Ends { peer, local }, &error);
    };
    let place = node.workers.next();
    let owner = pod.clone();
    owner.adopt(place, "inbound HBONE", stream, move |stream| async move {
        let ends = Ends { peer, local };
        if let Err(error) = terminate(pod.clone(), node.clone(), stream, ends, held, handshake).await {
            if error.flag() == record::Flag::TlsFailure {
                node.metrics.refuse("tls");
            }
            failed_early(&pod, &node, Ends { peer, local }, &error);
        }
    });
}

/// Both addresses of a peer's connection.
#[derive(Clone, Copy, Debug)]
struct Ends {
    peer: SocketAddr,
    local: SocketAddr,
}

/// Writes down a connection that ended before anything was asked for.
fn failed_early(pod: &Pod, node: &Node, ends: Ends, error: &PathError) {
    let (direction, protocol) = (Direction::Inbound, Protocol::Hbone);
    let early = Early { pod, direction, protocol, source: ends.peer, destination: ends.local };
    record::failed_early(&node.ledger, &early, error);
}

/// Does the handshake and serves the peer's CONNECTs until it goes.
async fn terminate(
    pod: Arc<Pod>,
    node: Arc<Node>,
    stream: TcpStream,
    ends: Ends,
    held: Held,
    handshake: OwnedSemaphorePermit,
) -> Result<(), PathError> {
    let identity = pod.workload(&node).await?.identity();
    let leaf = node.identities.secrets().leaf(&identity).await.map_err(|source| PathError::Identity { source })?;
    let failed = |source| PathError::Handshake { source };
    let now = node.identities.secrets().clock().now();
    let session = accept_tls(stream, &leaf, now, node.config.limits.handshake).await.map_err(failed)?;
    drop(handshake);
    let limits: Limits = pools::limits(&node);
    let (tasks, watch) = (pod.tasks().clone(), held.watch.clone());
    let tunnel = Arc::new(Tunnel { pod, node, ends, source: Arc::new(session.peer().clone()), held });
    let served = serve(session, &limits, &tasks, watch, move |incoming| {
        // Boxed: what opening needs is not held for as long as the connection lasts.
        let opening = Box::pin(tunnel.clone().open(incoming));
        async move {
            if let Some(carried) = opening.await {
                carried.await;
            }
        }
    });
    served.await.map_err(|source| PathError::Serve { source })
}

/// A peer's connection, as its streams see it.
struct Tunnel {
    pod: Arc<Pod>,
    node: Arc<Node>,
    ends: Ends,
    source: Arc<Identity>,
    held: Held,
}

impl Tunnel {
    /// Does what a CONNECT asks for. `None`: it is refused, or has failed, which is written down.
    async fn open(self: Arc<Self>, incoming: Incoming) -> Option<Box<Carried<impl Send + Unpin>>> {
        let Some(authority) = incoming.authority() else {
            let error = PathError::NotConnect { authority: incoming.authority_text().chars().take(256).collect() };
            incoming.refuse(StatusCode::BAD_REQUEST);
            self.node.metrics.refuse("not_connect");
            self.failed_early(&error);
            return None;
        };
        let destination = match self.pod.workload(&self.node).await {
            Ok(destination) => destination,
            Err(error) => {
                incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
                self.failed_early(&error);
                return None;
            }
        };
        let snapshot = self.node.snapshots.load();
        let local_ip = self.ends.local.ip();
        let attrs = ConnectAttrs { destination: &destination, local_ip, authority: &authority };
        let plan = decide::inbound(&snapshot, &attrs);
        let mut record = Record::new(&self.node.ledger, self.facts(&incoming, &destination, plan.as_ref().ok()));
        drop(snapshot);
        let answered = match plan {
            Ok(plan) => self.answer(incoming, &destination, plan, &mut record).await,
            Err(refusal) => {
                let error = PathError::refused(self.ends.local, refusal);
                incoming.refuse(status(&error));
                Err(error)
            }
        };
        match answered {
            Ok((permit, socket, stream)) => {
                let watch = self.held.watch.clone();
                Some(Box::new(Carried::new(socket, Upstream::Hbone(stream), record, watch, (permit, self))))
            }
            Err(error) => {
                record.fail(&error);
                None
            }
        }
    }

    fn failed_early(&self, error: &PathError) {
        failed_early(&self.pod, &self.node, self.ends, error);
    }

    /// Connects where it is permitted, and answers.
    async fn answer(
        &self,
        incoming: Incoming,
        destination: &Arc<Workload>,
        plan: InboundPlan,
        record: &mut Record,
    ) -> Result<(OwnedSemaphorePermit, TcpStream, Stream), PathError> {
        // Listed before it is decided: a policy that comes between the two finds it.
        record.enlist();
        let arrival =
            Arrival { pod: &self.pod, node: &self.node, peer: self.ends.peer, source: &self.source, destination };
        let (permit, upstream) = match arrival.open(&plan, record).await {
            Ok(opened) => opened,
            Err(error) => {
                incoming.refuse(status(&error));
                return Err(error);
            }
        };
        let baggage = self.node.config.response_baggage.then(|| pools::baggage(destination));
        let accepted = incoming.accept(&ConnectHeaders { baggage, ..ConnectHeaders::default() });
        let stream = accepted.map_err(|source| PathError::Connect { to: self.ends.peer, source })?;
        record.opened();
        Ok((permit, upstream, stream))
    }

    fn facts(&self, incoming: &Incoming, destination: &Arc<Workload>, plan: Option<&InboundPlan>) -> Facts {
        let headers = incoming.headers();
        let snapshot = self.node.snapshots.load();
        let described = headers.baggage.map(Party::from).unwrap_or_default();
        let network = &self.node.config.network;
        let source = lookup::inbound_source(&snapshot, network, self.ends.peer.ip(), Some(&self.source), described);
        let service = plan.and_then(|plan| {
            let host = headers.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref());
            let guess = || stillmesh_core::decide::inbound_service(&snapshot, destination, host, plan.upstream.port());
            plan.service.clone().or_else(guess)
        });
        Facts {
            parent: headers.traceparent.as_ref().map_or(0, record::span::parent),
            id: headers.traceparent.map_or_else(Id::random, |trace| Id(trace.trace)),
            direction: Direction::Inbound,
            protocol: Protocol::Hbone,
            source_addr: self.ends.peer,
            source: source.workload,
            described: source.described,
            peer: Some(self.source.clone()),
            original: self.ends.local,
            destination_addr: self.ends.local,
            authority: incoming.authority(),
            upstream: plan.map(|plan| plan.upstream),
            destination: Some(destination.clone()),
            service,
        }
    }
}

/// Somebody whose identity is known, and who wants to be let in.
pub(super) struct Arrival<'a> {
    /// Where to.
    pub pod: &'a Pod,
    /// Its node.
    pub node: &'a Node,
    /// From which address.
    pub peer: SocketAddr,
    /// Who it is.
    pub source: &'a Identity,
    /// The pod's workload.
    pub destination: &'a Arc<Workload>,
}

impl Arrival<'_> {
    /// Takes a place, asks the policies, connects to the application. The record is listed already: a policy that comes
    /// between the two finds it.
    pub(super) async fn open(
        &self,
        plan: &InboundPlan,
        record: &mut Record,
    ) -> Result<(OwnedSemaphorePermit, TcpStream), PathError> {
        let permit = self.pod.place()?;
        let attrs = InboundAttrs {
            destination: self.destination,
            upstream: plan.upstream,
            source_ip: self.peer.ip(),
            source_identity: Some(self.source),
        };
        record.decided(decide::authorize(&self.node.snapshots.load(), &attrs, self.node)?);
        Ok((permit, self.deliver(plan).await?))
    }

    /// Connects to the application, and tells it who comes where it wants to know.
    async fn deliver(&self, plan: &InboundPlan) -> Result<TcpStream, PathError> {
        let (node, peer) = (self.node, self.peer);
        let deadline = Instant::now() + node.config.limits.connect;
        let Some(asked) = plan.proxy_protocol else {
            return connect::keeping_source(&self.pod.connecting, node, plan.connect, peer.ip(), deadline).await;
        };
        let target = if node.config.localhost_app_tunnel { plan.connect } else { plan.upstream };
        let mut stream = connect::plain(&self.pod.connecting, node, target, deadline).await?;
        let header = proxy_header::encode(peer, asked, Some(self.source));
        let slow = |_| PathError::Slow { to: target, limit: node.config.limits.connect };
        let written = timeout_at(deadline, stream.write_all(&header)).await.map_err(slow)?;
        written.map_err(|source| PathError::Connect { to: target, source })?;
        Ok(stream)
    }
}

/// The answer to a CONNECT that fails (contract 3.2). What another endpoint might take is 503.
pub(super) fn status(error: &PathError) -> StatusCode {
    match error.reason() {
        Some(Reason::ForeignAuthority { .. }) => StatusCode::BAD_REQUEST,
        Some(reason) if reason.is_denial() => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
