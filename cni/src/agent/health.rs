//! Whether the agent is ready, and what it is waiting for: `/readyz`, `/healthz`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use stillmesh_runtime::admin::{Request, Response, Server};
use stillmesh_runtime::telemetry::metrics::{CONTENT_TYPE, Metrics as Registry};

/// What the agent is waiting for. Ready when it is nothing. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    pending: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Health {
    /// Waiting for one thing.
    pub fn pending(what: &'static str) -> Self {
        let health = Self::default();
        health.set(what, Some(String::new()));
        health
    }

    /// Says whether one thing is waited for, and in words why.
    pub fn set(&self, what: &'static str, pending: Option<String>) {
        let mut all = self.pending.lock();
        match pending {
            Some(reason) => all.insert(what, reason),
            None => all.remove(what),
        };
    }

    /// What is waited for, one line each.
    pub fn report(&self) -> Vec<String> {
        let line = |(what, reason): (&&str, &String)| match reason.as_str() {
            "" => (*what).to_owned(),
            reason => format!("{what}: {reason}"),
        };
        self.pending.lock().iter().map(line).collect()
    }
}

/// Metrics and health.
pub fn monitoring(registry: Registry, health: Health) -> Server {
    let metrics = move |_: Request| {
        let text = registry.encode();
        async move { Response::new(StatusCode::OK, CONTENT_TYPE, text) }
    };
    probes("monitoring", health).route(Method::GET, "/metrics", metrics)
}

/// Health alone.
pub fn probes(name: &'static str, health: Health) -> Server {
    let ready = move |_: Request| {
        let pending = health.report();
        async move {
            if pending.is_empty() {
                Response::text(StatusCode::OK, "ready\n")
            } else {
                let text = format!("not ready, pending: {}\n", pending.join("; "));
                Response::text(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        }
    };
    let alive = |_: Request| async { Response::text(StatusCode::OK, "ok\n") };
    Server::new(name).route(Method::GET, "/readyz", ready).route(Method::GET, "/healthz", alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_nothing_is_waited_for() {
        let health = Health::pending("objects");
        health.set("plugin", Some("no directory".into()));
        assert_eq!(health.report(), ["objects", "plugin: no directory"]);
        health.set("objects", None);
        health.set("plugin", None);
        assert!(health.report().is_empty());
    }
}
