//! Objects as they are written, edited and deleted: pods, Deployments, Services, and the files that hold them.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scene::{SLEEP, Scene, is_ready, pod};
use crate::support::{PATIENCE, peer, wait};

#[test]
fn an_edited_label_is_followed_live_and_an_edited_spec_replaces_the_pod() {
    let serve = format!("exec {} serve 7000", peer().display());
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: blue, namespace: NS}
spec: {selector: {colour: blue}, ports: [{port: 80, targetPort: 7000}]}
";
    let web = pod("web", "", &serve, "readinessProbe: {tcpSocket: {port: 7000}}").replace("app: web", "colour: red");
    let client = pod("client", "", SLEEP, "");
    let scene = Scene::new("objects-edit", &(web.clone() + &client + service));
    let reaches = || scene.mesh.peer("objects-edit", "client", &["who", "blue:80"]).status.success();
    scene.wait_ready("web");
    scene.wait_ready("client");
    let uid = scene.uid("web");
    assert!(!reaches());
    let blue = web.replace("colour: red", "colour: blue");
    scene.set(&(blue.clone() + &client + service));
    wait("the service leads to the pod with its new label", reaches);
    assert_eq!((scene.uid("web"), scene.restarts("web", 0)), (uid.clone(), 0));
    scene.set(&(blue.replace("serve 7000", "serve 7000 7001") + &client + service));
    wait("the pod is another one", || !["", &uid].contains(&scene.uid("web").as_str()));
    scene.wait_ready("web");
    wait("the service leads to it", reaches);
    assert!(scene.said("web", "cat /proc/2/cmdline").contains("7001"));
}

fn deployment(replicas: u32, word: &str) -> String {
    format!(
        "
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: NS}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: main
        command: [{peer}, serve, '7000']
        env: [{{name: WORD, value: {word}}}]
        readinessProbe: {{tcpSocket: {{port: 7000}}}}
",
        peer = peer().display()
    )
}

fn names(pods: &[Value]) -> BTreeSet<String> {
    pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect()
}

#[test]
fn a_deployment_is_spread_scaled_replaced_without_a_gap_and_deleted() {
    let scene = Scene::new("objects-deploy", &deployment(4, "one"));
    let ready = |count: usize| {
        let pods = scene.pods();
        pods.len() == count && pods.iter().all(is_ready)
    };
    wait("four pods are ready", || ready(4));
    let on = |node: &str| scene.pods().iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    assert_eq!((on("node1"), on("node2")), (2, 2));
    let first = names(&scene.pods());
    scene.set(&deployment(6, "one"));
    wait("six pods are ready", || ready(6));
    assert!(names(&scene.pods()).is_superset(&first));
    scene.set(&deployment(3, "one"));
    wait("three pods are left", || ready(3));
    let old = names(&scene.pods());

    scene.set(&deployment(3, "two"));
    let end = Instant::now() + PATIENCE;
    let mut fewest = u64::MAX;
    loop {
        let shown = scene.mesh.get("deployments", "objects-deploy");
        fewest = fewest.min(shown[0]["status"]["readyReplicas"].as_u64().unwrap_or_default());
        if ready(3) && names(&scene.pods()).is_disjoint(&old) {
            break;
        }
        assert!(Instant::now() < end, "not replaced: {:?}", names(&scene.pods()));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fewest >= 3, "{fewest} of 3 pods were ready meanwhile");
    for name in names(&scene.pods()) {
        assert_eq!(scene.said(&name, "echo $WORD"), "two\n");
    }

    scene.set("");
    wait("the pods of a deleted deployment end", || scene.pods().is_empty());
}

#[test]
fn a_pod_of_a_deployment_that_is_done_for_does_not_hinder_the_next_template() {
    let broken = deployment(2, "two").replace("serve", "no-such-operation");
    let scene = Scene::new("objects-broken", &deployment(2, "one"));
    let all_ready = || scene.pods().len() == 2 && scene.pods().iter().all(is_ready);
    wait("two pods are ready", all_ready);
    let old = names(&scene.pods());
    scene.set(&broken);
    wait("a new pod crashes", || {
        scene.pods().iter().any(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1))
    });
    assert!(names(&scene.pods()).is_superset(&old), "the old ones stay while the new one is not ready");
    scene.set(&deployment(2, "three"));
    wait("the next template is there", || all_ready() && names(&scene.pods()).is_disjoint(&old));
}

#[test]
fn a_headless_service_is_known_by_its_pods_and_named_ports_by_their_numbers() {
    let web = |name: &str, port: u16| {
        let ports =
            format!("ports: [{{name: web, containerPort: {port}}}]\n    readinessProbe: {{tcpSocket: {{port: web}}}}");
        let more = format!("hostname: {name}\n  subdomain: headless");
        pod(name, &more, &format!("exec {} serve {port}", peer().display()), &ports)
            .replace(&format!("app: {name}"), "app: web")
    };
    let services = "
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: NS}
spec: {clusterIP: None, selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: named, namespace: NS}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: web}]}
";
    let objects = web("one", 7100) + &web("two", 7200) + &pod("client", "", SLEEP, "") + services;
    let scene = Scene::new("objects-names", &objects);
    for name in ["one", "two", "client"] {
        scene.wait_ready(name);
    }
    let addresses = |name: &str| -> BTreeSet<String> {
        let output = scene.sh("client", &format!("getent ahostsv4 {name}"));
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    let own = |pod: &str| scene.mesh.ips("objects-names", pod)[0].clone();
    let both = BTreeSet::from([own("one"), own("two")]);
    wait("the name has both addresses", || addresses("headless") == both);
    assert_eq!(addresses("headless.objects-names.svc.cluster.local"), both);
    assert_eq!(addresses("one.headless"), BTreeSet::from([own("one")]));
    assert_eq!(addresses("nobody.headless"), BTreeSet::new());
    let mut heard = BTreeSet::new();
    wait("both pods answer at the service's port", || {
        let said = scene.mesh.ask("objects-names", "client", &["who", "named:80"]).to_string();
        heard.extend(["one", "two"].into_iter().filter(|name| said.contains(&format!(" {name}"))));
        heard.len() == 2
    });
}

#[test]
fn files_may_be_json_nested_and_of_several_documents_and_their_objects_go_with_them() {
    let scene = Scene::new("objects-files", &(pod("one", "", SLEEP, "") + &pod("two", "", SLEEP, "")));
    let folder = scene.mesh.dir.path().join("manifests/objects-files.d/deeper");
    fs::create_dir_all(&folder).unwrap();
    let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "three", "namespace": "objects-files"},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "main", "command": ["sleep", "infinity"]}]}}"#;
    fs::write(folder.join("three.json"), json).unwrap();
    for name in ["one", "two", "three"] {
        scene.wait_ready(name);
    }
    let uid = scene.uid("three");
    // Half of it: what runs stays as it is.
    fs::write(folder.join("three.json"), &json[..json.len() / 2]).unwrap();
    wait("the half is told", || scene.mesh.said().contains("three.json:"));
    assert_eq!((scene.uid("three"), scene.is_ready("three")), (uid.clone(), true));
    fs::write(folder.join("three.json"), json).unwrap();
    wait("the whole is good again", || {
        let said = scene.mesh.said();
        said.lines().any(|line| line.starts_with("no longer") && line.contains("three.json:"))
    });
    assert_eq!(scene.uid("three"), uid);
    fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    wait("its pod is gone", || names(&scene.pods()) == BTreeSet::from(["one".to_owned(), "two".to_owned()]));
    scene.set(&pod("two", "", SLEEP, ""));
    wait("only two is left", || names(&scene.pods()) == BTreeSet::from(["two".to_owned()]));
}

#[test]
fn pods_of_a_deleted_namespace_end_and_come_back_with_it() {
    let scene = Scene::new("objects-space", "");
    let pods =
        pod("one", "", SLEEP, "").replace("NS", "objects-gone") + &deployment(1, "x").replace("NS", "objects-gone");
    let space = crate::mesh::namespace("objects-gone", false);
    let running = || scene.mesh.get("pods", "objects-gone");
    scene.set(&(space.clone() + &pods));
    wait("both run", || running().len() == 2 && running().iter().all(is_ready));
    scene.set(&pods);
    wait("none runs", || running().is_empty());
    wait("the reason is told", || scene.mesh.said().contains("namespace \"objects-gone\" is not there"));
    scene.set(&(space + &pods));
    wait("both run again", || running().len() == 2 && running().iter().all(is_ready));
}

#[test]
fn a_refused_edit_leaves_what_runs_as_it_is() {
    let good = pod("one", "", SLEEP, "");
    let scene = Scene::new("objects-refused", &good);
    scene.wait_ready("one");
    let uid = scene.uid("one");
    scene.set(&good.replace("spec:", "spec:\n  securityContext: {runAsUser: 4711}"));
    wait("the refusal is told", || {
        scene.mesh.said().lines().any(|line| line.contains("objects-refused/one") && line.contains("runAsUser"))
    });
    assert_eq!((scene.uid("one"), scene.is_ready("one")), (uid.clone(), true));
    scene.set(&good);
    wait("it is mended", || {
        scene.mesh.said().lines().any(|line| line.starts_with("no longer") && line.contains("objects-refused/one"))
    });
    assert_eq!(scene.uid("one"), uid);
}
