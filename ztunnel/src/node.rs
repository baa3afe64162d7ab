//! What every connection of this node shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stillmesh_hbone::Memory;
use stillmesh_hbone::copy::Pipes;
use tokio::sync::Semaphore;

use crate::capture::pods::Table;
use crate::config::{Config, SourceAddress};
use crate::dns::answer::Zone;
use crate::dns::resolv::Resolv;
use crate::lookup::Snapshots;
use crate::record::{Ledger, Metrics};
use crate::tunnel::Identities;
use crate::workers::Workers;

/// Questions for probes at a time; further connections are refused without one.
const PROBE_QUESTIONS: usize = 32;

/// Pipes that are lent at a time, for each worker: half of what the kernel lets an ordinary user have of full size, for four of them.
const PIPES: usize = 32;

/// One per process.
#[derive(Debug)]
pub struct Node {
    /// What the operator set.
    pub config: Config,
    /// What the mesh is.
    pub snapshots: Arc<Snapshots>,
    /// Certificates of this node's workloads.
    pub identities: Identities,
    /// What is open.
    pub ledger: Arc<Ledger>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who carries connections.
    pub workers: Workers,
    /// What all tunnels may hold together.
    pub memory: Memory,
    /// TLS handshakes that may be under way.
    pub handshakes: Arc<Semaphore>,
    /// Questions for probes that may be under way.
    pub probe_questions: Arc<Semaphore>,
    /// How names are understood.
    pub zone: Zone,
    /// Where other names are asked.
    pub resolv: Resolv,
    /// The pods that are served.
    pub pods: Table,
    /// What bytes between two of them pass through, by worker.
    pipes: Vec<Pipes>,
    /// The kernel has refused to send from addresses that are not ours.
    spoofing_refused: AtomicBool,
}

/// The parts of a [`Node`].
#[expect(missing_docs, reason = "see Node")]
pub struct Parts {
    pub config: Config,
    pub snapshots: Arc<Snapshots>,
    pub identities: Identities,
    pub ledger: Arc<Ledger>,
    pub workers: Workers,
    pub resolv: Resolv,
}

impl Node {
    /// Puts a node together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, snapshots, identities, ledger, workers, resolv } = parts;
        Arc::new(Self {
            memory: Memory::new(config.hbone.memory_bytes),
            probe_questions: Arc::new(Semaphore::new(PROBE_QUESTIONS)),
            handshakes: Arc::new(Semaphore::new(config.limits.handshakes)),
            zone: Zone::new(&config.cluster_domain, &resolv.search, config.ipv6)
                .preferring(config.dns.as_ref().and_then(|dns| dns.preferred_namespace.clone())),
            metrics: ledger.metrics().clone(),
            pods: Table::default(),
            pipes: (0..workers.count()).map(|_| Pipes::new(PIPES)).collect(),
            config,
            snapshots,
            identities,
            ledger,
            workers,
            resolv,
            spoofing_refused: AtomicBool::new(false),
        })
    }

    /// The pipes of a worker; of none, where there is no such worker.
    pub fn pipes(&self, worker: usize) -> Pipes {
        self.pipes.get(worker).cloned().unwrap_or_else(|| Pipes::new(0))
    }

    /// Whether a delivery should try to keep the client's address.
    pub fn keeps_source_address(&self) -> bool {
        match self.config.source_address {
            SourceAddress::Keep => true,
            SourceAddress::Own => false,
            SourceAddress::Auto => !self.spoofing_refused.load(Ordering::Relaxed),
        }
    }

    /// The kernel refused; says whether to go on without.
    pub fn source_address_refused(&self) -> bool {
        if self.config.source_address == SourceAddress::Keep {
            return false;
        }
        if !self.spoofing_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!("source addresses are not kept: the kernel does not permit it (CAP_NET_ADMIN is needed)");
        }
        true
    }
}
