//! Metrics, readiness and debug pages, over plain HTTP (contract 9.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use http::{Method, StatusCode};
use serde_json::json;
use stillmesh_api::xds::Store;
use stillmesh_k8s::Finding;
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::metrics::CONTENT_TYPE;

use crate::metrics::{Metrics, VERSION};
use crate::serve::Nodes;

/// What the pages show.
pub(crate) struct Shown {
    /// Whether the objects have been read and nodes are being served.
    pub ready: AtomicBool,
    pub findings: ArcSwap<Vec<Finding>>,
    pub store: Arc<Store>,
    pub nodes: Arc<Nodes>,
    pub metrics: Arc<Metrics>,
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
    page("/version", |_| {
        Response::json(StatusCode::OK, &json!({"version": VERSION, "component": "stillmesh-controller"}))
    });
    page("/debug/syncz", |shown| Response::json(StatusCode::OK, &shown.nodes.to_json(shown.store.generation())));
    page("/debug/findings", |shown| Response::json(StatusCode::OK, &**shown.findings.load()));
    server
}

fn ready(shown: &Shown) -> Response {
    if shown.ready.load(Ordering::Relaxed) {
        Response::text(StatusCode::OK, "ready\n")
    } else {
        Response::text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the objects have not been read yet\n")
    }
}

fn metrics(shown: &Shown) -> Response {
    Response::new(StatusCode::OK, CONTENT_TYPE, shown.metrics.encode())
}
