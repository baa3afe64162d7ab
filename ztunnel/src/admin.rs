//! What ztunnel says of itself: admin port (localhost), metrics port, readiness port (contract 9.5). JSON shapes are
//! what istioctl reads; `/stillmesh/…` is ours.

pub mod dump;

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use http::{Method, StatusCode};
use serde::Serialize;
use stillmesh_identity::revocation::Side;
use stillmesh_proxy::decisions::{answer, explain_connection};
use stillmesh_proxy::{flows, logging};
use stillmesh_records::{Hop, Told};
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::Levels;
use stillmesh_runtime::telemetry::metrics::{CONTENT_TYPE, Metrics as Registered};
use tokio_util::sync::CancellationToken;

use crate::capture::pods::Table;
use crate::config::ROWS;
use crate::node::Node;
use crate::record::labels::Word;
use crate::record::metrics::Reporter;
use crate::record::{self, Live};

/// What the admin port shows and does.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The node.
    pub node: Arc<Node>,
    /// Its pods.
    pub pods: Table,
    /// The log's levels; `None` where somebody else owns the log.
    pub levels: Option<Levels>,
    /// Ends the process.
    pub quit: CancellationToken,
}

/// The admin port's pages.
pub fn server(admin: Admin) -> Server {
    let page = |make: fn(&Admin, &Request) -> Response| {
        let admin = admin.clone();
        move |request: Request| {
            let response = make(&admin, &request);
            async move { response }
        }
    };
    Server::new("admin")
        .route(Method::GET, "/", page(|_, _| Response::new(StatusCode::OK, "text/html; charset=utf-8", INDEX)))
        .route(Method::GET, "/config_dump", page(|admin, _| pretty(&dump::config_dump(&admin.node, &admin.pods))))
        .route(Method::GET, "/config", page(|admin, _| pretty(&config(admin))))
        .route(Method::POST, "/logging", page(|admin, request| logging::answer(admin.levels.as_ref(), request)))
        .route(Method::POST, "/quitquitquit", page(|admin, _| quit(admin)))
        .route(Method::GET, "/stillmesh/connections", page(|admin, _| pretty(&connections(&admin.node))))
        .route(Method::GET, "/decisions", page(decided))
        .route(Method::GET, "/flows", page(counted))
        .route(Method::GET, "/stillmesh/pods", page(|admin, _| pretty(&pods(admin))))
        .route(Method::GET, "/debug/generation", page(|admin, _| pretty(&admin.node.snapshots.load().generation())))
}

/// The metrics port's pages.
pub fn metrics_server(node: Arc<Node>, registered: Registered) -> Server {
    let page = move |_request: Request| {
        // Byte counters follow open connections only as far as somebody reads them.
        node.ledger.flush();
        count_rejections(&node);
        count_memory(&node);
        node.metrics.certificates.look(node.identities.secrets());
        let response = Response::new(StatusCode::OK, CONTENT_TYPE, registered.encode());
        async move { response }
    };
    Server::new("metrics").route(Method::GET, "/metrics", page.clone()).route(Method::GET, "/stats/prometheus", page)
}

/// Brings the counters of refused certificates up to date.
fn count_rejections(node: &Node) {
    let revocations = node.identities.secrets().revocations();
    for (side, reporter) in [(Side::Source, "source"), (Side::Destination, "destination")] {
        let labels = Reporter { reporter: Word(reporter) };
        let counter = node.metrics.crl_rejections.get_or_create(&labels);
        counter.inner().fetch_max(revocations.refused(side), std::sync::atomic::Ordering::Relaxed);
        drop(node.metrics.crl_untracked.get_or_create(&labels));
    }
}

/// Brings what is known of the tunnels' memory up to date.
fn count_memory(node: &Node) {
    let (memory, metrics) = (&node.memory, &node.metrics);
    let bytes = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
    metrics.memory_held.set(bytes(memory.held()));
    metrics.memory_limit.set(bytes(memory.limit()));
    for (counter, count) in [(&metrics.memory_refused, memory.refused()), (&metrics.memory_broken, memory.broken())] {
        counter.inner().fetch_max(count, std::sync::atomic::Ordering::Relaxed);
    }
}

const INDEX: &str = "<!doctype html><title>ztunnel</title><h1>ztunnel</h1><ul>\
<li><a href=/config_dump>config_dump</a><li><a href=/config>config</a>\
<li><a href=/decisions>decisions</a><li><a href=/flows>flows</a><li><a href=/stillmesh/connections>stillmesh/connections</a><li><a href=/stillmesh/pods>stillmesh/pods</a>\
<li>POST logging[?level=info | mod=lvl,… | reset]<li>POST quitquitquit</ul>\n";

fn pretty<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => Response::new(StatusCode::OK, "application/json", body),
        Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot be serialized: {error}\n")),
    }
}

/// What is set, and what every key means.
fn config(admin: &Admin) -> serde_json::Value {
    let keys = ROWS.iter().map(|row| {
        serde_json::json!({
            "key": row.key,
            "value": admin.node.config.raw.0.get(row.key),
            "default": row.default,
            "accepts": row.accepts,
            "meaning": row.meaning,
        })
    });
    serde_json::json!({ "checked": &admin.node.config, "keys": keys.collect::<Vec<_>>() })
}

fn quit(admin: &Admin) -> Response {
    admin.quit.cancel();
    Response::text(StatusCode::OK, "shutdown now\n")
}

/// One open connection as our own tools read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    id: String,
    direction: &'static str,
    protocol: &'static str,
    source: End,
    destination: End,
    original: String,
    service: Option<String>,
    bytes_received: u64,
    bytes_sent: u64,
    since_unix_ms: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    address: String,
    workload: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    identity: Option<String>,
}

impl From<&Live> for Connection {
    fn from(live: &Live) -> Self {
        let facts = &live.facts;
        let (bytes_received, bytes_sent) = live.bytes();
        let since = live.since().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: facts.id.to_string(),
            direction: facts.direction.as_str(),
            protocol: facts.protocol.as_str(),
            source: End {
                address: facts.source_addr.to_string(),
                workload: facts.source.as_ref().map(|workload| workload.name.clone()),
                namespace: facts.source_party().namespace,
                identity: facts
                    .source_identity()
                    .filter(|_| facts.are_ends_proved())
                    .map(|identity| identity.to_string()),
            },
            destination: End {
                address: facts.destination_addr.to_string(),
                workload: facts.destination.as_ref().map(|workload| workload.name.clone()),
                namespace: facts.destination.as_ref().map(|workload| workload.namespace.clone()),
                identity: facts
                    .destination
                    .as_ref()
                    .filter(|_| facts.are_ends_proved())
                    .map(|workload| workload.identity().to_string()),
            },
            original: facts.original.to_string(),
            service: facts.service.as_ref().map(|service| service.key.to_string()),
            bytes_received,
            bytes_sent,
            since_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn connections(node: &Node) -> Vec<Connection> {
    node.ledger.all().iter().map(|live| Connection::from(live.as_ref())).collect()
}

/// What was decided about connections that have ended and that are open.
fn decided(admin: &Admin, request: &Request) -> Response {
    let node = &admin.node;
    let snapshot = node.snapshots.load();
    let explain = |told: &mut Told| {
        if told.hop == Hop::Inbound {
            explain_connection(&snapshot, told);
        }
    };
    answer(node.ledger.records(), request, || record::live(&node.ledger), explain)
}

fn counted(admin: &Admin, request: &Request) -> Response {
    let ledger = &admin.node.ledger;
    flows::answer(ledger.records(), request, || record::live(ledger))
}

fn pods(admin: &Admin) -> serde_json::Value {
    let pods = admin.pods.all();
    let pods = pods.iter().map(|pod| {
        serde_json::json!({
            "uid": pod.uid,
            "name": pod.info.name,
            "namespace": pod.info.namespace,
            "serviceAccount": pod.info.service_account,
            "netnsInode": pod.inode(),
            "tunnels": pod.pools.tunnels(),
        })
    });
    pods.collect()
}

#[cfg(test)]
mod tests;
