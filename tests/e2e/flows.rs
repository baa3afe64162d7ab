//! `stillmesh flows` and `stillmesh check strict`: what tunnels and a waypoint have added up, and who would be refused under STRICT.

use serde_json::Value;

use crate::scene::Scene;
use crate::support::{text, wait};
use crate::waypoint::{GATEWAY, shop};

/// Besides: a server in the mesh, and a client that is in no mesh.
fn more() -> String {
    [("plain", "ambient"), ("outsider", "none")]
        .map(|(name, mode)| {
            format!(
                "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: NS, labels: {{istio.io/dataplane-mode: {mode}, app: {name}}}}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: stillmesh/echo, ports: [{{containerPort: 8080}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: NS}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
            )
        })
        .concat()
}

#[test]
fn what_is_carried_is_counted_and_clear_text_is_named_before_strict() {
    let scene = Scene::new("counted", &(shop() + GATEWAY + &more()));
    wait("the pods are ready", || ["client", "plain", "outsider", "web-v1"].iter().all(|one| scene.is_ready(one)));
    let ask = |pod: &str, to: &str| scene.sh(pod, &format!("curl -sf -o /dev/null -m 10 http://{to}")).status.success();
    wait("an answer through the waypoint", || ask("client", "web/items/7"));
    let strict = |namespace: &str| scene.mesh.command(&["check", "strict", namespace]);
    wait(&format!("nobody in clear text yet: {}", text(&strict(scene.name))), || {
        strict(scene.name).status.code() == Some(0)
    });
    assert!(text(&strict(scene.name)).contains("who connects more rarely"), "{}", text(&strict(scene.name)));
    for number in 0..3 {
        assert!(ask("client", "plain/"));
        assert!(ask("client", &format!("web/items/{number}")));
    }
    assert!(ask("outsider", "plain/") && ask("outsider", "plain/"));
    let flows = || -> Vec<Value> {
        let output = scene.mesh.command(&["flows", scene.name, "-o", "json"]);
        let whole: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        whole["flows"].as_array().cloned().unwrap_or_default()
    };
    let count = |hop: &str, source: &str, to: &str, path: &str| -> u64 {
        let is_it = |flow: &&Value| {
            let has = |key: &str, wanted: &str| flow[key].as_str().unwrap_or_default().contains(wanted);
            let there = has("service", to) || has("endpoint", to);
            flow["hop"] == hop && has("source", source) && there && (path.is_empty() || flow["path"] == path)
        };
        flows().iter().filter(is_it).filter_map(|flow| flow["count"].as_u64()).sum()
    };
    let account = "/ns/counted/sa/default";
    for (hop, source, to, path, least) in [
        ("outbound", account, "plain.counted", "", 3),
        ("inbound", account, "counted/plain", "", 3),
        ("inbound", "counted/outsider", "counted/plain", "", 2),
        ("request", account, "web.counted", "/items/{id}", 4),
    ] {
        wait(&format!("{least} {hop} from {source} to {to}: {:?}", flows()), || count(hop, source, to, path) >= least);
    }
    let table = text(&scene.mesh.command(&["flows", scene.name, "--src", "outsider"]));
    assert!(table.contains("counted/outsider (clear text)") && table.contains("server"), "{table}");
    let said = strict(scene.name);
    assert_eq!(said.status.code(), Some(1), "{}", text(&said));
    for part in ["✘ counted/plain:8080 from pod counted/outsider in clear text", "istio.io/dataplane-mode=ambient"] {
        assert!(text(&said).contains(part), "{part} is not in {}", text(&said));
    }
    // A misspelt namespace is told from a silent one.
    for command in ["flows", "top"] {
        let said = scene.mesh.command(&[command, "countd"]);
        assert_eq!(said.status.code(), Some(1), "{}", text(&said));
        assert!(text(&said).contains("there is no namespace \"countd\"; there are "), "{}", text(&said));
    }
    // Of one that has no pods nothing can be said.
    let said = strict("elsewhere");
    assert_eq!(said.status.code(), Some(2), "{}", text(&said));
    assert!(text(&said).contains("there is no pod of namespace elsewhere"), "{}", text(&said));
}
