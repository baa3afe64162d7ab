//! `stillmesh proxy-status`, `proxy-config` and `zc`: what proxies of a mesh on this machine are told, know and do.

use serde_json::Value;

use crate::scene::Scene;
use crate::support::{text, wait};
use crate::waypoint::{GATEWAY, shop};

const ROUTE: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: NS}
spec:
  parentRefs: [{kind: Service, group: '', name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /items}, method: GET}]
    backendRefs: [{name: web-v2, port: 80, weight: 1}, {name: web-v1, port: 80, weight: 9}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: NS}
spec:
  targetRefs: [{kind: Service, group: '', name: web}]
  action: ALLOW
  rules: [{to: [{operation: {methods: [GET]}}]}]
";

impl Scene {
    /// What a command prints; it must succeed.
    fn shows(&self, arguments: &[&str]) -> String {
        let output = self.mesh.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a command prints as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.shows(&all)).expect("JSON")
    }

    /// Why a command fails.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.mesh.command(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// Each of these parts is in one line.
fn has_line(table: &str, parts: &[&str]) -> bool {
    table.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn proxies_say_whether_they_have_what_they_were_sent_and_what_they_make_of_it() {
    let scene = Scene::new("inspected", &(shop() + GATEWAY + ROUTE));
    wait("the pods are ready", || ["client", "web-v1", "web-v2"].iter().all(|one| scene.is_ready(one)));
    let pod = || {
        let pods = scene.pods();
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        pods.iter().map(name).find(|name| name.starts_with("waypoint-")).unwrap_or_default()
    };
    wait("the waypoint is ready", || scene.is_ready(&pod()));
    let pod = pod();

    // Who is connected, and how they take what they are sent.
    let table = || text(&scene.mesh.command(&["ps", "-v", "1", "gateway/waypoint.inspected"]));
    wait(&format!("all is taken: {}", table()), || {
        table().lines().any(|line| line.starts_with(&pod) && line.matches("SYNCED").count() == 5)
    });
    let table = scene.shows(&["proxy-status"]);
    assert!(has_line(&table, &[&pod, "stillmesh-controller", "5 ("]), "{table}");
    assert!(has_line(&table, &["ztunnel-node2.istio-system", "2 (WADS,WDS)"]), "{table}");
    let all = scene.json(&["ps", &format!("{pod}.inspected")]);
    assert_eq!(all[0]["proxy_type"], "waypoint", "{all}");
    let said = scene.fails(&["ps", "nobody.inspected"]);
    assert!(said.contains("nobody named"), "{said}");

    // What the waypoint knows and does.
    let of = |what: &'static str| scene.shows(&["pc", what, "gateway/waypoint", "-n", "inspected"]);
    wait(&format!("the route: {}", of("route")), || of("route").contains("/items/* method=GET"));
    let routes = of("route");
    let rule = [
        "HTTPRoute inspected/web",
        "web.inspected.svc.cluster.local:80",
        "web-v2.inspected.svc.cluster.local:80 (1), ",
    ];
    assert!(has_line(&routes, &rule), "{routes}");
    wait(&format!("the policy: {}", of("policy")), || of("policy").contains("readers"));
    assert!(has_line(&of("policy"), &["inspected", "readers", "Allow", "AuthorizationPolicy"]), "{}", of("policy"));
    assert!(has_line(&of("listener"), &["80", "HTTP", "HTTPRoute inspected/web"]), "{}", of("listener"));
    let one = [":8080", "HEALTHY", "OK", "web-v1.inspected.svc.cluster.local:80", "inspected/web-v1", "HBONE"];
    wait(&format!("the endpoint: {}", of("endpoint")), || has_line(&of("endpoint"), &one));
    assert!(of("cluster").contains("web-v2.inspected.svc.cluster.local"), "{}", of("cluster"));
    let secrets = of("secret");
    assert!(has_line(&secrets, &["/ns/inspected/sa/waypoint", "Leaf", "Available", "true"]), "{secrets}");
    assert!(of("bootstrap").contains("\"podNamespace\": \"inspected\""));
    let full = format!("pod/{pod}.inspected");
    assert!(scene.shows(&["pc", "rootca-compare", &full, "gateway/waypoint.inspected"]).contains("the same roots"));
    let whole = scene.shows(&["pc", "all", &full, "-o", "json"]);
    assert!(!whole.contains("PRIVATE"), "keys are not shown");

    // The same from a file, and what is no dump of a waypoint.
    let file = scene.dir().join("dump.json");
    std::fs::write(&file, &whole).expect("the file can be written");
    let read =
        |command: &[&str]| crate::support::run(std::process::Command::new(crate::support::STILLMESH).args(command));
    let path = file.to_str().expect("a path");
    let again = read(&["pc", "route", "-f", path]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), routes);
    assert!(read(&["zc", "workload", "-f", path]).status.success(), "what it knows has ztunnel's shape");
    let tunnel = scene.shows(&["zc", "all", "--node", "node1", "-o", "json"]);
    std::fs::write(&file, tunnel).expect("the file can be written");
    let said = text(&read(&["pc", "route", "-f", path]));
    assert!(said.contains("stillmesh zc"), "{said}");
    let said = scene.fails(&["pc", "route", "ztunnel-node1.istio-system"]);
    assert!(said.contains("stillmesh zc all"), "{said}");
    let said = scene.fails(&["pc", "route", "gateway/nothing.inspected"]);
    assert!(said.contains(&format!("{pod}.inspected")), "{said}");
    let said = scene.fails(&["pc", "ecds", &full]);
    assert!(said.contains("proxy-config route"), "{said}");

    // What they log.
    let log = |more: &[&str]| {
        let all: Vec<&str> = ["pc", "log", &full].into_iter().chain(more.iter().copied()).collect();
        scene.shows(&all)
    };
    assert!(log(&["--level", "waypoint=debug,info"]).contains("debug"), "{}", log(&[]));
    assert!(log(&[]).contains("waypoint=debug"), "{}", log(&[]));
    assert!(log(&["--reset"]).contains("current log level is info"), "{}", log(&[]));
    let all = scene.shows(&["zc", "log"]);
    assert!(all.contains("ztunnel-node1: current log level") && all.contains("ztunnel-node2"), "{all}");
    let said = scene.fails(&["zc", "log", "--node", "node1", "--level", "a=b=c"]);
    assert!(said.contains("a level (off, error"), "{said}");
}
