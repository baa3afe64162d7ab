//! What must have happened before a proxy takes traffic, by the names that Istio's readiness page uses.

use std::sync::Arc;

use http::{Method, StatusCode};
use stillmesh_runtime::admin::{Request, Response, Server};
use tokio::sync::watch;

/// Open points; ready when none is left.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<watch::Sender<Vec<&'static str>>>,
}

impl Readiness {
    /// Not ready before `task` is done.
    pub fn wait_for(&self, task: &'static str) {
        self.pending.send_if_modified(|pending| {
            let is_new = !pending.contains(&task);
            if is_new {
                pending.push(task);
            }
            is_new
        });
    }

    /// `task` is done.
    pub fn done(&self, task: &'static str) {
        self.pending.send_modify(|pending| pending.retain(|other| *other != task));
    }

    /// `task` is done or not.
    pub fn set(&self, task: &'static str, done: bool) {
        if done { self.done(task) } else { self.wait_for(task) }
    }

    /// What is not done yet.
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.borrow().clone()
    }

    /// Waits until nothing is left. Cancel-safe.
    pub async fn ready(&self) {
        // It fails only without a sender, which is held here.
        let _ = self.pending.subscribe().wait_for(Vec::is_empty).await;
    }
}

/// The readiness port's page.
pub fn server(readiness: Readiness) -> Server {
    let page = move |_request: Request| {
        let pending = readiness.pending();
        let response = if pending.is_empty() {
            Response::text(StatusCode::OK, "ready\n")
        } else {
            let text = format!("not ready, pending: {}\n", pending.join(", "));
            Response::text(StatusCode::INTERNAL_SERVER_ERROR, text)
        };
        async move { response }
    };
    Server::new("readiness").route(Method::GET, "/healthz/ready", page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_means_nothing_is_left() {
        let readiness = Readiness::default();
        readiness.wait_for("state manager");
        readiness.wait_for("workload proxy manager");
        readiness.wait_for("state manager");
        readiness.done("state manager");
        assert_eq!(readiness.pending(), ["workload proxy manager"]);
        tokio::select! {
            biased;
            () = readiness.ready() => panic!("ready although something is left"),
            () = std::future::ready(()) => {}
        }
        tokio::join!(readiness.ready(), async { readiness.set("workload proxy manager", true) });
        assert!(readiness.pending().is_empty());
        readiness.set("workload proxy manager", false);
        assert_eq!(readiness.pending().len(), 1);
    }
}
