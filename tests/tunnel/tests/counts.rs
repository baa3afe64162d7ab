//! What two node tunnels allocate, and copy within memory, for a request, a connection and a megabyte.
//!
//! Each bound is less than twice what was counted: a change that doubles it fails. That is without optimization, where every
//! value that is passed on is copied; those of at least a kilobyte are in these figures.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use stillmesh_test_counting::Counting;
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The threads of a tunnel that carry.
const WORKERS: &str = "worker-";

/// What a test waits for at most.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    /// Keeps all of it running.
    _mesh: Mesh,
    nodes: [Node; 2],
    client: Pod,
    server: Pod,
}

impl Scene {
    /// A client on one node, and on another a server that sends back what it gets.
    async fn new() -> Self {
        let mut mesh = Mesh::new().await;
        let nodes = [mesh.node().await, mesh.node().await];
        let client = mesh.pod(&nodes[0], "shop/page").await;
        let server = mesh.pod(&nodes[1], "shop/details").await;
        server.echo(8080).await;
        Self { _mesh: mesh, nodes, client, server }
    }

    /// A connection that has got its greeting.
    async fn connect(&self) -> TcpStream {
        let mut stream = self.client.connect(self.server.at(8080)).await.unwrap();
        while stream.read_u8().await.unwrap() != b'\n' {}
        stream
    }

    /// Waits until the tunnels have none open.
    async fn closed(&self) {
        for node in &self.nodes {
            node.connections("all are closed", <[_]>::is_empty).await;
        }
    }
}

/// Asks on an open connection and has the answer.
async fn ask(stream: &mut TcpStream) {
    let mut answer = [0; 64];
    stream.write_all(&[7; 64]).await.unwrap();
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
}

#[test]
fn a_request_allocates_and_copies_no_more_than_ever() {
    const MANY: u64 = 500;
    isolated_async(|| async {
        let scene = Scene::new().await;
        let counting = Counting::of(WORKERS);
        let mut stream = scene.connect().await;
        assert!(counting.end().allocations > 0, "nothing is counted");
        for _ in 0..50 {
            ask(&mut stream).await;
        }
        let counting = Counting::of(WORKERS);
        for _ in 0..MANY {
            ask(&mut stream).await;
        }
        counting.end().hold("a request", MANY, 0.1, 16.0);
    });
}

#[test]
fn a_connection_allocates_and_copies_no_more_than_ever() {
    const MANY: u64 = 200;
    isolated_async(|| async {
        let scene = Scene::new().await;
        for _ in 0..20 {
            drop(scene.connect().await);
        }
        scene.closed().await;
        let counting = Counting::of(WORKERS);
        for _ in 0..MANY {
            drop(scene.connect().await);
        }
        scene.closed().await;
        counting.end().hold("a connection", MANY, 140.0, 130_000.0);
    });
}

#[test]
fn a_megabyte_allocates_and_is_copied_no_more_than_ever() {
    const MANY: u64 = 64;
    isolated_async(|| async {
        let scene = Scene::new().await;
        let listener = scene.server.listen(8081).await;
        let mut client = scene.client.connect(scene.server.at(8081)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut carry = async |megabytes: u64| {
            let (sent, mut got) = (vec![7; 1 << 20], vec![0; 1 << 20]);
            let send = async {
                for _ in 0..megabytes {
                    client.write_all(&sent).await.unwrap();
                }
            };
            let receive = async {
                for _ in 0..megabytes {
                    server.read_exact(&mut got).await.unwrap();
                }
            };
            timeout(PATIENCE, async { tokio::join!(send, receive) }).await.unwrap();
        };
        carry(8).await;
        let counting = Counting::of(WORKERS);
        carry(MANY).await;
        counting.end().hold("a megabyte", MANY, 10.0, 30_000.0);
    });
}
