//! Finds the workload behind a gateway: a waypoint is bound by the name or address of the service in front of it, or
//! by the address of the workload itself (contract 4.5, step 2).

use std::net::IpAddr;
use std::sync::Arc;

use super::Dial;
use super::balance::{Ask, Purpose, Stream, address_of, pick, weighted};
use crate::explain::Reason;
use crate::model::{Gateway, GatewayDestination, IpFamilies, Service, Str, Workload};
use crate::snapshot::Snapshot;

/// A waypoint to go through.
pub(super) struct Waypoint {
    pub(super) dial: Dial,
    pub(super) workload: Arc<Workload>,
    /// The waypoint as it is bound.
    pub(super) name: Str,
}

/// The waypoint that a connection to `service` goes through: of several, one by weight; if no weight is set, the
/// primary one. That is also taken where the other one has nobody left to try: a canary that is gone fails no connection.
pub(super) fn of_service(ask: &Ask<'_>, service: &Service, wanted: IpAddr) -> Option<Result<Waypoint, Reason>> {
    let weights = service.weighted_waypoints.iter().map(|(_, weight)| u64::from(*weight));
    let chosen = weighted(ask.entropy, Stream::Waypoint, weights);
    let chosen = chosen.and_then(|index| service.weighted_waypoints.get(index)).map(|(gateway, _)| gateway);
    let chosen = chosen.or(service.waypoint.as_ref())?;
    let first = resolve(ask, chosen, wanted);
    let is_new = first.as_ref().is_ok_and(|waypoint| !ask.tried.contains(&waypoint.workload.uid));
    Some(match service.waypoint.as_ref().filter(|primary| *primary != chosen && !is_new) {
        Some(primary) => resolve(ask, primary, wanted).or(first),
        None => first,
    })
}

/// Resolves a waypoint to one of its workloads. There is no way round it: failing that, the reason.
pub(super) fn resolve(ask: &Ask<'_>, gateway: &Gateway, wanted: IpAddr) -> Result<Waypoint, Reason> {
    let name: Str = gateway.destination.to_string().into();
    let unavailable = || Reason::WaypointUnavailable { waypoint: name.clone() };
    let port = gateway.hbone_mtls_port.get();
    let (workload, port, families) = match front(ask.snapshot, gateway) {
        Some(service) => {
            let (workload, port) = pick(ask, service, port, Purpose::Waypoint).map_err(|reason| match reason {
                Reason::NetworkUnreachable { .. } => reason,
                _ => unavailable(),
            })?;
            (workload, port, service.ip_families)
        }
        None => (workload_at(ask.snapshot, gateway).ok_or_else(unavailable)?, port, IpFamilies::Automatic),
    };
    if workload.network != ask.source.network {
        return Err(Reason::NetworkUnreachable { network: workload.network.clone() });
    }
    let dial = dial(workload, families, wanted, port).ok_or_else(unavailable)?;
    Ok(Waypoint { dial, workload: workload.clone(), name })
}

/// Whether `workload` is one of a gateway's: whoever it is by its certificate, at one of its addresses.
pub(super) fn is_behind(snapshot: &Snapshot, gateway: &Gateway, workload: &Workload) -> bool {
    let same = |member: &Arc<Workload>| {
        member.uid == workload.uid
            || (member.has_identity_of(workload)
                && member.network == workload.network
                && member.addresses.iter().any(|address| workload.addresses.contains(address)))
    };
    front(snapshot, gateway).is_some_and(|service| snapshot.members(&service.key).any(same))
        || workload_at(snapshot, gateway).is_some_and(same)
}

/// Where to dial a workload.
pub(super) fn dial(workload: &Workload, families: IpFamilies, wanted: IpAddr, port: u16) -> Option<Dial> {
    match address_of(workload, families, wanted) {
        Some(address) => Some(Dial::Address((address, port).into())),
        None if workload.hostname.is_empty() => None,
        None => Some(Dial::Name(workload.hostname.clone(), port)),
    }
}

/// The service in front of a gateway. A binding is explicit: visibility does not matter.
fn front<'a>(snapshot: &'a Snapshot, gateway: &Gateway) -> Option<&'a Arc<Service>> {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => snapshot.service(key),
        GatewayDestination::Address(vip) => snapshot.services_with_vip(vip).min_by_key(|service| !service.canonical),
    }
}

fn workload_at<'a>(snapshot: &'a Snapshot, gateway: &Gateway) -> Option<&'a Arc<Workload>> {
    match &gateway.destination {
        GatewayDestination::Hostname(_) => None,
        GatewayDestination::Address(address) => snapshot.workload_at(address),
    }
}
