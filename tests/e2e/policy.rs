//! What policies do to new and to open connections, and what is said about it.

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, peer, shared, wait};

fn files(name: &str) -> String {
    namespace(name, true)
        + &server(name, "server-1", "node2")
        + &client(name, "client-1", "node1")
        + &client(name, "client-2", "node1")
}

fn ready(mesh: &Mesh, name: &str) -> String {
    mesh.apply(&format!("{name}.yaml"), &files(name));
    mesh.settled(name, 3);
    format!("{}:7000", mesh.ips(name, "server-1")[0])
}

#[test]
fn strict_refuses_clear_text_and_nothing_else() {
    let mesh = shared();
    let target = ready(&mesh, "strict");
    mesh.ask("plain", "client-1", &["echo", &target]);
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: strict}
spec: {mtls: {mode: STRICT}}
";
    mesh.apply("strict-policy.yaml", strict);
    wait("refused", || !mesh.peer("plain", "client-1", &["echo", &target]).status.success());
    mesh.ask("strict", "client-1", &["echo", &target]);
    // Probes go on.
    mesh.settled("strict", 3);
    mesh.delete("strict-policy.yaml");
    wait("let in again", || mesh.peer("plain", "client-1", &["echo", &target]).status.success());
    mesh.delete("strict.yaml");
}

#[test]
fn a_policy_denies_one_caller_by_name_and_cuts_its_open_connection() {
    let mesh = shared();
    let target = ready(&mesh, "deny");
    let hold = |pod: &str| {
        let peer = peer();
        let arguments =
            ["exec", "-n", "deny", pod, "--", peer.to_str().unwrap(), "client", "hold", &target, "100000", "50"];
        mesh.prepare(&arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (mut denied, mut allowed) = (hold("client-1"), hold("client-2"));
    mesh.ask("deny", "client-1", &["echo", &target]);
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-client-1, namespace: deny}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/deny/sa/client-1]}}]}]
";
    mesh.apply("deny-policy.yaml", policy);
    let ended = denied.wait().unwrap();
    assert!(!ended.success(), "the open connection of the denied caller was not cut");
    assert!(!mesh.peer("deny", "client-1", &["echo", &target]).status.success());
    mesh.ask("deny", "client-2", &["echo", &target]);
    assert!(allowed.try_wait().unwrap().is_none(), "the other caller's open connection was cut");
    let log = mesh.logs("istio-system", "ztunnel-node2");
    let named = log.lines().any(|line| line.contains("deny/not-client-1") && line.contains("ns/deny/sa/client-1"));
    assert!(named, "the log names no policy and caller:\n{log}");
    mesh.delete("deny-policy.yaml");
    wait("let in again", || mesh.peer("deny", "client-1", &["echo", &target]).status.success());
    let _ = allowed.kill();
    let _ = allowed.wait();
    mesh.delete("deny.yaml");
}

#[test]
fn an_allow_policy_is_a_closed_list() {
    let mesh = shared();
    let target = ready(&mesh, "allow");
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client-2, namespace: allow}
spec:
  selector: {matchLabels: {app: server-1}}
  rules: [{from: [{source: {principals: [cluster.local/ns/allow/sa/client-2]}}], to: [{operation: {ports: ['7000']}}]}]
";
    mesh.apply("allow-policy.yaml", policy);
    wait("refused", || !mesh.peer("allow", "client-1", &["echo", &target]).status.success());
    mesh.ask("allow", "client-2", &["echo", &target]);
    let other_port = target.replace(":7000", ":7001");
    assert!(!mesh.peer("allow", "client-2", &["echo", &other_port]).status.success());
    assert!(!mesh.peer("plain", "client-1", &["echo", &target]).status.success());
    mesh.delete("allow-policy.yaml");
    mesh.delete("allow.yaml");
}
