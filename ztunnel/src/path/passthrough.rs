//! Inbound in the clear: what the capture rules redirected to 15006. No identity; the same policies, except for the
//! kubelet's probes.

use std::net::SocketAddr;
use std::sync::Arc;

use stillmesh_api::probes::Verdict;
use stillmesh_core::attrs::InboundAttrs;
use stillmesh_core::model::Workload;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{PathError, probe};
use crate::capture::pod::Held;
use crate::capture::{self, Captured, Pod};
use crate::deliver::connect;
use crate::deliver::copy::Carried;
use crate::node::Node;
use crate::record::labels::Party;
use crate::record::{Direction, Facts, Id, Protocol, Record};
use crate::tunnel::Upstream;
use crate::{decide, lookup};

/// Takes an accepted connection over. Never fails silently: what cannot be carried is written down.
pub fn start(pod: Arc<Pod>, node: Arc<Node>, stream: TcpStream, peer: SocketAddr, held: Held) {
    let place = node.workers.next();
    let carrier = pod.clone();
    // Boxed: what opening needs is not held for as long as the connection lasts.
    let open = move |stream| Box::pin(begin(pod, node, stream, peer, held));
    carrier.adopt(place, "inbound plaintext", stream, move |stream| {
        let beginning = open(stream);
        async move {
            if let Some(carried) = beginning.await {
                carried.await;
            }
        }
    });
}

/// Opens the way to the application, where it is permitted. `None`: it has failed or is a probe, which is written down.
async fn begin(
    pod: Arc<Pod>,
    node: Arc<Node>,
    stream: TcpStream,
    peer: SocketAddr,
    held: Held,
) -> Option<Box<Carried<impl Send + Unpin>>> {
    let (permit, conn, destination) = capture::begin(&pod, &node, stream, peer, Direction::Inbound).await?;
    let mut record = Record::new(&node.ledger, facts(&conn, &destination, &node));
    let opened = open(&conn, &destination, &pod, &node, &mut record).await;
    match opened {
        Ok(Some(upstream)) => {
            let keeps = (permit, held.permit);
            return Some(Box::new(Carried::new(conn.stream, Upstream::Tcp(upstream), record, held.watch, keeps)));
        }
        Ok(None) => record.complete(),
        Err(error) => {
            record.fail(&error);
            // Whom a policy refuses sees a plain close (contract 3.4), which resets only who has sent something.
            if !matches!(error, PathError::Denied { .. }) {
                capture::break_off(conn.stream);
            }
        }
    }
    None
}

/// Connects to the application, where it is permitted. `None`: a probe that has what it wanted.
async fn open(
    conn: &Captured,
    destination: &Arc<Workload>,
    pod: &Pod,
    node: &Node,
    record: &mut Record,
) -> Result<Option<TcpStream>, PathError> {
    // Listed before it is decided: a policy that comes between the two finds it.
    record.enlist();
    decide::inbound_plaintext(conn.original)?;
    let attrs = InboundAttrs { destination, upstream: conn.original, source_ip: conn.peer.ip(), source_identity: None };
    let authorized = decide::authorize(&node.snapshots.load(), &attrs, node);
    match authorized {
        Ok(because) => record.decided(because),
        Err(denied) => match probe::verdict(conn, pod, node, record.facts()).await {
            Verdict::Probe => {}
            // A TCP probe: the kubelet has what it wanted.
            Verdict::Closed if probe::is_silent(&conn.stream).await => return Ok(None),
            Verdict::Closed | Verdict::Other => return Err(denied),
        },
    }
    let deadline = Instant::now() + node.config.limits.connect;
    let upstream = connect::keeping_source(&pod.connecting, node, conn.original, conn.peer.ip(), deadline).await?;
    record.opened();
    Ok(Some(upstream))
}

fn facts(conn: &Captured, destination: &Arc<Workload>, node: &Node) -> Facts {
    let snapshot = node.snapshots.load();
    let source = lookup::inbound_source(&snapshot, &node.config.network, conn.peer.ip(), None, Party::default());
    Facts {
        id: Id::random(),
        parent: 0,
        direction: Direction::Inbound,
        protocol: Protocol::Tcp,
        source_addr: conn.peer,
        source: source.workload,
        described: source.described,
        peer: None,
        original: conn.original,
        destination_addr: conn.original,
        authority: None,
        upstream: Some(conn.original),
        service: stillmesh_core::decide::inbound_service(&snapshot, destination, None, conn.original.port()),
        destination: Some(destination.clone()),
    }
}
