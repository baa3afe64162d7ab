//! What the waypoint says of itself: admin port (localhost) and metrics port (contract 9.5).

mod dump;

use std::sync::Arc;

use http::{Method, StatusCode};
use stillmesh_proxy::decisions::answer;
use stillmesh_proxy::{flows, logging};
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::Levels;
use stillmesh_runtime::telemetry::metrics::{CONTENT_TYPE, Metrics as Registered};

use crate::explain::explain;
use crate::waypoint::Waypoint;

/// The admin port's pages. `levels`: the log's; `None` where somebody else owns the log.
pub fn server(waypoint: Arc<Waypoint>, levels: Option<Levels>) -> Server {
    let decided = {
        let waypoint = waypoint.clone();
        move |request: Request| {
            let response = decisions(&waypoint, &request);
            async move { response }
        }
    };
    let counted = {
        let waypoint = waypoint.clone();
        move |request: Request| {
            let response = flows::answer(waypoint.records.up_to_date(), &request, Vec::new);
            async move { response }
        }
    };
    let dump = move |_request: Request| {
        let response = Response::json(StatusCode::OK, &dump::config_dump(&waypoint));
        async move { response }
    };
    let logging = move |request: Request| {
        let response = logging::answer(levels.as_ref(), &request);
        async move { response }
    };
    Server::new("admin")
        .route(Method::GET, "/config_dump", dump)
        .route(Method::POST, "/logging", logging)
        .route(Method::GET, "/decisions", decided)
        .route(Method::GET, "/flows", counted)
}

/// The metrics port's pages.
pub fn metrics_server(waypoint: Arc<Waypoint>, registered: Registered) -> Server {
    let page = move |_request: Request| {
        waypoint.metrics.count_memory(&waypoint.memory);
        waypoint.metrics.flows.flush();
        waypoint.metrics.certificates.look(&waypoint.secrets);
        let response = Response::new(StatusCode::OK, CONTENT_TYPE, registered.encode());
        async move { response }
    };
    Server::new("metrics").route(Method::GET, "/metrics", page.clone()).route(Method::GET, "/stats/prometheus", page)
}

/// What was decided about requests and connections that have ended.
fn decisions(waypoint: &Waypoint, request: &Request) -> Response {
    let snapshot = waypoint.snapshots.load();
    answer(waypoint.records.up_to_date(), request, Vec::new, |told| explain(waypoint, &snapshot, told))
}
