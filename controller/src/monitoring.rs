//! Metrics, readiness and debug pages, over plain HTTP (contract 9.5). The debug pages tell of every service and policy of
//! the cluster: they are for whoever may forward the pod's port, not for every pod.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Method, StatusCode};
use serde_json::Value;
use stillmesh_api::xds::Store;
use stillmesh_k8s::Finding;
use stillmesh_runtime::accept::Peer;
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::metrics::CONTENT_TYPE;
use tokio::sync::{mpsc, oneshot};

use crate::control::Query;
use crate::metrics::{Metrics, VERSION};
use crate::receipts::Receipts;
use crate::serve::Nodes;

/// What the pages show.
pub(crate) struct Shown {
    /// Why nodes are not being served; nothing when they are.
    waits_for: ArcSwap<Option<String>>,
    /// What is wrong with the CA.
    pub authority: ArcSwap<Vec<Finding>>,
    pub findings: ArcSwap<Vec<Finding>>,
    /// Maps of roots that another control plane keeps.
    pub foreign_maps: ArcSwap<Vec<Finding>>,
    pub store: Arc<Store>,
    pub nodes: Arc<Nodes>,
    pub receipts: Arc<Receipts>,
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
        let store = Arc::new(Store::new());
        let receipts = Arc::new(Receipts::new(Arc::clone(&store)));
        let shown = Self {
            waits_for: ArcSwap::from_pointee(Some("the controller is still reading the objects".to_owned())),
            authority: ArcSwap::default(),
            findings: ArcSwap::default(),
            foreign_maps: ArcSwap::default(),
            store,
            nodes: Arc::new(Nodes::new(cluster, Arc::clone(metrics), Arc::clone(&receipts))),
            receipts,
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

/// The server; see [`Server::serve`]. Debug pages are for this pod, and for the node where its address is given.
pub(crate) fn server(shown: &Arc<Shown>, node: Option<IpAddr>) -> Server {
    let mut server = Server::new("monitoring");
    let mut page = |path: &str, show: fn(&Shown) -> Response| {
        let shown = Arc::clone(shown);
        let handler = move |request: Request| {
            std::future::ready(refusal(&request.path, request.peer, node).unwrap_or_else(|| show(&shown)))
        };
        server = std::mem::replace(&mut server, Server::new("monitoring")).route(Method::GET, path, handler);
    };
    page("/ready", ready);
    page("/metrics", metrics);
    // As Istio writes it and Kiali reads it: version, revision of the source, state of the build.
    page("/version", |_| Response::text(StatusCode::OK, format!("{VERSION}-stillmesh-Clean")));
    page("/debug/syncz", |shown| Response::json(StatusCode::OK, &shown.nodes.to_json(&shown.store)));
    page("/debug/receipts", receipts);
    page("/debug/findings", |shown| {
        let (authority, maps, findings) = (shown.authority.load(), shown.foreign_maps.load(), shown.findings.load());
        let all: Vec<&Finding> = authority.iter().chain(maps.iter()).chain(findings.iter()).collect();
        Response::json(StatusCode::OK, &all)
    });
    let mut asks = |path: &str, query: fn(oneshot::Sender<Value>) -> Query| {
        let shown = Arc::clone(shown);
        let handler = move |request: Request| {
            let shown = Arc::clone(&shown);
            async move {
                match refusal(&request.path, request.peer, node) {
                    Some(refusal) => refusal,
                    None => asked(&shown, query).await,
                }
            }
        };
        server = std::mem::replace(&mut server, Server::new("monitoring")).route(Method::GET, path, handler);
    };
    asks("/debug/configz", Query::Configs);
    asks("/debug/registryz", Query::Services);
    server
}

/// What a peer is told that may not see a page.
fn refusal(path: &str, peer: Peer, node: Option<IpAddr>) -> Option<Response> {
    let near = match peer {
        Peer::Tcp(address) => {
            let ip = address.ip().to_canonical();
            ip.is_loopback() || Some(ip) == node
        }
        Peer::Unix { .. } => true,
    };
    let refused = !near && path.starts_with("/debug/");
    refused.then(|| Response::text(StatusCode::FORBIDDEN, "only from within the pod: use kubectl port-forward\n"))
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

/// Nothing is said before everything has been read: what is not known yet would count as in force nowhere, or not at all.
fn receipts(shown: &Shown) -> Response {
    let not_now = |why: &str| {
        let text = format!("not now: {why}\n");
        Response::text(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    match &**shown.waits_for.load() {
        Some(why) => not_now(why),
        None if !shown.receipts.hears() => not_now("the other replicas have not been heard"),
        None => Response::json(StatusCode::OK, &shown.receipts.to_json()),
    }
}

fn metrics(shown: &Shown) -> Response {
    Response::new(StatusCode::OK, CONTENT_TYPE, shown.metrics.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_is_still_reading_says_so_and_no_receipts() {
        let (shown, _asked) = Shown::new("c", &Arc::new(Metrics::new()));
        let text = |answer: &Response| {
            answer.body().map(|body| String::from_utf8_lossy(body).into_owned()).unwrap_or_default()
        };
        let answer = receipts(&shown);
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(text(&answer).contains("the controller is still reading the objects"), "{}", text(&answer));
        shown.ready();
        assert_eq!((receipts(&shown).status(), text(&receipts(&shown)).as_str()), (StatusCode::OK, "[]"));
    }

    #[test]
    fn debug_pages_are_for_the_pod_itself_and_the_rest_for_everybody() {
        let refused = |path: &str, ip: &str, node: Option<&str>| {
            let peer = Peer::Tcp((ip.parse::<IpAddr>().unwrap(), 4000).into());
            let answer = refusal(path, peer, node.map(|ip| ip.parse().unwrap()));
            assert!(answer.as_ref().is_none_or(|answer| answer.status() == StatusCode::FORBIDDEN));
            answer.is_some()
        };
        for path in ["/debug/syncz", "/debug/findings", "/debug/configz", "/debug/registryz"] {
            for ip in ["10.0.0.7", "::ffff:10.0.0.7", "fd00::7", "169.254.7.127"] {
                assert!(refused(path, ip, None), "{path} {ip}");
            }
            for ip in ["127.0.0.1", "::ffff:127.0.0.1", "::1"] {
                assert!(!refused(path, ip, None), "{path} {ip}");
            }
            assert!(!refused(path, "::ffff:169.254.7.127", Some("169.254.7.127")));
            assert!(refused(path, "10.0.0.7", Some("169.254.7.127")));
        }
        assert!(["/metrics", "/ready", "/version"].iter().all(|path| !refused(path, "10.0.0.7", None)));
    }
}
