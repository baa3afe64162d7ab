//! Which records are one connection's. Pure.
//!
//! A client's tunnel and whoever it reaches share an id. A waypoint's records have that one and, as `next`, the id under which
//! the server's tunnel knows what carried them on; many clients' requests may share that one.

use std::collections::BTreeSet;

use serde::Serialize;
use stillmesh_records::{Hop, Query, Told};

/// One connection of a client's, with everything that became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Connection {
    /// Its id.
    pub(crate) id: String,
    /// Whether it, or a request on it, was refused anywhere.
    pub(crate) refused: bool,
    /// In the order of the way; a request's endpoint follows it.
    pub(crate) hops: Vec<Told>,
}

impl Connection {
    /// Whether it was to a service that is asked for, at any hop: a route may lead to another one than was dialled.
    pub(crate) fn is_for(&self, question: &Query) -> bool {
        let mut named = self.hops.iter().map(|told| &told.destination.service).filter(|one| !one.is_empty()).peekable();
        named.peek().is_none() || named.any(|service| question.is_for_service(service))
    }

    /// When it was seen last, microseconds since 1970.
    fn at_us(&self) -> u64 {
        // What a waypoint carried on may be others' too.
        self.hops.iter().filter(|told| told.id == self.id).map(|told| told.at_us).max().unwrap_or_default()
    }
}

/// Most hops that are told of one connection: of its requests the refused, then the newest.
const MOST_HOPS: usize = 24;

/// Whether a record goes by an id.
pub(crate) fn has_id(told: &Told, id: u128) -> bool {
    let own = [Some(&told.id), told.next.as_ref(), told.request.as_ref(), told.decision.as_ref()];
    own.into_iter().flatten().any(|one| stillmesh_records::id(one) == Some(id))
}

/// Connections: refused ones first, then the newest. `wanted` says which records are asked for; others are told only where
/// they are a part of the way of those.
pub(crate) fn connections(told: Vec<Told>, wanted: &dyn Fn(&Told) -> bool) -> Vec<Connection> {
    let is_waypoint = |told: &Told| matches!(told.hop, Hop::Request | Hop::Connection);
    // What a waypoint carried on is a part of its clients' connections and none of its own.
    let carried: BTreeSet<&String> =
        told.iter().filter(|told| is_waypoint(told)).filter_map(|told| told.next.as_ref()).collect();
    let mut roots: Vec<&String> = told
        .iter()
        .filter(|told| told.hop != Hop::Inbound || !carried.contains(&told.id))
        .map(|told| &told.id)
        .collect();
    roots.sort_unstable();
    roots.dedup();
    let mut found: Vec<Connection> = roots.into_iter().filter_map(|root| connection(&told, root, wanted)).collect();
    found.sort_by_key(|one| (!one.refused, std::cmp::Reverse(one.at_us())));
    found
}

fn connection(told: &[Told], root: &str, wanted: &dyn Fn(&Told) -> bool) -> Option<Connection> {
    let of = |hop: Hop| told.iter().filter(move |told| told.hop == hop && told.id == root);
    let mut at_waypoint: Vec<&Told> = of(Hop::Connection).chain(of(Hop::Request)).collect();
    let inbound = |id: &str| {
        let mut all: Vec<&Told> = told.iter().filter(|told| told.hop == Hop::Inbound && told.id == id).collect();
        // One that is open and has ended meanwhile was told twice.
        if all.iter().any(|told| !told.live) {
            all.retain(|told| !told.live);
        }
        all
    };
    let ends = |told: &Told| told.next.as_deref().map(inbound).unwrap_or_default();
    // Asked for by the id of one request, the connection's others are not told.
    let is_wanted = |told: &&Told| wanted(told) || ends(told).into_iter().any(wanted);
    let others_wanted = of(Hop::Outbound).any(wanted) || inbound(root).into_iter().any(wanted);
    if at_waypoint.iter().any(&is_wanted) {
        at_waypoint.retain(is_wanted);
    } else if !others_wanted {
        return None;
    } else {
        at_waypoint.retain(|told| wanted(told));
    }
    at_waypoint.sort_by_key(|told| (!told.refused, std::cmp::Reverse(told.at_us)));
    let mut outbound: Vec<&Told> = of(Hop::Outbound).collect();
    if outbound.iter().any(|told| !told.live) {
        outbound.retain(|told| !told.live);
    }
    let mut hops: Vec<Told> = outbound.into_iter().cloned().collect();
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for one in at_waypoint {
        if hops.len() >= MOST_HOPS {
            break;
        }
        hops.push(one.clone());
        if let Some(next) = one.next.as_deref().filter(|next| shown.insert(next)) {
            hops.extend(inbound(next).into_iter().cloned());
        }
    }
    hops.extend(inbound(root).into_iter().cloned());
    (!hops.is_empty()).then(|| Connection { id: root.to_owned(), refused: hops.iter().any(|told| told.refused), hops })
}
