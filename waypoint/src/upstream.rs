//! The way to endpoints: which one core says, another one where it does not answer; over HBONE, or in the clear where the
//! endpoint has no tunnel. [`connections`] keeps HTTP connections, [`clusters`] what is known of endpoints.

pub mod affinity;
pub mod clusters;
pub mod connections;
pub mod dial;
mod outliers;
mod way;

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use http::request::Parts;
use stillmesh_core::decide::retry::Outcome;
use stillmesh_core::decide::{self, Endpoint, OutboundPlan, Target};
use stillmesh_core::model::WorkloadUid;
use stillmesh_core::model::destination::{ConnectionPool, EndpointVersion};
use stillmesh_core::snapshot::Treatment;
use tokio::time::Instant;

pub use clusters::Clusters;
pub use connections::Connections;
pub use way::Way;

use crate::capture::Downstream;
use crate::path::{PathError, Rewound};
use affinity::Affinity;
use clusters::{Cluster, Flight, Place};
use connections::Kept;

/// How many endpoints a connection or request is offered to before it fails: one, and two further tries.
pub const MOST_TRIES: usize = 3;

/// Where something goes, and how what is there is treated.
#[derive(Debug)]
pub struct Upstream {
    target: Target,
    treatment: Treatment,
    limits: ConnectionPool,
    cluster: Arc<Cluster>,
    hash: Option<u64>,
    /// What the client is given so that its next request comes to the same endpoint.
    pub cookie: Option<HeaderValue>,
}

impl Upstream {
    /// The way of a request, or of a connection, to a target.
    pub fn new(downstream: &Downstream, target: Target, head: Option<&Parts>) -> Result<Self, PathError> {
        let waypoint = downstream.waypoint();
        let treatment = match &target {
            Target::Service { service, port, subset, .. } => {
                let (snapshot, port) = (waypoint.snapshots.load(), port.mapping.service_port);
                decide::treatment(&snapshot, &downstream.own, service, port, subset.as_deref())?
            }
            Target::Workload { .. } => Treatment::default(),
        };
        let client = downstream.client.address.ip();
        let Affinity { hash, cookie } = Affinity::of(&treatment.policy, head, client, rand::random());
        let limits = treatment.policy.limits.clone().unwrap_or_default();
        let cluster = waypoint.clusters.of(&target);
        Ok(Self { target, treatment, limits, cluster, hash, cookie })
    }

    /// What it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The HTTP version that its endpoints are to be spoken to in.
    pub fn version(&self) -> EndpointVersion {
        self.limits.version
    }

    /// How its connections for HTTP are kept.
    pub fn kept(&self) -> Kept {
        let ConnectionPool { http_idle, age, requests_per_connection, streams, .. } = self.limits;
        Kept { idle: http_idle, age, requests: requests_per_connection, streams }
    }

    /// How long connecting may take.
    pub fn patience(&self, downstream: &Downstream) -> Duration {
        self.limits.connect_timeout.unwrap_or(downstream.waypoint().config.limits.connect)
    }

    /// How long nothing may pass on a TCP connection.
    fn tcp_idle(&self, downstream: &Downstream) -> Option<Duration> {
        let idle = self.limits.tcp_idle.unwrap_or(downstream.waypoint().config.limits.stream_idle);
        (!idle.is_zero()).then_some(idle)
    }

    /// A request's place among all of them.
    pub fn request(&self) -> Result<Place, PathError> {
        let full = || full("requests to the service", self.limits.requests);
        self.cluster.request(self.limits.requests).ok_or_else(full)
    }

    /// A retry's place; `None`: there are enough.
    pub fn retry(&self, downstream: &Downstream) -> Option<Place> {
        self.cluster.retry(downstream.waypoint().config.limits.retry_percent, self.limits.retries)
    }

    /// The place of a connection that carries one thing at a time, waited for.
    pub async fn connection(&self, deadline: Instant) -> Result<Option<Place>, PathError> {
        let ConnectionPool { connections, pending, .. } = self.limits;
        if connections.is_none() {
            return Ok(None);
        }
        let place = self.cluster.connection(connections, pending, deadline).await;
        place.map(Some).ok_or_else(|| full("connections to the service", connections))
    }

    /// Chooses an endpoint, not one of `tried` while there are others.
    pub fn choose(&self, downstream: &Downstream, tried: &[WorkloadUid]) -> Result<OutboundPlan, PathError> {
        let snapshot = downstream.waypoint().snapshots.load();
        let attrs = Endpoint {
            waypoint: &downstream.own,
            target: &self.target,
            entropy: rand::random(),
            tried,
            live: &*self.cluster,
            turn: self.cluster.turn(),
            hash: self.hash,
        };
        Ok(decide::endpoint(&snapshot, &attrs)?)
    }

    /// Something is sent to the endpoint of a plan.
    pub fn flight(&self, plan: &OutboundPlan) -> Option<Flight> {
        plan.upstream.as_ref().map(|endpoint| self.cluster.flight(&endpoint.uid))
    }

    /// Takes how a try at an endpoint went.
    pub fn note(&self, downstream: &Downstream, endpoint: &WorkloadUid, outcome: Outcome) {
        let (Some(rule), Target::Service { service, .. }) = (&self.treatment.policy.outliers, &self.target) else {
            return;
        };
        let waypoint = downstream.waypoint();
        let members = self.treatment.members.as_ref();
        let all = || {
            let snapshot = waypoint.snapshots.load();
            let is_member = |uid: &WorkloadUid| members.is_none_or(|members| members.contains(uid));
            snapshot.endpoints(&service.key).filter(|endpoint| is_member(&endpoint.uid)).count()
        };
        if let Some((why, time)) = self.cluster.note(endpoint, rule, outcome, all) {
            waypoint.metrics.ejected.inc();
            tracing::info!(%endpoint, service = %service.key, ?why, ?time, "an endpoint is left out for a while");
        }
    }
}

fn full(what: &'static str, limit: Option<u32>) -> PathError {
    PathError::Pool { what, limit: limit.unwrap_or_default() }
}

/// An endpoint that has taken a connection.
#[derive(Debug)]
pub struct Opened {
    /// The way there.
    pub way: Rewound<Way>,
    /// How long nothing may pass on it; `None`: for ever.
    pub idle: Option<Duration>,
    /// How long it may live.
    pub age: Option<Duration>,
    /// What is under way there, until it has ended.
    _held: (Option<Flight>, Option<Place>),
}

/// Opens a way for a connection that is carried as it is. What fails before the endpoint has taken it is tried at
/// another, within one deadline for all. `learn` is told of each endpoint, and of the trace of the CONNECT that goes there.
pub async fn open(
    downstream: &Downstream,
    upstream: &Upstream,
    mut learn: impl FnMut(&OutboundPlan, u128),
) -> Result<Opened, PathError> {
    let waypoint = downstream.waypoint();
    let deadline = Instant::now() + upstream.patience(downstream);
    let place = upstream.connection(deadline).await?;
    let mut tried: Vec<WorkloadUid> = Vec::new();
    let mut first_error = None;
    loop {
        let plan = match (upstream.choose(downstream, &tried), first_error.take()) {
            (Ok(plan), None) => plan,
            (Ok(plan), Some(_)) if is_new(&plan, &tried) => plan,
            // Without a further way the failure before is what the user should read.
            (Ok(_) | Err(_), Some(error)) => return Err(error),
            (Err(error), None) => return Err(error),
        };
        let trace = dial::trace(&plan);
        learn(&plan, trace);
        tried.extend(plan.upstream.as_ref().map(|workload| workload.uid.clone()));
        let (from, flight) = (downstream.client.address, upstream.flight(&plan));
        let opened = dial::way(waypoint, &downstream.own, &plan, Some(from), trace, deadline).await;
        if let Some(endpoint) = &plan.upstream {
            match &opened {
                Ok(_) => upstream.note(downstream, &endpoint.uid, Outcome::Answered { status: 200, grpc: None }),
                Err(error) if error.may_repick() => upstream.note(downstream, &endpoint.uid, Outcome::NotConnected),
                Err(_) => {}
            }
        }
        match opened {
            Ok(way) => {
                let (idle, age) = (upstream.tcp_idle(downstream), upstream.limits.age);
                return Ok(Opened { way: Rewound::new(way), idle, age, _held: (flight, place) });
            }
            Err(error) if error.may_repick() && tried.len() < MOST_TRIES && Instant::now() < deadline => {
                waypoint.metrics.repicked.inc();
                tracing::debug!(error = %error.text(), "trying another endpoint");
                first_error = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether a plan names an endpoint that was not tried yet.
pub fn is_new(plan: &OutboundPlan, tried: &[WorkloadUid]) -> bool {
    plan.upstream.as_ref().is_some_and(|workload| !tried.contains(&workload.uid))
}
