//! From a socket to the attributes that a decision needs, and the snapshots that it is asked of.
//!
//! [`writer`] is the only one that publishes; everybody else loads a snapshot once and lets go of it.

pub mod writer;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use stillmesh_api::zds::PodInfo;
use stillmesh_core::model::{Identity, NetworkAddress, Workload};
use stillmesh_core::snapshot::Snapshot;
use tokio::sync::watch;

use crate::path::PathError;
use crate::record::labels::Party;

/// The current snapshot, and its generation to wait on.
#[derive(Debug)]
pub struct Snapshots {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
}

impl Snapshots {
    /// Starts with `initial`.
    pub fn new(initial: Snapshot) -> Self {
        let generation = watch::Sender::new(initial.generation());
        Self { current: ArcSwap::from_pointee(initial), generation }
    }

    /// The current one. Hold it for one decision.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the current one. Only [`writer`] calls this.
    fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.generation();
        self.current.store(Arc::new(snapshot));
        self.generation.send_replace(generation);
    }

    /// Waits until `find` finds something, in this snapshot or a later one.
    pub async fn wait_for<T>(&self, limit: Duration, mut find: impl FnMut(&Snapshot) -> Option<T>) -> Option<T> {
        if let Some(found) = find(&self.load()) {
            return Some(found);
        }
        let mut changes = self.generation.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = find(&self.load()) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, waiting).await.ok().flatten()
    }
}

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
    /// What it is called.
    pub party: Party,
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
        (Some(workload), None) => Source { party: Party::from(workload.as_ref()), workload: Some(workload.clone()) },
        (Some(workload), Some(identity)) if workload.identity() == *identity => {
            Source { party: Party::from(workload.as_ref()), workload: Some(workload.clone()) }
        }
        (_, Some(identity)) => {
            Source { workload: None, party: Party { namespace: Some(identity.namespace.clone()), ..described } }
        }
        (None, None) => Source::default(),
    }
}
