//! Where an inbound connection leads (contract 3.4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{InboundPlan, PROXY_PORTS, Refusal, gateway};
use crate::attrs::{Authority, ConnectAttrs};
use crate::explain::Reason;
use crate::model::{Gateway, NetworkAddress, Service, Workload};
use crate::snapshot::Snapshot;

/// Resolves an inbound CONNECT to the application's address: always the workload's own, whatever was asked for. The
/// answer is not yet leave to pass: ask [`super::authorize`] with [`InboundPlan::upstream`].
pub fn inbound(snapshot: &Snapshot, attrs: &ConnectAttrs<'_>) -> Result<InboundPlan, Refusal> {
    let local_ip = attrs.local_ip.to_canonical();
    // What was asked for, as a PROXY header tells it; the port on the workload; the service, if one was named.
    let (asked, port, service) = match attrs.authority {
        Authority::Address(asked) => {
            let asked = SocketAddr::new(asked.ip().to_canonical(), asked.port());
            if !may_ask_for(snapshot, attrs.destination, local_ip, asked.ip()) {
                return Err(Reason::ForeignAuthority { authority: attrs.authority.to_string().into() }.into());
            }
            (asked, asked.port(), None)
        }
        Authority::Name(hostname, service_port) => {
            let unknown = || Reason::UnknownAuthority { authority: attrs.authority.to_string().into() };
            let service = snapshot.service_named(&attrs.destination.namespace, hostname).ok_or_else(unknown)?;
            let port = attrs
                .destination
                .target_port(&service.key, *service_port)
                .or_else(|| service.port(*service_port).map(|port| port.mapping.target_port))
                .filter(|port| *port > 0)
                .ok_or_else(unknown)?;
            let vip = vip(service, snapshot).unwrap_or(local_ip);
            (SocketAddr::new(vip, *service_port), port, Some(service.clone()))
        }
    };
    inbound_plaintext(SocketAddr::new(local_ip, port))?;
    let tunnel = attrs.destination.application_tunnel;
    let port = tunnel.and_then(|tunnel| tunnel.port).map_or(port, u16::from);
    let upstream = SocketAddr::new(local_ip, port);
    inbound_plaintext(upstream)?;
    let behind_proxy_header = tunnel.is_some_and(|tunnel| tunnel.proxy_protocol);
    let loopback: IpAddr = match local_ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let connect = if behind_proxy_header { SocketAddr::new(loopback, port) } else { upstream };
    Ok(InboundPlan { upstream, connect, proxy_protocol: behind_proxy_header.then_some(asked), service })
}

/// Whether a plaintext connection may be for `destination` at all: not for a port of ztunnel's own.
pub fn inbound_plaintext(destination: SocketAddr) -> Result<(), Refusal> {
    match PROXY_PORTS.contains(&destination.port()) {
        true => Err(Reason::ProxyPort { destination }.into()),
        false => Ok(()),
    }
}

/// The service that an inbound connection was probably for, for telemetry only: the one named by the peer's `forwarded`
/// host, else the first by name of the workload's services whose target port is `port` (contract 4.5, headless
/// services).
pub fn inbound_service(
    snapshot: &Snapshot,
    workload: &Workload,
    forwarded_host: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let named = forwarded_host.and_then(|host| snapshot.service_named(&workload.namespace, host));
    let by_port = || {
        let services = workload.services.iter().filter_map(|(key, _)| snapshot.service(key));
        let leads_there = |service: &&Arc<Service>| {
            service.ports.iter().map(|known| known.mapping).any(|known| {
                workload.target_port(&service.key, known.service_port).unwrap_or(known.target_port) == port
            })
        };
        services.filter(leads_there).min_by(|one, other| one.key.cmp(&other.key))
    };
    named.or_else(by_port).cloned()
}

/// Whether a workload takes connections for an address: its own; any, if an application behind a tunnel takes them; one
/// of a service or workload whose waypoint it is.
fn may_ask_for(snapshot: &Snapshot, local: &Workload, local_ip: IpAddr, asked: IpAddr) -> bool {
    if asked == local_ip || local.application_tunnel.is_some() {
        return true;
    }
    let asked = NetworkAddress::new(snapshot.network().clone(), asked);
    let is_local = |gateway: &Gateway| gateway::is_behind(snapshot, gateway, local);
    snapshot.workload_at(&asked).is_some_and(|workload| workload.waypoint.as_ref().is_some_and(is_local))
        || snapshot.services_with_vip(&asked).any(|service| service.waypoints().any(is_local))
}

/// An address of a service to tell an application: one on this network, IPv4 before IPv6.
fn vip(service: &Service, snapshot: &Snapshot) -> Option<IpAddr> {
    let standing = |vip: &&NetworkAddress| (vip.network != *snapshot.network(), vip.address.is_ipv6());
    service.vips.iter().min_by_key(standing).map(|vip| vip.address)
}

#[cfg(test)]
mod tests;
