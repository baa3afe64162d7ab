//! Metrics, readiness and debug pages, over plain HTTP (contract 9.5).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Method, StatusCode};
use serde_json::Value;
use stillmesh_api::xds::Store;
use stillmesh_k8s::Finding;
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::metrics::CONTENT_TYPE;
use tokio::sync::{mpsc, oneshot};

use crate::control::Query;
use crate::metrics::{Metrics, VERSION};
use crate::serve::Nodes;

/// What the pages show.
pub(crate) struct Shown {
    /// Why nodes are not being served; nothing when they are.
    waits_for: ArcSwap<Option<String>>,
    /// What is wrong with the CA.
    pub authority: ArcSwap<Vec<Finding>>,
    pub findings: ArcSwap<Vec<Finding>>,
    pub store: Arc<Store>,
    pub nodes: Arc<Nodes>,
    pub metrics: Arc<Metrics>,
    queries: mpsc::Sender<Query>,
}

/// How long a question about the objects may wait, and how many may.
const PATIENCE: Duration = Duration::from_secs(5);
const QUESTIONS: usize = 4;

impl Shown {
    /// What the pages show, and the questions that they ask.
    pub fn new(cluster: &str, metrics: &Arc<Metrics>) -> (Self, mpsc::Receiver<Query>) {
        let (queries, asked) = mpsc::channel(QUESTIONS);
        let shown = Self {
            waits_for: ArcSwap::from_pointee(Some("the objects have not been read yet".to_owned())),
            authority: ArcSwap::default(),
            findings: ArcSwap::default(),
            store: Arc::new(Store::new()),
            nodes: Arc::new(Nodes::new(cluster, Arc::clone(metrics))),
            metrics: Arc::clone(metrics),
            queries,
        };
        (shown, asked)
    }

    /// Nodes are being served.
    pub fn ready(&self) {
        self.waits_for.store(Arc::new(None));
    }

    /// Nodes are not being served any more.
    pub fn not_ready(&self, why: &str) {
        self.waits_for.store(Arc::new(Some(why.to_owned())));
    }

    /// Nodes are not being served yet, and this is what for.
    pub fn waits(&self, why: &str) {
        if self.waits_for.load().is_some() {
            self.not_ready(why);
        }
    }
}

/// The server; see [`Server::serve`].
pub(crate) fn server(shown: &Arc<Shown>) -> Server {
    let mut server = Server::new("monitoring");
    let mut page = |path: &str, show: fn(&Shown) -> Response| {
        let shown = Arc::clone(shown);
        let handler = move |_: Request| std::future::ready(show(&shown));
        server = std::mem::replace(&mut server, Server::new("monitoring")).route(Method::GET, path, handler);
    };
    page("/ready", ready);
    page("/metrics", metrics);
    // As Istio writes it and Kiali reads it: version, revision of the source, state of the build.
    page("/version", |_| Response::text(StatusCode::OK, format!("{VERSION}-stillmesh-Clean")));
    page("/debug/syncz", |shown| Response::json(StatusCode::OK, &shown.nodes.to_json(shown.store.generation())));
    page("/debug/findings", |shown| {
        let (authority, findings) = (shown.authority.load(), shown.findings.load());
        Response::json(StatusCode::OK, &authority.iter().chain(findings.iter()).collect::<Vec<_>>())
    });
    let mut asks = |path: &str, query: fn(oneshot::Sender<Value>) -> Query| {
        let shown = Arc::clone(shown);
        let handler = move |_: Request| {
            let shown = Arc::clone(&shown);
            async move { asked(&shown, query).await }
        };
        server = std::mem::replace(&mut server, Server::new("monitoring")).route(Method::GET, path, handler);
    };
    asks("/debug/configz", Query::Configs);
    asks("/debug/registryz", Query::Services);
    server
}

async fn asked(shown: &Shown, query: fn(oneshot::Sender<Value>) -> Query) -> Response {
    let (sender, receiver) = oneshot::channel();
    let busy = || Response::text(StatusCode::SERVICE_UNAVAILABLE, "not now: the objects are being read\n");
    if shown.queries.try_send(query(sender)).is_err() {
        return busy();
    }
    match tokio::time::timeout(PATIENCE, receiver).await {
        Ok(Ok(value)) => Response::json(StatusCode::OK, &value),
        _ => busy(),
    }
}

fn ready(shown: &Shown) -> Response {
    match &**shown.waits_for.load() {
        None => Response::text(StatusCode::OK, "ready\n"),
        Some(why) => Response::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

fn metrics(shown: &Shown) -> Response {
    Response::new(StatusCode::OK, CONTENT_TYPE, shown.metrics.encode())
}
