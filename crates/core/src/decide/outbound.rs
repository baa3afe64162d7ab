//! Where an outbound connection goes (contract 4.5; the numbers in comments are its steps).
//!
//! Where we differ from it, always for the stricter:
//! - A service at a workload's own address counts only if the workload is one of its endpoints, and then its waypoint
//!   counts too. Istio lets any such service take the traffic, and skips the waypoint.
//! - Where such a service has no endpoint for the port, the workload is dialled as itself, and not in the clear.
//! - A waypoint that dials a service bound to it is not sent to itself.
//! - Nothing goes in clear to an address that a workload of the mesh left within the last minute.
//! - Other networks cannot be crossed yet: refused.
//! - Whom a Quarantine cuts off opens nothing, also to what is not in the mesh, and is not connected to.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{Ask, Purpose, pick};
use super::gateway::{self, Waypoint};
use super::{Dial, HBONE_PORT, OutboundPlan, OutboundProtocol, PROXY_PORTS, Refusal, cut_off};
use crate::attrs::{Authority, OutboundAttrs};
use crate::explain::Reason;
use crate::model::{Gateway, Identity, IpFamilies, Mode, NetworkAddress, Service, TunnelProtocol, Workload};
use crate::snapshot::Snapshot;

/// Plans an outbound connection. A service bound to a waypoint is reached through it or not at all.
pub fn outbound(snapshot: &Snapshot, attrs: &OutboundAttrs<'_>) -> Result<OutboundPlan, Refusal> {
    let source = attrs.source;
    let to = SocketAddr::new(attrs.destination.ip().to_canonical(), attrs.destination.port());
    // 0. Not to ztunnel's own ports in this pod.
    let is_own = to.ip().is_loopback() || source.addresses.contains(&to.ip());
    if is_own && PROXY_PORTS.contains(&to.port()) {
        return Err(Reason::ProxyPort { destination: to }.into());
    }
    if let Some(reason) = cut_off(snapshot, source) {
        return Err(reason.into());
    }
    let ask = Ask { snapshot, source, entropy: attrs.entropy, tried: attrs.tried };
    // 1. Who is at the address: a workload, a service, or (a ServiceEntry may list one address twice) both.
    let address = NetworkAddress::new(snapshot.network().clone(), to.ip());
    let owner = snapshot.workload_at(&address);
    let is_at_home = |service: &&Arc<Service>| owner.is_none_or(|owner| owner.is_member_of(&service.key));
    let service = snapshot.service_at(source, to.ip()).filter(is_at_home);

    // 2. Through the service's waypoint, unless it is the waypoint that asks.
    let is_waypoint = |gateway: &Gateway| gateway::is_behind(snapshot, gateway, source);
    if let Some(service) = service
        && !service.waypoints().any(is_waypoint)
        && let Some(waypoint) = gateway::of_service(&ask, service, to.ip())
    {
        return Ok(through(waypoint?, to, Some(service.clone())));
    }
    // 3. and 4. An endpoint of the service, else the workload, else it is none of ours.
    let (workload, port, service) = match (service, owner) {
        (None, None) if snapshot.is_departed(&address) => return Err(Reason::WorkloadGone { address: to.ip() }.into()),
        (None, None) => return Ok(unmanaged(to, None)),
        (None, Some(owner)) => (owner, to.port(), None),
        (Some(service), owner) if service.load_balancing.mode == Mode::Passthrough => match owner {
            None => return Ok(unmanaged(to, Some(service.clone()))),
            Some(owner) => (owner, to.port(), None),
        },
        (Some(service), owner) => match (pick(&ask, service, to.port(), Purpose::Traffic), owner) {
            (Ok((workload, port)), _) => (workload, port, Some(service)),
            (Err(_), Some(owner)) => (owner, to.port(), None),
            (Err(reason), None) => return Err(reason.into()),
        },
    };
    if let Some(policy) = workload.quarantine() {
        return Err(Reason::Quarantined { policy: policy.clone() }.into());
    }
    // 5. Other networks need a gateway in between.
    if workload.network != source.network {
        return Err(Reason::NetworkUnreachable { network: workload.network.clone() }.into());
    }
    // 6. Through the workload's own waypoint, unless it is the waypoint that asks.
    if owner.is_some()
        && let Some(gateway) = &workload.waypoint
        && !is_waypoint(gateway)
    {
        let waypoint = gateway::resolve(&ask, gateway, to.ip())?;
        return Ok(through(waypoint, to, service.cloned()));
    }
    Ok(direct(workload, service, to, port))
}

pub(super) fn unmanaged(to: SocketAddr, service: Option<Arc<Service>>) -> OutboundPlan {
    OutboundPlan {
        dial: Dial::Address(to),
        protocol: OutboundProtocol::Passthrough,
        upstream: None,
        service,
        reason: Reason::Unmanaged,
    }
}

/// To a waypoint, which is told the original destination (contract 3.2).
fn through(waypoint: Waypoint, to: SocketAddr, service: Option<Arc<Service>>) -> OutboundPlan {
    let Waypoint { dial, workload, name } = waypoint;
    let expected = vec![workload.identity()];
    let protocol = OutboundProtocol::Hbone { authority: Authority::Address(to), expected, waypoint: true };
    OutboundPlan { dial, protocol, upstream: Some(workload), service, reason: Reason::ToWaypoint { waypoint: name } }
}

/// 7. To the workload itself: HBONE where it speaks it, else plain TCP.
pub(super) fn direct(
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    to: SocketAddr,
    port: u16,
) -> OutboundPlan {
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    // A workload that was found by its address has that address, and one that was picked can be dialled.
    let dial = |port| {
        gateway::dial(workload, families, to.ip(), port).unwrap_or_else(|| Dial::Address((to.ip(), port).into()))
    };
    let (dial, protocol) = match workload.tunnel_protocol {
        TunnelProtocol::None => (dial(port), OutboundProtocol::Tcp),
        TunnelProtocol::Hbone => {
            let authority = match dial(port) {
                Dial::Address(address) => Authority::Address(address),
                Dial::Name(name, port) => Authority::Name(name, port),
            };
            let expected = expected(workload, service.map(Arc::as_ref));
            (dial(HBONE_PORT), OutboundProtocol::Hbone { authority, expected, waypoint: false })
        }
    };
    let reason = match service {
        Some(service) => Reason::ToEndpoint { service: service.key.clone(), workload: workload.uid.clone() },
        None => Reason::ToWorkload { workload: workload.uid.clone() },
    };
    OutboundPlan { dial, protocol, upstream: Some(workload.clone()), service: service.cloned(), reason }
}

/// Who may answer: the workload, or whoever the service says; names that are no SPIFFE identities count for nothing
/// (contract 3.1).
fn expected(workload: &Workload, service: Option<&Service>) -> Vec<Identity> {
    let mut expected = vec![workload.identity()];
    for name in service.into_iter().flat_map(|service| &service.subject_alt_names) {
        if let Ok(identity) = name.parse::<Identity>()
            && !expected.contains(&identity)
        {
            expected.push(identity);
        }
    }
    expected
}

#[cfg(test)]
mod tests;
