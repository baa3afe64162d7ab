//! Picks an endpoint of a service at a waypoint, as the service's DestinationRule says (contract 7.4).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::balance::{Ask, Candidate, Purpose, Stream, candidates, mixed, part, shares, weighted};
use crate::explain::Reason;
use crate::model::destination::{Balancing, Distribution, LocalityPolicy, Method, Place, WarmUp};
use crate::model::{Locality, Service, Str, Workload, WorkloadUid};
use crate::snapshot::Treatment;

/// What is known of endpoints from carrying traffic to them.
pub trait Live: fmt::Debug {
    /// Requests and connections that are under way there.
    fn active(&self, endpoint: &WorkloadUid) -> u64;
    /// Whether it is left out for a while.
    fn is_ejected(&self, endpoint: &WorkloadUid) -> bool;
    /// How long it has been known.
    fn age(&self, endpoint: &WorkloadUid) -> Duration;
}

/// What a choice depends on beside what is written.
#[derive(Clone, Copy)]
pub(super) struct Chances<'a> {
    pub(super) live: &'a dyn Live,
    pub(super) turn: u64,
    pub(super) hash: Option<u64>,
}

/// An endpoint of `service` for its `port`, and the port on it.
///
/// In this order: subset; who is not left out, unless so few remain that nobody counts as left out; who was not tried,
/// while there are such (not for a consistent hash); place; then the method among those that are as good as each other.
pub(super) fn spread<'a>(
    ask: &Ask<'a>,
    service: &Service,
    port: u16,
    treatment: &Treatment,
    chances: &Chances<'_>,
) -> Result<(&'a Arc<Workload>, u16), Reason> {
    let nobody = || Reason::NoHealthyEndpoint { service: service.key.clone() };
    let (policy, plain) = (&treatment.policy, Balancing::default());
    let balancing = policy.balancing.as_ref().unwrap_or(&plain);
    let is_member = |uid: &WorkloadUid| treatment.members.as_ref().is_none_or(|members| members.contains(uid));
    let mut all = candidates(ask, service, port, Purpose::Traffic)?;
    all.retain(|one| one.workload.uid != ask.source.uid && is_member(&one.workload.uid));
    if let Some(outliers) = policy.outliers {
        all.iter_mut().for_each(|one| one.is_ejected = chances.live.is_ejected(&one.workload.uid));
        let left = all.iter().filter(|one| !one.is_ejected).count();
        if left.saturating_mul(100) < all.len().saturating_mul(outliers.least_healthy_percent as usize) {
            all.iter_mut().for_each(|one| one.is_ejected = false);
        }
    }
    let is_new = |one: &Candidate<'_>| !ask.tried.contains(&one.workload.uid);
    let is_hashed = matches!(balancing.method, Method::ConsistentHash(_)) && chances.hash.is_some();
    if !is_hashed && all.iter().any(|one| is_new(one) && !one.is_ejected) {
        all.retain(is_new);
    }
    let (candidates, are_out) = (all.len(), !all.is_empty() && all.iter().all(|one| one.is_ejected));
    // The same key goes to the same place.
    let draw = chances.hash.filter(|_| is_hashed).unwrap_or(ask.entropy);
    place(&mut all, ask, service, balancing, policy.outliers.is_some(), draw);
    all.retain(|one| !one.is_ejected);
    if all.is_empty() && are_out {
        return Err(Reason::EndpointsEjected { service: service.key.clone(), endpoints: candidates });
    }
    all.iter_mut().for_each(|one| one.weight = weight(one.workload, balancing, chances.live));
    let index = match &balancing.method {
        Method::LeastRequest => least_busy(&all, ask.entropy, chances.live),
        Method::RoundRobin => in_turn(&all, chances.turn),
        Method::ConsistentHash(_) if let Some(hash) = chances.hash => closest(&all, hash),
        Method::Random | Method::Passthrough | Method::ConsistentHash(_) => {
            weighted(ask.entropy, Stream::Endpoint, weights(&all))
        }
    };
    let chosen = index.and_then(|index| all.get(index)).ok_or_else(nobody)?;
    Ok((chosen.workload, chosen.port))
}

/// Leaves those whose place it is.
fn place(
    all: &mut Vec<Candidate<'_>>,
    ask: &Ask<'_>,
    service: &Service,
    balancing: &Balancing,
    watches_outliers: bool,
    draw: u64,
) {
    let own = ask.source;
    match &balancing.locality {
        Some(LocalityPolicy::Ignored) => {}
        Some(LocalityPolicy::Distribute(rules)) if let Some(rule) = rule_for(rules, &own.locality) => {
            distribute(all, rule, draw);
        }
        Some(LocalityPolicy::Priority(wanted)) => {
            let shared = |other: &Workload| wanted.iter().take_while(|scope| shares(**scope, own, other)).count();
            levels(all, |one| wanted.len() - shared(one.workload), draw);
        }
        // Istio: nearness counts by itself where outliers are watched for.
        Some(LocalityPolicy::Failover(pairs)) if watches_outliers => {
            levels(all, |one| distance(own, one.workload, pairs), draw);
        }
        None if watches_outliers && service.load_balancing.routing_preferences.is_empty() => {
            levels(all, |one| distance(own, one.workload, &[]), draw);
        }
        Some(LocalityPolicy::Distribute(_) | LocalityPolicy::Failover(_)) | None => {
            let best = all.iter().map(|one| one.rank).max().unwrap_or_default();
            levels(all, |one| best - one.rank, draw);
        }
    }
}

/// Leaves one level: the best, as long as enough of it are there. What it cannot take goes to the next (Envoy, «priority
/// levels», with an overprovisioning factor of 1.4).
fn levels(all: &mut Vec<Candidate<'_>>, level: impl Fn(&Candidate<'_>) -> usize, draw: u64) {
    all.iter_mut().for_each(|one| one.level = level(one));
    all.sort_by_key(|one| one.level);
    let mut each = all.chunk_by(|one, next| one.level == next.level);
    let shares = each.clone().scan(100, |room, those| {
        let left = those.iter().filter(|one| !one.is_ejected).count();
        let share = (left * 140 / those.len()).min(*room);
        *room -= share;
        Some(share as u64)
    });
    let chosen = weighted(draw, Stream::Level, shares).and_then(|index| each.nth(index)?.first());
    let chosen = chosen.map(|one| one.level);
    all.retain(|one| Some(one.level) == chosen);
}

/// How far away: the same subzone, zone, region; the region that stands in for the own one; anywhere.
fn distance(own: &Workload, other: &Workload, pairs: &[(Str, Str)]) -> usize {
    let (from, to) = (&own.locality, &other.locality);
    if from.region == to.region {
        return match (from.zone == to.zone, from.subzone == to.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
    }
    let stands_in = pairs.iter().any(|(failed, instead)| *failed == from.region && *instead == to.region);
    if stands_in { 3 } else { 4 }
}

fn rule_for<'r>(rules: &'r [Distribution], own: &Locality) -> Option<&'r Distribution> {
    rules.iter().find(|rule| is_in(own, &rule.from))
}

fn is_in(locality: &Locality, place: &Place) -> bool {
    let same = |wanted: &Option<Str>, there: &str| wanted.as_deref().is_none_or(|wanted| wanted == there);
    same(&place.region, &locality.region)
        && same(&place.zone, &locality.zone)
        && same(&place.subzone, &locality.subzone)
}

/// Leaves the endpoints of one of the places, by their weights; a place without any takes no share.
fn distribute(all: &mut Vec<Candidate<'_>>, rule: &Distribution, draw: u64) {
    let place_of = |one: &Candidate<'_>| rule.to.iter().position(|(place, _)| is_in(&one.workload.locality, place));
    let weights: Vec<u64> = rule
        .to
        .iter()
        .enumerate()
        .map(|(index, (_, weight))| {
            let has_some = all.iter().any(|one| !one.is_ejected && place_of(one) == Some(index));
            if has_some { u64::from(*weight) } else { 0 }
        })
        .collect();
    let chosen = weighted(draw, Stream::Place, weights.iter().copied());
    all.retain(|one| chosen.is_some() && place_of(one) == chosen);
}

/// Thousandths of the capacity: all of it, unless it is new.
fn weight(workload: &Workload, balancing: &Balancing, live: &dyn Live) -> u64 {
    let whole = u64::from(workload.capacity.max(1)).saturating_mul(1000);
    match (&balancing.warm_up, &balancing.method) {
        (Some(warm_up), Method::LeastRequest | Method::RoundRobin) => {
            let part = warmed(warm_up, live.age(&workload.uid));
            whole.saturating_mul(part) / 1000
        }
        _ => whole,
    }
    .max(1)
}

/// What part of its share a new endpoint has, thousandths.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
fn warmed(warm_up: &WarmUp, age: Duration) -> u64 {
    if age >= warm_up.duration {
        return 1000;
    }
    let time = age.as_secs_f64() / warm_up.duration.as_secs_f64();
    let grown = time.powf(1000.0 / f64::from(warm_up.aggression.max(1)));
    ((grown * 1000.0) as u64).max(u64::from(warm_up.least_percent.min(100)) * 10).clamp(1, 1000)
}

fn weights<'c>(all: &'c [Candidate<'_>]) -> impl Iterator<Item = u64> + Clone + 'c {
    all.iter().map(|one| one.weight)
}

/// Of two taken at random the one that has less to do for its weight.
fn least_busy(among: &[Candidate<'_>], entropy: u64, live: &dyn Live) -> Option<usize> {
    let first = weighted(entropy, Stream::Endpoint, weights(among))?;
    let others = weights(among).enumerate().map(|(index, weight)| if index == first { 0 } else { weight });
    let Some(second) = weighted(entropy, Stream::Second, others) else { return Some(first) };
    let (one, other) = (among.get(first)?, among.get(second)?);
    let busy = |one: &Candidate<'_>| u128::from(live.active(&one.workload.uid)) + 1;
    Some(if busy(other) * u128::from(one.weight) < busy(one) * u128::from(other.weight) { second } else { first })
}

/// One after the other; by their shares where these differ.
fn in_turn(among: &[Candidate<'_>], turn: u64) -> Option<usize> {
    if weights(among).min()? == weights(among).max()? {
        return usize::try_from(turn % u64::try_from(among.len()).ok()?).ok();
    }
    // Steps of the golden ratio: evenly spread over whatever the shares are, however many turns there were.
    part(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15), weights(among))
}

/// The endpoint that a key belongs to: the one whose draw for this key is best («rendezvous hashing»). One that comes or goes
/// moves the keys that are its own, and no others; each waypoint gives the same answer.
fn closest(among: &[Candidate<'_>], hash: u64) -> Option<usize> {
    let drawn = |one: &Candidate<'_>| {
        let bits = mixed(hash ^ hash_of(one.workload.uid.0.as_bytes()), Stream::Endpoint);
        // Uniform, above 0 and at most 1; the logarithm makes it a race that each wins by its weight.
        #[expect(clippy::cast_precision_loss, reason = "53 bits are many enough")]
        let uniform = ((bits >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        #[expect(clippy::cast_precision_loss, reason = "a weight")]
        let weight = one.weight as f64;
        -uniform.ln() / weight
    };
    let all = among.iter().map(drawn).enumerate();
    all.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(index, _)| index)
}

/// What a text comes to as a key of a consistent hash (FNV-1a, then mixed). The same in every waypoint.
pub fn hash_of(text: &[u8]) -> u64 {
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mixed(hash, Stream::Second)
}

#[cfg(test)]
mod tests;
