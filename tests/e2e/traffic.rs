//! What applications see: every kind of connection works as without a mesh, and what the wire sees: nothing of it.

use crate::mesh::{client, namespace, server};
use crate::support::{Mesh, shared, text, wait};

const MIB: u64 = 1 << 20;

/// Addresses of the server on each node, and names that lead to both.
fn targets(mesh: &Mesh) -> Vec<String> {
    let mut targets: Vec<String> =
        ["server-1", "server-2"].iter().map(|pod| format!("{}:7000", mesh.ips("mesh", pod)[0])).collect();
    targets.extend(["server:80", "server.mesh.svc.cluster.local:80", "headless:7000"].map(str::to_owned));
    targets
}

#[test]
fn connections_work_on_one_node_and_across_two_by_every_kind_of_name() {
    let mesh = shared();
    for client in ["client-1", "client-2"] {
        for target in targets(&mesh) {
            mesh.ask("mesh", client, &["echo", &target]);
        }
    }
}

#[test]
fn the_server_sees_the_clients_own_address() {
    let mesh = shared();
    let own = &mesh.ips("mesh", "client-1")[0];
    for pod in ["server-1", "server-2"] {
        let seen = mesh.ask("mesh", "client-1", &["who", &format!("{}:7000", mesh.ips("mesh", pod)[0])]);
        let seen = seen["seen"].as_str().unwrap_or_default().to_owned();
        assert!(
            seen.contains(&format!("{own}]:")) || seen.contains(&format!("{own}:")),
            "{pod} sees {seen}, not {own}"
        );
        // Not from a port that the client's kernel may give to a connection of its own past the mesh: the two would be one.
        let after =
            seen.split_once(own.as_str()).map(|(_, after)| after.trim_start_matches([']', ':'])).unwrap_or_default();
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        let port: u16 = digits.parse().unwrap_or_else(|_| panic!("no port in {seen}"));
        assert!((1024..32768).contains(&port), "{pod} sees {seen}");
    }
}

#[test]
fn ipv6_works_as_ipv4_does() {
    let mesh = shared();
    for pod in ["server-1", "server-2"] {
        let ips = mesh.ips("mesh", pod);
        let six = ips.iter().find(|ip| ip.contains(':')).unwrap_or_else(|| panic!("{pod} has no IPv6: {ips:?}"));
        mesh.ask("mesh", "client-1", &["echo", &format!("[{six}]:7000")]);
    }
}

#[test]
fn a_server_may_speak_first() {
    let mesh = shared();
    for pod in ["server-1", "server-2"] {
        mesh.ask("mesh", "client-1", &["banner", &format!("{}:7002", mesh.ips("mesh", pod)[0])]);
    }
    mesh.ask("mesh", "client-2", &["banner", "server:25"]);
}

#[test]
fn either_side_may_close_its_half_first() {
    let mesh = shared();
    for target in targets(&mesh) {
        mesh.ask("mesh", "client-1", &["sink", &target, &(3 * MIB + 17).to_string()]);
        mesh.ask("mesh", "client-1", &["source", &target, &(3 * MIB + 17).to_string()]);
    }
}

#[test]
fn a_gibibyte_arrives_whole_in_both_directions_at_once() {
    let mesh = shared();
    let target = format!("{}:7000", mesh.ips("mesh", "server-2")[0]);
    mesh.ask("mesh", "client-1", &["duplex", &target, &(1024 * MIB).to_string()]);
}

#[test]
fn a_thousand_connections_live_side_by_side() {
    let mesh = shared();
    let target = format!("{}:7000", mesh.ips("mesh", "server-2")[0]);
    let answer = mesh.ask("mesh", "client-1", &["many", &target, "1000"]);
    assert_eq!(answer["connections"], 1000);
}

#[test]
fn a_pod_reaches_itself_by_its_services_address() {
    let mesh = shared();
    // The only endpoint that takes this port is the server itself: retried until the balancer picked it.
    wait("server-1 answers itself", || {
        let answer = mesh.peer("mesh", "server-1", &["who", "server:80"]);
        assert!(answer.status.success(), "{}", text(&answer));
        String::from_utf8_lossy(&answer.stdout).contains("server-1\"")
    });
}

#[test]
fn traffic_to_and_from_pods_outside_the_mesh_works() {
    let mesh = shared();
    let outside = format!("{}:7000", mesh.ips("plain", "server-2")[0]);
    mesh.ask("mesh", "client-1", &["echo", &outside]);
    mesh.ask("mesh", "client-1", &["echo", "server.plain:80"]);
    let inside = format!("{}:7000", mesh.ips("mesh", "server-2")[0]);
    mesh.ask("plain", "client-1", &["echo", &inside]);
    mesh.ask("plain", "client-1", &["echo", "server.mesh:80"]);
}

#[test]
fn a_port_where_nobody_listens_fails_and_says_so_to_nobody_else() {
    let mesh = shared();
    let target = format!("{}:7999", mesh.ips("mesh", "server-2")[0]);
    assert!(!mesh.peer("mesh", "client-1", &["who", &target]).status.success());
    mesh.ask("mesh", "client-1", &["echo", "server:80"]);
}

/// What is seen on node1's link while client-1 of the namespace holds a connection to its server-2 and sends this word.
fn seen_of(namespace: &str, word: &str) -> serde_json::Value {
    let mesh = shared();
    let target = format!("{}:7000", mesh.ips(namespace, "server-2")[0]);
    let peer = crate::support::peer();
    let mut hold = vec!["exec", "-n", namespace, "client-1", "--", peer.to_str().unwrap(), "client", "hold"];
    hold.extend([&target, "300", "20", word]);
    let mut hold = mesh.prepare(&hold).stdout(std::process::Stdio::null()).spawn().unwrap();
    let seen = mesh.command(&["capture", "node1", "--seconds", "2", "--find", word, "--json"]);
    let _ = hold.kill();
    let _ = hold.wait();
    serde_json::from_slice(&seen.stdout).unwrap_or_else(|_| panic!("{}", text(&seen)))
}

#[test]
fn the_wire_between_the_nodes_shows_nothing_of_the_application() {
    let seen = seen_of("mesh", "never in the clear");
    assert_eq!(seen["found"], 0, "{seen}");
    assert!(seen["tunnel_bytes"].as_u64().unwrap_or(0) > 500, "nothing was captured: {seen}");
}

#[test]
fn the_same_capture_sees_clear_text_where_there_is_no_mesh() {
    let seen = seen_of("plain", "still here");
    // Beside other tests' traffic some frames come faster than they are read.
    assert!(seen["found"].as_u64().unwrap_or(0) > 0, "{seen}");
}

#[test]
fn an_open_connection_survives_joining_and_leaving_under_load() {
    let files = |ambient| {
        namespace("turn", ambient) + &server("turn", "server-1", "node2") + &client("turn", "client-1", "node1")
    };
    let mesh = shared();
    mesh.apply("turn.yaml", &files(false));
    wait("ready", || mesh.get("pods", "turn").len() == 2 && mesh.command(&["status", "--wait", "60"]).status.success());
    let target = format!("{}:7000", mesh.ips("turn", "server-1")[0]);
    let peer = crate::support::peer();
    let start = |operation: &[&str]| {
        let mut arguments = vec!["exec", "-n", "turn", "client-1", "--", peer.to_str().unwrap(), "client"];
        arguments.extend(operation);
        mesh.prepare(&arguments).stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let before = start(&["hold", &target, "400", "50"]);
    let load = start(&["repeat", &target, "16000"]);
    mesh.apply("turn.yaml", &files(true));
    wait("captured", || mesh.captured("turn"));
    let within = start(&["hold", &target, "200", "50"]);
    let own = mesh.ask("turn", "client-1", &["who", &target]);
    assert!(own["seen"].is_string());
    mesh.apply("turn.yaml", &files(false));
    wait("left", || !mesh.captured("turn"));
    mesh.ask("turn", "client-1", &["echo", &target]);
    for (what, child, lines) in [("opened before", before, 400), ("opened within", within, 200)] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "the connection {what} broke: {}", text(&output));
        assert_eq!(output.stdout.split(|byte| *byte == b'\n').count() - 1, lines, "{what}");
    }
    let load = load.wait_with_output().unwrap();
    let load: serde_json::Value = serde_json::from_slice(&load.stdout).unwrap();
    let told = || {
        let logs = ["istio-cni-node-node1", "istio-cni-node-node2"].map(|agent| mesh.logs("istio-system", agent));
        logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("turn/")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(load["failed"], 0, "{load}\n{}", told());
    mesh.delete("turn.yaml");
}

#[test]
fn a_pod_that_is_made_again_is_reached_again() {
    let mesh = shared();
    let files =
        || namespace("again", true) + &server("again", "server-1", "node2") + &client("again", "client-1", "node1");
    mesh.apply("again.yaml", &files());
    wait("captured", || mesh.captured("again") && mesh.get("pods", "again").len() == 2);
    let uid = |mesh: &Mesh| mesh.pod("again", "server-1").map(|pod| pod["metadata"]["uid"].clone());
    let first = uid(&mesh);
    mesh.ask("again", "client-1", &["echo", &format!("{}:7000", mesh.ips("again", "server-1")[0])]);
    mesh.apply("again.yaml", &(namespace("again", true) + &client("again", "client-1", "node1")));
    wait("deleted", || mesh.pod("again", "server-1").is_none());
    mesh.apply("again.yaml", &files());
    wait("made again", || uid(&mesh).is_some_and(|second| Some(second) != first) && mesh.captured("again"));
    let target = format!("{}:7000", mesh.ips("again", "server-1")[0]);
    wait("reached again", || mesh.peer("again", "client-1", &["echo", &target]).status.success());
    mesh.delete("again.yaml");
}
