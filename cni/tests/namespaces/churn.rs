//! Many pods that come and go: nothing of them stays.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use stillmesh_cni::plugin::Added;
use stillmesh_test_support::isolated_async;
use stillmesh_test_support::net::Place;

use crate::agent::{Node, Tunnel, captured, eventually};

const PODS: usize = 200;
/// That start at a time.
const WAVE: usize = 20;

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).expect("a directory of this process").count()
}

#[test]
fn two_hundred_pods_leave_nothing_behind() {
    isolated_async(|| async {
        let mut node = Node::new();
        let namespace = node.namespace(Some("ambient"));
        node.start().await;
        let tunnel = Tunnel::connect(&node).await;
        tunnel.hears("snapshot").await;
        let (fds, threads) = (count("/proc/self/fd"), count("/proc/self/task"));

        for wave in 0..PODS / WAVE {
            let mut starting = FuturesUnordered::new();
            for number in 0..WAVE {
                let (node, namespace) = (&node, &namespace);
                starting.push(async move {
                    let (name, uid) = (format!("p-{number}"), format!("uid-{wave}-{number}"));
                    let place = Place::new("pod");
                    let pod = node.pod(&name, &uid, &place);
                    assert_eq!(node.add(&pod, namespace, &place).await.expect("a captured pod"), Added::Captured);
                    assert!(captured(&place).await);
                    (name, uid)
                });
            }
            // A pod of the same name comes in the next wave; every second one is gone only just before it.
            let mut rest = Vec::new();
            while let Some((name, uid)) = starting.next().await {
                if uid.ends_with('1') { rest.push((name, uid)) } else { node.delete_pod(&name, &uid) }
            }
            for (name, uid) in rest {
                node.delete_pod(&name, &uid);
            }
        }

        eventually("every pod is forgotten", || async {
            std::fs::read_dir(node.root.join("state")).unwrap().count() == 0
        })
        .await;
        let heard = tunnel.heard();
        let heard = |word: &str| heard.iter().filter(|line| line.starts_with(word)).count();
        assert_eq!(heard("add "), PODS);
        eventually("every pod is taken back", || async {
            tunnel.heard().iter().filter(|line| line.starts_with("del ")).count() == PODS
        })
        .await;
        for state in ["entering", "pending", "captured", "leaving"] {
            let line = format!(r#"stillmesh_agent_pods{{state="{state}"}} 0"#);
            eventually(&line, || node.metric(&line)).await;
        }
        eventually("no descriptor and no thread is left", || async {
            count("/proc/self/fd") <= fds && count("/proc/self/task") <= threads
        })
        .await;
    });
}
