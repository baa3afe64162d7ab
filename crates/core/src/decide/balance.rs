//! Picks an endpoint of a service (contract 4.5, load balancing).

use std::net::IpAddr;
use std::sync::Arc;

use crate::explain::Reason;
use crate::model::{IpFamilies, Mode, PolicyKey, RoutingScope, Service, ServiceKey, Workload, WorkloadUid};
use crate::snapshot::Snapshot;

/// What an endpoint is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The connection itself.
    Traffic,
    /// The waypoint before it: the port may be unknown to the service where an application tunnel takes it.
    Waypoint,
}

/// What is asked of [`pick`].
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) source: &'a Workload,
    pub(super) entropy: u64,
    pub(super) tried: &'a [WorkloadUid],
}

/// An endpoint that may be picked.
pub(super) struct Candidate<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) port: u16,
    /// The number of leading preferences of the service that it meets.
    pub(super) rank: usize,
    /// Its share among those that are as good.
    pub(super) weight: u64,
    /// 0 is best; what makes them differ, [`super::spread`] finds.
    pub(super) level: usize,
    /// Left out for a while, likewise.
    pub(super) is_ejected: bool,
}

/// An endpoint of `service` for its `port`, and the port on it: among the best candidates at random, by capacity.
/// Those in `tried` are left until no other remains.
pub(super) fn pick<'a>(
    ask: &Ask<'a>,
    service: &Service,
    port: u16,
    purpose: Purpose,
) -> Result<(&'a Arc<Workload>, u16), Reason> {
    let mut candidates = candidates(ask, service, port, purpose)?;
    let standing = |candidate: &Candidate<'_>| (!ask.tried.contains(&candidate.workload.uid), candidate.rank);
    let best = candidates.iter().map(standing).max();
    candidates.retain(|candidate| Some(standing(candidate)) == best);
    let weights = candidates.iter().map(|candidate| candidate.weight);
    let chosen = weighted(ask.entropy, Stream::Endpoint, weights).and_then(|index| candidates.get(index));
    chosen
        .map(|candidate| (candidate.workload, candidate.port))
        .ok_or_else(|| Reason::NoHealthyEndpoint { service: service.key.clone() })
}

/// The endpoints of `service` for its `port` that may be picked, at least one: on the source's network, taking traffic, with an
/// address of the service's families or a name, with the port, and cut off by no Quarantine. In order of their keys.
pub(super) fn candidates<'a>(
    ask: &Ask<'a>,
    service: &Service,
    port: u16,
    purpose: Purpose,
) -> Result<Vec<Candidate<'a>>, Reason> {
    let key = &service.key;
    if purpose == Purpose::Traffic && service.port(port).is_none() {
        return Err(Reason::NoServicePort { service: key.clone(), port });
    }
    let mut elsewhere = None;
    let mut candidates = Vec::new();
    for workload in ask.snapshot.endpoints(key).filter(|workload| workload.quarantine().is_none()) {
        let Some(port) = target_port(service, workload, port, purpose) else { continue };
        let Some(rank) = rank(service, ask.source, workload) else { continue };
        if workload.network != ask.source.network {
            elsewhere.get_or_insert(workload);
        } else if is_reachable(service, workload) {
            let weight = u64::from(workload.capacity.max(1));
            candidates.push(Candidate { workload, port, rank, weight, level: 0, is_ejected: false });
        }
    }
    match (candidates.is_empty(), elsewhere) {
        (false, _) => Ok(candidates),
        (true, Some(workload)) => Err(Reason::NetworkUnreachable { network: workload.network.clone() }),
        (true, None) => Err(match all_cut_off(ask.snapshot, key) {
            Some(policy) => Reason::Quarantined { policy: policy.clone() },
            None => Reason::NoHealthyEndpoint { service: key.clone() },
        }),
    }
}

/// By which Quarantine the members of a service are cut off, where all are.
fn all_cut_off<'a>(snapshot: &'a Snapshot, key: &ServiceKey) -> Option<&'a PolicyKey> {
    let mut members = snapshot.members(key).map(|workload| workload.quarantine());
    let first = members.next()??;
    members.all(|one| one.is_some()).then_some(first)
}

/// The endpoint's own mapping, else the service's target, else (for a waypoint whose application tunnel has a port of
/// its own) the port itself.
fn target_port(service: &Service, workload: &Workload, port: u16, purpose: Purpose) -> Option<u16> {
    let of_service = || service.port(port).map(|port| port.mapping.target_port).filter(|port| *port > 0);
    let tunnelled = || {
        let tunnel = workload.application_tunnel?;
        (purpose == Purpose::Waypoint && tunnel.port.is_some()).then_some(port)
    };
    workload.target_port(&service.key, port).or_else(of_service).or_else(tunnelled)
}

fn is_reachable(service: &Service, workload: &Workload) -> bool {
    !workload.hostname.is_empty() || workload.addresses.iter().any(|address| service.ip_families.accept(*address))
}

/// Whether two workloads have a property in common.
pub(super) fn shares(scope: RoutingScope, source: &Workload, endpoint: &Workload) -> bool {
    match scope {
        RoutingScope::Region => source.locality.region == endpoint.locality.region,
        RoutingScope::Zone => source.locality.zone == endpoint.locality.zone,
        RoutingScope::Subzone => source.locality.subzone == endpoint.locality.subzone,
        RoutingScope::Node => source.node == endpoint.node,
        RoutingScope::Cluster => source.cluster == endpoint.cluster,
        RoutingScope::Network => source.network == endpoint.network,
    }
}

/// How well `endpoint` meets the service's preferences; `None` where it must not be picked.
///
/// `FAILOVER`: the number of leading preferences met. `NETWORK` in the first place is special: to miss it ends nothing,
/// to meet it outweighs all others.
fn rank(service: &Service, source: &Workload, endpoint: &Workload) -> Option<usize> {
    let preferences = &service.load_balancing.routing_preferences;
    let meets = |scope: &RoutingScope| shares(*scope, source, endpoint);
    match service.load_balancing.mode {
        Mode::Standard | Mode::Passthrough => Some(0),
        Mode::Strict => preferences.iter().all(meets).then_some(0),
        Mode::Failover => {
            let (network, others) = match preferences.split_first() {
                Some((RoutingScope::Network, others)) => {
                    (if meets(&RoutingScope::Network) { preferences.len() } else { 0 }, others)
                }
                _ => (0, preferences.as_slice()),
            };
            Some(network + others.iter().take_while(|scope| meets(scope)).count())
        }
    }
}

/// The address to dial a workload at: the one asked for if it is one of its own, else one of the service's families,
/// of the family asked for if there is a choice. `None`: by its name.
pub(super) fn address_of(workload: &Workload, families: IpFamilies, wanted: IpAddr) -> Option<IpAddr> {
    if workload.addresses.contains(&wanted) {
        return Some(wanted);
    }
    let accepted = || workload.addresses.iter().copied().filter(|address| families.accept(*address));
    accepted().find(|address| address.is_ipv4() == wanted.is_ipv4()).or_else(|| accepted().next())
}

/// Choices of one connection attempt that must not depend on each other.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Endpoint = 1,
    Waypoint = 2,
    Backend = 3,
    Delay = 4,
    Abort = 5,
    Mirror = 6,
    Second = 7,
    Level = 8,
    Place = 9,
}

/// An index into `weights`, at random by weight; `None` where they add up to nothing.
pub(super) fn weighted(entropy: u64, stream: Stream, weights: impl Iterator<Item = u64> + Clone) -> Option<usize> {
    part(mixed(entropy, stream), weights)
}

/// The index whose part of the whole `bits` fall into, the parts being as large as the weights; `None` where these add up to
/// nothing.
pub(super) fn part(bits: u64, weights: impl Iterator<Item = u64> + Clone) -> Option<usize> {
    let total: u128 = weights.clone().map(u128::from).sum();
    // The top 64 bits of a 64 by 64 bit product: uniform below `total`, which stays far below 2^64.
    let mut left = (u128::from(bits) * total) >> 64;
    weights.into_iter().position(|weight| {
        let weight = u128::from(weight);
        let chosen = left < weight;
        left = left.saturating_sub(weight);
        chosen
    })
}

/// SplitMix64's step: independent bits per stream out of one uniform value.
pub(super) fn mixed(entropy: u64, stream: Stream) -> u64 {
    let mut bits = entropy.wrapping_add((stream as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
