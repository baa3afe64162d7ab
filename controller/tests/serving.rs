//! The controller as nodes see it: real TLS and gRPC on loopback, objects in a directory.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "serving/receipts.rs"]
mod receipts;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use stillmesh_api::xds::{Batch, Client, NodeInfo, Rejected, ResourceType, Sink};
use stillmesh_api::{ControlPlane, Root, Token, ca};
use stillmesh_controller::{Config, Listeners, run_on, token_digest};
use stillmesh_core::model::Identity;
use stillmesh_core::snapshot::Change;
use stillmesh_runtime::admin::client::Endpoint;
use stillmesh_runtime::admin::{self, Request, Response};
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::{Tasks, drain};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Long enough for any machine; a test that reaches it has failed.
const LIMIT: Duration = Duration::from_secs(30);

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: page-0, namespace: shop, labels: {app: page}}\nspec: {nodeName: n1, serviceAccountName: \
                   page, containers: [{name: a}]}\nstatus: {podIP: 10.0.0.1, phase: Running}\n";
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop, generation: 3}\nspec: {selector: \
                    {matchLabels: {app: page}}, action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}\n";

/// A controller over temporary directories.
struct World {
    folder: tempfile::TempDir,
    tasks: Tasks,
}

struct Running {
    nodes: SocketAddr,
    monitoring: SocketAddr,
    trigger: drain::Trigger,
    task: stillmesh_runtime::tasks::Task<anyhow::Result<()>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("objects")).unwrap();
        let tokens = format!("{{\"{}\": \"n1\", \"{}\": \"n2\"}}", token_digest("one"), token_digest("two"));
        std::fs::write(folder.path().join("tokens.json"), tokens).unwrap();
        Self { folder, tasks: Tasks::new("test") }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Puts an object in place as the runner does: whole.
    fn put(&self, name: &str, text: &str) {
        let objects = self.folder.path().join("objects");
        std::fs::write(objects.join(".new"), text).unwrap();
        std::fs::rename(objects.join(".new"), objects.join(name)).unwrap();
    }

    fn delete(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join("objects").join(name)).unwrap();
    }

    async fn start(&self) -> Running {
        let values = [
            ("OBJECTS_DIR", self.path("objects")),
            ("CA_DIR", self.path("ca")),
            ("JOIN_TOKENS", self.path("tokens.json")),
            ("API_SOCKET", self.path("api.sock")),
            ("LISTEN", "127.0.0.1:0".to_owned()),
            ("MONITORING", "127.0.0.1:0".to_owned()),
        ];
        let config = Config::read(Reader::from_values(values)).unwrap();
        let listeners = Listeners::bind(&config).unwrap();
        let nodes = listeners.nodes.local_addr().unwrap();
        let monitoring = listeners.monitoring.local_addr().unwrap();
        let (trigger, watch) = drain::channel();
        let task = self.tasks.spawn("controller", run_on(config, listeners, watch));
        let running = Running { nodes, monitoring, trigger, task };
        while running.page("/ready").await.0 != StatusCode::OK {
            tokio::task::yield_now().await;
        }
        running
    }

    fn control_plane(&self, running: &Running, token: &str) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", running.nodes),
            root: Root::File(Path::new(&self.path("ca/root-cert.pem")).to_owned()),
            alt_hostname: Some("istiod.istio-system.svc".to_owned()),
            token: Token::Literal(token.to_owned()),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
        }
    }

    fn node(&self, running: &Running, token: &str, node: &str, refuses: Option<&'static str>) -> Node {
        let (sender, receiver) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let info = NodeInfo::ztunnel("ztunnel-x", "istio-system", node, None, "cluster.local");
        let client = Client::new(self.control_plane(running, token), info);
        let sink = Told { sender, refuses };
        let stopped = stop.clone();
        self.tasks.spawn("node", async move { client.run(sink, stopped).await });
        Node { receiver, stop }
    }
}

impl Running {
    async fn page(&self, path: &str) -> (StatusCode, String) {
        match admin::client::Client::new(Endpoint::Tcp(self.monitoring)).get(path).await {
            Ok(answer) => (answer.status, answer.text()),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }

    /// Waits until a page says what is expected.
    async fn page_says(&self, path: &str, what: &str) {
        let waiting = async {
            while !self.page(path).await.1.contains(what) {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("{path} never says {what}: {}", self.page(path).await.1);
        }
    }

    async fn stop(mut self) {
        self.trigger.start(drain::Mode::Graceful, Duration::from_secs(5));
        let ended = tokio::time::timeout(LIMIT, self.task.join()).await.expect("it ends").expect("without a panic");
        ended.expect("without an error");
    }
}

struct Node {
    receiver: mpsc::Receiver<(ResourceType, Vec<String>)>,
    stop: CancellationToken,
}

impl Node {
    async fn next(&mut self) -> (ResourceType, Vec<String>) {
        tokio::time::timeout(LIMIT, self.receiver.recv()).await.expect("a response comes").expect("the node runs")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Told {
    sender: mpsc::Sender<(ResourceType, Vec<String>)>,
    refuses: Option<&'static str>,
}

impl Sink for Told {
    async fn apply(&mut self, batch: Batch) -> Vec<Rejected> {
        let one = |change: &Change| match change {
            Change::Workload(one) => format!("workload {}", one.uid),
            Change::WorkloadRemoved(uid) => format!("no workload {uid}"),
            Change::Service(one) => format!("service {}", one.key),
            Change::ServiceRemoved(key) => format!("no service {key}"),
            Change::Policy(one) => format!("policy {}", one.key),
            Change::PolicyRemoved(key) => format!("no policy {key}"),
            Change::Route(one) => format!("route {}", one.key),
            Change::RouteRemoved(key) => format!("no route {key}"),
            Change::Access(one) => format!("access {}", one.key()),
            Change::AccessRemoved(key) => format!("no access {key}"),
            Change::Destination(one) => format!("destination {}", one.key),
            Change::DestinationRemoved(key) => format!("no destination {key}"),
        };
        let changes: Vec<String> = batch.changes.iter().map(one).collect();
        let refused = self.refuses.filter(|name| changes.iter().any(|one| one.contains(name)));
        let _ = self.sender.send((batch.kind, changes)).await;
        refused.map(|name| Rejected { name: name.to_owned(), reason: "odd".to_owned() }).into_iter().collect()
    }
}

fn said(kind: ResourceType, changes: &[&str]) -> (ResourceType, Vec<String>) {
    (kind, changes.iter().map(|one| (*one).to_owned()).collect())
}

fn csr() -> String {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_everything_then_only_what_changes_policies_first() {
    let world = World::new();
    world.put("pod.yaml", POD);
    let running = world.start().await;
    let mut node = world.node(&running, "one", "n1", None);
    let mut first = vec![node.next().await, node.next().await];
    first.sort();
    assert_eq!(
        first,
        [
            said(ResourceType::Address, &["workload Kubernetes//Pod/shop/page-0"]),
            said(ResourceType::Authorization, &[]),
        ]
    );
    world.put("deny.yaml", DENY);
    assert_eq!(node.next().await, said(ResourceType::Authorization, &["policy shop/deny"]));
    assert_eq!(node.next().await, said(ResourceType::Address, &["workload Kubernetes//Pod/shop/page-0"]));
    running.page_says("/debug/syncz", "SYNCED").await;
    world.delete("deny.yaml");
    assert_eq!(node.next().await, said(ResourceType::Address, &["workload Kubernetes//Pod/shop/page-0"]));
    assert_eq!(node.next().await, said(ResourceType::Authorization, &["no policy shop/deny"]));
    running.page_says("/metrics", "pilot_xds_pushes{type=\"wads\"} 3").await;
    drop(node);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_refuses_is_told() {
    let world = World::new();
    world.put("pod.yaml", POD);
    let running = world.start().await;
    let _node = world.node(&running, "one", "n1", Some("page-0"));
    running.page_says("/debug/syncz", "REJECTED").await;
    running.page_says("/metrics", "pilot_total_xds_rejects{type=\"wds\"} 1").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_known_by_its_token_and_gets_its_own_pods_certificates() {
    let world = World::new();
    world.put("pod.yaml", POD);
    let running = world.start().await;
    let page: Identity = "spiffe://cluster.local/ns/shop/sa/page".parse().unwrap();
    let ask = |token: &str| ca::Client::new(world.control_plane(&running, token));
    let chain = ask("one").sign(&csr(), Some(&page), Duration::from_secs(3600)).await.unwrap();
    assert_eq!(chain.len(), 2);
    let root = std::fs::read_to_string(world.path("ca/root-cert.pem")).unwrap();
    assert_eq!(chain[1], root);
    for (token, why) in [("two", "no pod of shop/page runs on node n2"), ("three", "the token is not known")] {
        let error = ask(token).sign(&csr(), Some(&page), Duration::from_secs(3600)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // A token of one node does not speak for another.
    let mut liar = world.node(&running, "two", "n1", None);
    running.page_says("/metrics", "citadel_server_authentication_failure_count 1").await;
    assert!(liar.receiver.try_recv().is_err());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_ca() {
    let world = World::new();
    world.put("pod.yaml", POD);
    let running = world.start().await;
    let root = std::fs::read_to_string(world.path("ca/root-cert.pem")).unwrap();
    running.stop().await;
    let running = world.start().await;
    assert_eq!(std::fs::read_to_string(world.path("ca/root-cert.pem")).unwrap(), root);
    let mut node = world.node(&running, "one", "n1", None);
    node.next().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_status_is_written_and_odd_objects_are_told() {
    let world = World::new();
    let (sender, mut written) = mpsc::channel(8);
    let handler = move |request: Request| {
        let sender = sender.clone();
        async move {
            let name = format!("{}/{}/{}", request.param("kind"), request.param("namespace"), request.param("name"));
            let _ = sender.send((name, request.json::<serde_json::Value>().unwrap_or_default())).await;
            Response::empty(StatusCode::NO_CONTENT)
        }
    };
    let server = admin::Server::new("api").route(Method::PATCH, "/status/{kind}/{namespace}/{name}", handler);
    let (api, watch) = drain::channel();
    world.tasks.spawn("api", server.serve(UnixListener::bind(world.path("api.sock")).unwrap(), watch));
    world.put("deny.yaml", DENY);
    world.put("bad.yaml", "kind: Nope\napiVersion: v1\nmetadata: {name: a}\n");
    let running = world.start().await;
    let (name, body) = tokio::time::timeout(LIMIT, written.recv()).await.unwrap().unwrap();
    assert_eq!(name, "AuthorizationPolicy/shop/deny");
    let condition = &body["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["reason"], &condition["observedGeneration"]),
        (&"ZtunnelAccepted".into(), &"True".into(), &"UnsupportedValue".into(), &3.into())
    );
    running.page_says("/debug/findings", "no pod has these labels").await;
    running.page_says("/debug/findings", "unknown kind").await;
    running.stop().await;
    drop(api);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_there_is_an_error() {
    let world = World::new();
    std::fs::remove_dir(world.path("objects")).unwrap();
    let values =
        [("OBJECTS_DIR", world.path("objects")), ("CA_DIR", world.path("ca")), ("JOIN_TOKENS", world.path("t"))];
    let config = Config::read(Reader::from_values(values)).unwrap();
    let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = Listeners { webhook: None, nodes: any().await.unwrap(), monitoring: any().await.unwrap() };
    let (_trigger, watch) = drain::channel();
    let error = run_on(config, listeners, watch).await.unwrap_err();
    assert!(format!("{error:#}").contains("OBJECTS_DIR"), "{error:#}");
}
