//! What a pod cannot do: reach what the machine keeps, take the mesh's rules away, or stop the machine by a terminal.

use crate::mesh::{client, namespace, server};
use crate::support::{shared, text, wait};

const KEY: &str = "/run/stillmesh/ca/ca-key.pem";

#[test]
fn a_pod_cannot_read_the_machines_keys_by_any_of_these_ways() {
    let mesh = shared();
    for attempt in [
        format!("cat {KEY}"),
        format!("cat /proc/1/root{KEY}"),
        format!("umount /proc; cat /proc/1/root{KEY}"),
        format!("umount -l /proc; cat /proc/2/root{KEY}"),
        format!("unshare -Urm sh -c 'umount -l /proc; cat /proc/1/root{KEY}'"),
        "nsenter -t 1 -m -n true && echo PRIVATE".to_owned(),
        "cat /proc/1/environ /proc/1/cmdline | grep -a PRIVATE".to_owned(),
        "ls /run/stillmesh | grep . && echo PRIVATE".to_owned(),
    ] {
        let output = mesh.exec("mesh", "client-1", &["sh", "-c", &attempt]);
        assert!(!text(&output).contains("PRIVATE"), "{attempt}: {}", text(&output));
    }
    // The key is there for the controller, so the attempts above could have found something.
    let own = mesh.exec("istio-system", "stillmesh-controller", &["cat", KEY]);
    assert!(text(&own).contains("PRIVATE KEY"), "{}", text(&own));
}

#[test]
fn a_pod_cannot_change_its_network() {
    let mesh = shared();
    let status = mesh.exec("mesh", "client-1", &["cat", "/proc/self/status"]);
    let effective =
        text(&status).lines().find_map(|line| line.strip_prefix("CapEff:").map(str::trim).map(str::to_owned));
    let effective = u64::from_str_radix(&effective.expect("a line with CapEff"), 16).expect("a number");
    for (name, bit) in [("NET_ADMIN", 12), ("SYS_MODULE", 16), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21), ("BPF", 39)] {
        assert_eq!(effective >> bit & 1, 0, "CAP_{name} is held");
    }
}

#[test]
fn secret_values_are_in_no_command_line() {
    let mesh = shared();
    let word = "a-value-that-nobody-else-may-see";
    let pod = client("secretive", "client-1", "node1").replace(
        "  - name: main\n",
        "  - name: main\n    env: [{name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}]\n",
    );
    let secret = format!(
        "\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: keys, namespace: secretive}}\nstringData: {{token: {word}}}\n"
    );
    mesh.apply("secretive.yaml", &(namespace("secretive", false) + &secret + &pod));
    wait("the pod runs", || mesh.exec("secretive", "client-1", &["true"]).status.success());
    let seen = mesh.exec("secretive", "client-1", &["sh", "-c", "echo $TOKEN"]);
    assert!(text(&seen).contains(word), "the program has it: {}", text(&seen));
    for process in std::fs::read_dir("/proc").expect("a list of processes").flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(word), "in the command line of {:?}", process.path());
    }
    mesh.delete("secretive.yaml");
}

#[test]
fn a_large_environment_is_no_obstacle() {
    let mesh = shared();
    let (one, two) = ("x".repeat(70_000), "y".repeat(70_000));
    let map = format!(
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large, namespace: roomy}}\ndata: {{one: {one}, two: {two}}}\n"
    );
    let pod = client("roomy", "client-1", "node2")
        .replace("  - name: main\n", "  - name: main\n    envFrom: [{configMapRef: {name: large}}]\n");
    mesh.apply("roomy.yaml", &(namespace("roomy", false) + &map + &pod));
    let length = || mesh.exec("roomy", "client-1", &["sh", "-c", "echo ${#one} ${#two}"]);
    wait("the pod runs with it", || text(&length()).contains("70000 70000"));
    mesh.delete("roomy.yaml");
}

#[test]
fn one_object_that_cannot_be_holds_up_no_other() {
    let mesh = shared();
    let long = "a".repeat(240);
    let odd = format!(
        "{}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {long}, namespace: odd}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: traversal, namespace: odd}}\n\
         spec: {{serviceAccountName: ../../../x, containers: [{{name: c, command: [sleep, infinity]}}]}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: millions, namespace: odd}}\n\
         spec: {{replicas: 0, selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, \
         spec: {{containers: [{{name: c, command: [sleep, infinity]}}]}}}}}}\n",
        namespace("odd", true)
    );
    mesh.apply("odd.yaml", &(odd + &server("odd", "server-1", "node2") + &client("odd", "client-1", "node1")));
    wait("the others are captured", || mesh.get("pods", "odd").len() == 2 && mesh.captured("odd"));
    let target = format!("{}:7000", mesh.ips("odd", "server-1")[0]);
    wait("they talk", || mesh.peer("odd", "client-1", &["echo", &target]).status.success());
    assert!(mesh.said().contains("serviceAccountName"), "{}", mesh.said());
    mesh.delete("odd.yaml");
}
