//! What the waypoint says of itself: admin port (localhost) and metrics port (contract 9.5).

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::json;
use stillmesh_proxy::decisions::answer;
use stillmesh_proxy::flows;
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::metrics::{CONTENT_TYPE, Metrics as Registered};

use crate::explain::explain;
use crate::waypoint::Waypoint;

/// The admin port's pages.
pub fn server(waypoint: Arc<Waypoint>) -> Server {
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
            let response = flows::answer(&waypoint.records, &request, Vec::new);
            async move { response }
        }
    };
    let dump = move |_request: Request| {
        let response = Response::json(StatusCode::OK, &dump(&waypoint));
        async move { response }
    };
    Server::new("admin").route(Method::GET, "/config_dump", dump).route(Method::GET, "/decisions", decided).route(
        Method::GET,
        "/flows",
        counted,
    )
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
    answer(&waypoint.records, request, Vec::new, |told| explain(waypoint, &snapshot, told))
}

/// What is known and what is held. No keys.
fn dump(waypoint: &Waypoint) -> serde_json::Value {
    let snapshot = waypoint.snapshots.load();
    let (workloads, services, policies) = snapshot.counts();
    let certificates = waypoint.secrets.status().into_iter().map(|status| {
        json!({
            "identity": status.identity,
            "serialNumber": status.leaf.as_ref().map(|leaf| leaf.serial().to_string()),
            "failure": status.failure.map(|failure| failure.to_string()),
        })
    });
    json!({
        "config": &waypoint.config,
        "generation": snapshot.generation(),
        "known": { "workloads": workloads, "services": services, "policies": policies },
        "certificates": certificates.collect::<Vec<_>>(),
        "tunnels": waypoint.pool.tunnels(),
        "upstreamConnections": waypoint.connections.open(),
        "services": snapshot.services().collect::<Vec<_>>(),
        "routes": snapshot.all_routes().collect::<Vec<_>>(),
        "destinationRules": snapshot.destination_rules().collect::<Vec<_>>(),
        "accesses": snapshot.accesses().collect::<Vec<_>>(),
    })
}
