//! A mesh of its own, watched from outside: what pods leave behind, and other meshes beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::pods::process;
use crate::support::{Mesh, run, shared, text, wait};

/// Pods that sleep.
fn crowd(count: usize) -> String {
    let mut all = crate::mesh::namespace("crowd", true);
    for number in 0..count {
        let _ = write!(
            all,
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: p{number}, namespace: crowd}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{{name: main, command: [sleep, infinity]}}]
"
        );
    }
    all
}

/// What the runner of a mesh holds: descriptors, mounts, threads, links of nodes, files.
fn held(mesh: &Mesh) -> BTreeMap<&'static str, usize> {
    let runner = process(&["internal", "runner"], &mesh.name).expect("a runner");
    let of = |path: &str| PathBuf::from(format!("/proc/{runner}/{path}"));
    let entries = |path: &str| std::fs::read_dir(of(path)).map(Iterator::count).unwrap_or_default();
    let lines = |path: &str| std::fs::read_to_string(of(path)).unwrap_or_default().lines().count();
    let links = |node: &str| {
        let agent = format!("istio-cni-node-{node}");
        let table = mesh.exec("istio-system", &agent, &["cat", "/proc/net/dev"]);
        String::from_utf8_lossy(&table.stdout).lines().count()
    };
    BTreeMap::from([
        ("descriptors", entries("fd")),
        ("threads", entries("task")),
        ("mounts", lines("mountinfo")),
        ("namespaces kept", entries("root/run/stillmesh/netns")),
        ("folders of pods", entries("root/run/stillmesh/pods")),
        ("objects", entries("root/run/stillmesh/objects")),
        ("links of node1", links("node1")),
        ("links of node2", links("node2")),
    ])
}

#[test]
fn thirty_pods_come_and_go_and_leave_nothing() {
    let mesh = Mesh::start(&[("crowd.yaml", &crowd(1))]);
    wait("captured", || mesh.captured("crowd"));
    let before = held(&mesh);
    for _ in 0..2 {
        mesh.apply("crowd.yaml", &crowd(30));
        wait("thirty are in the mesh", || mesh.get("pods", "crowd").len() == 30 && mesh.captured("crowd"));
        let waited = mesh.command(&["status", "--wait", "120"]);
        assert!(waited.status.success(), "{}", text(&waited));
        mesh.apply("crowd.yaml", &crowd(1));
        wait("one is left", || mesh.get("pods", "crowd").len() == 1);
    }
    assert!(before.values().all(|count| *count > 0), "everything is counted: {before:?}");
    wait("all that they held is given back", || {
        let after = held(&mesh);
        let more = |(what, count): &(&&str, &usize)| before.get(**what).is_none_or(|before| *count > before);
        let more: Vec<_> = after.iter().filter(more).collect();
        if !more.is_empty() {
            eprintln!("there were {before:?}, more are now {more:?}");
        }
        more.is_empty()
    });
}

#[test]
fn meshes_stand_side_by_side_by_name_and_a_name_is_taken_once() {
    let (one, two) = (shared(), Mesh::start(&[("crowd.yaml", &crowd(1))]));
    assert_eq!(two.get("pods", "crowd").len(), 1);
    assert_eq!(one.get("pods", "crowd").len(), 0);
    assert_eq!(two.get("pods", "mesh").len(), 0);
    let again = run(std::process::Command::new(crate::support::STILLMESH)
        .args(["up", two.dir.path().to_str().unwrap(), "--name", &two.name])
        .stdin(std::process::Stdio::null()));
    assert!(!again.status.success() && text(&again).contains("already runs"), "{}", text(&again));
    assert_eq!(two.get("pods", "crowd").len(), 1);
}

#[test]
fn a_directory_that_vanishes_and_comes_back_does_not_end_the_mesh() {
    let mesh = Mesh::start(&[("crowd.yaml", &crowd(1))]);
    let (dir, away) = (mesh.dir.path().join("manifests"), mesh.dir.path().join("away"));
    std::fs::rename(&dir, &away).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    mesh.apply(
        "more.yaml",
        &crowd(2).replace("name: crowd", "name: more").replace("namespace: crowd", "namespace: more"),
    );
    wait("what is added later runs", || mesh.get("pods", "more").len() == 2);
    assert!(mesh.command(&["status", "--wait", "120"]).status.success());
}
