//! `stillmesh why`: what became of connections and requests, from the names of both ends and from the id that a client saw.

use std::process::Stdio;

use serde_json::Value;

use crate::mesh::{client, namespace, server, service};
use crate::scene::Scene;
use crate::support::{Mesh, shared, text, wait};
use crate::waypoint::{GATEWAY, shop};

/// What is told once it has all of these parts: a record is written when its connection has ended.
fn told(mesh: &Mesh, arguments: &[&str], parts: &[&str]) -> String {
    let ask = || {
        let mut all = vec!["why"];
        all.extend(arguments);
        text(&mesh.command(&all))
    };
    wait(&format!("{arguments:?} tells {parts:?}, not {}", ask()), || {
        let told = ask();
        parts.iter().all(|part| told.contains(part))
    });
    ask()
}

#[test]
fn connections_are_explained_by_the_names_of_their_ends_and_by_id() {
    let mesh = shared();
    let files = namespace("asked", true)
        + &server("asked", "server-1", "node2")
        + &client("asked", "client-1", "node1")
        + &client("asked", "client-2", "node1")
        + &service("asked", "server", "server", "")
        + &service("asked", "nobody", "nobody", "");
    mesh.apply("asked.yaml", &files);
    mesh.settled("asked", 3);
    let ip = &mesh.ips("asked", "server-1")[0];
    let ask = |namespace: &str, pod: &str, to: &str| mesh.peer(namespace, pod, &["echo", to]).status.success();

    // Nothing yet, and nobody of that name.
    let nothing = mesh.command(&["why", "asked/client-2", "asked/server-1"]);
    assert!(
        !nothing.status.success() && text(&nothing).contains("no connection from pod asked/client-2"),
        "{}",
        text(&nothing)
    );
    assert!(text(&nothing).contains("records were looked for at"), "{}", text(&nothing));
    let unknown = text(&mesh.command(&["why", "asked/client-3", "asked/server"]));
    assert!(unknown.contains("named \"client-3\"") && unknown.contains("client-1"), "{unknown}");

    // One that passes, hop by hop.
    assert!(ask("asked", "client-1", "server:80"));
    let story = told(&mesh, &["asked/client-1", "asked/server:80"], &["TO_ENDPOINT", "NO_POLICY"]);
    for part in
        ["carried", "captured from asked/client-1", "ztunnel-node1", "ztunnel-node2", "sa/client-1; for asked/server-1"]
    {
        assert!(story.contains(part), "{part} is not in\n{story}");
    }
    // Also from the client's side alone, by the address, and as JSON by id.
    let json = mesh.command(&["why", "-n", "asked", "client-1", ip, "--json"]);
    let found: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let id = found["connections"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(found["connections"][0]["hops"].as_array().map(Vec::len), Some(2), "{found}");
    told(&mesh, &[&id], &["asked/client-1", "asked/server-1", "NO_POLICY"]);

    // Nobody listens there; nobody serves it.
    assert!(!ask("asked", "client-1", &format!("{ip}:7999")));
    told(&mesh, &["asked/client-1", "asked/server-1:7999"], &["REFUSED", "Connection refused", "listens on that port"]);
    assert!(!ask("asked", "client-1", "nobody:80"));
    told(
        &mesh,
        &["asked/client-1", "asked/nobody"],
        &["REFUSED", "NO_HEALTHY_ENDPOINT", "match the service's selector"],
    );

    // Denied by who it is: what was wanted, and what was seen.
    let only = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client-2, namespace: asked}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/asked/sa/client-2]}}]}]}
";
    mesh.apply("asked-policy.yaml", only);
    wait("refused", || !ask("asked", "client-1", "server:80"));
    let miss = "wants principal cluster.local/ns/asked/sa/client-2, seen is cluster.local/ns/asked/sa/client-1";
    let story = told(&mesh, &["asked/client-1", "asked/server"], &["NO_ALLOW_MATCHED", "asked/only-client-2", miss]);
    assert!(story.contains("flag DENY") && story.contains("add it to a rule of one of the named policies"), "{story}");

    // A client outside of the mesh, in clear text.
    mesh.delete("asked-policy.yaml");
    wait("let in again", || ask("plain", "client-1", &format!("{ip}:7000")));
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: asked}
spec: {mtls: {mode: STRICT}}
";
    mesh.apply("asked-policy.yaml", strict);
    wait("refused", || !ask("plain", "client-1", &format!("{ip}:7000")));
    let parts = ["MUTUAL_TLS_REQUIRED", "clear text from plain/client-1", "put the caller into the mesh"];
    told(&mesh, &["plain/client-1", "asked/server-1"], &parts);
    mesh.delete("asked-policy.yaml");
    mesh.delete("asked.yaml");
}

/// What is shown while it happens.
fn live(mesh: &Mesh, happens: &dyn Fn()) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let seen = || std::fs::read_to_string(file.path()).unwrap_or_default();
    let mut tap = mesh.prepare(&["tap", "-n", "asked-http", "--from", "client", "--to", "web", "--path", "/some/path"]);
    let mut tap = tap.stdout(file.reopen().expect("the file")).spawn().expect("it starts");
    wait("what happens is shown", || {
        happens();
        seen().contains("GET web/some/path 200 ok")
    });
    assert!(seen().lines().all(|line| line.contains("asked-http/client")), "{}", seen());
    tap.kill().and_then(|()| tap.wait()).expect("it is ours");

    wait("what happens is counted", || {
        let mut top = mesh.prepare(&["top", "asked-http", "--interval", "2s", "--json"]);
        let mut top = top.stdout(Stdio::piped()).spawn().expect("it starts");
        while top.try_wait().expect("a child").is_none() {
            happens();
        }
        let rows: Value =
            serde_json::from_slice(&top.wait_with_output().expect("its output").stdout).unwrap_or_default();
        let row = rows.as_array().into_iter().flatten().find(|row| row["of"] == "asked-http/web").cloned();
        row.is_some_and(|row| row["requests"].as_f64() > Some(0.0) && row["success"] == 1.0 && row["p99Ms"].is_number())
    });
}

#[test]
fn requests_are_explained_by_names_and_by_the_id_that_a_refused_client_saw() {
    let more = "
---
apiVersion: v1
kind: Service
metadata: {name: dead, namespace: NS, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 9999}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-some, namespace: NS}
spec:
  targetRefs: [{kind: Service, group: '', name: web}]
  rules: [{to: [{operation: {paths: ['/some/*']}}]}]
";
    let scene = Scene::new("asked-http", &(shop() + GATEWAY + more));
    let curl = |url: &str| scene.sh("client", &format!("curl -sS -m 10 {url}"));
    wait("by the waypoint", || text(&curl("http://web/some/path")).contains("sa/waypoint"));
    let question = ["asked-http/client", "asked-http/web", "--path", "/some/path"];
    let story = told(&scene.mesh, &question, &["GET web/some/path", "answered 200"]);
    for part in ["TO_WAYPOINT", "CARRIED", "sa/waypoint; for asked-http/web-v"] {
        assert!(story.contains(part), "{part} is not in\n{story}");
    }

    live(&scene.mesh, &|| drop(curl("http://web/some/path")));

    wait("refused", || text(&curl("http://web/other")).contains("denied: "));
    let answer = text(&curl("http://web/other"));
    let id: String = answer.split("denied: ").nth(1).unwrap_or_default().chars().take(16).collect();
    let miss = "wants path /some/*, seen is /other";
    let parts =
        ["asked-http/client", "GET web/other", "answered 403", "NO_ALLOW_MATCHED", "asked-http/only-some", miss];
    told(&scene.mesh, &[&id], &parts);
    told(&scene.mesh, &["-n", "asked-http", "client", "web", "--path", "/other", "--method", "GET"], &parts);

    // Nobody listens behind either endpoint: both are tried.
    wait("no answer", || text(&curl("http://dead/x")).contains("no endpoint was reached"));
    told(&scene.mesh, &["asked-http/client", "asked-http/dead"], &["GET dead/x", "answered 503", "more tr", "flag UF"]);

    // A waypoint that is not there is not gone around, and that is said.
    let absent = GATEWAY.replace("HBONE}", "HTTP}");
    scene.set(&(shop() + &absent));
    wait("nothing passes", || !curl("http://web/some/path").status.success());
    told(&scene.mesh, &["asked-http/client", "asked-http/web"], &["REFUSED", "WAYPOINT_UNAVAILABLE"]);
}
