//! To another pod of this node without a tunnel. This process holds both ends, so it knows both identities first-hand: once both
//! ends' policies have let the connection pass it is made in the server's namespace, and splice moves its bytes.
//!
//! All else is as through a tunnel: who decides, what is recorded at either hop and under which id, and what ends a connection. Where
//! anything is in doubt there is a tunnel: [`near`] says `None`.

use std::net::SocketAddr;
use std::sync::Arc;

use stillmesh_core::attrs::{Authority, ConnectAttrs};
use stillmesh_core::decide::OutboundPlan;
use stillmesh_core::model::Workload;
use stillmesh_hbone::TunnelError;
use stillmesh_hbone::copy::{CopyError, Counters, Pipes, Side, spliced};
use stillmesh_runtime::drain::Watch;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::PathError;
use super::inbound::{Arrival, status};
use crate::capture::{Captured, Pod};
use crate::decide;
use crate::node::Node;
use crate::record::{Direction, Facts, Live, Outcome, Protocol, Record, span};
use crate::tunnel::{Opened, Request, Upstream, service_host};

/// A pod of this node that is reached without a tunnel.
#[derive(Debug)]
pub struct Near {
    pod: Arc<Pod>,
    workload: Arc<Workload>,
    /// The application.
    to: SocketAddr,
    /// The client as the server's end sees it.
    client: SocketAddr,
    watch: Watch,
}

/// The pod of this node that a plan leads to, where both may do without a tunnel.
pub async fn near(plan: &OutboundPlan, source: &Workload, conn: &Captured, node: &Node) -> Option<Near> {
    let to = plan.directly(source)?;
    let upstream = plan.upstream.as_ref()?;
    let pod = node.pods.named(&upstream.namespace, &upstream.name)?;
    let info = &pod.info;
    let snapshot = node.snapshots.load();
    let workload = snapshot
        .local_workload(&node.config.node, &info.namespace, &info.name, &info.service_account)
        .filter(|workload| workload.uid == upstream.uid && workload.identity() == upstream.identity())
        .cloned()?;
    drop(snapshot);
    // An application may take any address for its connections. A tunnel would come from one of the pod's own.
    let is_own = |address: &SocketAddr| address.is_ipv4() == to.is_ipv4() && source.addresses.contains(&address.ip());
    let of_family = || source.addresses.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    let client = Some(conn.peer).filter(is_own);
    let client = client.or_else(|| Some(SocketAddr::new(*of_family()?, conn.peer.port())))?;
    let watch = pod.watch()?;
    pod.has_address(to.ip()).await.then_some(Near { workload, to, client, watch, pod })
}

impl Near {
    /// The application's address.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// Asks the server's end and connects to its application. What that end refuses or cannot do, this end learns as it would of a
    /// tunnel's: by a status.
    pub async fn open(
        self,
        request: &Request<'_>,
        node: &Node,
        worker: usize,
        counters: &Arc<Counters>,
    ) -> Result<Opened, PathError> {
        let to = self.to;
        let authority = Authority::Address(to);
        let snapshot = node.snapshots.load();
        let attrs = ConnectAttrs { destination: &self.workload, local_ip: to.ip(), authority: &authority };
        let plan = decide::inbound(&snapshot, &attrs);
        let service = plan.as_ref().ok().and_then(|plan| {
            let host = service_host(request.plan);
            let host = host.map(|host| &**host);
            let port = plan.upstream.port();
            let guess = || stillmesh_core::decide::inbound_service(&snapshot, &self.workload, host, port);
            plan.service.clone().or_else(guess)
        });
        drop(snapshot);
        let facts = Facts {
            parent: span::parent(&span::traceparent(&node.ledger, request.facts.id.0)),
            id: request.facts.id,
            direction: Direction::Inbound,
            protocol: Protocol::Direct,
            source_addr: self.client,
            source: Some(request.source.clone()),
            described: None,
            peer: None,
            original: to,
            destination_addr: to,
            authority: None,
            upstream: plan.as_ref().ok().map(|plan| plan.upstream),
            destination: Some(self.workload.clone()),
            service,
        };
        let mut record = Record::sharing(&node.ledger, facts, counters.clone());
        let opened = match plan {
            Ok(plan) => {
                record.enlist();
                let source = request.source.identity();
                let Self { pod, workload, client, .. } = &self;
                let arrival = Arrival { pod, node, peer: *client, source: &source, destination: workload };
                arrival.open(&plan, &mut record).await
            }
            Err(refusal) => Err(PathError::refused(to, refusal)),
        };
        match opened {
            Ok((permit, stream)) => {
                record.opened();
                let (pipes, record) = (node.pipes(worker), Some(record));
                let arrived = Arrived { stream, record, watch: self.watch, pipes, _permit: permit };
                Ok(Opened { upstream: Upstream::Direct(Box::new(arrived)), next_hop: to })
            }
            Err(error) => {
                let source = TunnelError::Refused { destination: to, status: status(&error) };
                record.fail(&error);
                Err(PathError::Tunnel { source })
            }
        }
    }
}

/// A connection that is open at the server's end.
#[derive(Debug)]
pub struct Arrived {
    stream: TcpStream,
    /// Until it is written.
    record: Option<Record>,
    watch: Watch,
    pipes: Pipes,
    _permit: OwnedSemaphorePermit,
}

/// What ended a connection.
enum End {
    /// Its own ends.
    Itself(Result<(), CopyError>),
    /// Somebody at the client's end.
    Here(PathError),
    /// Somebody at the server's end.
    There(PathError),
}

impl Arrived {
    /// Moves bytes until both directions have ended, or the connection is cut at either end; writes the server's record. `live` and
    /// `watch` are those of the client's end.
    pub async fn carry(
        mut self: Box<Self>,
        mut client: TcpStream,
        live: &Live,
        watch: &Watch,
    ) -> Result<(), PathError> {
        let Some(record) = self.record.take() else { return Ok(()) };
        let counters = record.counters().clone();
        let cut = |outcome: Outcome| PathError::Cut { outcome };
        let end = tokio::select! {
            biased;
            outcome = live.cut.wait() => End::Here(cut(outcome)),
            outcome = record.live().cut.wait() => End::There(cut(outcome)),
            () = watch.immediate() => End::Here(PathError::Drained),
            () = self.watch.immediate() => End::There(PathError::Drained),
            copied = spliced(&mut client, &mut self.stream, &counters, &self.pipes) => End::Itself(copied),
        };
        if !matches!(end, End::Itself(Ok(()))) {
            // What broke must not look like an end to an application. A socket that is gone already cannot be told.
            let _ = (client.set_zero_linger(), self.stream.set_zero_linger());
        }
        let (here, there) = match end {
            End::Itself(Ok(())) => (Ok(()), Ok(())),
            End::Itself(Err(error)) => {
                // Each record's first side is the application that it is about.
                let other = if error.side == Side::First { Side::Second } else { Side::First };
                let same = std::io::Error::new(error.source.kind(), error.source.to_string());
                (Err(PathError::Copy { source: error }), Err(broken(other, same)))
            }
            End::Here(error) => (Err(error), Err(reset())),
            End::There(error) => (Err(reset()), Err(error)),
        };
        match there {
            Ok(()) => record.complete(),
            Err(error) => record.fail(&error),
        }
        here
    }
}

fn broken(side: Side, source: std::io::Error) -> PathError {
    PathError::Copy { source: CopyError { side, source } }
}

/// What an end learns of a connection that was cut at the other one.
fn reset() -> PathError {
    broken(Side::Second, std::io::ErrorKind::ConnectionReset.into())
}
