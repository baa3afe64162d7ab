//! Takes away what nobody here reads, so that ten thousand pods cost what is known of them and no more.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use stillmesh_k8s::Object;

/// The annotation in which `kubectl apply` keeps a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Trims an object that has just come from the server. ConfigMaps, of which only some by name are watched, keep who
/// wrote them.
pub(crate) fn trim(object: &mut Object) {
    let metadata = object.metadata_mut();
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if !matches!(object, Object::ConfigMap(_)) {
        object.metadata_mut().managed_fields = None;
    }
    match object {
        Object::Pod(pod) => trim_pod(Arc::make_mut(pod)),
        Object::Node(node) => {
            let node = Arc::make_mut(node);
            if let Some(status) = &mut node.status {
                status.images = None;
                status.volumes_attached = None;
                status.volumes_in_use = None;
            }
        }
        _ => {}
    }
}

fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        let containers = std::mem::take(&mut spec.containers);
        let init = spec.init_containers.take();
        *spec = PodSpec {
            containers: containers.into_iter().map(trim_container).collect(),
            init_containers: init.map(|all| all.into_iter().map(trim_container).collect()),
            node_name: spec.node_name.take(),
            service_account_name: spec.service_account_name.take(),
            host_network: spec.host_network,
            hostname: spec.hostname.take(),
            subdomain: spec.subdomain.take(),
            ..PodSpec::default()
        };
    }
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
    }
}

/// Names, ports, probes and hooks: ports give endpoints their names, and the kubelet's probes and hooks may pass where
/// plain text may not.
fn trim_container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        liveness_probe: container.liveness_probe,
        readiness_probe: container.readiness_probe,
        startup_probe: container.startup_probe,
        lifecycle: container.lifecycle,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_kubelet_dials_in_a_pod_is_kept_and_what_nobody_reads_is_not() {
        let hook = json!({ "preStop": { "httpGet": { "port": 8082 } } });
        let probe = json!({ "tcpSocket": { "port": 8081 } });
        let container = |image: bool| {
            let mut container = json!({ "name": "a", "livenessProbe": probe, "lifecycle": hook });
            if image {
                container["image"] = json!("x:1");
            }
            container
        };
        let pod = |image| json!({ "spec": { "containers": [container(image)], "initContainers": [container(image)] } });
        let given: Pod = serde_json::from_value(pod(true)).unwrap();
        let wanted: Pod = serde_json::from_value(pod(false)).unwrap();
        let mut object = Object::from(given);
        trim(&mut object);
        let Object::Pod(trimmed) = object else { panic!("a pod stays one") };
        assert_eq!(*trimmed, wanted);
    }
}
