//! Tells the API server which CA has signed the webhook's certificate: `caBundle` in the ValidatingWebhookConfiguration
//! that was installed. Everything else in it is its installer's.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::watch_object;
use serde_json::{Value, json};
use stillmesh_cluster::{Cluster, Leader};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::cluster::{MANAGER, chain};
use crate::serve::Signing;

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The least time between two writes: another writer is not raced.
const PAUSE: Duration = Duration::from_secs(5);

/// Who keeps the registration; the leader.
#[derive(Clone)]
pub(crate) struct Registration {
    pub cluster: Cluster,
    pub leader: Leader,
    pub signing: Signing,
    /// The namespace of the service that is called.
    pub namespace: String,
    pub name: String,
}

impl Registration {
    /// The name of the configuration of a revision.
    pub fn name_of(revision: &str) -> String {
        match revision {
            "" | "default" => "stillmesh-validator".to_owned(),
            revision => format!("stillmesh-validator-{revision}"),
        }
    }

    /// Keeps it, for ever.
    pub async fn keep(mut self) {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.cluster.client());
        let mut objects = pin!(watch_object(api.clone(), &self.name));
        let mut held = None;
        loop {
            tokio::select! {
                object = objects.next() => match object {
                    Some(Ok(object)) => held = object,
                    Some(Err(error)) => {
                        warn!(%error, name = self.name, "the webhook's configuration cannot be watched");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    None => return,
                },
                changed = self.signing.changed() => if changed.is_err() { return },
            }
            let roots = self.signing.borrow_and_update().root_pem().to_owned();
            let Some(patch) = held.as_ref().and_then(|object| patch(object, &self.namespace, roots.as_bytes())) else {
                continue;
            };
            let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let patch = match serde_json::from_value(patch) {
                Ok(patch) => Patch::<()>::Json(patch),
                Err(error) => {
                    warn!(%error, "the webhook's configuration cannot be patched");
                    continue;
                }
            };
            let write = timeout(DEADLINE, api.patch(&self.name, &parameters, &patch));
            match self.leader.write(write).await {
                Ok(Ok(Ok(object))) => {
                    info!(name = self.name, "the webhook's configuration names the mesh's roots");
                    held = Some(object);
                }
                // Whoever was quicker is heard by the watch.
                Ok(Ok(Err(kube::Error::Api(status)))) if matches!(status.code, 404 | 409 | 422) => {}
                Ok(Ok(Err(error))) => warn!(problem = chain(&error), "the webhook's configuration cannot be written"),
                Ok(Err(_)) => warn!("the API server does not answer about the webhook's configuration"),
                Err(_) => return,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What has to change so that each webhook that calls a service of this namespace trusts these roots; `None` where
/// nothing has to.
fn patch(object: &ValidatingWebhookConfiguration, namespace: &str, roots: &[u8]) -> Option<Value> {
    let webhooks = object.webhooks.iter().flatten().enumerate();
    let ours = webhooks.filter(|(_, webhook)| {
        let service = webhook.client_config.service.as_ref();
        service.is_some_and(|service| service.namespace == namespace)
    });
    let wrong =
        ours.filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref().is_none_or(|bundle| bundle.0 != roots));
    let bundle = k8s_openapi::ByteString(roots.to_vec());
    let mut steps: Vec<Value> = wrong
        .map(|(index, _)| {
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            json!({"op": "add", "path": path, "value": bundle})
        })
        .collect();
    if steps.is_empty() {
        return None;
    }
    // Places in the list hold for this version only.
    steps.insert(
        0,
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": object.metadata.resource_version}),
    );
    Some(Value::Array(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(bundle: Option<&str>) -> ValidatingWebhookConfiguration {
        let hook = |namespace: &str| {
            let mut config = json!({"service": {"name": "c", "namespace": namespace}});
            if let Some(bundle) = bundle {
                config["caBundle"] = json!(k8s_openapi::ByteString(bundle.as_bytes().to_vec()));
            }
            json!({"name": "a.b.c", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": config})
        };
        serde_json::from_value(json!({
            "metadata": {"name": "x", "resourceVersion": "7"}, "webhooks": [hook("other"), hook("mesh")],
        }))
        .unwrap()
    }

    #[test]
    fn only_webhooks_of_the_mesh_are_touched_and_only_where_they_differ() {
        for before in [None, Some("old")] {
            let patch = patch(&configuration(before), "mesh", b"R").unwrap();
            assert_eq!(patch[0]["value"], "7");
            assert_eq!(patch[1]["path"], "/webhooks/1/clientConfig/caBundle");
            assert_eq!(patch.as_array().unwrap().len(), 2);
        }
        assert_eq!(patch(&configuration(Some("R")), "mesh", b"R"), None);
        assert_eq!(patch(&configuration(None), "elsewhere", b"R"), None);
    }
}
