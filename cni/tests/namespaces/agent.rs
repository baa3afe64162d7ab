use std::collections::BTreeMap;
use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_api::zds::{ClientConnection, Request, ZdsError};
use stillmesh_cni::plugin::{self, AddError, Added, Address};
use stillmesh_cni::receipt::{RECEIPT, Receipt};
use stillmesh_cni::rules::apply::{self, Found, FoundRules};
use stillmesh_cni::rules::plan::{Facts, Ipv6};
use stillmesh_cni::{Config, run};
use stillmesh_k8s::select::{Enrolment, REDIRECTION};
use stillmesh_netlink::nft;
use stillmesh_runtime::admin::client::Client;
use stillmesh_runtime::admin::{Request as HttpRequest, Response, Server};
use stillmesh_runtime::drain::{self, Trigger};
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::sys::unix;
use stillmesh_runtime::tasks::Task;
use stillmesh_runtime::{Tasks, accept};
use stillmesh_test_support::isolated_async;
use stillmesh_test_support::net::Place;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::net::{DEADLINE, PEER, POD, accept as accept_one, at, connect, is_dropped, listen, pod_and_peer, talk};

/// Everything around an agent: objects, namespaces, the API server's stand-in, tunnels.
pub struct Node {
    /// Removed at the end.
    _directory: tempfile::TempDir,
    pub root: PathBuf,
    tasks: Tasks,
    annotations: Annotations,
    agent: Option<(Trigger, Task<()>)>,
}

type Annotations = Arc<Mutex<BTreeMap<String, BTreeMap<String, Value>>>>;

/// Of an object that is written now: later than all before.
fn version() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

impl Node {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        for directory in ["objects", "netns", "state"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        let node = Self {
            _directory: directory,
            root,
            tasks: Tasks::new("test"),
            annotations: Annotations::default(),
            agent: None,
        };
        node.serve_api();
        node
    }

    /// Takes annotations as the API server would, and answers 404 for pods that are not there.
    fn serve_api(&self) {
        let (annotations, objects) = (Arc::clone(&self.annotations), self.root.join("objects"));
        let handler = move |request: HttpRequest| {
            let (annotations, objects) = (Arc::clone(&annotations), objects.clone());
            async move {
                let (namespace, name) = (request.param("namespace").to_owned(), request.param("name").to_owned());
                if !objects.join(format!("Pod.{namespace}.{name}.json")).exists() {
                    return Response::empty(StatusCode::NOT_FOUND);
                }
                let patch: BTreeMap<String, Value> = serde_json::from_slice(&request.body).expect("a patch");
                annotations.lock().entry(name).or_default().extend(patch);
                Response::empty(StatusCode::OK)
            }
        };
        let server = Server::new("api").route(Method::PATCH, "/pods/{namespace}/{name}/annotations", handler);
        let listener = unix::listen(&self.root.join("api.sock"), 0o600).expect("the API's socket");
        let listener = tokio::net::UnixListener::from_std(listener).expect("the API's socket");
        let (trigger, watch) = drain::channel();
        self.tasks.spawn("api", async move {
            let _trigger = trigger;
            server.serve(accept::Listener::from(listener), watch).await;
        });
    }

    pub fn config(&self) -> Config {
        let path = |name: &str| self.root.join(name).display().to_string();
        let values = [
            ("NODE_NAME", "n1".to_owned()),
            ("OBJECTS_DIR", path("objects")),
            ("NETNS_DIR", path("netns")),
            ("STATE_DIR", path("state")),
            ("ZDS_SOCKET", path("ztunnel.sock")),
            ("PLUGIN_SOCKET", path("plugin.sock")),
            ("API_SOCKET", path("api.sock")),
            ("METRICS_ADDRESS", "127.0.0.1:15014".to_owned()),
        ];
        Config::from_env(Reader::from_values(values)).expect("a configuration")
    }

    pub async fn start(&mut self) {
        let (trigger, watch) = drain::channel();
        let config = self.config();
        let task = self.tasks.spawn("agent", async move { run(config, watch).await.expect("the agent to run") });
        self.agent = Some((trigger, task));
        eventually("the agent is ready", || async {
            let client =
                Client::new(stillmesh_runtime::admin::client::Endpoint::Tcp("127.0.0.1:15014".parse().unwrap()));
            client.get("/readyz").await.is_ok_and(|answer| answer.status == StatusCode::OK)
        })
        .await;
    }

    /// As by kill -9: nothing of it runs on.
    pub async fn kill(&mut self) {
        let (trigger, mut task) = self.agent.take().expect("an agent");
        task.cut();
        task.join().await;
        drop(trigger);
    }

    fn write(&self, kind: &str, namespace: &str, name: &str, object: &Value) {
        let path = self.object(kind, namespace, name);
        let scratch = path.with_extension("new");
        std::fs::write(&scratch, serde_json::to_vec(object).unwrap()).unwrap();
        std::fs::rename(scratch, path).unwrap();
    }

    fn object(&self, kind: &str, namespace: &str, name: &str) -> PathBuf {
        self.root.join("objects").join(format!("{kind}.{namespace}.{name}.json"))
    }

    pub fn namespace(&self, mode: Option<&str>) -> Namespace {
        let labels = mode.map(|mode| json!({"istio.io/dataplane-mode": mode})).unwrap_or(json!({}));
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
        self.write("Namespace", "", "shop", &object);
        serde_json::from_value(object).unwrap()
    }

    pub fn pod(&self, name: &str, uid: &str, place: &Place) -> Pod {
        place.netns().bind_to(&self.root.join("netns").join(uid)).expect("to bind the namespace");
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": version()},
            "spec": {"nodeName": "n1", "serviceAccountName": "baker", "containers": [{"name": "c", "image": "x"}]},
            "status": {"phase": "Running", "podIP": POD.to_string()},
        });
        self.write("Pod", "shop", name, &object);
        serde_json::from_value(object).unwrap()
    }

    pub fn delete_pod(&self, name: &str, uid: &str) {
        std::fs::remove_file(self.object("Pod", "shop", name)).unwrap();
        Netns::unbind(&self.root.join("netns").join(uid)).unwrap();
    }

    pub fn annotation(&self, pod: &str, key: &str) -> Option<String> {
        self.annotations.lock().get(pod)?.get(key)?.as_str().map(str::to_owned)
    }

    pub fn receipt(&self, pod: &str) -> Option<Receipt> {
        serde_json::from_str(&self.annotation(pod, RECEIPT)?).expect("a receipt")
    }

    pub fn believed(&self, uid: &str) -> bool {
        self.root.join("state").join(format!("{uid}.json")).exists()
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub async fn add(&self, pod: &Pod, namespace: &Namespace, place: &Place) -> Result<Added, AddError> {
        let netns = self.root.join("netns").join(pod.metadata.uid.as_deref().unwrap());
        assert_eq!(Netns::open(&netns).unwrap(), *place.netns());
        let addresses = [Address { interface: Some(0), address: "10.1.0.1/32".parse().unwrap(), gateway: None }];
        let request = plugin::Request {
            socket: &self.socket("plugin.sock"),
            pod,
            namespace: Some(namespace),
            rules: &Enrolment::default(),
            netns: &netns,
            addresses: &addresses,
        };
        plugin::add(&request).await
    }

    pub async fn metric(&self, line: &str) -> bool {
        let client = Client::new(stillmesh_runtime::admin::client::Endpoint::Tcp("127.0.0.1:15014".parse().unwrap()));
        client.get("/metrics").await.expect("metrics").text().lines().any(|found| found == line)
    }
}

impl Drop for Node {
    /// Files with something bound to them could not be removed.
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.root.join("netns")).into_iter().flatten().flatten() {
            let _ = Netns::unbind(&entry.path());
        }
    }
}

/// A tunnel that takes what it is given and remembers what it was asked.
pub struct Tunnel {
    heard: Arc<Mutex<Vec<String>>>,
    refuse: Arc<Mutex<bool>>,
    task: Task<()>,
}

impl Tunnel {
    pub async fn connect(node: &Node) -> Self {
        let socket = node.socket("ztunnel.sock");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let refuse = Arc::new(Mutex::new(false));
        let (hears, refuses) = (Arc::clone(&heard), Arc::clone(&refuse));
        let task = node.tasks.spawn("tunnel", async move {
            let mut connection = ClientConnection::connect(&socket).await.expect("to connect");
            loop {
                let request = match connection.next().await {
                    Ok(request) => request,
                    Err(ZdsError::Closed) => return,
                    Err(error) => panic!("{error}"),
                };
                let mut answer = Ok(());
                let line = match request {
                    Request::Add { uid, info, netns } => {
                        let inode = Netns::from_fd(netns).expect("a namespace").inode();
                        if *refuses.lock() {
                            answer = Err("no room".to_owned());
                        }
                        format!("add {uid} {}/{} {} {inode}", info.namespace, info.name, info.service_account)
                    }
                    Request::Keep { uid } => format!("keep {uid}"),
                    Request::Del { uid } => format!("del {uid}"),
                    Request::SnapshotSent => "snapshot".to_owned(),
                };
                hears.lock().push(line);
                if connection.answer(answer).await.is_err() {
                    return;
                }
            }
        });
        Self { heard, refuse, task }
    }

    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().clone()
    }

    pub async fn hears(&self, line: &str) {
        eventually(line, || async { self.heard().iter().any(|heard| heard == line) }).await;
    }

    async fn close(mut self) {
        self.task.cut();
        self.task.join().await;
    }
}

pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn found(place: &Place) -> Found {
    place.run_async(|| apply::inspect(&Facts::default())).await.expect("what is in place")
}

pub async fn captured(place: &Place) -> bool {
    found(place).await == Found { ipv6: Ipv6::On, rules: FoundRules::Capturing, guard: false }
}

async fn tables(place: &Place) -> usize {
    place.run_async(nft::tables).await.expect("tables").len()
}

/// An application in the pod with one connection open each way, from before capture.
fn old_connections(pod: &Place, peer: &Place) -> [(TcpStream, TcpStream); 2] {
    let (outside, inside): (TcpListener, TcpListener) = (listen(peer, at(PEER, 80)), listen(pod, at(POD, 80)));
    let out = connect(pod, at(PEER, 80));
    let inbound = connect(peer, at(POD, 80));
    [(out, accept_one(&outside)), (inbound, accept_one(&inside))]
}

#[test]
fn a_pod_starts_only_when_a_tunnel_has_taken_it() {
    isolated_async(|| async {
        let (place, peer) = pod_and_peer();
        let mut node = Node::new();
        let namespace = node.namespace(Some("ambient"));
        node.start().await;
        let pod = node.pod("a", "uid-a", &place);

        let error = node.add(&pod, &namespace, &place).await.expect_err("nobody takes the pod");
        assert!(error.to_string().contains("no ztunnel is connected"), "{error}");
        assert!(matches!(error, AddError::Refused { status: StatusCode::INTERNAL_SERVER_ERROR, .. }));
        assert_eq!(node.annotation("a", REDIRECTION).as_deref(), Some("pending"));
        assert!(found(&place).await.guard && node.believed("uid-a"));
        assert!(is_dropped(&peer, at(POD, 80)));

        let tunnel = Tunnel::connect(&node).await;
        assert_eq!(node.add(&pod, &namespace, &place).await.expect("a captured pod"), Added::Captured);
        assert!(captured(&place).await);
        let inode = place.netns().inode();
        assert_eq!(tunnel.heard(), [format!("add uid-a shop/a baker {inode}"), "snapshot".to_owned()]);
        eventually("the annotation", || async {
            node.annotation("a", REDIRECTION).as_deref() == Some("enabled") && node.receipt("a").is_some()
        })
        .await;
        let receipt = node.receipt("a").unwrap();
        assert_eq!((receipt.netns, receipt.older_connections, receipt.at_start), (inode, 0, true));
        assert!(node.metric(r#"istio_cni_plugin_requests_total{response_code="200"} 1"#).await);
        assert!(node.metric(r#"istio_cni_plugin_requests_total{response_code="500"} 1"#).await);
        assert!(node.metric("ztunnel_connected 1").await);
        assert!(node.metric(r#"stillmesh_agent_pods{state="captured"} 1"#).await);
    });
}

#[test]
fn a_label_takes_a_running_pod_in_and_out_and_no_connection_breaks() {
    isolated_async(|| async {
        let (place, peer) = pod_and_peer();
        let mut node = Node::new();
        node.namespace(None);
        node.pod("a", "uid-a", &place);
        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        tunnel.hears("snapshot").await;
        let mut open = old_connections(&place, &peer);
        assert_eq!(tables(&place).await, 0);

        node.namespace(Some("ambient"));
        eventually("the pod is captured", || async { node.receipt("a").is_some() }).await;
        assert!(captured(&place).await);
        let receipt = node.receipt("a").unwrap();
        assert_eq!((receipt.older_connections, receipt.at_start), (2, false));
        assert!(node.metric(r#"stillmesh_agent_older_connections{namespace="shop",pod="a"} 2"#).await);
        for (one, other) in &mut open {
            talk(one, other);
        }
        let [first, mut second] = open;
        drop(first);
        eventually("one less", || async { node.receipt("a").is_some_and(|it| it.older_connections == 1) }).await;

        node.namespace(None);
        tunnel.hears("del uid-a").await;
        eventually("the rules are gone", || async { tables(&place).await == 0 }).await;
        talk(&mut second.0, &mut second.1);
        eventually("nothing is believed", || async { !node.believed("uid-a") }).await;
        assert_eq!((node.annotation("a", REDIRECTION), node.receipt("a")), (None, None));
        eventually("no pod leaves", || node.metric(r#"stillmesh_agent_pods{state="leaving"} 0"#)).await;
    });
}

#[test]
fn a_killed_agent_is_not_noticed_and_its_successor_tells_tunnels_of_every_pod() {
    isolated_async(|| async {
        let (place, peer) = pod_and_peer();
        let (fresh, _fresh_peer) = pod_and_peer();
        let mut node = Node::new();
        node.namespace(Some("ambient"));
        node.pod("a", "uid-a", &place);
        let open = old_connections(&place, &peer);
        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        eventually("the pod is captured", || async { node.receipt("a").is_some() }).await;
        let before = node.receipt("a").unwrap();
        let handles = place.run_async(|| nft::list(nft::Family::Inet, "istio-ambient-nat")).await.unwrap();
        node.kill().await;
        tunnel.close().await;
        assert!(captured(&place).await);
        // While nobody looks: another pod comes, one connection ends, one that was believed in goes.
        node.pod("b", "uid-b", &fresh);
        let [first, second] = open;
        drop(first);
        std::fs::copy(node.root.join("state/uid-a.json"), node.root.join("state/uid-x.json")).unwrap();
        node.annotations.lock().clear();

        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        tunnel.hears("snapshot").await;
        let heard = tunnel.heard();
        let snapshot = heard.iter().position(|line| line == "snapshot").unwrap();
        assert!(heard[..snapshot].iter().any(|line| line.starts_with("add uid-a ")), "{heard:?}");
        eventually("both pods are captured", || async { node.receipt("a").is_some() && node.receipt("b").is_some() })
            .await;
        let after = node.receipt("a").unwrap();
        assert_eq!((after.time, after.rules), (before.time, before.rules));
        eventually("one less", || async { node.receipt("a").is_some_and(|it| it.older_connections == 1) }).await;
        let same = place.run_async(|| nft::list(nft::Family::Inet, "istio-ambient-nat")).await.unwrap();
        assert_eq!(
            handles.iter().map(|rule| rule.handle).collect::<Vec<_>>(),
            same.iter().map(|rule| rule.handle).collect::<Vec<_>>()
        );
        assert!(!node.believed("uid-x"));
        drop(second);
    });
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    isolated_async(|| async {
        let (first, _first_peer) = pod_and_peer();
        let (second, _second_peer) = pod_and_peer();
        let mut node = Node::new();
        node.namespace(Some("ambient"));
        node.pod("a", "uid-1", &first);
        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        eventually("the first is captured", || async { node.receipt("a").is_some() }).await;

        node.delete_pod("a", "uid-1");
        node.pod("a", "uid-2", &second);
        tunnel.hears("del uid-1").await;
        tunnel.hears(&format!("add uid-2 shop/a baker {}", second.netns().inode())).await;
        eventually("the second is captured", || async {
            node.receipt("a").is_some_and(|receipt| receipt.netns == second.netns().inode())
        })
        .await;
        assert!(!node.believed("uid-1") && node.believed("uid-2"));
        node.delete_pod("a", "uid-2");
        tunnel.hears("del uid-2").await;
        eventually("nothing is believed", || async { !node.believed("uid-2") }).await;
    });
}

#[test]
fn a_sandbox_made_anew_is_captured_anew() {
    isolated_async(|| async {
        let (first, _first_peer) = pod_and_peer();
        let (second, _second_peer) = pod_and_peer();
        let mut node = Node::new();
        let namespace = node.namespace(Some("ambient"));
        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        let pod = node.pod("a", "uid-a", &first);
        node.add(&pod, &namespace, &first).await.expect("a captured pod");
        Netns::unbind(&node.root.join("netns/uid-a")).unwrap();
        let pod = node.pod("a", "uid-a", &second);
        node.add(&pod, &namespace, &second).await.expect("a captured pod");
        assert!(captured(&second).await);
        assert_eq!(tunnel.heard().last().unwrap(), &format!("add uid-a shop/a baker {}", second.netns().inode()));
    });
}

#[test]
fn a_refused_pod_stays_behind_the_guard_until_the_tunnel_takes_it() {
    isolated_async(|| async {
        let (place, peer) = pod_and_peer();
        let mut node = Node::new();
        node.namespace(Some("ambient"));
        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        *tunnel.refuse.lock() = true;
        node.pod("a", "uid-a", &place);
        eventually("pending", || async { node.annotation("a", REDIRECTION).as_deref() == Some("pending") }).await;
        assert!(found(&place).await.guard && is_dropped(&peer, at(POD, 80)));
        *tunnel.refuse.lock() = false;
        eventually("enabled", || async { node.annotation("a", REDIRECTION).as_deref() == Some("enabled") }).await;
        assert!(captured(&place).await);
    });
}

#[test]
fn pods_go_to_the_newest_tunnel_and_leave_all() {
    isolated_async(|| async {
        let (place, _peer) = pod_and_peer();
        let (later, _later_peer) = pod_and_peer();
        let mut node = Node::new();
        node.namespace(Some("ambient"));
        node.pod("a", "uid-a", &place);
        node.start().await;
        let old = Tunnel::connect(&node).await;
        eventually("captured", || async { node.receipt("a").is_some() }).await;
        let new = Tunnel::connect(&node).await;
        new.hears("snapshot").await;
        let add_a = format!("add uid-a shop/a baker {}", place.netns().inode());
        assert_eq!(new.heard(), [add_a, "snapshot".to_owned()]);
        node.pod("b", "uid-b", &later);
        let add_b = format!("add uid-b shop/b baker {}", later.netns().inode());
        new.hears(&add_b).await;
        assert!(!old.heard().contains(&add_b));
        node.delete_pod("a", "uid-a");
        new.hears("del uid-a").await;
        old.hears("del uid-a").await;
        // The newest goes: the one before it takes over what it has missed.
        new.close().await;
        old.hears(&add_b).await;
    });
}

#[test]
fn rude_peers_are_turned_away_and_harm_nobody() {
    isolated_async(|| async {
        let (place, _peer) = pod_and_peer();
        let mut node = Node::new();
        let namespace = node.namespace(Some("ambient"));
        node.start().await;

        // Tunnels that say nothing, or nonsense, or something unasked.
        let zds = node.socket("ztunnel.sock");
        let _silent: Vec<_> = (0..2).map(|_| seqpacket(&zds)).collect();
        let nonsense = seqpacket(&zds);
        nix::sys::socket::send(
            std::os::fd::AsRawFd::as_raw_fd(&nonsense),
            &[0xff; 512],
            nix::sys::socket::MsgFlags::empty(),
        )
        .unwrap();
        assert!(StdUnixStream::connect(&zds).is_err());

        // A plugin that says nothing, half, or nonsense.
        let plugin = node.socket("plugin.sock");
        let _quiet: Vec<_> = (0..8).map(|_| StdUnixStream::connect(&plugin).unwrap()).collect();
        for (body, status) in [("{", 400), (r#"{"Netns":"/x","PodName":"a","PodNamespace":"b"}"#, 500), ("[]", 400)] {
            let answer = Client::unix(&plugin).request(Method::POST, "/cmdadd", body).await.unwrap();
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        }
        let mut raw = UnixStream::connect(&plugin).await.unwrap();
        raw.write_all(b"\x00\xff\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        raw.read_to_end(&mut rest).await.unwrap();
        assert!(rest.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&rest));

        let tunnel = Tunnel::connect(&node).await;
        let pod = node.pod("a", "uid-a", &place);
        assert_eq!(node.add(&pod, &namespace, &place).await.expect("a captured pod"), Added::Captured);
        tunnel.hears("snapshot").await;
        let other = node.namespace(None);
        eventually("the agent knows that the pod is free", || async { node.annotation("a", REDIRECTION).is_none() })
            .await;
        assert!(matches!(node.add(&pod, &other, &place).await, Ok(Added::NotEnrolled(_))));
    });
}

fn seqpacket(path: &Path) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path).unwrap()).unwrap();
    fd
}

#[test]
fn an_agent_that_ends_in_order_leaves_capture_in_place() {
    isolated_async(|| async {
        let (place, _peer) = pod_and_peer();
        let mut node = Node::new();
        node.namespace(Some("ambient"));
        node.pod("a", "uid-a", &place);
        node.start().await;
        let _tunnel = Tunnel::connect(&node).await;
        eventually("captured", || async { node.receipt("a").is_some() }).await;
        let (trigger, mut task) = node.agent.take().unwrap();
        trigger.start(drain::Mode::Graceful, Duration::from_secs(5));
        task.join().await.expect("an orderly end");
        assert!(captured(&place).await && node.believed("uid-a"));
    });
}
