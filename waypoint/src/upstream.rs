//! The way to endpoints: which one core says, another one where it does not answer; over HBONE, or in the clear where the
//! endpoint has no tunnel. [`connections`] keeps HTTP connections.

pub mod budget;
pub mod connections;
pub mod dial;
mod way;

use stillmesh_core::decide::{self, Endpoint, OutboundPlan, Target};
use stillmesh_core::model::WorkloadUid;
use tokio::time::Instant;

pub use connections::Connections;
pub use way::Way;

use crate::capture::Downstream;
use crate::path::{PathError, Rewound};

/// How many endpoints a connection or request is offered to before it fails: one, and two further tries.
pub const MOST_TRIES: usize = 3;

/// An endpoint that has taken a connection.
#[derive(Debug)]
pub struct Opened {
    /// The way there.
    pub way: Rewound<Way>,
}

/// Chooses an endpoint, not one of `tried` while there are others.
pub fn choose(downstream: &Downstream, target: &Target, tried: &[WorkloadUid]) -> Result<OutboundPlan, PathError> {
    let snapshot = downstream.waypoint().snapshots.load();
    let attrs = Endpoint { waypoint: &downstream.own, target, entropy: rand::random(), tried };
    Ok(decide::endpoint(&snapshot, &attrs)?)
}

/// Opens a way for a connection that is carried as it is. What fails before the endpoint has taken it is tried at
/// another, within one deadline for all. `learn` is told of each endpoint.
pub async fn open(
    downstream: &Downstream,
    target: &Target,
    mut learn: impl FnMut(&OutboundPlan),
) -> Result<Opened, PathError> {
    let waypoint = downstream.waypoint();
    let deadline = Instant::now() + waypoint.config.limits.connect;
    let mut tried: Vec<WorkloadUid> = Vec::new();
    let mut first_error = None;
    loop {
        let plan = match (choose(downstream, target, &tried), first_error.take()) {
            (Ok(plan), None) => plan,
            (Ok(plan), Some(_)) if is_new(&plan, &tried) => plan,
            // Without a further way the failure before is what the user should read.
            (Ok(_) | Err(_), Some(error)) => return Err(error),
            (Err(error), None) => return Err(error),
        };
        learn(&plan);
        tried.extend(plan.upstream.as_ref().map(|workload| workload.uid.clone()));
        let from = downstream.client.address;
        match dial::way(waypoint, &downstream.own, &plan, Some(from), deadline).await {
            Ok(way) => return Ok(Opened { way: Rewound::new(way) }),
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
