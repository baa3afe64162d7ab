//! Pods of one node that their namespace wants connected without a tunnel: not a byte crosses their interfaces, policies hold as
//! everywhere, and a NetworkPolicy brings the tunnel back.

use serde_json::Value;

use crate::mesh::{client, server};
use crate::support::{Mesh, shared, text, wait};

const MIB: u64 = 1 << 20;

/// Bytes that a pod's interface has received.
fn received(mesh: &Mesh, namespace: &str, pod: &str) -> u64 {
    let output = mesh.exec(namespace, pod, &["cat", "/proc/net/dev"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let own = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap_or_else(|| panic!("{table}"));
    own.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or_else(|| panic!("{own}"))
}

/// What is recorded of connections between two pods.
fn hops(mesh: &Mesh, from: &str, to: &str) -> Vec<Value> {
    // Refused ones come first.
    let output = mesh.command(&["why", from, to, "--json", "--limit", "100"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let connections = found["connections"].as_array().into_iter().flatten();
    connections.flat_map(|one| one["hops"].as_array()).flatten().cloned().collect()
}

#[test]
fn pods_of_one_node_are_connected_without_a_tunnel_where_their_namespace_says_so() {
    let mesh = shared();
    let labels = "{istio.io/dataplane-mode: ambient, stillmesh.io/same-node: direct}";
    let files = format!("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: straight, labels: {labels}}}\n")
        + &client("straight", "client-1", "node1")
        + &server("straight", "server-1", "node1")
        + &server("straight", "server-2", "node2");
    mesh.apply("straight.yaml", &files);
    mesh.settled("straight", 3);
    let address = |pod: &str| format!("{}:7000", mesh.ips("straight", pod)[0]);
    let (near, far) = (address("server-1"), address("server-2"));
    let echoes = |to: &str| mesh.peer("straight", "client-1", &["echo", to]).status.success();
    let live = |how: &str| {
        let hops = hops(&mesh, "straight/client-1", "straight/server-1");
        hops.iter().filter(|hop| hop["live"] == true && hop[how] == true).count()
    };
    wait("both ends know", || {
        let is_direct = |hop: &Value| hop["direct"] == true;
        echoes(&near) && hops(&mesh, "straight/client-1", "straight/server-1").iter().any(is_direct)
    });

    let before = received(&mesh, "straight", "server-1");
    mesh.ask("straight", "client-1", &["sink", &near, &(32 * MIB).to_string()]);
    let crossed = received(&mesh, "straight", "server-1") - before;
    assert!(crossed < MIB, "{crossed} bytes crossed the interface");
    let before = received(&mesh, "straight", "server-2");
    mesh.ask("straight", "client-1", &["sink", &far, &(32 * MIB).to_string()]);
    assert!(received(&mesh, "straight", "server-2") - before > 32 * MIB, "to another node there is a tunnel");

    // Its record says how, and whose policy refuses.
    let mut held = mesh.hold("straight", "client-1", &near, "word");
    wait("it is open", || live("direct") == 2);
    let policy = "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: straight}\n\
                  spec: {selector: {matchLabels: {app: server-1}}, action: DENY, rules: [{from: [{source: {principals: ['cluster.local/ns/straight/sa/client-1']}}]}]}\n";
    mesh.apply("straight-policy.yaml", policy);
    wait("it is cut", || held.try_wait().is_ok_and(|ended| ended.is_some()));
    assert!(!echoes(&near) && echoes(&far));
    let why = text(&mesh.command(&["why", "straight/client-1", "straight/server-1"]));
    assert!(why.contains("straight/nobody") && why.contains("straight, on the same node"), "{why}");
    mesh.delete("straight-policy.yaml");
    wait("it may again", || echoes(&near));

    // A NetworkPolicy filters packets, so there are packets again; that it lets everything pass does not matter.
    let mut held = mesh.hold("straight", "client-1", &near, "word");
    wait("it is open", || live("direct") == 2);
    let filter = "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all, namespace: straight}\n\
                  spec: {podSelector: {matchLabels: {app: server-1}}, ingress: [{}]}\n";
    mesh.apply("straight-filter.yaml", filter);
    wait("it is cut", || held.try_wait().is_ok_and(|ended| ended.is_some()));
    let held = mesh.hold("straight", "client-1", &near, "word");
    wait("it is in a tunnel", || live("tunnelled") == 2);
    crate::support::end(held);
    let before = received(&mesh, "straight", "server-1");
    mesh.ask("straight", "client-1", &["sink", &near, &(32 * MIB).to_string()]);
    assert!(received(&mesh, "straight", "server-1") - before > 32 * MIB);
    mesh.delete("straight-filter.yaml");
    mesh.delete("straight.yaml");
}
