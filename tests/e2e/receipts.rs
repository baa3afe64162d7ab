//! Receipts: they say where something is in force, and nothing that a connection disproves.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::mesh::{client, namespace, server};
use crate::scene::{Scene, is_ready};
use crate::support::{Mesh, end, peer, text, wait};
use crate::waypoint::{GATEWAY, shop};

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: mesh}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client-1]}}]}]
";

fn receipt(mesh: &Mesh, kind: &str, namespace: &str, name: &str) -> Value {
    let found = mesh.get(kind, namespace).into_iter().find(|one| one["metadata"]["name"] == name);
    found.map(|one| one["status"]["receipt"].clone()).unwrap_or_default()
}

fn counts(receipt: &Value) -> (Option<u64>, Option<u64>) {
    (receipt["inForce"].as_u64(), receipt["expected"].as_u64())
}

fn condition(mesh: &Mesh) -> Value {
    let policy = mesh.get("policies", "mesh").into_iter().next().unwrap_or_default();
    let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == "stillmesh.io/InForce").unwrap_or_default()
}

/// Signals the program of one of the mesh's own pods: process 2 of it.
fn signal(mesh: &Mesh, pod: &str, signal: &str) {
    let done = mesh.exec("istio-system", pod, &["sh", "-c", &format!("kill -{signal} 2")]);
    assert!(done.status.success(), "{}", text(&done));
}

#[test]
fn an_enrolment_claims_the_pods_that_are_captured_and_no_others() {
    let pods = client("mesh", "client-1", "node1")
        + &client("mesh", "client-2", "node2")
        + &server("mesh", "server-1", "node1");
    let mesh = Mesh::start(&[("all.yaml", &(namespace("mesh", false) + &pods))]);
    wait("pods run", || mesh.get("pods", "mesh").iter().filter(|pod| is_ready(pod)).count() == 3);
    let enrolment = || receipt(&mesh, "namespaces", "mesh", "mesh");
    let target = format!("{}:7000", mesh.ips("mesh", "server-1")[0]);
    // Whether a word that client 2 says on a new connection, and is answered, is to be read on its node's link.
    let in_clear = |word: &str| {
        let mut said = mesh.holding("mesh", "client-2", &target, word, Stdio::piped());
        let mut answered = BufReader::new(said.stdout.take().unwrap()).lines();
        assert!(answered.next().is_some_and(|line| line.is_ok()), "{target} does not answer");
        let seen = mesh.command(&["capture", "node2", "--seconds", "2", "--find", word, "--json"]);
        assert!(said.try_wait().unwrap().is_none(), "{target} answers no more");
        end(said);
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap_or_else(|_| panic!("{}", text(&seen)));
        seen["found"].as_u64().is_some_and(|found| found > 0)
    };
    assert!(enrolment().is_null(), "it is in no mesh: {}", enrolment());
    wait("it answers", || mesh.peer("mesh", "client-2", &["echo", &target]).status.success());
    assert!(in_clear("before it was labelled"));

    mesh.apply("all.yaml", &(namespace("mesh", true) + &pods));
    wait("all are captured", || counts(&enrolment()) == (Some(3), Some(3)));
    // The tunnel of a client that is captured may learn a moment later that its server is.
    wait("what is claimed is so", || !in_clear("claimed as captured"));
    assert_eq!(enrolment()["nodes"], serde_json::json!({"inForce": 2, "expected": 2}));
    // One that was captured before the controller saw it has not taken any time.
    assert!(enrolment()["took"]["of"].as_u64().is_none_or(|of| of <= 3), "{}", enrolment());
    let wide = text(&mesh.command(&["get", "namespaces", "-o", "wide"]));
    assert!(wide.contains("IN-FORCE") && wide.contains("3/3"), "{wide}");

    mesh.order("bypass", &["mesh/client-2", "--for", "10m", "--reason", "a test"]);
    wait("client 2 is out", || counts(&enrolment()) == (Some(2), Some(3)));
    wait("what is not claimed is not so", || in_clear("not claimed any more"));
    let status = text(&mesh.command(&["status"]));
    let line = "mesh: 2 of 3 pods captured; lagging: mesh/client-2 (Bypass mesh/";
    assert!(status.contains(line) && status.contains("namespaces in the mesh: 0 of 1 have all"), "{status}");
    mesh.order("bypass", &["mesh/client-2", "--end"]);
    wait("all are captured again", || counts(&enrolment()) == (Some(3), Some(3)));
    wait("what is claimed again is so", || !in_clear("claimed again"));

    // Without an agent nothing more is claimed, and what was captured stays so.
    signal(&mesh, "istio-cni-node-node2", "STOP");
    mesh.apply("all.yaml", &(namespace("mesh", true) + &pods + &client("mesh", "client-3", "node2")));
    wait("client 3 lags", || {
        let enrolment = enrolment();
        counts(&enrolment) == (Some(3), Some(4)) && enrolment["lagging"][0]["name"] == "mesh/client-3"
    });
    assert!(!in_clear("without an agent"), "{}", enrolment());
    signal(&mesh, "istio-cni-node-node2", "CONT");
    wait("client 3 is captured", || counts(&enrolment()) == (Some(4), Some(4)));
}

#[test]
fn a_receipt_claims_no_more_than_connections_show() {
    let world = namespace("mesh", true)
        + &server("mesh", "server-1", "node1")
        + &server("mesh", "server-2", "node2")
        + &client("mesh", "client-1", "node1");
    let mesh = Mesh::start(&[("all.yaml", &world)]);
    wait("captured", || mesh.captured("mesh"));
    let at = |pod: &str| format!("{}:7000", mesh.ips("mesh", pod)[0]);
    let (near, far) = (at("server-1"), at("server-2"));
    let passes = |target: &str| mesh.peer("mesh", "client-1", &["echo", target]).status.success();
    wait("traffic flows", || passes(&near) && passes(&far));

    let policy = || receipt(&mesh, "policies", "mesh", "no-client");
    mesh.apply("policy.yaml", DENY);
    wait("in force everywhere", || counts(&policy()) == (Some(2), Some(2)));
    // Claimed on both nodes: refused by both, at once.
    assert!(!passes(&near) && !passes(&far), "{}", policy());
    let took = policy()["took"].clone();
    assert_eq!(took["of"], 2, "{took}");
    wait("the status says so", || condition(&mesh)["status"] == "True");
    let message = condition(&mesh)["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.starts_with("in force on 2 of 2 nodes, p99 "), "{message}");
    let wide = mesh.command(&["get", "policies", "-n", "mesh", "-o", "wide"]);
    assert!(text(&wide).contains("IN-FORCE") && text(&wide).contains("2/2 ("), "{}", text(&wide));

    // Node 2 stands still: what it has not said is not claimed.
    signal(&mesh, "ztunnel-node2", "STOP");
    mesh.apply("policy.yaml", &DENY.replace("action: DENY", "action: ALLOW"));
    wait("in force on one node", || counts(&policy()) == (Some(1), Some(2)));
    let lagging = policy()["lagging"].clone();
    assert_eq!(lagging[0]["name"], "node2", "{lagging}");
    assert_eq!(lagging[0]["reason"], "not yet acknowledged", "{lagging}");
    assert!(passes(&near), "claimed on node 1 and not in force there");
    let target = peer();
    let mut asking = mesh
        .prepare(&["exec", "-n", "mesh", "client-1", "--", target.to_str().unwrap(), "client", "echo", &far])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the status says so", || condition(&mesh)["status"] == "False");
    let message = condition(&mesh)["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("in force on 1 of 2 nodes; lagging: node2 (not yet acknowledged)"), "{message}");
    let status = mesh.command(&["status"]);
    assert!(text(&status).contains("lagging: node2 (not yet acknowledged)"), "{}", text(&status));
    let ended = asking.try_wait().unwrap();
    assert!(ended.is_none_or(|ended| !ended.success()), "node 2 lets pass what it has not acknowledged");

    signal(&mesh, "ztunnel-node2", "CONT");
    wait("in force everywhere again", || counts(&policy()) == (Some(2), Some(2)));
    assert!(passes(&near) && passes(&far), "{}", policy());
    wait("the status says so again", || condition(&mesh)["status"] == "True");
    let _ = asking.kill();
    let _ = asking.wait();
}

#[test]
fn routes_and_bindings_count_who_carries_them_out() {
    let route = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: NS}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web-v1, port: 80}]}]
";
    let scene = Scene::new("receipts", &(shop() + GATEWAY + route));
    let receipt = |kind: &str| receipt(&scene.mesh, kind, scene.name, "web");
    // One replica of the waypoint, two nodes that are told of the binding.
    wait(&format!("the route is in force: {}", receipt("routes")), || {
        let receipt = receipt("routes");
        counts(&receipt) == (Some(1), Some(1)) && receipt["waypoints"]["inForce"] == 1
    });
    wait(&format!("the binding is in force: {}", receipt("services")), || {
        counts(&receipt("services")) == (Some(2), Some(2))
    });
    let unbound = super::receipts::receipt(&scene.mesh, "services", scene.name, "web-v1");
    assert!(unbound.is_null(), "a service that asks for no waypoint has no receipt: {unbound}");
    wait("the route's status says so", || {
        scene.mesh.get("routes", scene.name).iter().any(|route| {
            let said = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
            said.iter().any(|one| one["type"] == "stillmesh.io/InForce" && one["status"] == "True")
        })
    });
}
