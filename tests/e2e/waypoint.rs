//! Waypoints of one machine: made from a Gateway, passed by what is bound to them, gone with the Gateway. The clients are
//! curl's.

use crate::scene::Scene;
use crate::support::{text, wait};

/// The namespace's Gateway.
pub const GATEWAY: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: NS}
spec:
  gatewayClassName: stillmesh-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// `web`, which is bound to the waypoint, in two versions on two nodes, and a client.
pub fn shop() -> String {
    let mut all = String::new();
    for (version, node) in [("v1", "node1"), ("v2", "node2")] {
        all += &format!(
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: web-{version}, namespace: NS, labels: {{istio.io/dataplane-mode: ambient, app: web, version: {version}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: web, image: stillmesh/echo, ports: [{{containerPort: 8080}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web-{version}, namespace: NS}}
spec: {{selector: {{app: web, version: {version}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
        );
    }
    all + "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NS, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: NS, labels: {istio.io/dataplane-mode: ambient}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: main, command: [sleep, infinity]}]
"
}

impl Scene {
    /// What curl gets for `web`: status line, headers and body; `None` where it gets no response.
    fn curl(&self, more: &str) -> Option<String> {
        let output = self.sh("client", &format!("curl -sS -i -m 10 {more} http://web/some/path"));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn is_captured(&self) -> bool {
        ["web-v1", "web-v2", "client"]
            .iter()
            .all(|name| self.pod(name)["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled")
    }

    fn gateway(&self) -> serde_json::Value {
        self.mesh.get("gateways", self.name).into_iter().next().unwrap_or_default()
    }

    fn is_programmed(&self) -> bool {
        let conditions = self.gateway()["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "Programmed" && one["status"] == "True")
    }
}

/// Says which waypoint a request came by.
fn by(scene: &Scene) -> String {
    format!("By=spiffe://cluster.local/ns/{}/sa/waypoint", scene.name)
}

#[test]
fn what_is_bound_to_a_gateway_passes_its_waypoint_and_nothing_passes_without_it() {
    let scene = Scene::new("passage", &(shop() + GATEWAY));
    wait("the pods are captured", || scene.is_captured());
    wait(&format!("the Gateway is programmed: {}", scene.gateway()), || scene.is_programmed());
    let addresses = scene.gateway()["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let name = format!("waypoint.{}.svc.cluster.local", scene.name);
    assert!(addresses.iter().any(|one| one["value"] == name.as_str()), "{addresses:?}");
    wait("an answer", || scene.curl("").is_some());
    let answer = scene.curl("").unwrap_or_default();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(&by(&scene)), "not by the waypoint: {answer}");
    // A service of the same namespace that is not bound to it.
    let straight = scene.said("client", "curl -sS -m 10 http://web-v1/");
    assert!(!straight.contains("By=spiffe"), "by the waypoint: {straight}");

    // Bound to what is not ready: refused, not led around it.
    let gateway = GATEWAY.replace("name: waypoint,", "name: waypoint, annotations: {none: none},");
    scene.set(&(shop() + &gateway.replace("HBONE}", "HTTP}")));
    wait("nothing passes", || scene.curl("").is_none());
    // Without a Gateway it is bound to nothing.
    scene.set(&shop());
    wait("led straight", || scene.curl("").is_some_and(|answer| !answer.contains("By=spiffe")));
    wait("its pods are gone", || scene.pods().len() == 3);
}

#[test]
fn requests_go_where_routes_say_as_soon_as_they_say_so() {
    let scene = Scene::new("signpost", &(shop() + GATEWAY));
    wait("the pods are captured", || scene.is_captured());
    wait("by the waypoint", || scene.curl("").is_some_and(|answer| answer.contains(&by(&scene))));
    let route = |rules: &str| {
        format!(
            "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: NS}}
spec:
  parentRefs: [{{kind: Service, group: '', name: web}}]
  rules:
{rules}"
        )
    };
    let v2_for_testers = "
  - matches: [{headers: [{name: x-tester, value: 'yes'}]}]
    backendRefs: [{name: web-v2, port: 80}]
  - filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-route, value: first}]}}
    backendRefs: [{name: web-v1, port: 80}]
";
    scene.set(&(shop() + GATEWAY + &route(v2_for_testers)));
    wait("v1 for everybody", || scene.curl("").is_some_and(|answer| answer.contains("x-route: first")));
    for _ in 0..5 {
        let everybody = scene.curl("").unwrap_or_default();
        assert!(everybody.contains("server: web-v1") && everybody.contains("GET /new/some/path"), "{everybody}");
        let tester = scene.curl("-H 'x-tester: yes'").unwrap_or_default();
        assert!(tester.contains("server: web-v2") && tester.contains("GET /some/path"), "{tester}");
    }
    let away = "
  - filters: [{type: RequestRedirect, requestRedirect: {hostname: elsewhere.example, statusCode: 301}}]
";
    scene.set(&(shop() + GATEWAY + &route(away)));
    wait("sent elsewhere", || scene.curl("").is_some_and(|answer| answer.starts_with("HTTP/1.1 301")));
    let moved = scene.curl("").unwrap_or_default();
    assert!(moved.contains("location: http://elsewhere.example/some/path"), "{moved}");
    // A route that nobody can read is told of, by name and place.
    let broken = away.replace("  - filters", "  - matches: [{path: {value: nowhere}}]\n    filters");
    scene.set(&(shop() + GATEWAY + &route(&broken)));
    wait("it is told", || scene.mesh.said().contains("\"nowhere\" is not a path"));
    let status = scene.mesh.command(&["get", "gateways", "-n", scene.name]);
    assert!(status.status.success(), "{}", text(&status));
}

/// Subsets of `web` by version, of which a VirtualService sends everything to one.
fn subsets(to: &str) -> String {
    format!(
        "
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: NS}}
spec:
  host: web
  trafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{consecutive5xxErrors: 3}}}}
  subsets: [{{name: old, labels: {{version: v1}}}}, {{name: new, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web, namespace: NS}}
spec:
  hosts: [web]
  http: [{{route: [{{destination: {{host: web, subset: {to}}}}}]}}]
"
    )
}

#[test]
fn requests_go_to_the_subset_that_a_virtual_service_names() {
    let scene = Scene::new("subsets", &(shop() + GATEWAY + &subsets("old")));
    wait("the pods are captured", || scene.is_captured());
    let answers = |pod: &str| {
        scene.curl("").is_some_and(|answer| answer.contains(&by(&scene)) && answer.contains(&format!("server: {pod}")))
    };
    wait("v1 alone", || answers("web-v1"));
    assert!((0..10).all(|_| answers("web-v1")));
    scene.set(&(shop() + GATEWAY + &subsets("new")));
    wait("v2 alone", || answers("web-v2"));
    assert!((0..10).all(|_| answers("web-v2")));
    scene.set(&(shop() + GATEWAY + &subsets("newest")));
    wait("no such subset", || scene.curl("").is_some_and(|answer| answer.contains(" 503 ")));
    // Without the VirtualService both take turns.
    let rule: Vec<String> = subsets("old").split("---").take(2).map(str::to_owned).collect();
    scene.set(&(shop() + GATEWAY + &rule.join("---")));
    wait("both", || answers("web-v1") && answers("web-v2"));
}

#[test]
fn connections_go_where_routes_for_tcp_say() {
    let raw = "
---
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: NS, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{name: tcp-raw, port: 80, targetPort: 8080}]}
";
    let route = |backend: &str| {
        format!(
            "
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: raw, namespace: NS}}
spec:
  parentRefs: [{{kind: Service, group: '', name: raw}}]
  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]
"
        )
    };
    let objects = |more: &str| shop() + GATEWAY + raw + more;
    let scene = Scene::new("turnpike", &objects(""));
    wait("the pods are captured", || scene.is_captured());
    let answer = || scene.sh("client", "curl -sS -m 10 http://raw/");
    wait("an answer", || answer().status.success());
    scene.set(&objects(&route("web-v2")));
    let from = |name: &str| text(&answer()).contains(&format!("server: {name}"));
    wait("all from v2", || (0..10).all(|_| from("web-v2")));
    scene.set(&objects(&route("nobody")));
    wait("a backend that is not there refuses", || !answer().status.success());
}
