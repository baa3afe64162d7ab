//! A controller of this process, with the rights of its account.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use stillmesh_api::{ControlPlane, Root, Token};
use stillmesh_cluster::Cluster;
use stillmesh_controller::{Config, Listeners, run_in};
use stillmesh_runtime::admin;
use stillmesh_runtime::admin::client::Endpoint;
use stillmesh_runtime::drain;
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::tasks::Task;

use crate::{LIMIT, World};

pub struct Controller {
    pub nodes: SocketAddr,
    pub webhook: SocketAddr,
    monitoring: SocketAddr,
    trigger: drain::Trigger,
    task: Task<anyhow::Result<()>>,
}

impl Controller {
    /// Starts one, with settings besides the usual ones.
    pub async fn start(world: &World, settings: &[(&str, &str)]) -> Self {
        Self::start_by(world, world.access(None).await, settings).await
    }

    pub async fn start_by(world: &World, access: Cluster, settings: &[(&str, &str)]) -> Self {
        let usual = [
            ("POD_NAMESPACE", world.namespace.as_str()),
            ("POD_NAME", "controller"),
            ("ROOT_NAMESPACE", &world.namespace),
            ("REVISION", &world.namespace),
            ("LISTEN", "127.0.0.1:0"),
            ("MONITORING", "127.0.0.1:0"),
            ("WEBHOOK_LISTEN", "127.0.0.1:0"),
        ];
        let values: std::collections::BTreeMap<&str, &str> = usual.iter().chain(settings).copied().collect();
        let config = Config::read(Reader::from_values(values)).unwrap();
        let listeners = Listeners::bind(&config).unwrap();
        let nodes = listeners.nodes.local_addr().unwrap();
        let monitoring = listeners.monitoring.local_addr().unwrap();
        let webhook = listeners.webhook.as_ref().unwrap().local_addr().unwrap();
        let (trigger, watch) = drain::channel();
        let task = world.tasks.spawn("controller", run_in(access, config, listeners, watch));
        Self { nodes, webhook, monitoring, trigger, task }
    }

    pub async fn page(&self, path: &str) -> (StatusCode, String) {
        match admin::client::Client::new(Endpoint::Tcp(self.monitoring)).get(path).await {
            Ok(answer) => (answer.status, answer.text()),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }

    /// Waits until a page says what is expected.
    pub async fn says(&self, path: &str, what: &str) {
        let waiting = async {
            while !self.page(path).await.1.contains(what) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("{path} never says {what}: {}", self.page(path).await.1);
        }
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.page("/metrics").await.1;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// Waits until it serves nodes.
    pub async fn ready(&self) {
        let waiting = async {
            while self.page("/ready").await.0 != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("never ready: {}", self.page("/ready").await.1);
        }
    }

    /// Ends it as SIGTERM does.
    pub async fn stop(mut self) {
        self.trigger.start(drain::Mode::Graceful, Duration::from_secs(5));
        let ended = tokio::time::timeout(LIMIT, self.task.join()).await.expect("it ends").expect("without a panic");
        ended.expect("without an error");
    }

    /// Ends it as SIGKILL does: nothing is given back.
    pub async fn kill(mut self) {
        self.task.cut();
        let _ = tokio::time::timeout(LIMIT, self.task.join()).await.expect("it ends");
    }

    /// How a node reaches it, trusting these roots.
    pub fn control_plane(&self, roots: &str, token: &str) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", self.nodes),
            root: Root::Pem(roots.to_owned()),
            alt_hostname: Some("istiod.istio-system.svc".to_owned()),
            token: Token::Literal(token.to_owned()),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
        }
    }
}
