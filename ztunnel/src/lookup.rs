//! From a socket to the attributes that a decision needs, and the snapshots that it is asked of.
//!
//! Snapshots are published by one writer ([`stillmesh_proxy::writer`]); everybody else loads one once and lets go of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use stillmesh_api::zds::PodInfo;
use stillmesh_core::model::{Identity, NetworkAddress, Workload};
use stillmesh_core::snapshot::Snapshot;
pub use stillmesh_proxy::Snapshots;

use crate::path::PathError;
use crate::record::labels::Party;

/// The workload of a captured pod, waited for: a connection may be faster than the control plane.
pub async fn own_workload(
    snapshots: &Snapshots,
    node: &str,
    pod: &PodInfo,
    limit: Duration,
) -> Result<Arc<Workload>, PathError> {
    let find =
        |snapshot: &Snapshot| snapshot.local_workload(node, &pod.namespace, &pod.name, &pod.service_account).cloned();
    snapshots.wait_for(limit, find).await.ok_or_else(|| PathError::NoLocalWorkload {
        name: pod.name.as_str().into(),
        namespace: pod.namespace.as_str().into(),
        service_account: pod.service_account.as_str().into(),
    })
}

/// Who a peer is for telemetry.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Its workload, where it is known for sure.
    pub workload: Option<Arc<Workload>>,
    /// What it is called where it is not.
    pub described: Option<Box<Party>>,
}

/// The client of an inbound connection: the workload at its address, unless its certificate says that it is another;
/// then what the certificate and the peer's own description say.
pub fn inbound_source(
    snapshot: &Snapshot,
    network: &str,
    address: IpAddr,
    identity: Option<&Identity>,
    described: Party,
) -> Source {
    let at_address = snapshot.workload_at(&NetworkAddress::new(network, address));
    match (at_address, identity) {
        (Some(workload), None) => Source { workload: Some(workload.clone()), described: None },
        (Some(workload), Some(identity)) if workload.identity() == *identity => {
            Source { workload: Some(workload.clone()), described: None }
        }
        (_, Some(identity)) => {
            let described = Party { namespace: Some(identity.namespace.clone()), ..described };
            Source { workload: None, described: Some(Box::new(described)) }
        }
        (None, None) => Source::default(),
    }
}
