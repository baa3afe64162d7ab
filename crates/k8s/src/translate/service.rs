//! Kubernetes Services to services of the model (contract 4.3).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Service as Written, ServicePort as WrittenPort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use stillmesh_core::model::{
    AppProtocol, Gateway, HealthPolicy, IpFamilies, LoadBalancing, Mode, NetworkAddress, PortMapping, RoutingScope,
    Service, ServiceKey, ServicePort, Visibility,
};

use super::Mesh;
use crate::labels;
use crate::object::DEFAULT_NAMESPACE;

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// The key of a Service.
pub fn service_key(namespace: &str, name: &str, mesh: &Mesh) -> ServiceKey {
    ServiceKey::new(namespace, format!("{name}.{namespace}.svc.{}", mesh.domain))
}

/// Translates a Service that is bound to this waypoint; `None` for those that lead out of the cluster by name.
pub fn service(
    written: &Written,
    namespace: Option<&Namespace>,
    waypoint: Option<Gateway>,
    mesh: &Mesh,
) -> Option<Service> {
    let none = ServiceSpec::default();
    let spec = written.spec.as_ref().unwrap_or(&none);
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let name = written.metadata.name.as_deref().unwrap_or_default();
    let namespace_name = written.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let mut ports: Vec<ServicePort> = tcp_ports(spec).filter_map(service_port).collect();
    ports.sort_by_key(|port| port.mapping.service_port);
    ports.dedup_by_key(|port| port.mapping.service_port);
    Some(Service {
        name: name.into(),
        key: service_key(namespace_name, name, mesh),
        vips: vips(spec, mesh),
        cidr_vips: Vec::new(),
        ports,
        subject_alt_names: Vec::new(),
        waypoint,
        weighted_waypoints: Vec::new(),
        load_balancing: load_balancing(written, spec, namespace),
        ip_families: ip_families(spec),
        canonical: true,
        visibility: visibility(written, namespace_name),
    })
}

/// The ports that the mesh carries.
pub(super) fn tcp_ports(spec: &ServiceSpec) -> impl Iterator<Item = &WrittenPort> {
    spec.ports.iter().flatten().filter(|port| matches!(port.protocol.as_deref(), None | Some("" | "TCP")))
}

fn service_port(port: &WrittenPort) -> Option<ServicePort> {
    let service_port = u16::try_from(port.port).ok().filter(|port| *port > 0)?;
    let target_port = match &port.target_port {
        None | Some(IntOrString::Int(0)) => service_port,
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
        Some(IntOrString::String(_)) => 0,
    };
    Some(ServicePort { mapping: PortMapping { service_port, target_port }, app_protocol: app_protocol(port) })
}

/// What is spoken at a port of a Service, as far as it says so.
pub fn port_protocol(written: &Written, port: u16) -> AppProtocol {
    let ports = written.spec.iter().flat_map(tcp_ports).filter_map(service_port);
    let found = ports.into_iter().find(|one| one.mapping.service_port == port);
    found.map_or(AppProtocol::Unknown, |port| port.protocol())
}

/// As numbered on the wire, from `appProtocol` or else from the start of the port's name.
fn app_protocol(port: &WrittenPort) -> i32 {
    let name = port.name.as_deref().unwrap_or_default();
    let from_name = if name.starts_with("grpc-web") { "grpc-web" } else { name.split('-').next().unwrap_or_default() };
    match port.app_protocol.as_deref().unwrap_or(from_name).to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => 1,
        "http2" | "kubernetes.io/h2c" => 2,
        "grpc" | "grpc-web" => 3,
        "tcp" => 4,
        "tls" | "https" | "kubernetes.io/wss" => 5,
        _ => 0,
    }
}

fn vips(spec: &ServiceSpec, mesh: &Mesh) -> Vec<NetworkAddress> {
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    let listed = if several.is_empty() { spec.cluster_ip.as_slice() } else { several };
    let mut vips: Vec<NetworkAddress> = listed
        .iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|address| NetworkAddress::new(mesh.network.clone(), address))
        .collect();
    vips.dedup();
    vips
}

fn ip_families(spec: &ServiceSpec) -> IpFamilies {
    match spec.ip_families.as_deref().unwrap_or_default() {
        [_, _, ..] => IpFamilies::Dual,
        [one] if one == "IPv4" => IpFamilies::Ipv4Only,
        [one] if one == "IPv6" => IpFamilies::Ipv6Only,
        _ => IpFamilies::Automatic,
    }
}

fn load_balancing(written: &Written, spec: &ServiceSpec, namespace: Option<&Namespace>) -> LoadBalancing {
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    let health_policy = match spec.publish_not_ready_addresses {
        Some(true) => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    let (mode, routing_preferences) = if spec.internal_traffic_policy.as_deref() == Some("Local") {
        (Mode::Strict, vec![Node])
    } else {
        match distribution(written, spec, namespace) {
            Distribution::Any => (Mode::Standard, Vec::new()),
            Distribution::SameZone => (Mode::Failover, vec![Network, Region, Zone]),
            Distribution::SameNode => (Mode::Failover, vec![Network, Region, Zone, Subzone, Node]),
        }
    };
    LoadBalancing { routing_preferences, mode, health_policy }
}

enum Distribution {
    Any,
    SameZone,
    SameNode,
}

/// The Service's own field wins, then its annotation, then its namespace's.
fn distribution(written: &Written, spec: &ServiceSpec, namespace: Option<&Namespace>) -> Distribution {
    let own = labels::of(&written.metadata.annotations).get(TRAFFIC_DISTRIBUTION);
    let of_namespace =
        namespace.and_then(|namespace| labels::of(&namespace.metadata.annotations).get(TRAFFIC_DISTRIBUTION));
    let said = spec.traffic_distribution.as_ref().or(own).or(of_namespace);
    match said.map(|text| text.to_ascii_lowercase()).as_deref() {
        Some("preferclose" | "prefersamezone") => Distribution::SameZone,
        Some("prefersamenode") => Distribution::SameNode,
        _ => Distribution::Any,
    }
}

/// A Service that is exported to nobody else is visible in its own namespace only.
fn visibility(written: &Written, namespace: &str) -> Visibility {
    let Some(list) = labels::of(&written.metadata.annotations).get(EXPORT_TO) else { return Visibility::Public };
    let mut entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).peekable();
    let private = entries.peek().is_some() && entries.all(|entry| matches!(entry, "." | "~") || entry == namespace);
    if private { Visibility::Namespace } else { Visibility::Public }
}
