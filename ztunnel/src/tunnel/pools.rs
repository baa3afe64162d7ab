//! A pod's tunnels to others: one pool per worker, dialled from inside the pod's namespace.

use std::net::SocketAddr;
use std::sync::Arc;

use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_hbone::headers::{ConnectHeaders, Forwarded};
use stillmesh_hbone::{Dial, Dialling, Key, Limits, Pool, Stream, Transport};
pub use stillmesh_proxy::labels::baggage;
use stillmesh_runtime::tasks::Tasks;

use super::Request;
use crate::config::Keepalive;
use crate::deliver::connect;
use crate::deliver::sockets::Sockets;
use crate::node::Node;
use crate::path::PathError;
use crate::record::span;

/// The pools of one pod, by worker.
#[derive(Debug)]
pub struct Pools {
    pools: Vec<Pool>,
}

impl Pools {
    /// Empty pools that dial with these sockets; their tasks are owned by `tasks`.
    pub fn new(node: &Node, sockets: &Sockets, tasks: &Tasks) -> Self {
        let dial: Arc<dyn Dial> = Arc::new(PodDial { sockets: sockets.clone(), keepalive: node.config.keepalive });
        let secrets = node.identities.secrets();
        let pool = |_| Pool::new(limits(node), secrets.clone(), dial.clone(), tasks.clone());
        Self { pools: (0..node.workers.count()).map(pool).collect() }
    }

    /// Opens a stream in a tunnel of the worker that this runs on.
    pub async fn open(
        &self,
        request: &Request<'_>,
        node: &Node,
        worker: usize,
        next_hop: SocketAddr,
        authority: &Authority,
        expected: &[Identity],
    ) -> Result<Stream, PathError> {
        let Some(pool) = self.pools.get(worker).or(self.pools.first()) else {
            return Err(PathError::Full { what: "workers", limit: 0 });
        };
        let source_ip = request.conn.peer.ip();
        let key =
            Key { source: request.source.identity(), source_ip, destination: next_hop, expected: expected.to_vec() };
        let headers = ConnectHeaders {
            baggage: Some(baggage(request.source)),
            forwarded: Some(Forwarded {
                source: Some(request.conn.peer),
                host: super::service_host(request.plan).map(ToString::to_string),
            }),
            traceparent: Some(span::traceparent(&node.ledger, request.facts.id.0)),
            network: None,
        };
        let opened = pool.open_early(&key, authority, &headers, request.early).await;
        opened.map(|opened| opened.stream).map_err(|source| PathError::Tunnel { source })
    }

    /// Open tunnels.
    pub fn tunnels(&self) -> usize {
        self.pools.iter().map(Pool::tunnels).sum()
    }

    /// Lets go of all tunnels: they end when their streams have.
    pub fn close(&self) {
        for pool in &self.pools {
            pool.close();
        }
    }
}

/// The tunnels' bounds as configured.
pub fn limits(node: &Node) -> Limits {
    let config = &node.config;
    Limits {
        handshake: config.limits.handshake,
        connect: config.limits.connect,
        ..config.hbone.limits(node.memory.clone())
    }
}

/// Dials from inside a pod's namespace, from the pod's own address.
struct PodDial {
    sockets: Sockets,
    keepalive: Option<Keepalive>,
}

impl Dial for PodDial {
    fn dial<'a>(&'a self, key: &'a Key) -> Dialling<'a> {
        let destination = key.destination;
        Box::pin(async move {
            let stream = self.sockets.connect(destination, None).await?;
            connect::keep_alive(&stream, self.keepalive);
            Ok(Box::new(stream) as Box<dyn Transport>)
        })
    }
}
