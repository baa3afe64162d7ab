//! `stillmesh analyze` finds what the mesh that runs does: by its objects, and by a file as if it were applied to them.

use std::fs;

use serde_json::Value;

use crate::scene::Scene;
use crate::simulate::offline;
use crate::support::{text, wait};
use crate::waypoint::{GATEWAY, shop};

/// A policy that asks for HTTP where node tunnels enforce it, and one that picks nobody.
const POLICIES: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: NS}
spec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: NS}
spec: {selector: {matchLabels: {app: nobody-at-all}}}
";

#[test]
fn what_runs_is_analyzed_with_the_place_where_it_is_written() {
    let scene = Scene::new("analyzed", &(shop() + GATEWAY));
    wait("the pods are ready", || ["client", "web-v1"].iter().all(|one| scene.is_ready(one)));
    let found = |more: &[&str]| {
        let mut arguments = vec!["analyze", "-n", scene.name, "-o", "json"];
        arguments.extend(more);
        let output = scene.mesh.command(&arguments);
        let Ok(all) = serde_json::from_slice::<Value>(&output.stdout) else {
            return (output.status.code(), vec![text(&output)]);
        };
        let of = |one: &Value| format!("{} {} {}", one["code"], one["origin"], one["reference"]).replace('"', "");
        let all: Vec<String> = all.as_array().expect("a list").iter().map(of).collect();
        (output.status.code(), all)
    };
    let errors = || found(&["--output-threshold", "Error"]);
    wait(&format!("nothing is wrong, not {:?}", errors()), || errors() == (Some(0), Vec::new()));
    let file = scene.mesh.dir.path().join("more.yaml");
    fs::write(&file, POLICIES.replace("NS", scene.name)).expect("a file");
    let file = file.to_str().expect("a path");
    let applied = found(&["-k", file]);
    assert_eq!(applied.0, Some(79));
    let expected =
        |name: &str, code: &str, line: u32| format!("{code} AuthorizationPolicy analyzed/{name} {file}:{line}");
    for one in [expected("reads", "SM0101", 3), expected("nobody", "IST0127", 8)] {
        assert!(applied.1.contains(&one), "{one} is not among {:?}", applied.1);
    }
    // Without what runs nobody knows of the pods.
    let alone = text(&offline(&["analyze", file]));
    assert!(alone.contains("Warning [IST0127] (AuthorizationPolicy analyzed/reads"), "{alone}");
    // The same once it runs; the place is that of the manifest.
    scene.set(&(shop() + GATEWAY + POLICIES));
    let is_found = |code: &str, name: &str| {
        let start = format!("{code} AuthorizationPolicy analyzed/{name} ");
        found(&[]).1.iter().any(|one| one.starts_with(&start) && one.contains("analyzed.yaml:"))
    };
    wait(&format!("it is found, not {:?}", found(&[])), || {
        is_found("SM0101", "reads") && is_found("IST0127", "nobody")
    });
    assert_eq!(found(&[]).0, Some(79));
    let quiet = || found(&["-S", "SM0101=*", "-S", "SM0114=*", "--output-threshold", "Error"]);
    wait(&format!("nothing more is wrong, not {:?}", quiet()), || quiet() == (Some(0), Vec::new()));
}

#[test]
fn a_command_line_or_place_that_is_wrong_has_its_own_exit_code() {
    assert_eq!(offline(&["analyze", "--output", "xml"]).status.code(), Some(2));
    assert_eq!(offline(&["analyze", "--use-kube=false"]).status.code(), Some(1));
    let gone = offline(&["analyze", "/nowhere/at-all.yaml"]);
    assert_eq!(gone.status.code(), Some(79), "{}", text(&gone));
    assert!(text(&gone).contains("Error [IST0106] (/nowhere/at-all.yaml) cannot be read"), "{}", text(&gone));
    assert!(text(&offline(&["analyze", "-L"])).contains("SM0101"));
}

#[test]
fn a_mesh_on_this_machine_is_checked() {
    let scene = Scene::new("checked", &shop());
    wait("the pods are ready", || ["client", "web-v1"].iter().all(|one| scene.is_ready(one)));
    let told = || text(&scene.mesh.command(&["check"]));
    for part in [
        "✔ the mesh's own pods: ",
        "certificates of workloads are valid",
        "the root with serial number",
        "namespace checked: 3 pods captured",
    ] {
        wait(&format!("{part} is told, not {}", told()), || told().contains(part));
    }
    let output = scene.mesh.command(&["check", "-o", "json"]);
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert!(whole["cluster"].as_str().is_some_and(|text| text.contains("on this machine")), "{whole}");
    assert_eq!(whole["good"].as_bool(), Some(output.status.success()), "{whole}");
}
