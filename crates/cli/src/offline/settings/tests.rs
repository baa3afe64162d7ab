use clap::Parser;
use serde_json::json;
use stillmesh_k8s::parse;

use super::*;
use crate::cluster::access::reach;
use crate::cluster::fake::{self, ApiServer};
use crate::offline::{self, Written};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

fn typed(flags: &[&str]) -> Settings {
    Line::try_parse_from([&["stillmesh"], flags].concat()).unwrap().settings
}

fn controller(env: &[(&str, &str)]) -> Value {
    let env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({"metadata": {"name": "stillmesh-controller"},
        "spec": {"template": {"spec": {"containers": [{"name": "injected"}, {"name": "controller", "env": env}]}}}})
}

#[test]
fn a_controllers_deployment_says_what_holds_for_its_mesh() {
    let said = |deployment: &Value| told(container(deployment).unwrap(), &Maps::new()).map(|told| told.mesh);
    let mesh = said(&controller(&[
        ("TRUST_DOMAIN", "td.example"),
        ("ROOT_NAMESPACE", "roots"),
        ("CLUSTER_DOMAIN", "cluster.example"),
        ("CLUSTER_ID", "c1"),
        ("NETWORK", "net1"),
    ]));
    let expected = Mesh {
        cluster: "c1".into(),
        network: "net1".into(),
        domain: "cluster.example".into(),
        trust_domain: TrustDomain::new("td.example").unwrap(),
        root_namespace: "roots".into(),
        ..Mesh::default()
    };
    assert_eq!(mesh.unwrap(), expected);
    assert_eq!(said(&controller(&[("TRUST_DOMAIN", "")])).unwrap(), Mesh::default());
    let error = said(&controller(&[("TRUST_DOMAIN", "A B")])).unwrap_err().to_string();
    assert!(error.contains("TRUST_DOMAIN") && error.contains("A B"), "{error}");
}

/// What a container says, with one ConfigMap that may be read and one that may not.
fn of_container(container: Value) -> Told {
    let there = json!({"data": {"domain": "of.map", "ROOT_NAMESPACE": "roots"}});
    let maps = [("there".to_owned(), Ok(there)), ("hidden".to_owned(), Err("you may not".to_owned()))];
    told(&container, &maps.into()).unwrap()
}

#[test]
fn only_the_controllers_container_counts_and_its_flags_hold_over_its_variables() {
    let env = |domain: &str| json!([{"name": "TRUST_DOMAIN", "value": domain}]);
    let containers = json!([{"name": "injected", "env": env("injected")}, {"name": "controller", "env": env("own"),
        "args": ["controller", "--trust-domain=of.flags", "--root-namespace", "roots"]}, {"name": "last", "env": env("last")}]);
    let deployment = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let told = of_container(container(&deployment).unwrap().clone());
    assert_eq!((told.mesh.trust_domain.as_str(), &*told.mesh.root_namespace), ("of.flags", "roots"));
    assert_eq!(told.assumed(&told.mesh, Some(&[])), None);
}

#[test]
fn configmaps_are_read_and_what_cannot_be_read_is_said_with_the_flag_that_gives_it() {
    let of_map =
        |key: &str, name: &str| json!({"name": key, "valueFrom": {"configMapKeyRef": {"name": name, "key": "domain"}}});
    let told = of_container(
        json!({"env": [of_map("TRUST_DOMAIN", "there")], "envFrom": [{"configMapRef": {"name": "there"}}]}),
    );
    assert_eq!((told.mesh.trust_domain.as_str(), &*told.mesh.root_namespace), ("of.map", "roots"));
    assert_eq!(told.assumed(&told.mesh, Some(&[])), None);
    let secret = json!({"name": "ROOT_NAMESPACE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
    let pods_own = json!({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
    let told = of_container(json!({"env": [of_map("TRUST_DOMAIN", "hidden"), secret, pods_own]}));
    let assumed = told.assumed(&told.mesh, Some(&[])).unwrap();
    for part in [
        "TRUST_DOMAIN comes from ConfigMap hidden, which cannot be read (you may not): assumed is cluster.local (--trust-domain)",
        "ROOT_NAMESPACE comes from Secret s: assumed is istio-system (--root-namespace)",
    ] {
        assert!(assumed.contains(part), "{assumed}");
    }
    assert!(!assumed.contains("POD_NAME"), "{assumed}");
    let without_flags = told.assumed(&told.mesh, None).unwrap();
    assert!(
        without_flags.contains("assumed is istio-system;") && without_flags.ends_with("assumed is cluster.local"),
        "{without_flags}"
    );
    assert_eq!(told.assumed(&told.mesh, Some(&["TRUST_DOMAIN", "ROOT_NAMESPACE"])), None);
    let refers = json!([{"name": "TRUST_DOMAIN", "value": "$(CLUSTER).example"}]);
    assert!(
        of_container(json!({"env": refers}))
            .assumed(&Mesh::default(), Some(&[]))
            .is_some_and(|said| said.contains("$(CLUSTER)"))
    );
}

#[test]
fn files_are_of_istios_defaults_unless_it_is_said_and_a_configmap_comes_first() {
    assert_eq!(typed(&[]).of_files(), Mesh::default());
    let mesh = typed(&["--trust-domain", "td.example", "--root-namespace", "roots"]).of_files();
    assert_eq!((mesh.trust_domain.as_str(), &*mesh.root_namespace), ("td.example", "roots"));
    assert!(Line::try_parse_from(["stillmesh", "--trust-domain", "A B"]).is_err());
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: roots}\n\
        data: {mesh: 'trustDomain: of-the-map'}\n";
    let mut written = Written::default();
    written.add(parse::documents("a.yaml", text).objects);
    assert_eq!(offline::known(written, mesh, Vec::new()).unwrap().mesh.trust_domain.as_str(), "of-the-map");
}

/// What holds for a cluster whose API server answers so to the question for controllers, and what is noted.
async fn of(answer: (u16, Value), flags: &[&str]) -> (Mesh, Option<String>) {
    let server = ApiServer::start(move |path, query| {
        let is_asked = path == "/apis/apps/v1/namespaces/meshes/deployments"
            && query.contains("labelSelector=app.kubernetes.io%2Fname%3Dstillmesh-controller");
        is_asked.then(|| answer.clone())
    });
    let server = server.await.unwrap();
    let objects = Objects::new(reach(&server.access()).await.unwrap().client());
    typed(&[&["-i", "meshes"], flags].concat()).of(&Place::Cluster { objects }).await
}

#[tokio::test]
async fn a_cluster_is_asked_and_what_is_said_comes_before_its_answer() {
    let answer = fake::list(&[controller(&[("TRUST_DOMAIN", "td.example"), ("ROOT_NAMESPACE", "roots")])]);
    let (mesh, assumed) = of(answer.clone(), &[]).await;
    assert_eq!((mesh.trust_domain.as_str(), &*mesh.root_namespace, assumed), ("td.example", "roots", None));
    let (mesh, assumed) = of(answer, &["--trust-domain", "other.example"]).await;
    assert_eq!((mesh.trust_domain.as_str(), &*mesh.root_namespace, assumed), ("other.example", "roots", None));
}

#[tokio::test]
async fn what_had_to_be_assumed_is_said() {
    let (mesh, assumed) = of(fake::forbidden("deployments is forbidden"), &["--root-namespace", "roots"]).await;
    assert_eq!(mesh, Mesh { root_namespace: "roots".into(), ..Mesh::default() });
    let assumed = assumed.unwrap();
    for part in ["deployments is forbidden", "trust domain cluster.local (--trust-domain)", "root namespace roots"] {
        assert!(assumed.contains(part), "{assumed}");
    }
    let (mesh, assumed) = of(fake::list(&[]), &[]).await;
    assert_eq!(mesh, Mesh::default());
    assert!(assumed.unwrap().contains("namespace meshes has no Deployment"));
}
