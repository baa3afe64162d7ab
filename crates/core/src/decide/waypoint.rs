//! What a waypoint takes, and where it sends it (contract 7.3): what is bound to it and nothing else, and never to
//! itself or to another waypoint.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::balance::Ask;
use super::outbound::{direct, unmanaged};
use super::spread::{Chances, Live, spread};
use super::{OutboundPlan, Refusal, gateway, inbound_plaintext};
use crate::attrs::{Authority, ConnectAttrs};
use crate::explain::Reason;
use crate::model::destination::Method;
use crate::model::{Mode, NetworkAddress, Service, ServicePort, Str, Workload, WorkloadUid};
use crate::snapshot::{Snapshot, Treatment};

/// What a CONNECT that a waypoint takes is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A port of a service.
    Service {
        /// The service.
        service: Arc<Service>,
        /// The port.
        port: ServicePort,
        /// The address that was dialled, if it was one.
        address: Option<SocketAddr>,
        /// Only endpoints of this subset (Istio, DestinationRule).
        subset: Option<Str>,
    },
    /// A workload itself.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// The address that was dialled.
        address: SocketAddr,
    },
}

impl Target {
    /// The service, where it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }
}

/// What a waypoint needs to know to choose an endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint<'a> {
    /// The waypoint's own workload.
    pub waypoint: &'a Workload,
    /// What is to be reached.
    pub target: &'a Target,
    /// Uniform random bits for this attempt.
    pub entropy: u64,
    /// Endpoints that failed already: not picked again while others remain.
    pub tried: &'a [WorkloadUid],
    /// What is known of endpoints from carrying traffic to them.
    pub live: &'a dyn Live,
    /// Of endpoints that take turns, whose it is: one more each time.
    pub turn: u64,
    /// What the endpoint is to depend on ([`super::hash_of`]), where that is asked for and the request has it.
    pub hash: Option<u64>,
}

/// Which service or workload a CONNECT at a waypoint (`attrs.destination`) is for: one that is bound to this waypoint, or
/// the reason why not.
pub fn waypoint(snapshot: &Snapshot, attrs: &ConnectAttrs<'_>) -> Result<Target, Refusal> {
    let own = attrs.destination;
    match attrs.authority {
        Authority::Address(address) => {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            at_address(snapshot, own, address, attrs.authority)
        }
        Authority::Name(hostname, port) => {
            let hostname = hostname.to_ascii_lowercase();
            let all = || snapshot.services_called(&hostname);
            match all().filter(|service| is_bound(snapshot, service, own)).min_by_key(|service| standing(service, own))
            {
                Some(service) => on_port(service, *port, None),
                None if all().next().is_some() => Err(foreign(attrs.authority)),
                None => Err(unknown(attrs.authority)),
            }
        }
    }
}

/// The services that are bound to a waypoint, in no order. Costs a look at every service.
pub fn bound<'a>(snapshot: &'a Snapshot, own: &'a Workload) -> impl Iterator<Item = &'a Arc<Service>> {
    snapshot.services().filter(move |service| is_bound(snapshot, service, own))
}

/// Where what a waypoint took goes: an endpoint of the service, or the workload.
pub fn endpoint(snapshot: &Snapshot, attrs: &Endpoint<'_>) -> Result<OutboundPlan, Refusal> {
    let own = attrs.waypoint;
    let (service, port, address, subset) = match attrs.target {
        Target::Workload { workload, address } => {
            let workload = snapshot.workload(&workload.uid).unwrap_or(workload);
            on_network(workload, own)?;
            return Ok(direct(workload, None, *address, address.port()));
        }
        Target::Service { service, port, address, subset } => {
            let service = snapshot.service(&service.key).unwrap_or(service);
            (service, port.mapping.service_port, *address, subset.as_deref())
        }
    };
    // Of a service without an address only the family is made up, for endpoints that have both.
    let to = address.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
    let treatment = treatment(snapshot, own, service, port, subset)?;
    let method = treatment.policy.balancing.as_ref().map(|balancing| &balancing.method);
    if (service.load_balancing.mode == Mode::Passthrough || method == Some(&Method::Passthrough))
        && let Some(address) = address
    {
        let key = NetworkAddress::new(snapshot.network().clone(), address.ip());
        return match snapshot.workload_at(&key) {
            Some(workload) => {
                on_network(workload, own)?;
                Ok(direct(workload, Some(service), address, address.port()))
            }
            None => Ok(unmanaged(address, Some(service.clone()))),
        };
    }
    let ask = Ask { snapshot, source: own, entropy: attrs.entropy, tried: attrs.tried };
    let chances = Chances { live: attrs.live, turn: attrs.turn, hash: attrs.hash };
    let (workload, port) = spread(&ask, service, port, &treatment, &chances)?;
    Ok(direct(workload, Some(service), to, port))
}

/// How a waypoint treats the endpoints of a service's port.
pub fn treatment(
    snapshot: &Snapshot,
    waypoint: &Workload,
    service: &Service,
    port: u16,
    subset: Option<&str>,
) -> Result<Treatment, Refusal> {
    let unknown = |subset: &str| Reason::SubsetUnknown { service: service.key.clone(), subset: subset.into() };
    match (snapshot.destination(&service.key, &waypoint.namespace), subset) {
        (Some(destination), _) => {
            let found = destination.treatment(port, subset);
            found.ok_or_else(|| unknown(subset.unwrap_or_default()).into())
        }
        (None, Some(subset)) => Err(unknown(subset).into()),
        (None, None) => Ok(Treatment::default()),
    }
}

fn at_address(
    snapshot: &Snapshot,
    own: &Workload,
    address: SocketAddr,
    authority: &Authority,
) -> Result<Target, Refusal> {
    let key = NetworkAddress::new(snapshot.network().clone(), address.ip());
    let bound = |service: &&Arc<Service>| is_bound(snapshot, service, own);
    let exact = snapshot.services_with_vip(&key).filter(bound).min_by_key(|service| standing(service, own));
    let service = exact.or_else(|| around(snapshot, own, address.ip()));
    let workload = snapshot.workload_at(&key);
    let is_ours = |workload: &&Arc<Workload>| {
        workload.uid != own.uid
            && workload.waypoint.as_ref().is_some_and(|gateway| gateway::is_behind(snapshot, gateway, own))
    };
    match (service, workload.filter(is_ours)) {
        // A ServiceEntry may list the address of a workload: the service counts where it has the port.
        (Some(service), Some(_)) if service.port(address.port()).is_some() => {
            on_port(service, address.port(), Some(address))
        }
        (_, Some(workload)) => {
            inbound_plaintext(address)?;
            Ok(Target::Workload { workload: workload.clone(), address })
        }
        (Some(service), None) => on_port(service, address.port(), Some(address)),
        (None, None) if workload.is_some() || snapshot.services_with_vip(&key).next().is_some() => {
            Err(foreign(authority))
        }
        (None, None) => Err(unknown(authority)),
    }
}

/// The bound service with the longest range around an address.
fn around<'a>(snapshot: &'a Snapshot, own: &Workload, address: IpAddr) -> Option<&'a Arc<Service>> {
    let bound = |(_, service): &(u8, &Arc<Service>)| is_bound(snapshot, service, own);
    let all = snapshot.services_around(address).filter(bound);
    all.min_by_key(|(length, service)| (u8::MAX - length, standing(service, own))).map(|(_, service)| service)
}

fn is_bound(snapshot: &Snapshot, service: &Service, own: &Workload) -> bool {
    service.waypoints().any(|gateway| gateway::is_behind(snapshot, gateway, own))
}

/// Of several services at one address or name: the waypoint's own namespace, then the canonical one. A binding is
/// explicit: visibility does not matter.
fn standing(service: &Service, own: &Workload) -> (bool, bool) {
    (service.key.namespace != own.namespace, !service.canonical)
}

fn on_port(service: &Arc<Service>, port: u16, address: Option<SocketAddr>) -> Result<Target, Refusal> {
    match service.port(port) {
        Some(port) => Ok(Target::Service { service: service.clone(), port: *port, address, subset: None }),
        None => Err(Reason::NoServicePort { service: service.key.clone(), port }.into()),
    }
}

fn on_network(workload: &Workload, own: &Workload) -> Result<(), Refusal> {
    if workload.network == own.network {
        return Ok(());
    }
    Err(Reason::NetworkUnreachable { network: workload.network.clone() }.into())
}

fn foreign(authority: &Authority) -> Refusal {
    Reason::ForeignAuthority { authority: authority.to_string().into() }.into()
}

fn unknown(authority: &Authority) -> Refusal {
    Reason::UnknownAuthority { authority: authority.to_string().into() }.into()
}

#[cfg(test)]
mod tests;
