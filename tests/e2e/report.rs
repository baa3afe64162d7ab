//! `stillmesh bug-report`: everything that explains a mesh, and none of its secrets. Waypoints as a list, and completion.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scene::Scene;
use crate::support::{STILLMESH, run, text, wait};
use crate::waypoint::{GATEWAY, shop};

/// Secrets in the places and shapes in which people have them. `PLANTED` is in each.
const SECRETS: &str = "
---
apiVersion: v1
kind: Secret
metadata: {name: creds, namespace: NS}
stringData: {password: PLANTED-in-a-secret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: NS}
data: {app.conf: 'password = PLANTED-in-a-map'}
---
apiVersion: v1
kind: Pod
metadata:
  name: careless
  namespace: NS
  annotations: {example.com/token: PLANTED-in-an-annotation, example.com/note: 'postgres://me:PLANTED@db/x'}
  labels: {istio.io/dataplane-mode: ambient}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    command: [sh, -c, 'exec sleep infinity', '--password', PLANTED-as-an-argument, '--api-key=PLANTED-as-a-flag']
    env:
    - {name: DB_PASSWORD, value: PLANTED-in-the-environment}
    - {name: HARMLESS, value: PLANTED-without-a-name}
    - {name: KEY, value: \"-----BEGIN PRIVATE KEY-----\\nPLANTED\\n-----END PRIVATE KEY-----\"}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: NS}
spec:
  parentRefs: [{kind: Service, group: '', name: web}]
  rules:
  - matches: [{headers: [{name: cookie, value: PLANTED-in-a-match}]}]
    backendRefs: [{name: web-v2, port: 80}]
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Authorization, value: 'Bearer PLANTED-by-a-filter'}]}}]
    backendRefs: [{name: web-v1, port: 80}]
";

/// The files of an archive.
fn files(archive: &Path) -> BTreeMap<String, String> {
    let packed = std::fs::File::open(archive).expect("the archive");
    let mut unpacked = tar::Archive::new(flate2::read::GzDecoder::new(packed));
    let mut all = BTreeMap::new();
    for entry in unpacked.entries().expect("a tar archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("the file is whole");
        all.insert(path, String::from_utf8(content).expect("text"));
    }
    all
}

#[test]
fn a_report_has_what_explains_a_mesh_and_none_of_its_secrets() {
    let scene = Scene::new("reported", &(shop() + GATEWAY + SECRETS));
    wait("the pods are ready", || ["client", "careless", "web-v1", "web-v2"].iter().all(|one| scene.is_ready(one)));
    let ask = "curl -sf -m 10 -H 'Authorization: Bearer PLANTED-by-a-client' -H 'Cookie: id=PLANTED-by-a-client' \
               'http://web/some/path?token=PLANTED-in-a-query&user=1'";
    wait("an answer through the waypoint", || text(&scene.sh("client", ask)).contains("By=spiffe"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("out.tar.gz");
    let path = file.to_str().expect("a path");
    let report = |more: &[&str]| {
        let all: Vec<&str> =
            ["bug-report", "-o", path, "--include", "rep*"].into_iter().chain(more.iter().copied()).collect();
        scene.mesh.prepare(&all)
    };
    let left = || std::fs::read_dir(folder.path()).expect("the folder").count();

    let planned = text(&run(&mut report(&["--dry-run"])));
    assert!(planned.contains("pods/istio-system/ztunnel-node1/config_dump.json") && left() == 0, "{planned}");
    // Where this process stands still meanwhile the report may be done before it is interrupted.
    wait("it is interrupted", || {
        let mut begun = report(&[]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
        let mut lines = BufReader::new(begun.stderr.take().expect("a pipe")).lines();
        assert!(lines.by_ref().any(|line| line.is_ok_and(|line| line.contains("reading objects"))));
        kill(Pid::from_raw(begun.id().cast_signed()), Signal::SIGINT).expect("it is not waited for yet");
        lines.for_each(drop);
        let code = begun.wait().expect("it ends").code();
        assert!(matches!(code, Some(0 | 130)), "{code:?}");
        if code == Some(0) {
            std::fs::remove_file(&file).expect("it was written");
        }
        code == Some(130)
    });
    assert_eq!(left(), 0, "nothing is left of what was interrupted");

    let made = run(&mut report(&[]));
    assert_eq!(made.status.code(), Some(0), "{}", text(&made));
    assert_eq!(left(), 1);
    let files = files(&file);
    for (path, content) in &files {
        let at = content.find("PLANTED").map(|at| content.get(at.saturating_sub(200)..at + 40).unwrap_or(content));
        assert!(at.is_none(), "{path}: {at:?}");
    }
    for (path, part) in [
        ("objects/reported/Pod.yaml", "name: careless"),
        ("objects/reported/HTTPRoute.yaml", "REDACTED"),
        ("objects/_cluster/Node.yaml", "node1"),
        ("pods/istio-system/ztunnel-node1/config_dump.json", "reported"),
        ("pods/istio-system/ztunnel-node1/metrics.txt", "istio_tcp_connections_opened"),
        ("pods/istio-system/stillmesh-controller/syncz.json", "SYNCED"),
        ("pods/istio-system/stillmesh-controller/receipts.json", "reported"),
        ("status.json", "pods"),
        ("versions.yaml", "clientVersion"),
        ("report.yaml", "madeBy: stillmesh"),
    ] {
        let content = files.get(&format!("bug-report/{path}"));
        assert!(content.is_some_and(|content| content.contains(part)), "{part} in {path}: {:?}", files.keys());
    }
    let of_waypoint = |end: &str, part: &str| {
        files.iter().any(|(path, content)| {
            path.contains("pods/reported/waypoint-") && path.ends_with(end) && content.contains(part)
        })
    };
    assert!(
        of_waypoint("decisions.json", "/some/path")
            && of_waypoint("flows.json", "count")
            && of_waypoint(".log", "/some/path")
    );
    assert!(
        !files.keys().any(|path| path.contains("Secret.yaml") || path.contains("objects/kube-system")),
        "{:?}",
        files.keys()
    );
    assert_eq!(files.get("bug-report/missing.txt").map(String::as_str), Some(""));

    let nowhere = folder.path().join("none/out.tar.gz");
    let said = scene.mesh.command(&["bug-report", "--include", "none", "-o", nowhere.to_str().expect("a path")]);
    assert!(said.status.code() == Some(1) && text(&said).contains("none"), "{}", text(&said));
    assert_eq!(left(), 1);

    let versions = text(&scene.mesh.command(&["version"]));
    assert!(versions.contains("control plane version: ") && versions.contains(" proxies)"), "{versions}");

    // Waypoints, as a list and by their conditions.
    let listed = text(&scene.mesh.command(&["waypoint", "list", "-n", "reported"]));
    assert!(listed.lines().any(|line| line.starts_with("waypoint ") && line.contains("True")), "{listed}");
    let status = scene.mesh.command(&["waypoint", "status", "waypoint", "-n", "reported"]);
    assert!(status.status.success() && text(&status).contains("Programmed"), "{}", text(&status));
    let status = scene.mesh.command(&["waypoint", "status", "other", "-n", "reported", "--wait=false"]);
    assert_eq!(status.status.code(), Some(1), "{}", text(&status));
}

#[test]
fn every_shell_gets_its_completion() {
    for (shell, part) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef stillmesh"),
        ("fish", "complete -c stillmesh"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let said = run(Command::new(STILLMESH).args(["completion", shell]));
        let script = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.status.success() && script.contains(part) && script.contains("proxy-status"),
            "{shell}: {script:.200}"
        );
    }
}
