use std::collections::BTreeMap;
use std::io::Read as _;

use serde_json::{Value, json};

use super::archive::Archive;
use super::gather::{Gatherer, Scope, kind_of};
use super::redact::{CUT, Redactor};
use crate::analyze::message::fits;
use crate::cluster::access::reach;
use crate::cluster::fake::{self, ApiServer};
use crate::cluster::objects::Objects;
use crate::why::place::Place;

fn redactor() -> Redactor {
    Redactor::new().unwrap()
}

/// Each has `S3CRET` where something secret stands.
const TEXTS: [&str; 43] = [
    "authorization: Bearer S3CRET-aaaa",
    "Authorization: Basic S3CRETaaaaaa==",
    "proxy-authorization: Digest username=\"x\", response=\"S3CRET\"",
    "GET /x?token=S3CRET&user=1",
    "GET /x?user=1&access_token=S3CRET HTTP/1.1",
    "{\"authorization\":\"Bearer S3CRET\",\"path\":\"/x\"}",
    "{\\\"authorization\\\":\\\"Bearer S3CRET\\\",\\\"path\\\":\\\"/x\\\"}",
    "{\"cookie\": \"a=S3CRET; b=S3CRET\"}",
    "cookie: session=S3CRET; other=S3CRET",
    "set-cookie: id=S3CRET; HttpOnly",
    "x-api-key: S3CRET",
    "password=S3CRET",
    "DB_PASSWORD: S3CRET",
    "db.password = 'S3CRET with blanks'",
    "{\"clientSecret\": \"S3CRET with \\\"quotes\\\" S3CRET\"}",
    "client_secret=S3CRET",
    "apiKey: S3CRET",
    "--password S3CRET --verbose",
    "run --auth-token=S3CRET",
    "postgres://user:S3CRET@db:5432/x",
    "https://S3CRET@example.com/repo.git",
    "amqp://u:S3CRET@mq",
    "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJTM0NSRVQifQ.S3CRETsignature-_",
    "token eyJhbGciOiJSUzI1NiJ9.S3CRET.S3CRET.S3CRET.S3CRET",
    "eyJhdXRocyI6eyJyZWciOnsiYXV0aCI6IlMzQ1JFVCJ9S3CRET",
    "-----BEGIN PRIVATE KEY-----\nS3CRET\nS3CRET\n-----END PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\\nS3CRET\\n-----END EC PRIVATE KEY-----\\n",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nS3CRET cut off",
    "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBTUJNR0J5cUdTTTQ5QWdFR0S3CRET",
    "{\"kty\":\"oct\",\"k\":\"S3CRETaaaaaaaaaaaaaaaa\"}",
    "AKIAS3CRETAAAAAAAAAA",
    "ghp_S3CRETaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "glpat-S3CRETaaaaaaaaaaaaaa",
    "xoxb-S3CRET-aaaaaaaaaa",
    "sk_live_S3CRETaaaaaaaaaaa",
    "hvs.S3CRETaaaaaaaaaaaaaaaaaaaa",
    "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBTUJNR0J5\nS3CRETaaaaaaaaaaaaaaaaaaaa\n",
    "Cookie: a=\"b\"; session=S3CRET",
    "Authorization: Hawk id=\"x\", mac=\"S3CRET\"",
    "map[\"Cookie\":[\"sid=S3CRET\"]]",
    "{\"password\":[\"S3CRET\"]}",
    "postgres://u:p@S3CRET@db/x",
    "MIGHS3CRET\nMIGHS3CRET\n-----END PRIVATE KEY-----\nand so on",
];

#[test]
fn a_gateway_at_the_edge_is_none_of_the_meshs_own_pods() {
    let of = |class: &str| {
        json!({"metadata": {"labels": {"gateway.networking.k8s.io/gateway-name": "g",
            "gateway.networking.k8s.io/gateway-class-name": class}}})
    };
    assert_eq!((kind_of(&of("istio-waypoint")), kind_of(&of("istio"))), (Some("waypoint"), None));
}

#[test]
fn secrets_are_cut_from_texts_by_their_shape() {
    let redactor = redactor();
    for text in TEXTS {
        let cut = redactor.text(text);
        assert!(!cut.contains("S3CRET"), "{text} became {cut}");
        assert!(cut.contains(CUT), "{text} became {cut}");
    }
}

#[test]
fn a_key_behind_a_certificate_and_names_of_several_secrets_are_cut() {
    let bundle = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJmVENDCi0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0KLS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBCi0tLS0tRU5EIFBSSVZBVEUgS0VZLS0tLS0K";
    assert_eq!(redactor().text(bundle), CUT);
    let mut all = json!({"tokens": ["S3CRET"], "PASSWORD_1": "S3CRET", "apiKeys": {"a": "S3CRET"}});
    redactor().value(&mut all);
    assert!(!all.to_string().contains("S3CRET"), "{all}");
}

#[test]
fn what_explains_a_mesh_stays() {
    let redactor = redactor();
    for text in [
        "spiffe://cluster.local/ns/shop/sa/web",
        "2026-11-22T10:00:00Z\tinfo\taccess\tconnection complete src.addr=10.0.0.1:4000 dst.service=\"web.shop.svc.cluster.local\"",
        "GET /items/7?page=2 HTTP/1.1",
        "refused: NO_ALLOW_MATCHED: allow policies apply and none matched: shop/readers",
        "istio_requests_total{reporter=\"waypoint\",source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"} 7",
        "web-6d5f8b7c9d-x2x4z",
        "sha256:6e634e2e0ebac1ee034020da1ca582e17ffe4e0f5e985823721e168928136dcb",
        "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJmVENDQVNPZ0F3SUJBZ0lVTkw=",
        "-----BEGIN CERTIFICATE-----\nMIIBfTCCASOgAwIBAgIU\n-----END CERTIFICATE-----",
    ] {
        assert_eq!(redactor.text(text), text);
    }
}

#[test]
fn objects_are_cut_by_their_structure() {
    let mut all = json!([
        {"kind": "Pod", "metadata": {"name": "a", "managedFields": [{"x": "S3CRET"}], "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "S3CRET", "vault.example/token": "S3CRET", "note": "kept"}},
            "spec": {"containers": [{"name": "m", "image": "kept:1", "args": ["--password", "S3CRET", "-v", "--api-key=S3CRET"],
                "env": [{"name": "HARMLESS", "value": "S3CRET"}, {"name": "X", "valueFrom": {"secretKeyRef": {"name": "kept", "key": "kept"}}}],
                "livenessProbe": {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": "S3CRET"}]}}}],
                "volumes": [{"name": "v", "secret": {"secretName": "kept"}}]}},
        {"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "S3CRET"}},
        {"kind": "HTTPRoute", "metadata": {"name": "r"}, "spec": {"rules": [{"filters": [{"requestHeaderModifier": {
            "set": [{"name": "x-api-key", "value": "S3CRET"}]}}], "matches": [{"headers": [{"name": "cookie", "value": "S3CRET"}]}]}]}},
        {"kind": "VirtualService", "metadata": {"name": "v"}, "spec": {"http": [{"match": [{"headers": {"authorization": {"exact": "S3CRET"}}}],
            "headers": {"request": {"set": {"Authorization": "S3CRET"}}}}]}},
        {"kind": "AuthorizationPolicy", "metadata": {"name": "p"}, "spec": {"rules": [{"when": [
            {"key": "request.headers[authorization]", "values": ["S3CRET"], "notValues": ["S3CRET"]}]}]}},
        {"kind": "RequestAuthentication", "metadata": {"name": "q"}, "spec": {"jwtRules": [{"issuer": "kept", "jwks": "S3CRET"}]}},
        {"set": [["authorization", "S3CRET"], ["x-note", "kept"]], "wanted": ["request.headers[cookie]", [{"Exact": "S3CRET"}]]},
        {"consistentHash": {"httpCookie": {"name": "kept"}}},
    ]);
    redactor().value(&mut all);
    let text = all.to_string();
    assert!(!text.contains("S3CRET"), "{all:#}");
    assert_eq!(text.matches("kept").count(), 8, "{all:#}");
}

#[test]
fn the_value_of_a_secret_variable_is_cut_wherever_it_stands() {
    let mut redactor = redactor();
    let pod = json!({"spec": {"containers": [{"env": [
        {"name": "DB_PASSWORD", "value": "correct-horse"},
        {"name": "DB_PASSWORD_LONG", "value": "unmentioned"},
        {"name": "DATABASE_URL", "value": "postgres://me:battery@db/x"},
        {"name": "MODE", "value": "production"},
        {"name": "PIN_TOKEN", "value": "1234"},
    ]}]}});
    redactor.learn(&pod);
    assert_eq!(
        redactor.text("it said correct-horse in production, 1234"),
        format!("it said {CUT} in production, 1234")
    );
    assert!(!redactor.text("dialled postgres://me:battery@db/x").contains("battery"));
}

#[test]
fn namespaces_are_meant_by_name_or_pattern_and_the_meshs_own_always() {
    for (pattern, name, is) in [
        ("shop", "shop", true),
        ("shop", "shops", false),
        ("shop-*", "shop-eu", true),
        ("*-eu", "shop-eu", true),
        ("*", "x", true),
        ("a*b", "ab", true),
        ("a*b", "abc", false),
    ] {
        assert_eq!(fits(pattern, name), is, "{pattern} {name}");
    }
    let scope = |include: &[&str], exclude: &[&str]| Scope {
        include: include.iter().map(|one| (*one).to_owned()).collect(),
        exclude: exclude.iter().map(|one| (*one).to_owned()).collect(),
        mesh_namespace: "mesh".to_owned(),
        since: std::time::Duration::from_secs(60),
    };
    assert!(scope(&[], &["kube-*"]).takes("shop") && !scope(&[], &["kube-*"]).takes("kube-system"));
    assert!(scope(&["shop"], &[]).takes("shop") && !scope(&["shop"], &[]).takes("cart"));
    assert!(!scope(&["shop*"], &["shop-eu"]).takes("shop-eu"));
    assert!(scope(&["shop"], &["mesh"]).takes("mesh") && scope(&["shop"], &[]).takes(""));
}

#[test]
fn what_is_no_object_is_left_as_it_is() {
    let mut value = json!({"automountServiceAccountToken": true, "count": 7, "nothing": null});
    redactor().value(&mut value);
    assert_eq!(value, json!({"automountServiceAccountToken": true, "count": 7, "nothing": Value::Null}));
}

#[tokio::test]
async fn objects_are_read_page_by_page_and_what_is_secret_in_the_last_is_cut_in_the_first() {
    let pod = |name: &str, more: serde_json::Value| json!({"metadata": {"name": name, "namespace": "shop", "annotations": {"note": "it said correct-horse"}}, "spec": more});
    let variable = json!({"containers": [{"env": [{"name": "DB_PASSWORD", "value": "correct-horse"}]}]});
    let namespaces = [json!({"metadata": {"name": "shop"}}), json!({"metadata": {"name": "other"}})];
    let server = ApiServer::start(move |path, query| match path {
        "/api/v1/namespaces" => Some(fake::list(&namespaces)),
        "/api/v1/pods" if query.contains("continue=second") => Some(fake::list(&[pod("b", variable.clone())])),
        "/api/v1/pods" => Some((
            200,
            json!({"metadata": {"continue": "second"}, "items": [pod("a", json!({})), pod("c", json!({}))]}),
        )),
        "/api/v1/services" => Some(fake::forbidden("services")),
        "/apis/gateway.networking.k8s.io/v1beta1/referencegrants" => {
            Some(fake::list(&[json!({"metadata": {"name": "g", "namespace": "shop"}})]))
        }
        _ => None,
    })
    .await
    .unwrap();
    let place = Place::Cluster { objects: Objects::new(reach(&server.access()).await.unwrap().client()) };
    let scope = Scope {
        include: vec!["sh*".to_owned(), "none-*".to_owned()],
        exclude: Vec::new(),
        mesh_namespace: "mesh".to_owned(),
        since: std::time::Duration::from_secs(60),
    };
    let gatherer = Gatherer::new(place, scope, tokio::time::Instant::now() + std::time::Duration::from_secs(300));
    let (archive, missing) = gatherer.gather(Archive::new(1)).await.unwrap();
    assert!(missing.iter().any(|one| one.starts_with("objects of kind Service: ")), "{missing:?}");
    assert!(missing.contains(&"--include none-*: there is no such namespace".to_owned()), "{missing:?}");
    let packed = archive.finish().unwrap().content;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice())).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let path = entry.path().unwrap().display().to_string();
        assert!(files.insert(path.clone(), content).is_none(), "{path} is written once");
    }
    let pods: Vec<Value> = serde_saphyr::from_str(&files["bug-report/objects/shop/Pod.yaml"]).unwrap();
    let names: Vec<&str> = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["a", "c", "b"], "one list of all pages");
    assert!(files.values().all(|content| !content.contains("correct-horse")), "{files:?}");
    assert!(
        files.contains_key("bug-report/objects/_cluster/Namespace.yaml")
            && files.contains_key("bug-report/objects/shop/ReferenceGrant.yaml")
            && files.contains_key("bug-report/missing.txt")
    );
}
