//! Workloads that the CA gives no certificate: what they dial and what dials them fails, and `stillmesh check` and `why` say what
//! is missing and why.

use std::time::Instant;

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, PATIENCE, text};

/// Asks until the answer has all of this; how long that answer took is printed (`--nocapture`).
fn told(mesh: &Mesh, arguments: &[&str], parts: &[&str], again: impl Fn()) {
    let end = Instant::now() + PATIENCE;
    loop {
        again();
        let began = Instant::now();
        let said = text(&mesh.command(arguments));
        let took = began.elapsed();
        let lacking: Vec<_> = parts.iter().filter(|part| !said.contains(**part)).collect();
        if lacking.is_empty() {
            eprintln!("{arguments:?}: told in {took:?}");
            return;
        }
        assert!(Instant::now() < end, "{arguments:?}: {lacking:?} is not told:\n{said}");
    }
}

#[test]
fn a_certificate_that_is_missing_is_explained() {
    let objects = namespace("lost", true) + &server("lost", "server", "node2") + &client("lost", "client", "node2");
    let mesh = Mesh::start(&[("all.yaml", &objects)]);
    mesh.settled("lost", 2);
    // The tunnel of node1 can prove no longer who it is. What it has it keeps: its stream to the controller, too.
    let proof = |command: &str| {
        let output = mesh.exec("istio-system", "ztunnel-node1", &["sh", "-c", command]);
        assert!(output.status.success(), "{}", text(&output));
    };
    proof("cp \"$AUTH_TOKEN\" \"$AUTH_TOKEN.kept\" && echo somebody-elses > \"$AUTH_TOKEN\"");
    mesh.apply("late.yaml", &(client("lost", "late", "node1") + &server("lost", "newcomer", "node1")));
    mesh.settled("lost", 4);
    let (ip, newcomer) = (mesh.ips("lost", "server").remove(0), mesh.ips("lost", "newcomer").remove(0));
    let missing = |account: &str| format!("no certificate for spiffe://cluster.local/ns/lost/sa/{account}");
    let why = "the token is not known";
    told(&mesh, &["check"], &[&missing("late"), &missing("newcomer"), "node node1", why], || {});

    let dial = |from: &str, to: &str| {
        let output = mesh.peer("lost", from, &["echo", &format!("{to}:7000")]);
        assert!(!output.status.success(), "{from} passes without a certificate: {}", text(&output));
    };
    let asked = ["why", "-n", "lost", "late", "server"];
    let remedy = "check that the controller runs and knows this node's token";
    told(&mesh, &asked, &["ztunnel-node1", &missing("late"), why, remedy], || dial("late", &ip));
    // Both ends tell: the client's of a handshake that nobody answers, the server's why.
    let asked = ["why", "-n", "lost", "client", "newcomer"];
    let parts = ["ztunnel-node2", "the handshake took longer", "ztunnel-node1", &missing("newcomer"), why, remedy];
    told(&mesh, &asked, &parts, || dial("client", &newcomer));
    let said = text(&mesh.command(&asked));
    assert!(!said.contains("clear text"), "a tunnel is taken for clear text:\n{said}");

    proof("mv \"$AUTH_TOKEN.kept\" \"$AUTH_TOKEN\"");
    let passes = |from: &str, to: &str| mesh.peer("lost", from, &["echo", &format!("{to}:7000")]).status.success();
    crate::support::wait("both have certificates", || passes("late", &ip) && passes("client", &newcomer));
    told(&mesh, &["check"], &["everything is as it should be"], || {});
}
