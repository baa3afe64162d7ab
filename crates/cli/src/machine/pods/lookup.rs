//! What the variables of a pod's containers refer to, as it is now.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use stillmesh_k8s::{Kind, Object, ObjectKey};

use super::env::Lookup;
use super::worker::{Worker, node_ips};

/// What the variables of a pod's containers refer to.
pub(super) struct PodLookup<'a>(pub(super) &'a Worker);

impl PodLookup<'_> {
    fn object(&self, kind: Kind, name: &str) -> Option<Object> {
        self.0.machine.objects.load().get(&ObjectKey::new(kind, &self.0.pod.namespace, name)).cloned()
    }
}

impl Lookup for PodLookup<'_> {
    fn config_map(&self, name: &str) -> Option<ConfigMap> {
        match self.object(Kind::ConfigMap, name)? {
            Object::ConfigMap(map) => Some(Arc::unwrap_or_clone(map)),
            _ => None,
        }
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        match self.object(Kind::Secret, name)? {
            Object::Secret(secret) => Some(Arc::unwrap_or_clone(secret)),
            _ => None,
        }
    }

    fn field(&self, path: &str) -> Option<String> {
        let pod = &self.0.pod;
        let node = self.0.machine.nodes.get(pod.node)?;
        let object = pod.object.load();
        let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
        if let Some(key) = keyed("metadata.labels") {
            return Some(object.metadata.labels.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default());
        }
        if let Some(key) = keyed("metadata.annotations") {
            return Some(
                object.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default(),
            );
        }
        Some(match path {
            "metadata.name" => pod.name.clone(),
            "metadata.namespace" => pod.namespace.clone(),
            "metadata.uid" => pod.uid.clone(),
            "spec.nodeName" => node.name.clone(),
            "spec.serviceAccountName" => pod.plan.service_account.clone(),
            "status.podIP" => pod.ips(node).first()?.clone(),
            "status.podIPs" => pod.ips(node).join(","),
            "status.hostIP" => node_ips(node).first()?.clone(),
            _ => return None,
        })
    }
}
