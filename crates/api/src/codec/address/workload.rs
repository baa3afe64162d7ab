//! `istio.workload.Workload` (contract 4.3).

use std::collections::BTreeMap;

use prost::Message as _;
use stillmesh_core::model::{
    ApplicationTunnel, Gateway, Health, Locality, NetworkMode, PolicyKey, PortMapping, ServiceKey, TrustDomain,
    TunnelProtocol, Workload, WorkloadType, WorkloadUid,
};

use super::super::texts::{self, shared};
use super::super::{FieldError, fields};
use super::wire;
use crate::proto::google::protobuf::Any;
use wire::application_tunnel::Protocol;

/// The extension of a workload that may be connected without a tunnel on its node, and what it is in. Others pass over it.
const DIRECT: &str = "stillmesh.io/same-node";
const DIRECT_TYPE: &str = "type.googleapis.com/google.protobuf.BoolValue";

pub(super) fn decode(wire: wire::Workload) -> Result<Workload, FieldError> {
    if wire.uid.is_empty() {
        return Err(FieldError::new("uid", "empty: it is the primary key"));
    }
    let trust_domain = match wire.trust_domain.as_str() {
        "" => TrustDomain::DEFAULT,
        text => text,
    };
    let trust_domain = TrustDomain::try_from(shared(trust_domain))
        .map_err(|error| FieldError::new("trust_domain", error.to_string()))?;
    let service_account = match wire.service_account.as_str() {
        "" => shared("default"),
        text => fields::identity_part("service_account", text)?,
    };
    Ok(Workload {
        namespace: fields::identity_part("namespace", &wire.namespace)?,
        trust_domain,
        service_account,
        addresses: fields::each(wire.addresses.iter(), |bytes| fields::ip("addresses", bytes))?,
        tunnel_protocol: match wire.tunnel_protocol {
            0 | 2 => TunnelProtocol::None,
            // An unknown tunnel is never answered with clear text.
            _ => TunnelProtocol::Hbone,
        },
        network_mode: match wire.network_mode {
            1 => NetworkMode::HostNetwork,
            _ => NetworkMode::Standard,
        },
        waypoint: gateway("waypoint", wire.waypoint.as_ref())?,
        network_gateway: gateway("network_gateway", wire.network_gateway.as_ref())?.map(Box::new),
        workload_type: match wire.workload_type {
            0 => WorkloadType::Deployment,
            1 => WorkloadType::CronJob,
            3 => WorkloadType::Job,
            _ => WorkloadType::Pod,
        },
        application_tunnel: wire.application_tunnel.as_ref().map(application_tunnel).transpose()?,
        services: services(wire.services)?,
        authorization_policies: fields::each(wire.authorization_policies.iter(), |text| policy(text))?,
        health: match wire.status {
            0 => Health::Healthy,
            _ => Health::Unhealthy,
        },
        cluster: match wire.cluster_id.as_str() {
            "" => shared("Kubernetes"),
            text => shared(text),
        },
        locality: locality(&wire.locality.unwrap_or_default()),
        capacity: wire.capacity.map_or(1, |weight| weight.value.max(1)),
        uid: WorkloadUid(wire.uid.into()),
        name: wire.name.into(),
        hostname: shared(&wire.hostname),
        network: shared(&wire.network),
        node: shared(&wire.node),
        canonical_name: shared(&wire.canonical_name),
        canonical_revision: shared(&wire.canonical_revision),
        workload_name: shared(&wire.workload_name),
        native_tunnel: wire.native_tunnel,
        direct: wire.extensions.iter().any(direct),
    })
}

/// One that cannot be read says nothing.
fn direct(wire: &wire::Extension) -> bool {
    let config = wire.config.as_ref().filter(|config| wire.name == DIRECT && config.type_url == DIRECT_TYPE);
    config.is_some_and(|config| bool::decode(config.value.clone()).unwrap_or(false))
}

fn direct_wire() -> wire::Extension {
    let value = true.encode_to_vec().into();
    wire::Extension { name: DIRECT.to_owned(), config: Some(Any { type_url: DIRECT_TYPE.to_owned(), value }) }
}

fn gateway(field: &str, wire: Option<&wire::GatewayAddress>) -> Result<Option<Gateway>, FieldError> {
    wire.map(|gateway| fields::gateway(field, gateway)).transpose()
}

fn application_tunnel(wire: &wire::ApplicationTunnel) -> Result<ApplicationTunnel, FieldError> {
    let proxy_protocol = match Protocol::try_from(wire.protocol) {
        Ok(Protocol::None) => false,
        Ok(Protocol::Proxy) => true,
        Err(_) => {
            let problem = format!("{}: 0 (NONE) and 1 (PROXY) are accepted", wire.protocol);
            return Err(FieldError::new("application_tunnel.protocol", problem));
        }
    };
    let port = fields::port_or_zero("application_tunnel.port", wire.port)?;
    Ok(ApplicationTunnel { proxy_protocol, port: port.try_into().ok() })
}

fn services(wire: BTreeMap<String, wire::PortList>) -> Result<Vec<(ServiceKey, Vec<PortMapping>)>, FieldError> {
    let one = |(text, list): (String, wire::PortList)| {
        let key = ServiceKey::parse(&text)
            .ok_or_else(|| FieldError::new("services", format!("{text:?}: <namespace>/<hostname> is accepted")))?;
        let field = format!("services[{text}].ports");
        let ports = fields::each(list.ports.iter(), |port| fields::mapping(&field, port))?;
        Ok((texts::service_key(&key), ports))
    };
    fields::each(wire.into_iter(), one)
}

fn policy(text: &str) -> Result<PolicyKey, FieldError> {
    PolicyKey::parse(text)
        .map(|key| texts::policy_key(&key))
        .ok_or_else(|| FieldError::new("authorization_policies", format!("{text:?}: <namespace>/<name> is accepted")))
}

fn locality(wire: &wire::Locality) -> Locality {
    Locality { region: shared(&wire.region), zone: shared(&wire.zone), subzone: shared(&wire.subzone) }
}

pub(super) fn encode(workload: &Workload) -> wire::Workload {
    let Locality { region, zone, subzone } = &workload.locality;
    let locality = wire::Locality { region: region.to_string(), zone: zone.to_string(), subzone: subzone.to_string() };
    wire::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().map(|address| fields::ip_bytes(*address)).collect(),
        hostname: workload.hostname.to_string(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.tunnel_protocol {
            TunnelProtocol::None => wire::TunnelProtocol::None.into(),
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone.into(),
        },
        trust_domain: match &workload.trust_domain {
            elided if *elided == TrustDomain::default() => String::new(),
            said => said.to_string(),
        },
        service_account: workload.service_account.to_string(),
        waypoint: workload.waypoint.as_ref().map(fields::gateway_wire),
        network_gateway: workload.network_gateway.as_deref().map(fields::gateway_wire),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => wire::WorkloadType::Deployment.into(),
            WorkloadType::CronJob => wire::WorkloadType::Cronjob.into(),
            WorkloadType::Pod => wire::WorkloadType::Pod.into(),
            WorkloadType::Job => wire::WorkloadType::Job.into(),
        },
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel.map(|tunnel| wire::ApplicationTunnel {
            protocol: if tunnel.proxy_protocol { Protocol::Proxy.into() } else { Protocol::None.into() },
            port: tunnel.port.map_or(0, |port| port.get().into()),
        }),
        services: workload.services.iter().map(|(key, ports)| (key.to_string(), port_list(ports))).collect(),
        authorization_policies: workload.authorization_policies.iter().map(ToString::to_string).collect(),
        status: match workload.health {
            Health::Healthy => wire::WorkloadStatus::Healthy.into(),
            Health::Unhealthy => wire::WorkloadStatus::Unhealthy.into(),
        },
        cluster_id: workload.cluster.to_string(),
        locality: (workload.locality != Locality::default()).then_some(locality),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => wire::NetworkMode::Standard.into(),
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork.into(),
        },
        extensions: workload.direct.then(direct_wire).into_iter().collect(),
        capacity: (workload.capacity != 1)
            .then_some(crate::proto::google::protobuf::UInt32Value { value: workload.capacity }),
    }
}

fn port_list(ports: &[PortMapping]) -> wire::PortList {
    wire::PortList { ports: ports.iter().map(|port| fields::mapping_wire(*port, 0)).collect() }
}
