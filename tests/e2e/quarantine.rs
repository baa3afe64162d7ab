//! Pods that a Quarantine cuts off: what is open is closed, nothing new is carried to or from them, others do not notice, and they are
//! connected again, by themselves or when told.

use std::process::Child;

use serde_json::Value;

use crate::mesh::{client, namespace, server};
use crate::scene::is_ready;
use crate::support::{Mesh, end, shared, text, wait};

/// A client and a server that are to be cut off, and a client and a server that they speak with.
fn ready(mesh: &Mesh, cut: &str, other: &str) {
    let files = namespace(cut, true)
        + &client(cut, "client-1", "node1")
        + &server(cut, "server-1", "node1")
        + &namespace(other, true)
        + &server(other, "server-2", "node2")
        + &client(other, "client-2", "node2");
    mesh.apply(&format!("{cut}.yaml"), &files);
    mesh.settled(cut, 2);
    mesh.settled(other, 2);
}

fn address(mesh: &Mesh, namespace: &str, pod: &str) -> String {
    format!("{}:7000", mesh.ips(namespace, pod)[0])
}

/// A connection that goes on until somebody ends it.
fn hold(mesh: &Mesh, namespace: &str, pod: &str, target: &str) -> Child {
    // It is open by then: the way is there.
    mesh.ask(namespace, pod, &["echo", target]);
    mesh.hold(namespace, pod, target, "word")
}

/// How many connections of a pod its tunnel carries now.
fn open(mesh: &Mesh, from: &str, to: &str) -> usize {
    let output = mesh.command(&["why", from, to, "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let hops = found["connections"].as_array().into_iter().flatten().flat_map(|one| one["hops"].as_array());
    hops.flatten().filter(|hop| hop["live"] == true).count()
}

fn connects(mesh: &Mesh, namespace: &str, pod: &str, target: &str) -> bool {
    mesh.peer(namespace, pod, &["echo", target]).status.success()
}

fn has_ended(what: &str, mut child: Child) {
    wait(what, || child.try_wait().is_ok_and(|ended| ended.is_some()));
}

#[test]
fn a_quarantined_namespace_speaks_with_nobody_until_it_is_told_to() {
    let mesh = shared();
    ready(&mesh, "cutoff", "cutpeer");
    let (own, other) = (address(&mesh, "cutoff", "server-1"), address(&mesh, "cutpeer", "server-2"));
    let outside = address(&mesh, "plain", "server-2");
    let sending = hold(&mesh, "cutoff", "client-1", &other);
    let passing = hold(&mesh, "cutoff", "client-1", &outside);
    let receiving = hold(&mesh, "cutpeer", "client-2", &own);
    let unrelated = hold(&mesh, "cutpeer", "client-2", &other);
    wait("they are open", || {
        open(&mesh, "cutoff/client-1", "cutpeer/server-2") > 0
            && open(&mesh, "cutpeer/client-2", "cutoff/server-1") > 0
            && open(&mesh, "cutpeer/client-2", "cutpeer/server-2") > 0
            && open(&mesh, "cutoff/client-1", &outside) > 0
    });

    let order = ["cutoff", "--for", "10m", "--reason", "a drill"];
    let told = mesh.command(&[&["quarantine"], &order[..]].concat());
    let said = text(&told);
    assert!(!told.status.success() && said.contains("cutoff/client-1, cutoff/server-1"), "{said}");
    assert!(said.contains("ns/cutpeer/sa/client-2") && said.contains("--yes"), "{said}");
    assert!(connects(&mesh, "cutoff", "client-1", &other), "something was done");

    let order = mesh.order("quarantine", &[&order[..], &["--yes"]].concat());
    assert_eq!(order["status"]["summary"], "1/1 nodes, 2/2 pods cut off", "{order}");
    assert_eq!(order["status"]["nodes"][0]["node"], "node1", "{order}");
    has_ended("what it sends is cut", sending);
    has_ended("what it sends out of the mesh is cut", passing);
    has_ended("what it receives is cut", receiving);
    let counted = || {
        let output = mesh.command(&["quarantine", "--list", "cutoff", "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        list["items"][0]["status"]["connections"].as_u64().unwrap_or_default()
    };
    // What the others' tunnel closed first is not among them; nobody else knows of the way out of the mesh.
    wait("connections that were cut are counted", || counted() >= 1);
    assert!(!connects(&mesh, "cutoff", "client-1", &other), "it sends");
    assert!(!connects(&mesh, "cutoff", "client-1", &outside), "it sends out of the mesh");
    assert!(!connects(&mesh, "cutoff", "client-1", &own), "it speaks within");
    assert!(!connects(&mesh, "cutpeer", "client-2", &own), "it receives");
    assert!(!connects(&mesh, "plain", "client-1", &own), "it receives clear text");
    assert!(connects(&mesh, "cutpeer", "client-2", &other), "others are cut off, too");
    // The one that was just made may be seen still.
    wait("what others had open is open alone", || open(&mesh, "cutpeer/client-2", "cutpeer/server-2") == 2);
    end(unrelated);

    let late = client("cutoff", "client-3", "node2");
    mesh.apply("cutoff-late.yaml", &late);
    wait("a pod that comes later is cut off", || {
        mesh.pod("cutoff", "client-3").is_some_and(|pod| {
            pod["metadata"]["annotations"]["stillmesh.io/quarantine"]
                .as_str()
                .is_some_and(|says| says.contains("cutoff/"))
        })
    });
    assert!(!connects(&mesh, "cutoff", "client-3", &other));
    let mut why = String::new();
    wait("it is told why", || {
        why = text(&mesh.command(&["why", "cutoff/client-1", "cutpeer/server-2"]));
        why.contains("QUARANTINED")
    });
    assert!(why.contains("Quarantine cutoff/quarantine-") && why.contains("a drill"), "{why}");
    let why = text(&mesh.command(&["why", "cutpeer/client-2", "cutoff/server-1"]));
    assert!(why.contains("QUARANTINED") && why.contains("a drill"), "{why}");
    wait("probes pass", || mesh.pod("cutoff", "server-1").is_some_and(|pod| is_ready(&pod)));
    let log = mesh.logs("istio-system", "istio-cni-node-node1");
    let name = order["metadata"]["name"].as_str().unwrap();
    let audited = |line: &str| line.contains("audit") && line.contains(name) && line.contains("cutoff/client-1");
    assert!(log.lines().any(audited), "the agent's log has no line for the audit:\n{log}");
    let listed = mesh.command(&["quarantine", "--list"]);
    assert!(text(&listed).contains("a drill"), "{}", text(&listed));

    let over = mesh.order("quarantine", &["cutoff", "--end"]);
    assert_eq!(over["status"]["summary"], "3/3 pods connected again", "{over}");
    assert!(over["status"]["connections"].as_u64().is_some_and(|cut| cut >= 1), "{over}");
    for (namespace, pod, to) in
        [("cutoff", "client-1", &other), ("cutoff", "client-3", &other), ("cutpeer", "client-2", &own)]
    {
        wait(&format!("{pod} is answered again"), || connects(&mesh, namespace, pod, to));
    }
    mesh.delete("cutoff-late.yaml");
    mesh.delete("cutoff.yaml");
}

#[test]
fn a_quarantine_of_a_pod_ends_by_itself_and_means_nobody_else() {
    let mesh = shared();
    ready(&mesh, "cutshort", "cutnear");
    let target = address(&mesh, "cutnear", "server-2");
    let own = address(&mesh, "cutshort", "server-1");
    let order =
        mesh.order("quarantine", &["cutshort/client-1", "--for", "45s", "--reason", "briefly", "--yes", "--no-wait"]);
    let find = || mesh.ordered("quarantine", "cutshort", &order);
    // On a machine that stands still it may be over already.
    let carried_out = |order: Value| order["status"]["done"] == 1 || order["status"]["phase"] == "Ended";
    wait("it was carried out", || find().is_some_and(carried_out));
    assert!(connects(&mesh, "cutnear", "client-2", &own), "another pod of the namespace is cut off");
    wait("it ends", || find().is_some_and(|order| order["status"]["phase"] == "Ended"));
    wait("the pod is connected again", || connects(&mesh, "cutshort", "client-1", &target));
    mesh.delete("cutshort.yaml");
}

#[test]
fn a_quarantine_takes_pods_back_that_a_bypass_keeps_out() {
    let mesh = shared();
    ready(&mesh, "cutplain", "cutfar");
    let target = address(&mesh, "cutfar", "server-2");
    mesh.order("bypass", &["cutplain", "--reason", "a test"]);
    let plainly = hold(&mesh, "cutplain", "client-1", &target);
    wait("it is open", || open(&mesh, "cutplain/client-1", "cutfar/server-2") > 0);
    let order = mesh.order("quarantine", &["cutplain", "--reason", "worse than thought", "--yes"]);
    assert_eq!(order["status"]["summary"], "1/1 nodes, 2/2 pods cut off", "{order}");
    has_ended("what no tunnel carried is cut", plainly);
    assert!(!connects(&mesh, "cutplain", "client-1", &target));
    mesh.order("quarantine", &["cutplain", "--end"]);
    wait("the Bypass holds again", || !mesh.captured("cutplain"));
    mesh.delete("cutplain.yaml");
}

#[test]
fn a_quarantine_that_cannot_be_carried_out_is_refused() {
    let mesh = shared();
    let nobody = mesh.command(&["quarantine", "no-such-namespace", "--reason", "a test", "--yes"]);
    assert!(!nobody.status.success() && text(&nobody).contains("no-such-namespace"), "{}", text(&nobody));
    let long = mesh.command(&["quarantine", "mesh", "--for", "200h", "--reason", "a test", "--yes"]);
    assert!(!long.status.success() && text(&long).contains("168"), "{}", text(&long));
    assert!(connects(&mesh, "mesh", "client-1", "server:80"));
}
