//! Which workloads a Service leads to, and at which ports.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stillmesh_core::model::PortMapping;

use super::service::tcp_ports;
use crate::labels;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whether a Service's selector picks a pod of its namespace. A Service without a selector picks nothing: its
/// endpoints are in EndpointSlices.
pub fn pod_serves(service: &Service, pod: &Pod) -> bool {
    let Some(spec) = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName")) else {
        return false;
    };
    spec.selector
        .as_ref()
        .is_some_and(|wanted| !wanted.is_empty() && labels::match_all(wanted, labels::of(&pod.metadata.labels)))
}

/// Where the ports of a Service lead on a pod. Ports whose target the pod does not name are left out.
pub fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<PortMapping> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ports = tcp_ports(spec).filter_map(|port| {
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => named_port(pod, name)?,
        };
        mapping(port.port, target)
    });
    sorted(ports)
}

fn named_port(pod: &Pod, name: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // Sidecars among the init containers serve ports too.
    let sidecars = spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| matches!(port.protocol.as_deref(), None | Some("" | "TCP")))
        .find(|port| port.name.as_deref() == Some(name))
        .map(|port| port.container_port)
}

/// The Service that an EndpointSlice belongs to, by name in the slice's namespace.
pub fn slice_service(slice: &EndpointSlice) -> Option<&str> {
    labels::of(&slice.metadata.labels).get(SERVICE_NAME).map(String::as_str)
}

/// Where the ports of a Service lead on the endpoints of one of its slices: by the ports' names.
pub fn slice_ports(service: &Service, slice: &EndpointSlice) -> Vec<PortMapping> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ports = tcp_ports(spec).filter_map(|port| {
        let name = port.name.as_deref().unwrap_or_default();
        let target = slice.ports.iter().flatten().find(|one| {
            one.name.as_deref().unwrap_or_default() == name
                && matches!(one.protocol.as_deref(), None | Some("" | "TCP"))
        })?;
        mapping(port.port, target.port?)
    });
    sorted(ports)
}

/// The endpoints of a slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SliceEndpoints<'a> {
    /// Names of pods in the slice's namespace.
    pub pods: Vec<&'a str>,
    /// Endpoints that are no pods, with their addresses; never empty.
    pub others: Vec<(&'a Endpoint, Vec<IpAddr>)>,
}

/// Sorts the endpoints of a slice. Endpoints given by name are left out.
pub fn slice_endpoints(slice: &EndpointSlice) -> SliceEndpoints<'_> {
    let mut found = SliceEndpoints::default();
    for endpoint in slice.endpoints.iter().flatten() {
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        match pod {
            Some(target) => found.pods.extend(target.name.as_deref()),
            None => {
                let addresses: Vec<IpAddr> = endpoint.addresses.iter().filter_map(|text| text.parse().ok()).collect();
                if !addresses.is_empty() {
                    found.others.push((endpoint, addresses));
                }
            }
        }
    }
    found
}

fn mapping(service_port: i32, target_port: i32) -> Option<PortMapping> {
    let port = |number: i32| u16::try_from(number).ok().filter(|port| *port > 0);
    Some(PortMapping { service_port: port(service_port)?, target_port: port(target_port)? })
}

fn sorted(ports: impl Iterator<Item = PortMapping>) -> Vec<PortMapping> {
    let mut ports: Vec<PortMapping> = ports.collect();
    ports.sort_by_key(|port| port.service_port);
    ports.dedup_by_key(|port| port.service_port);
    ports
}
