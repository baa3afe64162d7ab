//! Processes killed at any moment: the rest goes on, and nothing is left in the end.

use std::collections::BTreeSet;

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, signal, text, wait};

fn world() -> String {
    namespace("mesh", true)
        + &server("mesh", "server-2", "node2")
        + &client("mesh", "client-1", "node1")
        + &server("mesh", "server-1", "node1")
}

fn started() -> (Mesh, String) {
    let mesh = Mesh::start(&[("all.yaml", &world())]);
    wait("captured", || mesh.captured("mesh"));
    let target = format!("{}:7000", mesh.ips("mesh", "server-2")[0]);
    wait("traffic flows", || mesh.peer("mesh", "client-1", &["echo", &target]).status.success());
    (mesh, target)
}

/// Kills the program of a system pod: in its own PID namespace process 1 is our init and 2 is the program.
fn kill(mesh: &Mesh, namespace: &str, pod: &str) {
    let killed = mesh.exec(namespace, pod, &["sh", "-c", "kill -9 2"]);
    // The container may end before the shell's own end is reported.
    assert!(killed.status.success() || killed.status.code() == Some(137), "{pod}: {}", text(&killed));
}

#[test]
fn any_process_killed_comes_back_and_traffic_resumes() {
    let (mesh, target) = started();
    for (namespace, pod) in [
        ("istio-system", "stillmesh-controller"),
        ("istio-system", "istio-cni-node-node1"),
        ("istio-system", "istio-cni-node-node2"),
        ("kube-system", "dns"),
    ] {
        let restarts = |mesh: &Mesh| {
            mesh.pod(namespace, pod).map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].clone())
        };
        let before = restarts(&mesh);
        kill(&mesh, namespace, pod);
        // Neither the control plane nor the agents are on the path of connections.
        mesh.ask("mesh", "client-1", &["echo", &target]);
        wait(&format!("{pod} is restarted"), || restarts(&mesh) != before);
        wait("ready", || mesh.command(&["status", "--wait", "60"]).status.success());
        mesh.ask("mesh", "client-1", &["echo", &target]);
    }
    let near = format!("{}:7000", mesh.ips("mesh", "server-1")[0]);
    for node in ["node1", "node2"] {
        kill(&mesh, "istio-system", &format!("ztunnel-{node}"));
        for address in [&target, &near] {
            wait("traffic resumes", || mesh.peer("mesh", "client-1", &["echo", address]).status.success());
        }
    }
}

#[test]
fn connections_of_other_nodes_do_not_notice_a_killed_ztunnel() {
    let (mesh, _) = started();
    let near = format!("{}:7000", mesh.ips("mesh", "server-1")[0]);
    let peer = crate::support::peer();
    let hold = ["exec", "-n", "mesh", "client-1", "--", peer.to_str().unwrap(), "client", "hold", &near, "60", "50"];
    let hold = mesh.prepare(&hold).stdout(std::process::Stdio::piped()).spawn().unwrap();
    kill(&mesh, "istio-system", "ztunnel-node2");
    let held = hold.wait_with_output().unwrap();
    assert!(held.status.success(), "{}", text(&held));
}

#[test]
fn nothing_is_left_of_a_mesh_that_was_interrupted_or_killed() {
    for name in ["INT", "KILL"] {
        let before = host();
        let (mesh, _) = started();
        let family = descendants(mesh.pid());
        assert!(family.len() > 10, "a mesh is more than {family:?}");
        // What reads from the user's terminal is then no background job of it, which would be stopped with all others.
        let sessions: BTreeSet<&String> = family.iter().skip(1).map(|process| &process.session).collect();
        assert!(!sessions.contains(&family[0].session), "part of the mesh is in the session of whoever started it");
        signal(mesh.pid(), name);
        mesh.wait();
        wait(&format!("no process is left after {name}"), || family.iter().all(|process| !process.is_there()));
        let left: Vec<String> = host().difference(&before).cloned().collect();
        assert!(left.is_empty(), "left after {name}: {left:?}");
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        assert!(!sockets.contains(&mesh.name), "a socket of {} is left after {name}", mesh.name);
    }
}

#[test]
fn down_ends_a_mesh_from_another_terminal() {
    let mesh = Mesh::start(&[("all.yaml", &namespace("empty", false))]);
    let down = mesh.command(&["down"]);
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(mesh.wait(), Some(0));
}

/// Mounts and interfaces of the host: no mesh of any test may add to them.
fn host() -> BTreeSet<String> {
    let lines = |table: &str| std::fs::read_to_string(table).unwrap_or_default();
    let mounts = lines("/proc/self/mounts").lines().map(|line| format!("mount {line}")).collect::<Vec<_>>();
    let links = lines("/proc/net/dev")
        .lines()
        .filter_map(|line| Some(format!("link {}", line.split_once(':')?.0.trim())))
        .collect::<Vec<_>>();
    mounts.into_iter().chain(links).collect()
}

/// A process, told apart from a later one of the same number by its start.
#[derive(Clone, Debug)]
struct Process {
    pid: u32,
    parent: u32,
    session: String,
    started: String,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let text = |at: usize| fields.get(at).map(|field| (*field).to_owned());
        Some(Self { pid, parent: fields.get(1)?.parse().ok()?, session: text(3)?, started: text(19)? })
    }

    fn is_there(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.started == self.started)
    }
}

/// A process and everything it started, directly or not.
fn descendants(root: u32) -> Vec<Process> {
    let numbers =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all: Vec<Process> = numbers.filter_map(Process::read).collect();
    let mut family: Vec<Process> = all.iter().filter(|process| process.pid == root).cloned().collect();
    let mut at = 0;
    while let Some(parent) = family.get(at).map(|process| process.pid) {
        family.extend(all.iter().filter(|process| process.parent == parent).cloned());
        at += 1;
    }
    family
}
