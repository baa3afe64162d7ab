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
apiVersion: apps/v1
kind: Deployment
metadata: {name: page, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: page}}
  template:
    metadata: {labels: {app: page}}
    spec: {serviceAccountName: page, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stock, namespace: shop, labels: {app: stock}}
spec: {serviceAccountName: stock, containers: [{name: c, image: nginx, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {clusterIP: 10.43.7.7, selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: street}
spec: {containers: [{name: c, image: nginx}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-page, namespace: shop}
spec:
  selector: {matchLabels: {app: stock}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/page]}}]}]
";

const WAYPOINT: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: goods, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: goods}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: goods, namespace: shop, labels: {app: goods}}
spec: {containers: [{name: c, image: nginx}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: goods}]
  rules:
  - to: [{operation: {methods: [GET], paths: [/goods/*]}}]
    when: [{key: 'request.auth.claims[group]', values: [staff]}]
  - to: [{operation: {paths: [/open]}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: staff, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: goods}]
  jwtRules: [{issuer: 'https://issuer', jwks: '{\"keys\": []}'}]
";

fn known(text: &str) -> Known {
    let found = parse::documents("shop.yaml", text);
    assert_eq!(found.findings, []);
    let objects = found.objects.into_iter().map(|placed| (placed.object.key(), placed)).collect();
    let mesh = Mesh::default();
    let (written, notes) = Written { objects, ..Written::default() }.complete(&mesh).unwrap();
    offline::known(written, mesh, notes).unwrap()
}

/// What becomes of it: the code, policy and nearest miss of the hop that decides.
async fn ask(known: &Known, source: &str, destination: &str, request: &request::Request) -> (String, String, bool) {
    let place = Place::Objects(known.objects.clone());
    let who = ends::Who { place: &place, snapshot: &known.snapshot, mesh: &known.mesh, workloads: &known.workloads };
    let (client, _) = who.client(source, "shop", None).await.unwrap();
    let (to, _) = who.destination(destination, "shop").await.unwrap();
    let request = request.read().unwrap();
    let asked =
        Asked { snapshot: &known.snapshot, client: &client, to: &to, request: request.as_ref(), server_name: None };
    let (outcomes, _) = outcomes(&asked);
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    let hops = &outcomes[0].connection.hops;
    let told = hops.iter().find(|told| told.refused).or(hops.last()).cloned().unwrap_or_default();
    (told.reason, told.object, outcomes[0].connection.refused)
}

fn answer(code: &str, object: &str, refused: bool) -> (String, String, bool) {
    (code.to_owned(), object.to_owned(), refused)
}

#[tokio::test]
async fn connections_are_decided_as_tunnels_would() {
    let known = known(SHOP);
    assert!(known.notes.iter().any(|note| note.contains("street")), "{:?}", known.notes);
    let none = request::Request::default();
    for (source, destination, code, object, refused) in [
        ("deploy/page", "stock", "ALLOWED_BY", "shop/only-page", false),
        ("deploy/page", "stock:81", "NO_SERVICE_PORT", "", true),
        ("deploy/page", "nobody", "NO_HEALTHY_ENDPOINT", "", true),
        ("deploy/page", "pod/stock", "ALLOWED_BY", "shop/only-page", false),
        ("deploy/page", "10.43.7.7:80", "ALLOWED_BY", "shop/only-page", false),
        ("stock", "stock", "NO_ALLOW_MATCHED", "shop/only-page", true),
        ("spiffe://cluster.local/ns/far/sa/away", "stock", "NO_ALLOW_MATCHED", "shop/only-page", true),
        ("spiffe://cluster.local/ns/shop/sa/page", "stock", "ALLOWED_BY", "shop/only-page", false),
        ("outside", "stock", "NO_ALLOW_MATCHED", "shop/only-page", true),
        ("street/visitor", "stock", "NO_ALLOW_MATCHED", "shop/only-page", true),
        ("deploy/page", "outside:443", "UNMANAGED", "", false),
        ("deploy/page", "street/visitor:1", "TO_WORKLOAD", "", false),
    ] {
        let found = ask(&known, source, destination, &none).await;
        assert_eq!(found, answer(code, object, refused), "{source} to {destination}");
    }
}

#[tokio::test]
async fn what_a_peer_authentication_asks_for_is_asked_of_who_is_outside() {
    let strict = "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\n\
                  spec: {mtls: {mode: STRICT}}\n";
    let known = known(&(SHOP.to_owned() + strict));
    let none = request::Request::default();
    let (code, _, refused) = ask(&known, "outside", "stock", &none).await;
    assert_eq!((code.as_str(), refused), ("MUTUAL_TLS_REQUIRED", true));
    assert!(!ask(&known, "deploy/page", "stock", &none).await.2);
}

#[tokio::test]
async fn requests_are_decided_as_waypoints_would() {
    let known = known(&(SHOP.to_owned() + WAYPOINT));
    let request = |method: &str, path: &str, claims: &[&str]| request::Request {
        method: Some(method.to_owned()),
        path: Some(path.to_owned()),
        claims: claims.iter().map(|claim| (*claim).to_owned()).collect(),
        ..request::Request::default()
    };
    for (request, code, refused) in [
        (request("GET", "/open", &[]), "", false),
        (request("GET", "/goods/1", &[]), "NO_ALLOW_MATCHED", true),
        (request("GET", "/goods/1", &["group=staff"]), "", false),
        (request("POST", "/goods/1", &["group=staff"]), "NO_ALLOW_MATCHED", true),
        (request("GET", "/goods/1", &["group=staff", "iss=https://other"]), "TOKEN_REFUSED", true),
    ] {
        let (found, _, is_refused) = ask(&known, "deploy/page", "goods", &request).await;
        assert_eq!(is_refused, refused, "{request:?}: {found}");
        assert!(!refused || found == code, "{request:?}: {found}");
    }
    // Nobody goes round the waypoint.
    let (code, object, refused) = ask(&known, "deploy/page", "pod/goods:8080", &request::Request::default()).await;
    assert_eq!((code.as_str(), refused), ("DENIED_BY", true));
    assert!(object.contains("waypoint_only"), "{object}");
}

/// The trust domain of the mesh that is asked about.
async fn trust_domain(line: &[&str]) -> String {
    let parsed = Cli::try_parse_from([&["stillmesh", "simulate", "outside", "stock"], line].concat()).unwrap();
    let Command::Simulate(args) = parsed.command else { panic!("not simulate") };
    know(&args).await.unwrap().mesh.trust_domain.to_string()
}

#[tokio::test]
async fn the_trust_domain_is_that_of_the_mesh_that_is_asked_about() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), SHOP).unwrap();
    let path = file.path().display().to_string();
    assert_eq!(trust_domain(&["-f", &path]).await, "cluster.local");
    assert_eq!(trust_domain(&["-f", &path, "--trust-domain", "td.example"]).await, "td.example");
    let server = fake::of_trust_domain("td.example").await.unwrap();
    assert_eq!(trust_domain(&["--live", "--kubeconfig", &server.kubeconfig()]).await, "td.example");
}
