//! Pods that a Bypass takes out of the mesh for a while: their traffic is plain, STRICT peers still answer it, and they come
//! back, by themselves or when told.

use serde_json::Value;

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, end, shared, text, wait};

fn strict(namespace: &str) -> String {
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {namespace}}}
spec: {{mtls: {{mode: STRICT}}}}
"
    )
}

/// Clients in one namespace, a server that takes no clear text in another.
fn files(out: &str, strictly: &str) -> String {
    namespace(out, true)
        + &client(out, "client-1", "node1")
        + &server(out, "server-1", "node1")
        + &namespace(strictly, true)
        + &server(strictly, "server-2", "node2")
        + &client(strictly, "client-2", "node2")
        + &strict(strictly)
}

fn ready(mesh: &Mesh, out: &str, strictly: &str) {
    mesh.apply(&format!("{out}.yaml"), &files(out, strictly));
    mesh.settled(out, 2);
    mesh.settled(strictly, 2);
}

/// How often a word is on node1's link.
fn seen(mesh: &Mesh, word: &str) -> u64 {
    let seen = mesh.command(&["capture", "node1", "--seconds", "2", "--find", word, "--json"]);
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap_or_else(|_| panic!("{}", text(&seen)));
    seen["found"].as_u64().unwrap_or_default()
}

#[test]
fn a_bypassed_namespace_talks_plainly_to_strict_peers_and_comes_back_when_told() {
    let mesh = shared();
    ready(&mesh, "out", "stern");
    let target = format!("{}:7000", mesh.ips("stern", "server-2")[0]);
    let before = mesh.hold("out", "client-1", &target, "before the order");
    mesh.ask("out", "client-1", &["echo", &target]);
    assert_eq!(seen(&mesh, "before the order"), 0);
    assert!(!mesh.peer("plain", "client-1", &["echo", &target]).status.success(), "STRICT is not enforced");

    let order = mesh.order("bypass", &["out", "--for", "10m", "--reason", "a test"]);
    assert_eq!(order["status"]["summary"], "1/1 nodes, 2/2 pods out", "{order}");
    assert_eq!(order["spec"]["reason"], "a test");
    let node = &order["status"]["nodes"][0];
    assert_eq!(node["node"], "node1", "{order}");
    assert!(node["tookMs"].as_u64().is_some_and(|took| took < 60_000), "{order}");
    assert_eq!(node["connections"], 1, "the one that was open: {order}");
    assert!(order["spec"]["requestedBy"].as_str().is_some_and(|by| by.contains("uid")), "{order}");

    mesh.ask("out", "client-1", &["echo", &target]);
    let plainly = mesh.hold("out", "client-1", &target, "said in the clear");
    wait("clear text is on the wire", || seen(&mesh, "said in the clear") > 0);
    assert_eq!(seen(&mesh, "before the order"), 0, "what was open stays in its tunnel");
    // Others are refused as before, and the pods that are out are reached by everybody.
    assert!(!mesh.peer("plain", "client-1", &["echo", &target]).status.success(), "STRICT was opened to others");
    let own = format!("{}:7000", mesh.ips("out", "server-1")[0]);
    mesh.ask("stern", "client-2", &["echo", &own]);
    mesh.ask("plain", "client-1", &["echo", &own]);
    let listed = mesh.command(&["bypass", "--list"]);
    assert!(text(&listed).contains("a test"), "{}", text(&listed));
    end(before);
    end(plainly);

    let over = mesh.order("bypass", &["out", "--end"]);
    assert_eq!(over["status"]["phase"], "Ended", "{over}");
    assert_eq!(over["status"]["returned"], 2, "{over}");
    assert!(mesh.captured("out"));
    let again = mesh.hold("out", "client-1", &target, "never in the clear again");
    mesh.ask("out", "client-1", &["echo", &target]);
    assert_eq!(seen(&mesh, "never in the clear again"), 0);
    end(again);
    let log = mesh.logs("istio-system", "istio-cni-node-node1");
    let audited =
        log.lines().any(|line| line.contains("audit") && line.contains("a test") && line.contains("out/client-1"));
    assert!(audited, "the agent's log has no line for the audit:\n{log}");
    mesh.delete("out.yaml");
}

#[test]
fn a_bypass_of_a_pod_ends_by_itself() {
    let mesh = shared();
    ready(&mesh, "brief", "sterner");
    let order = mesh.order("bypass", &["brief/client-1", "--for", "45s", "--reason", "briefly", "--no-wait"]);
    let find = || mesh.ordered("bypass", "brief", &order);
    // On a machine that stands still it may be over already.
    let carried_out = |order: Value| order["status"]["done"] == 1 || order["status"]["phase"] == "Ended";
    wait("it was carried out", || find().is_some_and(carried_out));
    wait("it ends", || find().is_some_and(|order| order["status"]["phase"] == "Ended"));
    wait("the pod is back", || mesh.captured("brief"));
    let target = format!("{}:7000", mesh.ips("sterner", "server-2")[0]);
    mesh.ask("brief", "client-1", &["echo", &target]);
    mesh.delete("brief.yaml");
    // It goes with its namespace, and nothing is said of it.
    wait("the order is gone", || mesh.command(&["status"]).status.success() && find().is_none());
}

#[test]
fn what_policies_would_refuse_is_said_before_anything_is_done() {
    let mesh = shared();
    ready(&mesh, "leaving", "sternest");
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-leaving, namespace: sternest}
spec:
  rules: [{from: [{source: {principals: [cluster.local/ns/leaving/sa/client-1]}}]}]
";
    mesh.apply("leaving-policy.yaml", policy);
    wait("the policy is there", || !mesh.get("policies", "sternest").is_empty());
    let order = ["bypass", "leaving", "--reason", "a test"];
    let told = mesh.command(&order);
    assert!(!told.status.success(), "{}", text(&told));
    let said = text(&told);
    assert!(said.contains("ns/leaving/sa/client-1") && said.contains("sternest/only-leaving"), "{said}");
    assert!(mesh.captured("leaving"), "something was done");
    let done = mesh.command(&[&order[..], &["--yes"]].concat());
    assert!(done.status.success(), "{}", text(&done));
    let target = format!("{}:7000", mesh.ips("sternest", "server-2")[0]);
    assert!(!mesh.peer("leaving", "client-1", &["echo", &target]).status.success(), "a policy by identity was skipped");
    mesh.order("bypass", &["leaving", "--end"]);
    mesh.ask("leaving", "client-1", &["echo", &target]);
    mesh.delete("leaving-policy.yaml");
    mesh.delete("leaving.yaml");
}
