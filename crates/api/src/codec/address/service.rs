//! `istio.workload.Service` (contract 4.3).

use stillmesh_core::model::{
    Gateway, HealthPolicy, IpFamilies, LoadBalancing, Mode, NetworkAddress, NetworkCidr, RoutingScope, Service,
    Visibility,
};

use super::super::texts::shared;
use super::super::{FieldError, fields};
use super::wire;
use wire::load_balancing as lb;

pub(super) fn decode(wire: wire::Service) -> Result<Service, FieldError> {
    let key = fields::service_key("namespace, hostname", &wire.namespace, &wire.hostname)?;
    let (mut vips, mut cidr_vips) = (Vec::with_capacity(wire.addresses.len()), Vec::new());
    for vip in &wire.addresses {
        let address = fields::ip("addresses.address", &vip.address)?;
        match vip.length {
            Some(length) => {
                let cidr = fields::cidr("addresses", &vip.address, length)?;
                if cidr.prefix_len() == cidr.max_prefix_len() {
                    vips.push(NetworkAddress::new(shared(&vip.network), address));
                } else {
                    cidr_vips.push(NetworkCidr { network: shared(&vip.network), cidr });
                }
            }
            None => vips.push(NetworkAddress::new(shared(&vip.network), address)),
        }
    }
    Ok(Service {
        key,
        vips,
        cidr_vips,
        ports: fields::each(wire.ports.iter(), |port| fields::service_port("ports", port))?,
        waypoint: wire.waypoint.as_ref().map(|gateway| fields::gateway("waypoint", gateway)).transpose()?,
        weighted_waypoints: fields::each(wire.weighted_waypoints.iter(), weighted)?,
        load_balancing: wire.load_balancing.as_ref().map(load_balancing).transpose()?.unwrap_or_default(),
        ip_families: match wire.ip_families {
            1 => IpFamilies::Ipv4Only,
            2 => IpFamilies::Ipv6Only,
            3 => IpFamilies::Dual,
            _ => IpFamilies::Automatic,
        },
        canonical: wire.canonical,
        visibility: match wire.visibility {
            0 => Visibility::Public,
            // A visibility of tomorrow is narrower than "everybody".
            _ => Visibility::Namespace,
        },
        subject_alt_names: wire.subject_alt_names.into_iter().map(Into::into).collect(),
        name: shared(&wire.name),
    })
}

fn weighted(wire: &wire::WeightedWaypoint) -> Result<(Gateway, u32), FieldError> {
    let destination =
        wire.destination.as_ref().ok_or_else(|| FieldError::new("weighted_waypoints.destination", "absent"))?;
    Ok((fields::gateway("weighted_waypoints.destination", destination)?, wire.weight))
}

fn load_balancing(wire: &wire::LoadBalancing) -> Result<LoadBalancing, FieldError> {
    let scope = |number: &i32| match lb::Scope::try_from(*number) {
        Ok(lb::Scope::Region) => Ok(RoutingScope::Region),
        Ok(lb::Scope::Zone) => Ok(RoutingScope::Zone),
        Ok(lb::Scope::Subzone) => Ok(RoutingScope::Subzone),
        Ok(lb::Scope::Node) => Ok(RoutingScope::Node),
        Ok(lb::Scope::Cluster) => Ok(RoutingScope::Cluster),
        Ok(lb::Scope::Network) => Ok(RoutingScope::Network),
        Ok(lb::Scope::UnspecifiedScope) | Err(_) => {
            Err(FieldError::new("load_balancing.routing_preference", format!("{number}: 1 to 6 are accepted")))
        }
    };
    Ok(LoadBalancing {
        routing_preferences: wire.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        mode: match lb::Mode::try_from(wire.mode) {
            Ok(lb::Mode::UnspecifiedMode) => Mode::Standard,
            Ok(lb::Mode::Strict) => Mode::Strict,
            Ok(lb::Mode::Failover) => Mode::Failover,
            Ok(lb::Mode::Passthrough) => Mode::Passthrough,
            Err(_) => {
                return Err(FieldError::new("load_balancing.mode", format!("{}: 0 to 3 are accepted", wire.mode)));
            }
        },
        health_policy: match wire.health_policy {
            1 => HealthPolicy::AllowAll,
            _ => HealthPolicy::OnlyHealthy,
        },
    })
}

pub(super) fn encode(service: &Service) -> wire::Service {
    let vips = service.vips.iter().map(fields::address_wire);
    let balancing = &service.load_balancing;
    wire::Service {
        name: service.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: service.key.hostname.to_string(),
        addresses: vips.chain(service.cidr_vips.iter().map(fields::cidr_wire)).collect(),
        ports: service.ports.iter().map(|port| fields::mapping_wire(port.mapping, port.app_protocol)).collect(),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(fields::gateway_wire),
        load_balancing: (*balancing != LoadBalancing::default()).then(|| load_balancing_wire(balancing)),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => wire::IpFamilies::Automatic.into(),
            IpFamilies::Ipv4Only => wire::IpFamilies::Ipv4Only.into(),
            IpFamilies::Ipv6Only => wire::IpFamilies::Ipv6Only.into(),
            IpFamilies::Dual => wire::IpFamilies::Dual.into(),
        },
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: false,
        weighted_waypoints: service
            .weighted_waypoints
            .iter()
            .map(|(gateway, weight)| wire::WeightedWaypoint {
                destination: Some(fields::gateway_wire(gateway)),
                weight: *weight,
            })
            .collect(),
        visibility: match service.visibility {
            Visibility::Public => wire::Visibility::Public.into(),
            Visibility::Namespace => wire::Visibility::Namespace.into(),
        },
    }
}

fn load_balancing_wire(balancing: &LoadBalancing) -> wire::LoadBalancing {
    let scope = |scope: &RoutingScope| match scope {
        RoutingScope::Region => lb::Scope::Region.into(),
        RoutingScope::Zone => lb::Scope::Zone.into(),
        RoutingScope::Subzone => lb::Scope::Subzone.into(),
        RoutingScope::Node => lb::Scope::Node.into(),
        RoutingScope::Cluster => lb::Scope::Cluster.into(),
        RoutingScope::Network => lb::Scope::Network.into(),
    };
    wire::LoadBalancing {
        routing_preference: balancing.routing_preferences.iter().map(scope).collect(),
        mode: match balancing.mode {
            Mode::Standard => lb::Mode::UnspecifiedMode.into(),
            Mode::Strict => lb::Mode::Strict.into(),
            Mode::Failover => lb::Mode::Failover.into(),
            Mode::Passthrough => lb::Mode::Passthrough.into(),
        },
        health_policy: match balancing.health_policy {
            HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy.into(),
            HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll.into(),
        },
    }
}
