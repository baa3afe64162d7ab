//! The CA: kept, written back, plugged in, rotated.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use stillmesh_api::ca;
use stillmesh_test_api::{Controller, World, csr};

async fn data(world: &World) -> Option<std::collections::BTreeMap<String, ByteString>> {
    world.secrets().get_opt("stillmesh-ca").await.unwrap().and_then(|secret| secret.data)
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_share_one_root_which_is_in_every_namespace() {
    let world = World::new().await;
    let (one, other) = tokio::join!(Controller::start(&world, &[]), Controller::start(&world, &[]));
    one.ready().await;
    other.ready().await;
    let more = format!("{}-more", world.namespace);
    world.until("the roots are there", || async { !world.roots_in(&world.namespace).await.is_empty() }).await;
    let roots = world.roots_in(&world.namespace).await;
    assert_eq!(roots.matches("BEGIN").count(), 1);
    assert_eq!(roots.as_bytes(), data(&world).await.unwrap()["root-cert.pem"].0);
    // A new namespace gets them; what is deleted or changed comes back.
    world.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": more}})).await;
    let restored = || async { world.roots_in(&more).await == roots };
    world.until("a new namespace has them", restored).await;
    world.maps(&more).delete("istio-ca-root-cert", &DeleteParams::default()).await.unwrap();
    world.until("a deleted map comes back", restored).await;
    let garbage = Patch::Merge(json!({"data": {"root-cert.pem": "garbage"}}));
    world.maps(&more).patch("istio-ca-root-cert", &PatchParams::default(), &garbage).await.unwrap();
    world.until("a changed one is put right", restored).await;
    assert_eq!(world.roots_in("kube-public").await, "");
    // Both serve, and end, with the same CA.
    let tunnel = world.pod("ztunnel-1", "ztunnel", "api-node-1", "10.1.0.1").await;
    let token = world.token("ztunnel", "istio-ca", Some(&tunnel)).await;
    for controller in [&one, &other] {
        let client = ca::Client::new(controller.control_plane(&roots, &token));
        let chain = client.sign(&csr(), None, Duration::from_secs(60)).await.unwrap();
        assert_eq!(chain[1], roots);
    }
    one.stop().await;
    other.stop().await;
    world.client();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roots_of_another_control_plane_are_left_to_it_and_told() {
    let world = World::new().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let theirs = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let shared = format!("{}-shared", world.namespace);
    world.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": shared}})).await;
    let istiod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "istiod", "namespace": shared, "labels": {"app": "istiod"}},
        "spec": {"containers": [{"name": "discovery", "image": "x"}]},
    });
    world.apply(istiod).await;
    let (map, data) = ("istio-ca-root-cert", json!({"root-cert.pem": theirs}));
    let keeps = PatchParams::apply("pilot-discovery");
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map}, "data": data});
    world.maps(&shared).patch(map, &keeps, &Patch::Apply(&object)).await.unwrap();
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    world.until("the roots are there", || async { !world.roots_in(&world.namespace).await.is_empty() }).await;
    let roots = world.roots_in(&world.namespace).await;
    controller.says("/debug/findings", "kept by pilot-discovery").await;
    controller.says("/metrics", "stillmesh_controller_foreign_root_maps 1").await;
    assert_eq!(world.roots_in(&shared).await, theirs);
    // What a user does to it is the user's, and put right.
    let edited = PatchParams { field_manager: Some("kubectl-patch".to_owned()), ..PatchParams::default() };
    let garbage = Patch::Merge(json!({"data": {"root-cert.pem": "garbage"}}));
    world.maps(&shared).patch(map, &edited, &garbage).await.unwrap();
    world.until("it has the mesh's roots", || async { world.roots_in(&shared).await == roots }).await;
    controller.says("/metrics", "stillmesh_controller_foreign_root_maps 0").await;
    // What a control plane that is gone has left is nobody's.
    world.maps(&shared).patch(map, &keeps.force(), &Patch::Apply(&object)).await.unwrap();
    controller.says("/metrics", "stillmesh_controller_foreign_root_maps 1").await;
    let pods = kube::Api::<Pod>::namespaced(world.client(), &shared);
    pods.delete("istiod", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    world.until("the mesh's roots are there", || async { world.roots_in(&shared).await == roots }).await;
    controller.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_deleted_or_damaged_is_written_back_and_survives_a_kill() {
    let world = World::new().await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    let kept = data(&world).await.unwrap();
    let back = || async { data(&world).await.as_ref() == Some(&kept) };
    world.secrets().delete("stillmesh-ca", &DeleteParams::default()).await.unwrap();
    world.until("a deleted Secret comes back", back).await;
    let garbage = Patch::Merge(json!({"stringData": {"ca-key.pem": "garbage"}}));
    world.secrets().patch("stillmesh-ca", &PatchParams::default(), &garbage).await.unwrap();
    world.until("a damaged one is put right", back).await;
    controller.kill().await;
    let again = Controller::start(&world, &[]).await;
    again.ready().await;
    assert!(back().await, "the same CA after a kill");
    again.stop().await;
    // Damaged while nobody knows it: nothing is overwritten, and it says what is wrong.
    world.secrets().patch("stillmesh-ca", &PatchParams::default(), &garbage).await.unwrap();
    let late = Controller::start(&world, &[]).await;
    late.says("/ready", "not ready: ").await;
    late.says("/ready", "ca-key.pem is not a private key").await;
    assert_eq!(data(&world).await.unwrap()["ca-key.pem"].0, b"garbage");
    let mend = Secret { data: Some(kept.clone()), ..Secret::default() };
    world.secrets().patch("stillmesh-ca", &PatchParams::default(), &Patch::Merge(&mend)).await.unwrap();
    late.ready().await;
    late.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_passes_through_both_roots_while_certificates_are_issued() {
    let world = World::new().await;
    let times = [("CA_ROOT_ANNOUNCE", "3s"), ("CA_ROOT_RETAIN", "3s")];
    let controller = Controller::start(&world, &times).await;
    controller.ready().await;
    world.until("the roots are there", || async { !world.roots_in(&world.namespace).await.is_empty() }).await;
    let first = world.roots_in(&world.namespace).await;
    let tunnel = world.pod("ztunnel-1", "ztunnel", "api-node-1", "10.1.0.1").await;
    let token = world.token("ztunnel", "istio-ca", Some(&tunnel)).await;
    let ask = Patch::Merge(json!({"metadata": {"annotations": {"stillmesh.io/rotate-root": "now"}}}));
    world.secrets().patch("stillmesh-ca", &PatchParams::default(), &ask).await.unwrap();
    let mut seen = vec![first.clone()];
    let mut trusted = first.clone();
    let count = |text: &str| text.matches("BEGIN").count();
    world
        .until("one new root is left", || {
            let (client, world) = (ca::Client::new(controller.control_plane(&trusted, &token)), &world);
            let (seen, trusted, first) = (&mut seen, &mut trusted, &first);
            let now = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    // Whoever holds the roots of a moment ago still reaches the controller and gets certificates.
                    client.sign(&csr(), None, Duration::from_secs(60)).await.expect("a certificate at every moment");
                    world.roots_in(&world.namespace).await
                })
            });
            if seen.last() != Some(&now) {
                seen.push(now.clone());
            }
            trusted.clone_from(&now);
            let done = count(&now) == 1 && now != *first;
            async move { done }
        })
        .await;
    let counts: Vec<usize> = seen.iter().map(|roots| count(roots)).collect();
    assert_eq!(counts, [1, 2, 2, 1], "announced, signs, retained, gone");
    assert!(seen[1].starts_with(&first) && seen[2].ends_with(&first));
    controller.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugged_in_ca_signs_and_its_list_of_revoked_certificates_is_everywhere() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
    let ca = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    };
    let world = World::new().await;
    let root = CertifiedIssuer::self_signed(ca("acme"), KeyPair::generate().unwrap()).unwrap();
    let signing = CertifiedIssuer::signed_by(ca("signing"), KeyPair::generate().unwrap(), &root).unwrap();
    let text = |pairs: &[(&str, String)]| -> serde_json::Value {
        pairs
            .iter()
            .map(|(key, text)| ((*key).to_owned(), text.as_str().into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut content = vec![
        ("ca-cert.pem", signing.pem()),
        ("ca-key.pem", signing.key().serialize_pem()),
        ("cert-chain.pem", signing.pem()),
        ("root-cert.pem", root.pem()),
    ];
    let secret = json!({"metadata": {"name": "cacerts"}, "stringData": text(&content)});
    let secret: Secret = serde_json::from_value(secret).unwrap();
    world.secrets().create(&PostParams::default(), &secret).await.unwrap();
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    assert!(data(&world).await.is_none(), "no root of its own is made");
    world.until("the roots are there", || async { world.roots_in(&world.namespace).await.contains("BEGIN") }).await;
    let roots = world.roots_in(&world.namespace).await;
    let tunnel = world.pod("ztunnel-1", "ztunnel", "api-node-1", "10.1.0.1").await;
    let token = world.token("ztunnel", "istio-ca", Some(&tunnel)).await;
    let client = ca::Client::new(controller.control_plane(&roots, &token));
    let chain = client.sign(&csr(), None, Duration::from_secs(60)).await.unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    // Garbage is told and changes nothing.
    let patch = |value: serde_json::Value| Patch::Merge(json!({"stringData": value}));
    let garbage = patch(json!({"ca-key.pem": "garbage"}));
    world.secrets().patch("cacerts", &PatchParams::default(), &garbage).await.unwrap();
    controller.says("/debug/findings", "not a private key").await;
    client.sign(&csr(), None, Duration::from_secs(60)).await.unwrap();
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2025, 1, 1),
        next_update: rcgen::date_time_ymd(2100, 1, 1),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let crl = list.signed_by(&root).unwrap().pem().unwrap();
    content.push(("ca-crl.pem", crl.clone()));
    world.secrets().patch("cacerts", &PatchParams::default(), &patch(text(&content))).await.unwrap();
    let held = || async { world.maps(&world.namespace).get_opt("istio-ca-crl").await.unwrap() };
    world
        .until("the list is in the namespace", || async {
            held().await.is_some_and(|map| map.data.unwrap_or_default().get("ca-crl.pem") == Some(&crl))
        })
        .await;
    let gone = Patch::Merge(json!({"data": {"ca-crl.pem": null}}));
    world.secrets().patch("cacerts", &PatchParams::default(), &gone).await.unwrap();
    world.until("it goes with the key", || async { held().await.is_none() }).await;
    controller.stop().await;
    world.end().await;
}
