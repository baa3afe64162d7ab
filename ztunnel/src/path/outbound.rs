//! Outbound: what the capture rules redirected to 15001, carried to where the mesh says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stillmesh_core::attrs::OutboundAttrs;
use stillmesh_core::decide::OutboundPlan;
use stillmesh_core::model::{Workload, WorkloadUid};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::direct::Near;
use super::{PathError, direct};
use crate::capture::pod::Held;
use crate::capture::{self, Captured, Pod};
use crate::deliver::copy::Carried;
use crate::node::Node;
use crate::record::{Direction, Facts, Id, Protocol, Record};
use crate::tunnel::{self, Upstream};
use crate::workers::Place;
use crate::{decide, enforce};

/// How many endpoints a connection is offered to before it fails (design: data path).
pub const MOST_TRIES: usize = 3;

/// Takes an accepted connection over. Never fails silently: what cannot be carried is written down.
///
/// The first decision is made where the connection was accepted. It stays on that worker, unless there is too much to do.
pub fn start(pod: Arc<Pod>, node: Arc<Node>, stream: TcpStream, peer: SocketAddr, held: Held) {
    let owner = pod.clone();
    // Boxed, here and below: what opening needs is not held for as long as the connection lasts.
    let beginning = Box::pin(begin(pod, node, stream, peer, held));
    owner.spawn("outbound", async move {
        let Some((place, conn, trip)) = beginning.await else { return };
        if place.is_here() {
            let _place = place;
            carry(conn, trip).await;
        } else {
            let (pod, Captured { stream, peer, original }) = (trip.pod.clone(), conn);
            pod.adopt(place, "outbound", stream, move |stream| carry(Captured { stream, peer, original }, trip));
        }
    });
}

/// What one connection's journey needs.
struct Trip {
    pod: Arc<Pod>,
    node: Arc<Node>,
    source: Arc<Workload>,
    first: Result<OutboundPlan, PathError>,
    worker: usize,
    accepted: std::time::Instant,
    held: Held,
    permit: OwnedSemaphorePermit,
}

/// Decides, and says on which worker it goes on.
async fn begin(
    pod: Arc<Pod>,
    node: Arc<Node>,
    stream: TcpStream,
    peer: SocketAddr,
    held: Held,
) -> Option<(Place, Captured, Trip)> {
    let accepted = std::time::Instant::now();
    let (permit, conn, source) = capture::begin(&pod, &node, stream, peer, Direction::Outbound).await?;
    let first = decide(&conn, &source, &node, &[]);
    let next_hop = first.as_ref().ok().and_then(|plan| plan.dial.address());
    let place = node.workers.here_or_of(&(source.identity(), next_hop));
    let worker = place.index();
    Some((place, conn, Trip { pod, node, source, first, worker, accepted, held, permit }))
}

/// The rest, on the worker that it stays on.
fn carry(conn: Captured, trip: Trip) -> impl Future<Output = ()> + Send {
    let opening = Box::pin(trip.open(conn));
    async move {
        if let Some(carried) = opening.await {
            carried.await;
        }
    }
}

impl Trip {
    /// Opens the way to the destination, and lists the connection. `None`: it has failed, which is written down.
    async fn open(mut self, conn: Captured) -> Option<Box<Carried<impl Send + Unpin>>> {
        let mut record = Record::new(&self.node.ledger, facts(&conn, &self.source));
        record.began(self.accepted);
        let first = std::mem::replace(&mut self.first, Err(PathError::Drained));
        match self.reach_listed(&conn, first, &mut record).await {
            Ok(upstream) => {
                let Held { permit, watch } = self.held;
                let keeps = (permit, self.permit, self.pod);
                Some(Box::new(Carried::new(conn.stream, upstream, record, watch, keeps)))
            }
            Err(error) => {
                record.fail(&error);
                capture::break_off(conn.stream);
                None
            }
        }
    }

    /// Opens the way to the destination, lists the connection, and asks again what may have changed before it was listed.
    async fn reach_listed(
        &self,
        conn: &Captured,
        first: Result<OutboundPlan, PathError>,
        record: &mut Record,
    ) -> Result<Upstream, PathError> {
        let upstream = self.reach(conn, first, record).await?;
        record.opened();
        // One that came between the decision and the listing has not seen this connection.
        let snapshot = self.node.snapshots.load();
        if let Some(reason) = stillmesh_core::decide::cut_off(&snapshot, &self.source) {
            return Err(PathError::Denied { reason });
        }
        match enforce::needs_tunnel(&snapshot, record.facts()) {
            Some(outcome) => Err(PathError::Cut { outcome }),
            None => Ok(upstream),
        }
    }

    /// Opens the way to the destination; what fails before the peer has taken the connection is tried at another
    /// endpoint, within one deadline for all.
    async fn reach(
        &self,
        conn: &Captured,
        first: Result<OutboundPlan, PathError>,
        record: &mut Record,
    ) -> Result<Upstream, PathError> {
        let deadline = Instant::now() + self.node.config.limits.connect;
        let mut tried: Vec<WorkloadUid> = Vec::new();
        let mut plan = first?;
        for tries_left in (0..MOST_TRIES).rev() {
            let near = direct::near(&plan, &self.source, conn, &self.node).await;
            record.learn(|facts| learn(facts, &plan, near.as_ref()));
            record.decided(plan.reason.clone());
            tried.extend(plan.upstream.as_ref().map(|workload| workload.uid.clone()));
            let other_way = || decide(conn, &self.source, &self.node, &tried).ok().filter(|next| is_new(next, &tried));
            let early = tunnel::Early::new(&conn.stream);
            let request = tunnel::Request {
                plan: &plan,
                source: &self.source,
                conn,
                facts: record.facts(),
                early: &early,
                deadline,
            };
            let opening = async {
                match near {
                    Some(near) => near.open(&request, &self.node, self.worker, record.counters()).await,
                    None => tunnel::open(&request, &self.pod, &self.node, self.worker).await,
                }
            };
            let tried_once = self.try_once(&request, opening, tries_left, || other_way().is_some()).await;
            let error = match tried_once {
                Ok(opened) => {
                    record.learn(|facts| facts.destination_addr = opened.next_hop);
                    if early.sent() > 0 {
                        record.counters().forward.fetch_add(early.sent() as u64, Ordering::Relaxed);
                        self.node.metrics.early.inc();
                    }
                    return Ok(opened.upstream);
                }
                Err(error) => error,
            };
            if tries_left == 0 || !tunnel::is_worth_another_try(&error) || Instant::now() >= deadline {
                return Err(error);
            }
            plan = match other_way() {
                Some(next) => next,
                None if tunnel::was_stale(&error) => plan,
                // Without a further way the first failure is what the user should read.
                None => return Err(error),
            };
            self.node.metrics.repicked.inc();
            record.retried();
            tracing::debug!(conn.id = %record.facts().id, %error, "trying again");
        }
        Err(PathError::Slow { to: conn.original, limit: self.node.config.limits.connect })
    }

    /// One try. A silent endpoint gets its share of the time only, where there is another to go to.
    async fn try_once(
        &self,
        request: &tunnel::Request<'_>,
        opening: impl Future<Output = Result<tunnel::Opened, PathError>>,
        tries_left: usize,
        is_other_way: impl Fn() -> bool,
    ) -> Result<tunnel::Opened, PathError> {
        let slow = || PathError::Slow {
            to: request.plan.dial.address().unwrap_or(request.conn.original),
            limit: self.node.config.limits.connect,
        };
        let left = request.deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(tries_left + 1).unwrap_or(1);
        let mut opening = std::pin::pin!(opening);
        match timeout(share, &mut opening).await {
            Ok(opened) => opened,
            // Nor may there be another try once something may have been delivered.
            Err(_) if tries_left > 0 && (request.early.sent() > 0 || !is_other_way()) => {
                timeout_at(request.deadline, opening).await.unwrap_or_else(|_| Err(slow()))
            }
            Err(_) => Err(slow()),
        }
    }
}

/// Whether a plan leads to somebody who has not failed yet.
fn is_new(plan: &OutboundPlan, tried: &[WorkloadUid]) -> bool {
    plan.upstream.as_ref().is_some_and(|workload| !tried.contains(&workload.uid))
}

fn decide(conn: &Captured, source: &Workload, node: &Node, tried: &[WorkloadUid]) -> Result<OutboundPlan, PathError> {
    let attrs = OutboundAttrs { source, destination: conn.original, entropy: rand::random(), tried };
    decide::outbound(&node.snapshots.load(), &attrs)
}

fn facts(conn: &Captured, source: &Arc<Workload>) -> Facts {
    Facts {
        id: Id::random(),
        parent: 0,
        direction: Direction::Outbound,
        protocol: Protocol::Tcp,
        source_addr: conn.peer,
        described: None,
        peer: None,
        source: Some(source.clone()),
        original: conn.original,
        destination_addr: conn.original,
        authority: None,
        upstream: None,
        destination: None,
        service: None,
    }
}

fn learn(facts: &mut Facts, plan: &OutboundPlan, near: Option<&Near>) {
    facts.destination_addr = plan.dial.address().unwrap_or(facts.original);
    facts.authority = tunnel::authority(plan);
    facts.protocol = if facts.authority.is_some() { Protocol::Hbone } else { Protocol::Tcp };
    if let Some(near) = near {
        (facts.destination_addr, facts.authority, facts.protocol) = (near.to(), None, Protocol::Direct);
    }
    facts.destination = plan.upstream.clone();
    facts.service = plan.service.clone();
}
