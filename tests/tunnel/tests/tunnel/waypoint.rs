//! Waypoints as a node's tunnel uses them: which of them, which replica, and what becomes of those that end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use stillmesh_core::fixtures;
use stillmesh_core::snapshot::Change;
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, PATIENCE, Pod, Replica};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const CONNECTIONS: usize = 60;
const VIP: &str = "10.96.0.1";

/// A node with a client, and waypoint replicas in pods of their own.
struct Place {
    mesh: Mesh,
    node: Node,
    page: Pod,
    pods: Vec<Pod>,
    replicas: Vec<Replica>,
}

impl Place {
    /// Services in front of so many replicas each; `shop/web` is bound to the first.
    async fn new(waypoints: &[(&str, usize)], weights: &[(&str, u32)]) -> Self {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let page = mesh.pod(&node, "shop/page").await;
        let (mut pods, mut replicas) = (Vec::new(), Vec::new());
        for (name, count) in waypoints {
            let from = pods.len();
            for number in 0..*count {
                let pod = mesh.unmeshed(&format!("{name}-{number}")).await;
                replicas.push(Replica::start(&pod, mesh.control.issuer.clone()).await);
                pods.push(pod);
            }
            let ends: Vec<(&Node, &Pod)> = pods.iter().skip(from).map(|pod| (&node, pod)).collect();
            mesh.service(name, &[], &[(15008, 15008)], &ends);
        }
        let mut web = mesh.service("shop/web", &[VIP], &[(80, 8080)], &[]);
        web.waypoint = Some(fixtures::waypoint(waypoints[0].0));
        let weighted = weights.iter().map(|(name, weight)| (fixtures::waypoint(name), *weight));
        web.weighted_waypoints = weighted.collect();
        mesh.publish(Change::Service(Arc::new(web)));
        node.knows("the binding and all replicas", |dump| {
            let text = dump.to_string();
            pods.iter().all(|pod| text.contains(&pod.v4.to_string())) && text.contains(VIP) && text.contains("15008")
        })
        .await;
        Self { mesh, node, page, pods, replicas }
    }

    /// Which replica each of many connections at once reaches; they are in flight together.
    async fn reached(&self) -> BTreeMap<String, usize> {
        let to = (VIP.parse::<std::net::IpAddr>().unwrap(), 80).into();
        let asking = (0..CONNECTIONS).map(|n| async move {
            let text = format!("hello {n}");
            let (replica, echo) = self.page.ask(to, &text).await?;
            assert_eq!(echo, text);
            std::io::Result::Ok(replica)
        });
        let mut shares = BTreeMap::new();
        for answer in join_all(asking).await {
            *shares.entry(answer.unwrap()).or_default() += 1;
        }
        shares
    }
}

#[test]
fn streams_of_one_client_are_shared_by_all_replicas_and_leave_one_that_drains_without_an_error() {
    isolated_async(|| async {
        let place = Place::new(&[("shop/gate", 2)], &[]).await;
        let shares = place.reached().await;
        assert!(shares.len() == 2 && shares.values().all(|share| *share > CONNECTIONS / 6), "{shares:?}");
        // Streams that are open as one begins to drain; at least one of them is there.
        let to = (VIP.parse::<std::net::IpAddr>().unwrap(), 80).into();
        let mut open = Vec::new();
        for _ in 0..12 {
            let mut stream = BufReader::new(place.page.connect(to).await.unwrap());
            let mut name = String::new();
            stream.read_line(&mut name).await.unwrap();
            open.push((name, stream));
        }
        assert!(open.iter().any(|(name, _)| name == "shop/gate-0\n"));
        place.replicas[0].drain();
        // Nobody has told the node: it is among the endpoints still. What it takes while it tells its clients is carried, too.
        let other = BTreeMap::from([("shop/gate-1".to_owned(), CONNECTIONS)]);
        let begin = Instant::now();
        while place.reached().await != other {
            assert!(begin.elapsed() < PATIENCE, "it is never left");
        }
        assert_eq!(place.reached().await, other);
        for (_, stream) in &mut open {
            stream.write_all(b"still here\n").await.unwrap();
            let mut echo = String::new();
            stream.read_line(&mut echo).await.unwrap();
            assert_eq!(echo, "still here\n");
        }
    });
}

#[test]
fn a_replica_that_is_told_to_end_is_chosen_no_more_while_it_still_listens() {
    isolated_async(|| async {
        let place = Place::new(&[("shop/gate", 2)], &[]).await;
        let front = (Mesh::key("shop/gate"), vec![]);
        place.mesh.publish_pod(&place.node, &place.pods[0], |replica| {
            replica.services = vec![front];
            replica.health = stillmesh_core::model::Health::Unhealthy;
        });
        place.node.knows("that it ends", |dump| dump.to_string().to_lowercase().contains("unhealthy")).await;
        assert_eq!(place.reached().await, BTreeMap::from([("shop/gate-1".to_owned(), CONNECTIONS)]));
    });
}

#[test]
fn a_canary_takes_its_share_of_connections_and_leaves_it_to_the_other_when_it_is_gone() {
    isolated_async(|| async {
        let weights = [("shop/gate", 50), ("shop/next", 50)];
        let mut place = Place::new(&[("shop/gate", 1), ("shop/next", 1)], &weights).await;
        let shares = place.reached().await;
        assert!(shares.len() == 2 && shares.values().all(|share| *share > CONNECTIONS / 6), "{shares:?}");
        place.replicas.remove(1).kill().await;
        assert_eq!(place.reached().await, BTreeMap::from([("shop/gate-0".to_owned(), CONNECTIONS)]));
    });
}
