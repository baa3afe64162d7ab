//! Nodes and what they know.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stillmesh_api::zds::{Listener, PodInfo, ServerConnection};
use stillmesh_core::fixtures;
use stillmesh_core::model::{
    NetworkAddress, Policy, PolicyKey, PortMapping, Service, ServiceKey, Workload, WorkloadUid,
};
use stillmesh_core::snapshot::Change;
use stillmesh_runtime::admin::client::{Client, Endpoint};
use stillmesh_runtime::drain::{self, Mode};
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::tasks::{Task, Tasks};
use stillmesh_test_support::net::Place;
use stillmesh_ztunnel::Config;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::Pod;
use crate::control::{Control, HOST};

/// The agent's socket in a node's directory.
const SOCKET: &str = "ztunnel.sock";

/// How long a test waits for something to become true.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A small mesh. The host's namespace is the test's own: ztunnels' admin ports and the control plane are there.
pub struct Mesh {
    /// What it publishes and signs.
    pub control: Control,
    /// Between all pods.
    pub router: Place,
    tasks: Tasks,
    sockets: TempDir,
    nodes: u16,
    tunnels: u16,
    pods: u8,
}

/// A node's ztunnel and the agent that hands pods to it.
pub struct Node {
    /// Its name.
    pub name: String,
    agent: Arc<Mutex<Option<ServerConnection>>>,
    listener: Arc<Mutex<Listener>>,
    home: PathBuf,
    admin: SocketAddr,
    stats: SocketAddr,
    readiness: SocketAddr,
    trigger: drain::Trigger,
    tunnel: Option<Task<Result<(), String>>>,
}

impl Mesh {
    /// An empty mesh with a CA whose leaves live for an hour.
    pub async fn new() -> Self {
        Self::with_leaf_life(Duration::from_secs(3600)).await
    }

    /// An empty mesh whose CA gives out shorter lives.
    pub async fn with_leaf_life(leaf_life: Duration) -> Self {
        let tasks = Tasks::new("test mesh");
        let control = Control::start(&tasks, leaf_life).await;
        // A node waits for both types; a mesh without policies still says so.
        control.store.publish(Vec::new());
        let router = Place::new("router");
        router.forward();
        let sockets = TempDir::new().expect("a directory for the agents' sockets");
        Self { control, router, tasks, sockets, nodes: 0, tunnels: 0, pods: 0 }
    }

    /// A node with a running ztunnel that has its snapshot of pods: none.
    pub async fn node(&mut self) -> Node {
        self.node_with(&[]).await
    }

    /// A node whose ztunnel has further environment.
    pub async fn node_with(&mut self, environment: &[(&str, &str)]) -> Node {
        self.nodes += 1;
        let name = format!("node-{}", self.nodes);
        let home = self.sockets.path().join(&name);
        std::fs::create_dir(&home).expect("a directory for the node's sockets");
        let listener = Listener::bind(&home.join(SOCKET)).expect("the agent's socket");
        let node = self.tunnel(name, home, Arc::new(Mutex::new(listener)), environment).await;
        let mut agent = node.agent.lock().await;
        agent.as_mut().expect("a running agent").snapshot_sent().await.expect("ztunnel to take the snapshot");
        drop(agent);
        node
    }

    /// Another ztunnel at the same node, that has been told of nothing yet: name them, then [`Node::named_all`].
    pub async fn successor(&mut self, node: &Node, environment: &[(&str, &str)]) -> Node {
        self.tunnel(node.name.clone(), node.home.clone(), node.listener.clone(), environment).await
    }

    async fn tunnel(
        &mut self,
        name: String,
        home: PathBuf,
        listener: Arc<Mutex<Listener>>,
        environment: &[(&str, &str)],
    ) -> Node {
        self.tunnels += 1;
        let port = |offset: u16| SocketAddr::from(([127, 0, 0, 1], 20_000 + self.tunnels * 10 + offset));
        let (admin, stats, readiness) = (port(0), port(1), port(2));
        let mut values = vec![
            ("NODE_NAME".to_owned(), name.clone()),
            ("XDS_ADDRESS".to_owned(), format!("https://{}", self.control.address)),
            ("XDS_ROOT_CA".to_owned(), self.control.root_pem.clone()),
            ("ALT_XDS_HOSTNAME".to_owned(), HOST.to_owned()),
            ("ALT_CA_HOSTNAME".to_owned(), HOST.to_owned()),
            ("AUTH_TOKEN".to_owned(), "a-test-token".to_owned()),
            ("INPOD_UDS".to_owned(), home.join(SOCKET).display().to_string()),
            ("ADMIN_ADDRESS".to_owned(), admin.to_string()),
            ("STATS_ADDRESS".to_owned(), stats.to_string()),
            ("READINESS_ADDRESS".to_owned(), readiness.to_string()),
        ];
        values.extend(environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let config = Config::read(Reader::from_values(values)).expect("a configuration");
        let (trigger, watch) = drain::channel();
        let tunnel = self.tasks.spawn("ztunnel", async move {
            stillmesh_ztunnel::run(config, watch).await.map_err(|error| format!("{error:#}"))
        });
        let agent = listener.lock().await.accept().await.hello().await.expect("ztunnel's hello");
        let agent = Arc::new(Mutex::new(Some(agent)));
        Node { name, agent, listener, home, admin, stats, readiness, trigger, tunnel: Some(tunnel) }
    }

    /// A pod `namespace/name` in the mesh, with a workload of the same name and account.
    pub async fn pod(&mut self, node: &Node, name: &str) -> Pod {
        let pod = self.unmeshed(name).await;
        pod.capture().await;
        self.publish_pod(node, &pod, |_| ());
        node.add(&pod).await;
        pod
    }

    /// A pod outside the mesh: namespace and addresses only.
    pub async fn unmeshed(&mut self, name: &str) -> Pod {
        self.pods += 1;
        Pod::new(&self.router, name, self.pods)
    }

    /// Makes a pod's workload known.
    pub fn publish_pod(&self, node: &Node, pod: &Pod, change: impl FnOnce(&mut Workload)) {
        let mut workload = fixtures::workload(&pod.name);
        workload.node = node.name.as_str().into();
        workload.addresses = vec![pod.v4.into(), pod.v6.into()];
        change(&mut workload);
        self.publish(Change::Workload(Arc::new(workload)));
    }

    /// Makes a service known; `endpoints` are told of it by being published again.
    pub fn service(&self, name: &str, vips: &[&str], ports: &[(u16, u16)], endpoints: &[(&Node, &Pod)]) -> Service {
        let mut service = fixtures::service(name, ports);
        service.vips = vips.iter().map(|vip| NetworkAddress::new("", vip.parse().expect("an address"))).collect();
        self.publish(Change::Service(Arc::new(service.clone())));
        let mappings: Vec<PortMapping> = service.ports.iter().map(|port| port.mapping).collect();
        for (node, pod) in endpoints {
            let membership = (service.key.clone(), mappings.clone());
            self.publish_pod(node, pod, |workload| workload.services.push(membership));
        }
        service
    }

    /// Makes a policy known.
    pub fn policy(&self, policy: Policy) {
        self.publish(Change::Policy(Arc::new(policy)));
    }

    /// Takes a policy back.
    pub fn remove_policy(&self, key: PolicyKey) {
        self.publish(Change::PolicyRemoved(key));
    }

    /// Publishes any change.
    pub fn publish(&self, change: Change) {
        self.control.store.publish(vec![change]);
    }

    /// The control plane goes away.
    pub fn lose_control(&self) {
        self.control.stop();
    }

    /// The key of a pod's workload.
    pub fn uid(pod: &Pod) -> WorkloadUid {
        fixtures::workload(&pod.name).uid
    }

    /// The key of a service.
    pub fn key(name: &str) -> ServiceKey {
        fixtures::service_key(name)
    }
}

impl Node {
    /// Hands a pod to ztunnel.
    pub async fn add(&self, pod: &Pod) {
        self.add_as(&pod.uid(), pod).await;
    }

    /// Hands a pod to ztunnel under a UID of its own.
    pub async fn add_as(&self, uid: &str, pod: &Pod) {
        let (namespace, name) = pod.name.split_once('/').expect("namespace/name");
        let info = PodInfo { name: name.to_owned(), namespace: namespace.to_owned(), service_account: name.to_owned() };
        let netns = pod.place.netns().try_clone_fd().expect("a descriptor");
        let mut agent = self.agent.lock().await;
        let agent = agent.as_mut().expect("a running agent");
        agent.add(uid, &info, std::os::fd::AsFd::as_fd(&netns)).await.expect("ztunnel to take the pod");
    }

    /// Ends the snapshot: all pods are named.
    pub async fn named_all(&self) {
        let mut agent = self.agent.lock().await;
        agent.as_mut().expect("a running agent").snapshot_sent().await.expect("ztunnel to take the snapshot");
    }

    /// Where the node's sockets are.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Whether the ztunnel calls itself ready.
    pub async fn is_ready(&self) -> bool {
        let answer = Client::new(Endpoint::Tcp(self.readiness)).get("/healthz/ready").await;
        answer.expect("the readiness port to answer").status == http::StatusCode::OK
    }

    /// The agent is started anew: ztunnel comes back to it and is told to keep these pods.
    pub async fn restart_agent(&self, keep: &[&Pod]) {
        let mut agent = self.agent.lock().await;
        drop(agent.take());
        let mut anew = self.listener.lock().await.accept().await.hello().await.expect("ztunnel's hello");
        for pod in keep {
            anew.keep(&pod.uid()).await.expect("ztunnel to know the pod");
        }
        anew.snapshot_sent().await.expect("ztunnel to take the snapshot");
        *agent = Some(anew);
    }

    /// Takes a pod from ztunnel.
    pub async fn del(&self, pod: &Pod) {
        let mut agent = self.agent.lock().await;
        agent.as_mut().expect("a running agent").del(&pod.uid()).await.expect("ztunnel to let the pod go");
    }

    /// A page of the admin port as text, whatever its status.
    pub async fn admin_text(&self, path: &str) -> String {
        let answer = Client::new(Endpoint::Tcp(self.admin)).get(path).await.expect("the admin port to answer");
        answer.text().to_string()
    }

    /// A page of the admin port.
    pub async fn admin(&self, path: &str) -> Value {
        let answer = Client::new(Endpoint::Tcp(self.admin)).get(path).await.expect("the admin port to answer");
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()))
    }

    /// All metrics as text.
    pub async fn metrics(&self) -> String {
        let answer = Client::new(Endpoint::Tcp(self.stats)).get("/metrics").await;
        answer.expect("the metrics port to answer").text()
    }

    /// The sum of all series of a metric whose labels contain all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.metrics().await;
        let series =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let matching = series.filter(|line| labels.iter().all(|label| line.contains(label)));
        matching.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// Waits until [`Node::metric`] is `expected`: a connection is counted a moment after its ends have seen its end.
    pub async fn counts(&self, name: &str, labels: &[&str], expected: u64) {
        let begin = tokio::time::Instant::now();
        loop {
            let count = self.metric(name, labels).await;
            if count == expected {
                return;
            }
            let patient = begin.elapsed() < Duration::from_secs(5);
            assert!(patient, "{name} {labels:?} of {}: {count}, not {expected}:\n{}", self.name, self.metrics().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the admin port's connections satisfy `done`.
    pub async fn connections(&self, what: &str, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let begin = tokio::time::Instant::now();
        loop {
            let connections = self.admin("/stillmesh/connections").await;
            let connections = connections.as_array().cloned().unwrap_or_default();
            if done(&connections) {
                return connections;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: {connections:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until ztunnel has applied what `done` looks for in its `config_dump`.
    pub async fn knows(&self, what: &str, done: impl Fn(&Value) -> bool) {
        let begin = tokio::time::Instant::now();
        loop {
            let dump = self.admin("/config_dump").await;
            if done(&dump) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: {dump:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has the ztunnel drain; what is open may go on for `grace`.
    pub fn drain(&self, grace: Duration) {
        self.trigger.start(Mode::Graceful, grace);
    }

    /// Waits until the ztunnel has ended.
    pub async fn ended(&mut self) {
        let mut tunnel = self.tunnel.take().expect("to be asked once");
        let ended = tokio::time::timeout(PATIENCE, tunnel.join()).await.expect("ztunnel to end in time");
        ended.expect("ztunnel not to be cut").expect("ztunnel to end well");
    }
}
