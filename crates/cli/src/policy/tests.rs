use clap::Parser as _;
use stillmesh_k8s::parse;
use stillmesh_k8s::translate::Mesh;

use super::*;
use crate::args::{Cli, Command};
use crate::cluster::fake;
use crate::offline::Written;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: page, namespace: shop}
spec: {serviceAccountName: page, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stock, namespace: shop, labels: {app: stock}}
spec: {serviceAccountName: stock, containers: [{name: c, image: nginx, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
";

const STRICT: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

const READERS: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: stock}]
  rules: [{to: [{operation: {methods: [GET], paths: [/items/*]}}]}]
";

fn known(more: &str) -> Known {
    let found = parse::documents("shop.yaml", &(SHOP.to_owned() + more));
    assert_eq!(found.findings, []);
    let objects = found.objects.into_iter().map(|placed| (placed.object.key(), placed)).collect();
    let mesh = Mesh::default();
    let (written, notes) = Written { objects, ..Written::default() }.complete(&mesh).unwrap();
    offline::known(written, mesh, notes).unwrap()
}

#[test]
fn the_same_objects_decide_the_same() {
    let compared = compare(&known(READERS), &known(READERS), MOST_EDGES);
    assert!(compared.changes.is_empty(), "{:?}", compared.changes);
    assert!(compared.compared > 10, "{compared:?}");
}

#[test]
fn what_strict_refuses_is_who_comes_in_clear_text() {
    let compared = compare(&known(""), &known(STRICT), MOST_EDGES);
    assert!(!compared.changes.is_empty() && compared.newly_allowed == 0, "{compared:?}");
    for change in &compared.changes {
        assert_eq!(
            (change.source.as_str(), change.new.reason.as_str()),
            ("outside (clear text)", "MUTUAL_TLS_REQUIRED")
        );
        assert!(change.new.object.contains("istio_converted_static_strict"), "{change:?}");
    }
}

#[test]
fn requests_are_those_that_policies_name() {
    let compared = compare(&known(""), &known(READERS), MOST_EDGES);
    let of_page = |change: &&Change| change.source.ends_with("sa/page") && change.destination.starts_with("service");
    let requests: Vec<_> = compared.changes.iter().filter(of_page).filter_map(|one| one.request.as_deref()).collect();
    assert_eq!(requests, ["GET /", "POST /", "POST /items/x"]);
    assert!(compared.changes.iter().all(|change| change.new.verdict == Verdict::Refused));
    // Nor does anybody go round the waypoint.
    let round = |change: &&Change| change.destination == "workload shop/stock:8080";
    assert!(compared.changes.iter().any(|change| round(&change)), "{:?}", compared.changes);
    // And back again.
    let back = compare(&known(READERS), &known(""), MOST_EDGES);
    assert_eq!((back.newly_allowed, back.newly_refused), (compared.newly_refused, 0));
}

#[test]
fn what_is_beyond_the_bound_is_counted() {
    let compared = compare(&known(""), &known(STRICT), 3);
    assert_eq!(compared.compared, 3);
    assert!(compared.left_out > 0);
}

/// Whether OLD and NEW are of the trust domain `td.example`.
async fn are_of_it(line: &[&str]) -> (bool, bool) {
    let parsed = Cli::try_parse_from([&["stillmesh", "policy", "diff"], line].concat()).unwrap();
    let Command::Policy(Policy::Diff(args)) = parsed.command else { panic!("not policy diff") };
    let (old, new) = both(&args).await.unwrap();
    let is_there = |known: &Known| known.mesh.trust_domain.as_str() == "td.example";
    assert!(new.workloads.iter().all(|one| one.trust_domain == new.mesh.trust_domain), "{:?}", new.workloads);
    (is_there(&old), is_there(&new))
}

#[tokio::test]
async fn both_meshes_are_of_the_trust_domain_that_is_said_or_runs() {
    let file = || {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), SHOP).unwrap();
        file
    };
    let (old, new) = (file(), file());
    let (old, new) = (old.path().display().to_string(), new.path().display().to_string());
    assert_eq!(are_of_it(&[&old, &new]).await, (false, false));
    assert_eq!(are_of_it(&[&old, &new, "--trust-domain", "td.example"]).await, (true, true));
    let server = fake::of_trust_domain("td.example").await.unwrap();
    assert_eq!(are_of_it(&["--live", &new, "--kubeconfig", &server.kubeconfig()]).await, (true, true));
}
