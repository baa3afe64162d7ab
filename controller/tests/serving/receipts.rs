//! Receipts, of clients that are slow, refuse, go away: the client of our tunnels on a real stream.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::*;

/// A tunnel that takes things in only while it is let, and refuses what it is told to.
struct Tunnel {
    stop: CancellationToken,
    goes: watch::Sender<bool>,
    refuses: Arc<Mutex<Option<&'static str>>>,
}

struct Gate {
    goes: watch::Receiver<bool>,
    refuses: Arc<Mutex<Option<&'static str>>>,
}

impl Sink for Gate {
    async fn apply(&mut self, _: Batch) -> Vec<Rejected> {
        let _ = self.goes.wait_for(|goes| *goes).await;
        let refused = *self.refuses.lock();
        refused.map(|name| Rejected { name: name.to_owned(), reason: "odd".to_owned() }).into_iter().collect()
    }
}

impl Tunnel {
    fn start(world: &World, running: &Running, token: &str, node: &str) -> Self {
        let (goes, going) = watch::channel(true);
        let (stop, refuses) = (CancellationToken::new(), Arc::default());
        let info = NodeInfo::ztunnel(&format!("ztunnel-{node}"), "istio-system", node, None, "cluster.local");
        let client = Client::new(world.control_plane(running, token), info);
        let gate = Gate { goes: going, refuses: Arc::clone(&refuses) };
        let stopped = stop.clone();
        world.tasks.spawn("tunnel", async move { client.run(gate, stopped).await });
        Self { stop, goes, refuses }
    }
}

fn tunnel_pod(node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: ztunnel-{node}, namespace: istio-system}}\n\
         spec: {{nodeName: {node}, serviceAccountName: ztunnel, containers: [{{name: a}}]}}\nstatus: {{phase: Running}}\n"
    )
}

fn node(name: &str, ready: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )
}

fn deny(port: u16) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: deny, namespace: shop, generation: {port}}}\n\
         spec: {{selector: {{matchLabels: {{app: page}}}}, action: DENY, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}\n"
    )
}

/// A mesh of two nodes with a pod.
async fn mesh() -> (World, Running) {
    let world = World::new();
    world.put("pod.yaml", POD);
    for name in ["n1", "n2"] {
        world.put(&format!("{name}.yaml"), &node(name, "True"));
        world.put(&format!("ztunnel-{name}.yaml"), &tunnel_pod(name));
    }
    let running = world.start().await;
    (world, running)
}

/// Waits until the policy's receipt is as expected.
async fn until(running: &Running, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let waiting = async {
        loop {
            let page: Value = serde_json::from_str(&running.page("/debug/receipts").await.1).unwrap_or_default();
            let receipts = page.as_array().into_iter().flatten();
            let found = receipts.clone().find(|one| one["kind"] == "AuthorizationPolicy" && one["name"] == "deny");
            last = found.cloned().unwrap_or_default();
            if so(&last) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(LIMIT, waiting).await.is_err() {
        panic!("never {what}: {last:#}");
    }
    last
}

fn counts(receipt: &Value) -> (Option<u64>, Option<u64>) {
    (receipt["inForce"].as_u64(), receipt["expected"].as_u64())
}

fn lags(receipt: &Value, name: &str, reason: &str) -> bool {
    receipt["lagging"].as_array().is_some_and(|all| all.len() == 1)
        && receipt["lagging"][0]["name"] == name
        && receipt["lagging"][0]["reason"] == reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_in_force_where_it_was_acknowledged_and_who_lags_is_named() {
    let (world, running) = mesh().await;
    let _quick = Tunnel::start(&world, &running, "one", "n1");
    let slow = Tunnel::start(&world, &running, "two", "n2");
    // Only those that were connected before a change say how long it took.
    world.put("deny.yaml", &deny(79));
    until(&running, "both connected", |one| counts(one) == (Some(2), Some(2))).await;
    world.put("deny.yaml", &deny(80));
    let so = |one: &Value| counts(one) == (Some(2), Some(2)) && one["observedGeneration"] == 80;
    let first = until(&running, "in force", so).await;
    assert_eq!(first["took"]["of"], 2, "{first:#}");
    slow.goes.send_replace(false);
    world.put("deny.yaml", &deny(81));
    let half = |one: &Value| counts(one) == (Some(1), Some(2)) && one["observedGeneration"] == 81;
    let lagging = until(&running, "in force on one", half).await;
    assert!(lags(&lagging, "n2", "not yet acknowledged"), "{lagging:#}");
    assert_ne!(lagging["content"], first["content"]);
    slow.goes.send_replace(true);
    until(&running, "in force on both", |one| counts(one) == (Some(2), Some(2))).await;
    // What was there before is known by its content.
    world.put("deny.yaml", &deny(80));
    until(&running, "in force again", |one| counts(one) == (Some(2), Some(2)) && one["content"] == first["content"])
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_a_node_refuses_is_not_in_force_there() {
    let (world, running) = mesh().await;
    let _good = Tunnel::start(&world, &running, "one", "n1");
    let bad = Tunnel::start(&world, &running, "two", "n2");
    *bad.refuses.lock() = Some("shop/deny");
    world.put("deny.yaml", &deny(80));
    until(&running, "refused", |one| counts(one) == (Some(1), Some(2)) && lags(one, "n2", "rejected: odd")).await;
    *bad.refuses.lock() = None;
    world.put("deny.yaml", &deny(81));
    until(&running, "taken", |one| counts(one) == (Some(2), Some(2))).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_lags_and_one_that_is_gone_does_not_count() {
    let (world, running) = mesh().await;
    let _there = Tunnel::start(&world, &running, "one", "n1");
    let away = Tunnel::start(&world, &running, "two", "n2");
    world.put("deny.yaml", &deny(80));
    until(&running, "in force", |one| counts(one) == (Some(2), Some(2))).await;
    away.stop.cancel();
    until(&running, "away", |one| counts(one) == (Some(1), Some(2)) && lags(one, "n2", "not connected")).await;
    world.put("n2.yaml", &node("n2", "False"));
    until(&running, "not expected", |one| counts(one) == (Some(1), Some(1))).await;
    world.put("n2.yaml", &node("n2", "True"));
    until(&running, "expected", |one| counts(one) == (Some(1), Some(2))).await;
    world.delete("ztunnel-n2.yaml");
    until(&running, "gone", |one| counts(one) == (Some(1), Some(1))).await;
    world.put("ztunnel-n2.yaml", &tunnel_pod("n2"));
    let _back = Tunnel::start(&world, &running, "two", "n2");
    until(&running, "back", |one| counts(one) == (Some(2), Some(2))).await;
    world.delete("deny.yaml");
    until(&running, "no policy", Value::is_null).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_status_says_where_it_is_in_force() {
    let (world, sender) = (World::new(), mpsc::channel(8));
    let (sender, mut written) = sender;
    let handler = move |request: Request| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(request.json::<Value>().unwrap_or_default()).await;
            Response::empty(StatusCode::NO_CONTENT)
        }
    };
    let server = admin::Server::new("api").route(Method::PATCH, "/status/{kind}/{namespace}/{name}", handler);
    let (api, watch) = drain::channel();
    world.tasks.spawn("api", server.serve(UnixListener::bind(world.path("api.sock")).unwrap(), watch));
    world.put("ztunnel-n1.yaml", &tunnel_pod("n1"));
    world.put("pod.yaml", POD);
    let running = world.start().await;
    let tunnel = Tunnel::start(&world, &running, "one", "n1");
    let mut said = async |status: &str, generation: u16| loop {
        let body = tokio::time::timeout(LIMIT, written.recv()).await.expect("a status is written").unwrap();
        let all = body["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["type"] == "stillmesh.io/InForce");
        if let Some(one) = found.filter(|one| one["status"] == status && one["observedGeneration"] == generation) {
            return one["message"].as_str().unwrap_or_default().to_owned();
        }
    };
    world.put("deny.yaml", &deny(79));
    said("True", 79).await;
    world.put("deny.yaml", &deny(80));
    let message = said("True", 80).await;
    assert!(message.starts_with("in force on 1 of 1 nodes, p99 "), "{message}");
    tunnel.goes.send_replace(false);
    world.put("deny.yaml", &deny(81));
    let message = said("False", 81).await;
    assert!(message.starts_with("in force on 0 of 1 nodes; lagging: n1 (not yet acknowledged); content "), "{message}");
    tunnel.goes.send_replace(true);
    assert!(said("True", 81).await.starts_with("in force on 1 of 1 nodes, p99 "));
    running.stop().await;
    drop(api);
}
