//! The objects of the shared mesh, and what everybody sees of it.

use crate::support::{peer, shared, text, wait};

/// A pod that runs the peer's server, or sleeps.
fn pod(namespace: &str, name: &str, node: &str, command: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}, role: {role}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    command: {command}
{probe}",
        role = name.split('-').next().unwrap_or(name),
        probe = if command.contains("serve") {
            "    readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}\n"
        } else {
            ""
        },
    )
}

/// A pod that sleeps and is there to run clients in.
pub fn client(namespace: &str, name: &str, node: &str) -> String {
    pod(namespace, name, node, "[sleep, infinity]")
}

/// A pod that serves the peer's protocols.
pub fn server(namespace: &str, name: &str, node: &str) -> String {
    pod(namespace, name, node, &format!("[{}, serve, '7000', '7001', 'banner:7002']", peer().display()))
}

/// A namespace, in the mesh or not.
pub fn namespace(name: &str, ambient: bool) -> String {
    let labels = if ambient { ", labels: {istio.io/dataplane-mode: ambient}" } else { "" };
    format!("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n")
}

/// A service in front of the pods with a role.
pub fn service(namespace: &str, name: &str, role: &str, more: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  {more}
  selector: {{role: {role}}}
  ports: [{{name: main, port: 80, targetPort: 7000}}, {{name: banner, port: 25, targetPort: 7002}}]
"
    )
}

/// Clients and servers on both nodes in namespace `mesh`, a client in `plain` that is outside the mesh.
pub fn manifests() -> String {
    let mut all = namespace("mesh", true) + &namespace("plain", false);
    for node in ["node1", "node2"] {
        let number = node.trim_start_matches("node");
        all += &server("mesh", &format!("server-{number}"), node);
        all += &client("mesh", &format!("client-{number}"), node);
    }
    all += &client("plain", "client-1", "node1");
    all += &server("plain", "server-2", "node2");
    all += &service("mesh", "server", "server", "ipFamilyPolicy: PreferDualStack");
    all += &service("mesh", "headless", "server", "clusterIP: None");
    all += &service("mesh", "self", "client", "ipFamilyPolicy: SingleStack");
    all += &service("plain", "server", "server", "");
    all
}

#[test]
fn the_mesh_is_shown_as_it_is() {
    let mesh = shared();
    let pods = mesh.command(&["get", "pods", "-n", "mesh"]);
    let table = text(&pods);
    assert!(pods.status.success(), "{table}");
    for name in ["server-1", "server-2", "client-1", "client-2"] {
        assert!(table.contains(name), "{table}");
    }
    for kind in ["services", "policies", "nodes"] {
        let shown = mesh.command(&["get", kind, "-A"]);
        assert!(shown.status.success(), "{kind}: {}", text(&shown));
    }
}

#[test]
fn an_exit_code_and_both_outputs_come_back_from_a_pod() {
    let mesh = shared();
    let output = mesh.exec("mesh", "client-1", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn a_pod_or_mesh_that_is_not_there_is_said_by_name() {
    let mesh = shared();
    let output = mesh.exec("mesh", "nobody", &["true"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("nobody"), "{}", text(&output));
    let output = crate::support::run(std::process::Command::new(crate::support::STILLMESH).args([
        "get",
        "pods",
        "--name",
        "no-such-mesh",
    ]));
    assert!(!output.status.success());
    assert!(text(&output).contains("no-such-mesh"), "{}", text(&output));
}

#[test]
fn pods_that_left_the_mesh_may_come_back() {
    let mesh = shared();
    mesh.apply(
        "flip.yaml",
        &(namespace("flip", true) + &server("flip", "server-1", "node1") + &client("flip", "client-1", "node2")),
    );
    wait("captured", || mesh.captured("flip"));
    mesh.apply(
        "flip.yaml",
        &(namespace("flip", false) + &server("flip", "server-1", "node1") + &client("flip", "client-1", "node2")),
    );
    let left = || {
        mesh.get("pods", "flip")
            .iter()
            .all(|pod| pod["metadata"]["annotations"]["ambient.istio.io/redirection"].is_null())
    };
    wait("left", left);
    let address = format!("{}:7000", mesh.ips("flip", "server-1")[0]);
    mesh.ask("flip", "client-1", &["echo", &address]);
    mesh.delete("flip.yaml");
    wait("gone", || mesh.get("pods", "flip").is_empty());
}
