//! `stillmesh simulate` says what really happens: each edge of a small mesh is tried and simulated, from the objects of the mesh
//! that runs and from its manifests alone.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::scene::Scene;
use crate::support::{run, text, wait};
use crate::waypoint::{GATEWAY, shop};

/// What the scene has besides: pods behind and beside policies, and one that is in no mesh.
fn more() -> String {
    let mut all = String::new();
    for (name, mode) in [("plain", "ambient"), ("denied", "ambient"), ("open", "ambient"), ("outsider", "none")] {
        all += &format!(
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: NS, labels: {{istio.io/dataplane-mode: {mode}, app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: stillmesh/echo, ports: [{{containerPort: 8080}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: NS}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
        );
    }
    all + "
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: NS}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: NS}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open, namespace: NS}
spec: {selector: {matchLabels: {app: open}}, mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody-here, namespace: NS}
spec:
  action: DENY
  selector: {matchLabels: {app: denied}}
  rules: [{from: [{source: {namespaces: [NS]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: NS}
spec:
  targetRefs: [{kind: Service, group: '', name: web}]
  rules: [{to: [{operation: {methods: [GET], paths: [/ok]}}]}]
"
}

/// Who asks, what of whom, and by which code it is decided where it is refused.
const EDGES: &[(&str, &str, &str, &str, &str)] = &[
    ("client", "web:80", "GET", "/ok", ""),
    ("client", "web:80", "GET", "/no", "NO_ALLOW_MATCHED"),
    ("client", "web:80", "POST", "/ok", "NO_ALLOW_MATCHED"),
    ("client", "web:81", "GET", "/ok", "NO_SERVICE_PORT"),
    ("client", "web-v1:80", "GET", "/ok", "DENIED_BY"),
    ("client", "plain:80", "GET", "/", ""),
    ("client", "plain:81", "GET", "/", "NO_SERVICE_PORT"),
    ("client", "nobody:80", "GET", "/", "NO_HEALTHY_ENDPOINT"),
    ("client", "denied:80", "GET", "/", "DENIED_BY"),
    ("client", "open:80", "GET", "/", ""),
    ("client", "outsider:80", "GET", "/", ""),
    ("outsider", "plain:80", "GET", "/", "MUTUAL_TLS_REQUIRED"),
    ("outsider", "web:80", "GET", "/ok", "DENIED_BY"),
    ("outsider", "open:80", "GET", "/", ""),
];

#[test]
fn what_is_simulated_is_what_happens() {
    let scene = Scene::new("foretold", &(shop() + GATEWAY + &more()));
    let is_ready = |name: &str| scene.is_ready(name);
    wait("the pods are ready", || {
        ["client", "plain", "denied", "open", "outsider", "web-v1"].iter().all(|one| is_ready(one))
    });
    let programmed = || text(&scene.mesh.command(&["get", "gateways", "-n", scene.name])).contains("True");
    wait("the waypoint is ready", programmed);
    let file = scene.mesh.dir.path().join("manifests").join(format!("{}.yaml", scene.name));
    let file = file.to_str().expect("a path").to_owned();
    for (source, to, method, path, code) in EDGES {
        let happens = || {
            let asked = format!("curl -s -o /dev/null -m 10 -X {method} -w '%{{http_code}}' http://{to}{path}");
            let output = scene.sh(source, &asked);
            output.status.success() && String::from_utf8_lossy(&output.stdout).trim() == "200"
        };
        let simulated = |place: &[&str]| {
            let mut all = vec!["simulate", "-n", scene.name, source, to, "--method", method, "--path", path, "--json"];
            all.extend(place);
            let output = if place == ["--live"] { scene.mesh.command(&all) } else { offline(&all) };
            let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
            let hops = told["connections"][0]["hops"].as_array().cloned().unwrap_or_default();
            let refused = hops.iter().find(|hop| hop["refused"] == true).map(|hop| hop["reason"].clone());
            (output.status.code(), refused.and_then(|one| one.as_str().map(str::to_owned)).unwrap_or_default())
        };
        let expected = (Some(i32::from(!code.is_empty())), (*code).to_owned());
        // The objects that run are complete once the last pod is ready.
        wait(&format!("{source} to {to}{path} is simulated as {code:?}, not {:?}", simulated(&["--live"])), || {
            simulated(&["--live"]) == expected
        });
        assert_eq!(simulated(&["-f", &file]), expected, "{source} to {method} {to}{path}, by manifests");
        wait(&format!("{source} to {method} {to}{path} happens as simulated: {code:?}"), || {
            happens() == code.is_empty()
        });
    }
    // As somebody reads it.
    let story = text(&offline(&[
        "simulate", "-f", &file, "-n", scene.name, "client", "web", "--path", "/no", "--method", "GET",
    ]));
    for part in ["REFUSED", "captured from foretold/client", "wants path /ok, seen is /no", "note: simulated"] {
        assert!(story.contains(part), "{part} is not in\n{story}");
    }
    let unknown = offline(&["simulate", "-f", &file, "-n", scene.name, "client", "nowhere"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", text(&unknown));
}

/// Runs a command that asks no mesh.
pub fn offline(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillmesh"));
    run(command.args(arguments).stdin(Stdio::null()))
}

#[test]
fn a_stricter_policy_is_told_before_it_is_applied() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (folder.path().join("old.yaml"), folder.path().join("new.yaml"));
    let objects = crate::mesh::namespace("foreseen", true) + &more().replace("NS", "foreseen");
    let permissive = objects.replace("{mtls: {mode: STRICT}}", "{mtls: {mode: PERMISSIVE}}");
    std::fs::write(&old, &permissive).expect("a file");
    std::fs::write(&new, &objects).expect("a file");
    let (old, new) = (old.to_str().expect("a path"), new.to_str().expect("a path"));
    let unsaid = offline(&["policy", "diff", old, new, "--limit", "0"]);
    assert_eq!(unsaid.status.code(), Some(2), "{}", text(&unsaid));
    let told = offline(&["policy", "diff", old, new, "-o", "json"]);
    assert_eq!(told.status.code(), Some(1), "{}", text(&told));
    let whole: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let changes = whole["changes"].as_array().cloned().unwrap_or_default();
    assert!(
        changes.iter().all(|one| one["source"] == "outside (clear text)" && one["new"]["verdict"] == "refused"),
        "{whole}"
    );
    assert!(changes.iter().any(|one| one["destination"].as_str().is_some_and(|to| to.contains("plain"))), "{whole}");
    assert!(!changes.iter().any(|one| one["destination"].as_str().is_some_and(|to| to.contains("open"))), "{whole}");
    let table = text(&offline(&["policy", "diff", old, new]));
    assert!(table.contains("mutual TLS is required") && table.contains("edges compared"), "{table}");
    assert_eq!(offline(&["policy", "diff", old, "/nowhere"]).status.code(), Some(2));
}
