//! The webhook as the API server calls it: over TLS, trusting what the registration says.

use std::sync::Arc;

use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use stillmesh_cluster::{Candidate, Terms};
use stillmesh_test_api::{Controller, World};
use tokio::net::TcpStream;

fn name(world: &World) -> String {
    format!("stillmesh-validator-{}", world.namespace)
}

async fn bundle(world: &World) -> Option<String> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(world.client());
    let object = api.get(&name(world)).await.unwrap();
    let bundle = object.webhooks?.first()?.client_config.ca_bundle.clone()?;
    String::from_utf8(bundle.0).ok()
}

/// Asks as the API server does; nothing where TLS or HTTP fails.
async fn ask(world: &World, controller: &Controller, bundle: &str, body: String) -> Option<(u16, Value)> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let service = format!("stillmesh-controller.{}.svc", world.namespace);
    let stream = TcpStream::connect(controller.webhook).await.unwrap();
    let stream = connector.connect(ServerName::try_from(service.clone()).unwrap(), stream).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    world.tasks.spawn("connection", async move { connection.await.is_ok() });
    let request =
        Request::post("/validate?timeout=5s").header("host", service).body(Full::new(Bytes::from(body))).unwrap();
    let answer = sender.send_request(request).await.ok()?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    Some((status, serde_json::from_slice(&body).unwrap_or_default()))
}

fn review(object: Value) -> String {
    let request = json!({"uid": "u", "operation": "CREATE", "namespace": "shop", "name": "p", "object": object});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_called_with_the_roots_that_the_leader_writes_and_explains_refusals() {
    let world = World::new().await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    world.until("the registration names the roots", || async { bundle(&world).await.is_some() }).await;
    let roots = bundle(&world).await.unwrap();
    let bad = json!({"rules": [{"to": [{"operation": {"ports": ["x"]}}]}]});
    let (status, answer) = ask(&world, &controller, &roots, review(world.policy_object("p", bad))).await.unwrap();
    let response = &answer["response"];
    assert_eq!((status, &response["uid"], &response["allowed"]), (200, &json!("u"), &json!(false)));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.rules[0].to[0].operation.ports[0]: \"x\" is not a port"), "{message}");
    let good = review(world.policy_object("p", json!({"action": "AUDIT", "rules": [{}]})));
    let (_, answer) = ask(&world, &controller, &roots, good.clone()).await.unwrap();
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("AUDIT"));
    assert_eq!(ask(&world, &controller, &roots, "garbage".to_owned()).await.unwrap().0, 400);
    assert_eq!(
        ask(&world, &controller, &roots, " ".repeat(5 << 20)).await.map(|(status, _)| status).unwrap_or(413),
        413
    );
    controller.says("/metrics", "galley_validation_failed{kind=\"AuthorizationPolicy\"} 1").await;
    // What somebody takes away comes back; what is not ours in it stays.
    let api: Api<ValidatingWebhookConfiguration> = Api::all(world.client());
    let mut object = api.get(&name(&world)).await.unwrap();
    if let Some(webhooks) = &mut object.webhooks {
        webhooks[0].client_config.ca_bundle = None;
        webhooks[0].timeout_seconds = Some(7);
    }
    object.metadata.managed_fields = None;
    api.replace(&name(&world), &Default::default(), &object).await.unwrap();
    world.until("it comes back", || async { bundle(&world).await.as_ref() == Some(&roots) }).await;
    assert_eq!(api.get(&name(&world)).await.unwrap().webhooks.unwrap()[0].timeout_seconds, Some(7));
    let _ = api.patch(&name(&world), &PatchParams::default(), &Patch::Merge(json!({}))).await;
    assert!(ask(&world, &controller, &roots, good).await.is_some());
    controller.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_keeps_its_own_registration_while_another_one_leads_the_mesh() {
    let world = World::new().await;
    let access = world.access(None).await;
    let (other, mut leader) =
        Candidate::new(&access, &world.namespace, "stillmesh-leader", "another-revision", Terms::default());
    let _other = world.tasks.spawn("another revision", other.run(world.tasks.token()));
    leader.gained().await;
    let controller = Controller::start(&world, &[]).await;
    controller.ready().await;
    world.until("the registration names the roots", || async { bundle(&world).await.is_some() }).await;
    assert_eq!(world.roots_in(&world.namespace).await, "", "these are the mesh's leader's");
    controller.stop().await;
    world.end().await;
}
