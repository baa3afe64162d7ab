//! One ztunnel after the other on a node, under traffic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use stillmesh_api::succession::{Listener, Predecessor};
use stillmesh_runtime::tasks::Tasks;
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// How long one question may take. Nothing in these tests should come near it.
const SOON: Duration = Duration::from_secs(10);

/// Connections and questions that follow each other without a pause, until told to end.
struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    tasks: Tasks,
}

impl Traffic {
    fn start(from: &Arc<Pod>, to: SocketAddr, name: &str) -> Self {
        let traffic =
            Self { stop: Arc::default(), done: Arc::default(), failures: Arc::default(), tasks: Tasks::new("traffic") };
        for _ in 0..3 {
            let from = from.clone();
            traffic.go_on("connection", move || {
                let from = from.clone();
                async move { from.ask(to, "hello").await.map(drop).map_err(|error| error.to_string()) }
            });
        }
        let (from, name) = (from.clone(), name.to_owned());
        traffic.go_on("question", move || {
            let (from, name) = (from.clone(), name.clone());
            async move { lookup(&from, &name).await }
        });
        traffic
    }

    fn go_on<F>(&self, what: &'static str, once: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (stop, done, failures) = (self.stop.clone(), self.done.clone(), self.failures.clone());
        self.tasks.spawn(what, async move {
            while !stop.load(Ordering::Relaxed) {
                let tried = timeout(SOON, once()).await.unwrap_or_else(|_| Err("too slow".to_owned()));
                match tried {
                    Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.lock().push(format!("{what}: {error}")),
                }
            }
        });
    }

    /// Waits until so many more have been done.
    async fn passes(&self, count: usize) {
        let begin = self.done.load(Ordering::Relaxed);
        let passing = async {
            while self.done.load(Ordering::Relaxed) < begin + count {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let passed = timeout(SOON * 3, passing).await;
        assert!(passed.is_ok(), "traffic stands still: {:?}", self.failures.lock());
    }

    /// Ends it; nothing failed.
    async fn ends_without_failure(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.shutdown(SOON * 2).await;
        let failures = self.failures.lock();
        let done = self.done.load(Ordering::Relaxed);
        assert!(failures.is_empty(), "{} of {done} failed: {failures:?}", failures.len());
    }
}

/// A pod's question for an address, as its resolver would send it.
async fn lookup(from: &Pod, name: &str) -> Result<(), String> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = from.datagrams().await;
    // The capture rules send it to the DNS proxy, wherever it was going.
    socket.connect("10.96.0.10:53").await.map_err(|error| error.to_string())?;
    socket.send(&question.to_vec().unwrap()).await.map_err(|error| error.to_string())?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.map_err(|error| error.to_string())?;
    let answer = Message::from_vec(&buffer[..length]).map_err(|error| error.to_string())?;
    if answer.answers.is_empty() { Err("no answer".to_owned()) } else { Ok(()) }
}

async fn echoes(stream: &mut tokio::net::TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"ping");
}

/// Upgrades both nodes, one after the other, under traffic; the new ones have this environment.
async fn upgrade(environment: &[(&str, &str)], inherits: bool) {
    let mut mesh = Mesh::new().await;
    let (mut one, mut two) = (mesh.node().await, mesh.node().await);
    let page = Arc::new(mesh.pod(&one, "shop/page").await);
    let details = Arc::new(mesh.pod(&two, "shop/details").await);
    details.echo(8080).await;
    let service = mesh.service("shop/details", &["10.96.0.1"], &[(80, 8080)], &[(&two, &details)]);
    one.knows("the service", |dump| dump["services"].as_array().is_some_and(|all| all.len() == 1)).await;
    let traffic = Traffic::start(&page, details.at(8080), &service.key.hostname);
    traffic.passes(50).await;
    let mut open = page.connect(details.at(8080)).await.unwrap();
    let mut greeting = vec![0; page.v4.to_string().len() + 1];
    timeout(SOON, open.read_exact(&mut greeting)).await.unwrap().unwrap();

    for (node, pod) in [(&mut one, &page), (&mut two, &details)] {
        let next = mesh.successor(node, environment).await;
        assert!(!next.is_ready().await, "it does not serve all pods yet");
        next.add(pod).await;
        traffic.passes(50).await;
        next.named_all().await;
        assert!(next.is_ready().await);
        let given = node.admin("/config_dump").await["workloadState"].as_object().is_none_or(|pods| pods.is_empty());
        assert_eq!(given, inherits, "the old one has let go of what the new one has inherited");
        traffic.passes(50).await;
        echoes(&mut open).await;
        node.drain(Duration::from_secs(4));
        traffic.passes(50).await;
        echoes(&mut open).await;
        let old = std::mem::replace(node, next);
        // What is open goes on with the old one as long as it may; then the connection is made anew.
        drop(std::mem::replace(&mut open, reopened(&page, &details).await));
        end(old).await;
        traffic.passes(50).await;
    }
    traffic.ends_without_failure().await;
}

async fn reopened(page: &Pod, details: &Pod) -> tokio::net::TcpStream {
    let mut open = page.connect(details.at(8080)).await.unwrap();
    let mut greeting = vec![0; page.v4.to_string().len() + 1];
    timeout(SOON, open.read_exact(&mut greeting)).await.unwrap().unwrap();
    open
}

async fn end(mut node: Node) {
    node.ended().await;
}

#[test]
fn an_upgrade_that_hands_listeners_over_fails_no_connection_and_no_dns_question() {
    isolated_async(|| async { upgrade(&[], true).await });
}

#[test]
fn an_upgrade_beside_a_ztunnel_that_hands_nothing_over_fails_no_connection_and_no_dns_question() {
    isolated_async(|| async { upgrade(&[("HANDOVER_SOCKET", "none")], false).await });
}

#[test]
fn a_successor_that_dies_half_way_leaves_the_one_before_serving() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let page = Arc::new(mesh.pod(&one, "shop/page").await);
        let details = Arc::new(mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let service = mesh.service("shop/details", &["10.96.0.1"], &[(80, 8080)], &[(&two, &details)]);
        one.knows("the service", |dump| dump["services"].as_array().is_some_and(|all| all.len() == 1)).await;
        let traffic = Traffic::start(&page, details.at(8080), &service.key.hostname);
        traffic.passes(50).await;
        for (node, pod) in [(&one, &page), (&two, &details)] {
            for has_confirmed in [false, true] {
                let mut successor = Predecessor::connect(&node.home().join("handover.sock")).await.unwrap().unwrap();
                let sockets = successor.take(&pod.uid(), pod.place.netns().inode()).await.unwrap();
                assert!(sockets.len() >= 5, "{sockets:?}");
                traffic.passes(20).await;
                if has_confirmed {
                    // Nobody accepts from here on; who connects waits.
                    successor.serving(&pod.uid()).await.unwrap();
                    successor.ready().await.unwrap();
                }
                drop((successor, sockets));
                traffic.passes(50).await;
            }
        }
        traffic.ends_without_failure().await;
    });
}

#[test]
fn only_the_pod_that_is_meant_is_given() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let one = mesh.node().await;
        let page = mesh.pod(&one, "shop/page").await;
        let mut successor = Predecessor::connect(&one.home().join("handover.sock")).await.unwrap().unwrap();
        assert!(successor.take("somebody else", page.place.netns().inode()).await.is_err());
        assert!(successor.take(&page.uid(), 1).await.is_err(), "another namespace is another pod");
        assert!(!successor.take(&page.uid(), page.place.netns().inode()).await.unwrap().is_empty());
    });
}

#[test]
fn a_predecessor_that_does_not_answer_is_listened_beside() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let _silent = Listener::take_over(&one.home().join("handover.sock")).unwrap();
        let next = mesh.successor(&one, &[]).await;
        next.add(&page).await;
        next.named_all().await;
        assert!(next.is_ready().await);
        one.drain(Duration::from_secs(4));
        page.ask(details.at(8080), "hello").await.unwrap();
    });
}
