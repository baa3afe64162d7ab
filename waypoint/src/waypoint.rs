//! What everything that a waypoint carries shares.

use std::net::IpAddr;
use std::sync::Arc;

use stillmesh_core::model::{NetworkAddress, Workload};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_hbone::{Limits, Memory, Pool};
use stillmesh_identity::Secrets;
use stillmesh_proxy::Snapshots;
use stillmesh_runtime::drain::Watch;
use stillmesh_runtime::tasks::Tasks;
use tokio::sync::Semaphore;

use crate::authenticate::Keys;
use crate::clients::Clients;
use crate::config::Config;
use crate::path::PathError;
use crate::record::{Metrics, Records};
use crate::told::Tellings;
use crate::upstream::dial::Plain;
use crate::upstream::{Clusters, Connections};

/// One per process.
pub struct Waypoint {
    /// What the operator set.
    pub config: Config,
    /// What the mesh is.
    pub snapshots: Arc<Snapshots>,
    /// The waypoint's certificate.
    pub secrets: Secrets,
    /// Tunnels to endpoints.
    pub pool: Pool,
    /// HTTP connections to endpoints.
    pub connections: Arc<Connections>,
    /// What is known of endpoints.
    pub clusters: Arc<Clusters>,
    /// Whose tokens are believed.
    pub keys: Arc<Keys>,
    /// Who is connected.
    pub clients: Arc<Clients>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What users ask to be told.
    pub tellings: Tellings,
    /// What was decided about what has ended.
    pub records: Records,
    /// What all tunnels may hold together.
    pub memory: Memory,
    /// TLS handshakes that may be under way.
    pub handshakes: Arc<Semaphore>,
    /// Requests and TCP connections that may be under way.
    pub requests: Arc<Semaphore>,
    /// Copies of requests that may be under way.
    pub mirrors: Arc<Semaphore>,
    /// Says when it is time to end.
    pub watch: Watch,
    /// Owns what clients opened: this is what a drain waits for.
    pub tasks: Tasks,
    /// Owns what nobody waits for.
    pub background: Tasks,
}

/// The parts of a [`Waypoint`].
#[expect(missing_docs, reason = "see Waypoint")]
pub struct Parts {
    pub config: Config,
    pub snapshots: Arc<Snapshots>,
    pub secrets: Secrets,
    pub metrics: Arc<Metrics>,
    pub open: Arc<Clients>,
    pub watch: Watch,
    /// Owns what clients opened.
    pub tasks: Tasks,
    /// Owns connections to endpoints.
    pub upstream: Tasks,
}

impl Waypoint {
    /// Puts a waypoint together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, snapshots, secrets, metrics, open, watch, tasks, upstream } = parts;
        let memory = Memory::new(config.hbone.memory_bytes);
        let dial = Arc::new(Plain { keepalive: config.keepalive });
        let limits = Self::tunnel_limits(&config, &memory);
        Arc::new(Self {
            pool: Pool::new(limits, secrets.clone(), dial, upstream.clone()),
            background: upstream.child("background"),
            mirrors: Arc::new(Semaphore::new(config.limits.mirrors)),
            keys: Keys::new(config.keys, config.keys_root.as_deref(), upstream.clone()),
            connections: Connections::new(config.limits, upstream),
            handshakes: Arc::new(Semaphore::new(config.limits.handshakes)),
            requests: Arc::new(Semaphore::new(config.limits.requests)),
            clusters: Arc::default(),
            records: Records::new(&config),
            tellings: Tellings::new(&metrics),
            memory,
            config,
            snapshots,
            secrets,
            clients: open,
            metrics,
            watch,
            tasks,
        })
    }

    /// The tunnels' bounds as configured.
    pub fn limits(&self) -> Limits {
        Self::tunnel_limits(&self.config, &self.memory)
    }

    fn tunnel_limits(config: &Config, memory: &Memory) -> Limits {
        Limits {
            handshake: config.limits.handshake,
            connect: config.limits.connect,
            ..config.hbone.limits(memory.clone())
        }
    }

    /// The waypoint's own workload, waited for: a client may be faster than the control plane.
    pub async fn own(&self) -> Result<Arc<Workload>, PathError> {
        let limit = self.config.limits.own_workload;
        let found = self.snapshots.wait_for(limit, |snapshot| own_in(&self.config, snapshot)).await;
        found.ok_or_else(|| PathError::NoOwnWorkload {
            pod: format!("{}/{}", self.config.pod_namespace, self.config.pod_name),
            limit,
        })
    }
}

/// The waypoint's own workload: by its pod, else by its address and identity.
pub fn own_in(config: &Config, snapshot: &Snapshot) -> Option<Arc<Workload>> {
    let account = &config.identity.service_account;
    let by_pod = snapshot.local_workload(&config.node, &config.pod_namespace, &config.pod_name, account);
    let at = |ip: IpAddr| snapshot.workload_at(&NetworkAddress::new(config.network.as_str(), ip));
    let by_address = || config.instance_ip.and_then(at).filter(|own| own.identity() == config.identity);
    by_pod.or_else(by_address).cloned()
}

impl std::fmt::Debug for Waypoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waypoint").field("identity", &self.config.identity).finish_non_exhaustive()
    }
}
