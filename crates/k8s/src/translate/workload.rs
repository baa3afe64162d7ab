//! Pods and endpoints that are no pods to workloads of the model (contract 4.3).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, PodStatus};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use stillmesh_core::model::{
    Gateway, Health, Locality, NetworkMode, PolicyKey, PortMapping, ServiceKey, Str, TunnelProtocol, Workload,
    WorkloadType, WorkloadUid,
};

use super::Mesh;
use crate::labels::{self, Labels};
use crate::object::DEFAULT_NAMESPACE;
use crate::select;

const NETWORK: &str = "topology.istio.io/network";
const TUNNEL: &str = "networking.istio.io/tunnel";

/// What a workload gets from other objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Services it is an endpoint of, with its target ports.
    pub services: Vec<(ServiceKey, Vec<PortMapping>)>,
    /// Policies that select it.
    pub policies: Vec<PolicyKey>,
    /// The waypoint that it is bound to.
    pub waypoint: Option<Gateway>,
    /// Whether it may be connected without a tunnel on its node.
    pub direct: bool,
}

/// The key of a pod.
pub fn workload_uid(namespace: &str, name: &str, mesh: &Mesh) -> WorkloadUid {
    WorkloadUid(format!("{}//Pod/{namespace}/{name}", mesh.cluster).into())
}

/// Translates a pod; `None` where it has no address yet or has ended.
pub fn workload(pod: &Pod, node: Option<&Node>, attached: Attached, mesh: &Mesh) -> Option<Workload> {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let (spec, status) = (pod.spec.as_ref().unwrap_or(&no_spec), pod.status.as_ref().unwrap_or(&no_status));
    let addresses = addresses(status);
    if addresses.is_empty() || select::terminal(pod) {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let pod_labels = labels::of(&pod.metadata.labels);
    let annotations = labels::of(&pod.metadata.annotations);
    let (workload_name, workload_type) = owner(pod);
    let native_tunnel = pod_labels.get(TUNNEL).is_some_and(|protocol| protocol == "http");
    let captured = annotations.get(select::REDIRECTION).is_some_and(|state| state == "enabled");
    Some(Workload {
        uid: workload_uid(namespace, name, mesh),
        name: name.into(),
        namespace: namespace.into(),
        trust_domain: mesh.trust_domain.clone(),
        service_account: account(spec).into(),
        addresses,
        hostname: "".into(),
        network: pod_labels.get(NETWORK).map_or_else(|| mesh.network.clone(), |network| network.as_str().into()),
        tunnel_protocol: if captured || native_tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None },
        network_mode: match spec.host_network {
            Some(true) => NetworkMode::HostNetwork,
            _ => NetworkMode::Standard,
        },
        waypoint: attached.waypoint,
        network_gateway: None,
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        canonical_name: first(
            pod_labels,
            &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"],
            &workload_name,
        ),
        canonical_revision: first(
            pod_labels,
            &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
            "latest",
        ),
        workload_type,
        workload_name,
        native_tunnel,
        application_tunnel: None,
        services: attached.services,
        authorization_policies: attached.policies,
        health: if pod_is_ready(status) && pod.metadata.deletion_timestamp.is_none() {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        cluster: mesh.cluster.clone(),
        locality: node.map(locality).unwrap_or_default(),
        capacity: 1,
        direct: attached.direct,
    })
}

/// Translates an endpoint that is no pod. `addresses` are the endpoint's and not empty.
pub fn slice_workload(
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    addresses: Vec<IpAddr>,
    services: Vec<(ServiceKey, Vec<PortMapping>)>,
    mesh: &Mesh,
) -> Option<Workload> {
    let first = addresses.first()?;
    let name = slice.metadata.name.as_deref().unwrap_or_default();
    let namespace = slice.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let uid = format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{first}", mesh.cluster);
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
    Some(Workload {
        uid: WorkloadUid(uid.into()),
        name: name.into(),
        namespace: namespace.into(),
        trust_domain: mesh.trust_domain.clone(),
        service_account: "default".into(),
        addresses,
        hostname: "".into(),
        network: mesh.network.clone(),
        tunnel_protocol: TunnelProtocol::None,
        // Whose address it is nobody knows: of a node, of another service. It owns none.
        network_mode: NetworkMode::HostNetwork,
        waypoint: None,
        network_gateway: None,
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Pod,
        workload_name: name.into(),
        native_tunnel: false,
        application_tunnel: None,
        services,
        authorization_policies: Vec::new(),
        health: if ready { Health::Healthy } else { Health::Unhealthy },
        cluster: mesh.cluster.clone(),
        locality: Locality { zone: endpoint.zone.as_deref().unwrap_or_default().into(), ..Locality::default() },
        capacity: 1,
        direct: false,
    })
}

/// Where a node is.
pub fn locality(node: &Node) -> Locality {
    let label = |key: &str| labels::of(&node.metadata.labels).get(key).map_or("", String::as_str).into();
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// Name and kind of what owns a pod: the Deployment behind a ReplicaSet, the CronJob behind a Job.
pub fn owner(pod: &Pod) -> (Str, WorkloadType) {
    let pod_labels = labels::of(&pod.metadata.labels);
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let (name, kind) = match owner {
        None => (pod.metadata.name.as_deref().unwrap_or_default(), WorkloadType::Pod),
        Some(owner) => {
            let hash = pod_labels.get("pod-template-hash");
            let behind = |hash: &String| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-');
            match owner.kind.as_str() {
                "Deployment" => (owner.name.as_str(), WorkloadType::Deployment),
                "ReplicaSet" => match hash.and_then(behind) {
                    Some(name) => (name, WorkloadType::Deployment),
                    None => (owner.name.as_str(), WorkloadType::Pod),
                },
                "Job" => match scheduled(&owner.name) {
                    Some(name) => (name, WorkloadType::CronJob),
                    None => (owner.name.as_str(), WorkloadType::Job),
                },
                "CronJob" => (owner.name.as_str(), WorkloadType::CronJob),
                _ => (owner.name.as_str(), WorkloadType::Pod),
            }
        }
    };
    let name = pod_labels.get("service.istio.io/workload-name").map_or(name, String::as_str);
    (name.into(), kind)
}

/// The CronJob behind a Job's name, which ends in the time it was scheduled for: eight to ten digits.
fn scheduled(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    ((8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

fn account(spec: &PodSpec) -> &str {
    spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
}

/// A pod's addresses, each once, as its status has them. What is no address is left out.
pub fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    pod.status.as_ref().map(addresses).unwrap_or_default()
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let several = status.pod_ips.iter().flatten().map(|one| one.ip.as_str());
    let mut addresses = Vec::new();
    for text in several.chain(status.pod_ip.as_deref()) {
        match text.parse::<IpAddr>() {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            _ => {}
        }
    }
    addresses
}

/// Whether a pod is ready, by its status.
pub fn pod_is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn first(labels: &Labels, keys: &[&str], otherwise: &str) -> Str {
    keys.iter().find_map(|key| labels.get(*key)).map_or(otherwise, String::as_str).into()
}
