//! One node's session on the catalog: what it subscribed to, what it still has to be told, what it acknowledged.
//!
//! At most one response per type is unacknowledged. Until it is, changes coalesce into a set of names, so that a
//! slow node costs names and not messages. Policies go out before the addresses that come with them, removals of
//! policies after.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use stillmesh_core::model::Str;
use stillmesh_core::{Diagnose, Fault};

use super::catalog::{Catalog, Entry, Touched};
use crate::proto::envoy::config::core::v3::ControlPlane;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::proto::google::protobuf::Any;
use crate::xds::{IDENTIFIER, Rejected, ResourceType};

/// One stream's state.
#[derive(Debug)]
pub struct Session {
    node: Str,
    addresses: Subscription,
    policies: Subscription,
    routes: Subscription,
    accesses: Subscription,
    destinations: Subscription,
    nonce: u64,
    opened: Instant,
    /// What the last answer confirmed.
    confirmed: Option<Range<u64>>,
    /// What the node has refused and nothing newer has come of; at most [`MAX_REFUSED`].
    refused: BTreeMap<(ResourceType, Str), Str>,
    /// From this generation on something was refused of which it is not known what.
    doubt: Option<u64>,
}

/// How far a node is: what of all that was published it has said to be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The types that it has asked for.
    pub asked: Vec<ResourceType>,
    /// All generations before this one have been acknowledged, as far as they concern it; `None` where all have.
    pub behind: Option<u64>,
    /// Resources that it refuses as they are now, with what it said.
    pub refused: BTreeMap<(ResourceType, Str), Str>,
}

/// One type of a session.
#[derive(Debug, Default)]
struct Subscription {
    /// The node has asked for this type.
    asked: bool,
    wildcard: bool,
    /// Asked for by name: primary keys and aliases.
    names: BTreeSet<Str>,
    /// To be sent: primary keys, and names asked for.
    pending: BTreeSet<Str>,
    /// A response is owed even if empty.
    owed: bool,
    /// The oldest generation of which something is to be sent.
    behind: Option<u64>,
    outstanding: Option<Outstanding>,
}

/// A response that is not acknowledged yet.
#[derive(Debug)]
struct Outstanding {
    nonce: String,
    sent: Instant,
    /// The oldest generation of which something is in it.
    since: u64,
    /// Everything published up to here has been sent with it; `None` where something was put off.
    generation: Option<u64>,
}

/// What a request meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A subscription: nothing to tell.
    None,
    /// An answer to something that is not waited for.
    Expired(ResourceType),
    /// The node applied a response. The generation up to which it is complete, if it is.
    Acked(ResourceType, Option<u64>),
    /// The node applied a response but for these resources.
    Nacked(ResourceType, Option<u64>, Vec<Rejected>),
}

/// Why a session is ended. The node reconnects and says what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// More names than a node may subscribe to.
    #[error("more than {MAX_NAMES} names subscribed")]
    TooManyNames,
    /// No acknowledgement came.
    #[error("a response was not acknowledged within {ACK_DEADLINE:?}")]
    Silent,
}

impl Diagnose for SessionError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooManyNames => "API060",
            Self::Silent => "API061",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Downstream
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::TooManyNames => "subscribe the node to everything instead of to names",
            Self::Silent => "see the node tunnel's log; it reconnects by itself",
        }
    }
}

/// How long a response may stay unacknowledged.
pub const ACK_DEADLINE: Duration = Duration::from_secs(60);

/// How many names one node may subscribe to, beside `*`.
pub const MAX_NAMES: usize = 65_536;

/// How many refused resources are remembered of one node. Beyond, everything that came with them counts as refused.
pub const MAX_REFUSED: usize = 256;

/// How long the first addresses wait for the node to ask for policies too, so that these go first.
pub const GATHER: Duration = Duration::from_millis(50);

impl Session {
    /// A session of a stream opened now. `node` is the Kubernetes node's name; empty if unknown.
    pub fn new(node: impl Into<Str>, now: Instant) -> Self {
        let new = Subscription::default;
        Self {
            node: node.into(),
            addresses: new(),
            policies: new(),
            routes: new(),
            accesses: new(),
            destinations: new(),
            nonce: 0,
            opened: now,
            confirmed: None,
            refused: BTreeMap::new(),
            doubt: None,
        }
    }

    /// Takes a request. Types that are not served are ignored: nobody is owed an answer of an unknown type.
    pub fn request(&mut self, catalog: &Catalog, request: DeltaDiscoveryRequest) -> Result<Event, SessionError> {
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            return Ok(Event::None);
        };
        let (node, before) = (self.node.clone(), self.behind());
        let subscription = self.subscription_mut(kind);
        let since = subscription.outstanding.as_ref().map(|outstanding| outstanding.since);
        let event = if subscription.asked { subscription.answered(kind, &request) } else { Event::None };
        if let Event::Nacked(_, _, rejected) = &event {
            self.refuse(kind, since.unwrap_or_default(), rejected);
        }
        if matches!(event, Event::Acked(..) | Event::Nacked(..)) {
            let after = self.behind().unwrap_or(catalog.generation() + 1);
            self.confirmed = before.filter(|before| *before < after).map(|before| before..after);
        }
        let subscription = self.subscription_mut(kind);
        let first = !subscription.asked;
        subscription.asked = true;
        subscription.subscribe(catalog, kind, request, first);
        if first && kind == ResourceType::Address && !subscription.wildcard && !node.is_empty() {
            // Contract 4.1: a node that asks on demand is told of its own pods unasked.
            subscription.pending.extend(catalog.on_node(&node).cloned());
        }
        subscription.note_behind(if first { 0 } else { catalog.generation() });
        if subscription.names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames);
        }
        Ok(event)
    }

    /// Notes what the node does not take as it is now. What it was told of since is another version.
    fn refuse(&mut self, kind: ResourceType, since: u64, rejected: &[Rejected]) {
        for one in rejected {
            let name = Str::from(one.name.as_str());
            if self.subscription_mut(kind).pending.contains(&name) {
                continue;
            }
            if name.is_empty() || self.refused.len() >= MAX_REFUSED {
                self.doubt.get_or_insert(since);
            } else {
                self.refused.insert((kind, name), one.reason.as_str().into());
            }
        }
        // The node's own bound: there may have been more.
        if rejected.len() >= MAX_REFUSED {
            self.doubt.get_or_insert(since);
        }
    }

    /// The oldest generation of which something is not acknowledged.
    fn behind(&self) -> Option<u64> {
        let open = self.subscriptions().into_iter().flat_map(|subscription| {
            [subscription.behind, subscription.outstanding.as_ref().map(|outstanding| outstanding.since)]
        });
        open.flatten().chain(self.doubt).min()
    }

    /// How far the node is.
    pub fn standing(&self) -> Standing {
        let asked = ResourceType::ALL.into_iter().filter(|kind| self.subscription(*kind).asked);
        Standing { asked: asked.collect(), behind: self.behind(), refused: self.refused.clone() }
    }

    /// The generations that the last answer confirmed, once: all that was published in them is in force, but for what is
    /// refused.
    pub fn take_confirmed(&mut self) -> Option<Range<u64>> {
        self.confirmed.take()
    }

    /// Something was published as part of a generation. True if this session has to send.
    pub fn touch(&mut self, touched: &Touched, generation: u64) -> bool {
        let node = self.node.clone();
        let subscription = self.subscription_mut(touched.kind);
        let concerned = subscription.asked
            && (subscription.wildcard
                || touched.nodes.contains(&node)
                || subscription.names.contains(&touched.name)
                || touched.related.iter().any(|name| subscription.names.contains(name)));
        if concerned {
            subscription.pending.insert(touched.name.clone());
            subscription.behind.get_or_insert(generation);
            if !self.refused.is_empty() {
                self.refused.remove(&(touched.kind, touched.name.clone()));
            }
        }
        concerned
    }

    /// The next response to send, if any; call until there is none.
    pub fn next(&mut self, catalog: &Catalog, now: Instant) -> Option<DeltaDiscoveryResponse> {
        let policies = self.policies.outstanding.is_none().then(|| self.take_policies(catalog)).flatten();
        if let Some(ready) = policies {
            return Some(self.send(ResourceType::Authorization, catalog, ready, now));
        }
        // What decides about requests goes before what is bound to a waypoint.
        if self.accesses.sendable() {
            let ready = std::mem::take(&mut self.accesses.pending);
            return Some(self.send(ResourceType::Access, catalog, ready, now));
        }
        if self.addresses.sendable() && self.policies_are_sent(catalog, now) {
            let ready = std::mem::take(&mut self.addresses.pending);
            return Some(self.send(ResourceType::Address, catalog, ready, now));
        }
        // Routes name what these define.
        if self.destinations.sendable() {
            let ready = std::mem::take(&mut self.destinations.pending);
            return Some(self.send(ResourceType::Destination, catalog, ready, now));
        }
        if self.routes.sendable() {
            let ready = std::mem::take(&mut self.routes.pending);
            return Some(self.send(ResourceType::Route, catalog, ready, now));
        }
        None
    }

    /// How many names the next response is about, if there is one now.
    pub fn next_names(&self, catalog: &Catalog, now: Instant) -> usize {
        if self.policies.sendable() {
            self.policies.pending.len()
        } else if self.accesses.sendable() {
            self.accesses.pending.len()
        } else if self.addresses.sendable() && self.policies_are_sent(catalog, now) {
            self.addresses.pending.len()
        } else if self.destinations.sendable() {
            self.destinations.pending.len()
        } else if self.routes.sendable() {
            self.routes.pending.len()
        } else {
            0
        }
    }

    /// Whether a response is not acknowledged yet.
    pub fn waits(&self) -> bool {
        self.subscriptions().into_iter().any(|subscription| subscription.outstanding.is_some())
    }

    /// Policies that may go now. Their removals wait for the addresses that stop naming them.
    fn take_policies(&mut self, catalog: &Catalog) -> Option<BTreeSet<Str>> {
        if !self.policies.sendable() {
            return None;
        }
        let live = catalog.entries(ResourceType::Authorization);
        let (mut ready, put_off): (BTreeSet<Str>, BTreeSet<Str>) =
            std::mem::take(&mut self.policies.pending).into_iter().partition(|name| live.contains_key(name));
        if self.addresses.asked && (self.addresses.owed || !self.addresses.pending.is_empty()) {
            self.policies.pending = put_off;
        } else {
            ready.extend(put_off);
        }
        (self.policies.owed || !ready.is_empty()).then_some(ready)
    }

    fn policies_are_sent(&self, catalog: &Catalog, now: Instant) -> bool {
        if !self.policies.asked {
            return now >= self.opened + GATHER;
        }
        let live = catalog.entries(ResourceType::Authorization);
        !self.policies.owed && !self.policies.pending.iter().any(|name| live.contains_key(name))
    }

    fn send(
        &mut self,
        kind: ResourceType,
        catalog: &Catalog,
        names: BTreeSet<Str>,
        now: Instant,
    ) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        let nonce = format!("{:x}", self.nonce);
        let subscription = self.subscription_mut(kind);
        let (live, wildcard) = (catalog.entries(kind), subscription.wildcard);
        let mut found = BTreeSet::new();
        let mut removed = Vec::new();
        for name in names {
            if wildcard && live.contains_key(&name) {
                found.insert(name);
                continue;
            }
            let resolved = catalog.resolve(kind, &name);
            if resolved.is_empty() {
                removed.push(name.to_string());
            }
            found.extend(resolved);
        }
        let resource = |name: Str| live.get(&name).map(|entry| resource(kind, &name, entry, wildcard));
        let resources = found.into_iter().filter_map(resource).collect();
        subscription.owed = false;
        let complete = subscription.pending.is_empty();
        let generation = complete.then(|| catalog.generation());
        let since = subscription.behind.unwrap_or(catalog.generation());
        subscription.behind = (!complete).then_some(since);
        subscription.outstanding = Some(Outstanding { nonce: nonce.clone(), sent: now, since, generation });
        DeltaDiscoveryResponse {
            system_version_info: catalog.generation().to_string(),
            resources,
            type_url: kind.url().to_owned(),
            nonce,
            removed_resources: removed,
            control_plane: Some(ControlPlane { identifier: IDENTIFIER.to_owned() }),
        }
    }

    /// When to look again although nothing happened: to send what waits, or to find the node silent.
    pub fn deadline(&self) -> Option<Instant> {
        let gather = (self.addresses.sendable() && !self.policies.asked).then(|| self.opened + GATHER);
        let acks = self.subscriptions().into_iter().filter_map(|subscription| {
            subscription.outstanding.as_ref().map(|outstanding| outstanding.sent + ACK_DEADLINE)
        });
        acks.chain(gather).min()
    }

    /// Whether the node has let a response go unanswered for too long.
    pub fn check(&self, now: Instant) -> Result<(), SessionError> {
        let late = |subscription: &Subscription| {
            subscription.outstanding.as_ref().is_some_and(|outstanding| now >= outstanding.sent + ACK_DEADLINE)
        };
        match self.subscriptions().into_iter().any(late) {
            true => Err(SessionError::Silent),
            false => Ok(()),
        }
    }

    fn subscriptions(&self) -> [&Subscription; 5] {
        [&self.addresses, &self.policies, &self.routes, &self.accesses, &self.destinations]
    }

    fn subscription(&self, kind: ResourceType) -> &Subscription {
        match kind {
            ResourceType::Address => &self.addresses,
            ResourceType::Authorization => &self.policies,
            ResourceType::Route => &self.routes,
            ResourceType::Access => &self.accesses,
            ResourceType::Destination => &self.destinations,
        }
    }

    fn subscription_mut(&mut self, kind: ResourceType) -> &mut Subscription {
        match kind {
            ResourceType::Address => &mut self.addresses,
            ResourceType::Authorization => &mut self.policies,
            ResourceType::Route => &mut self.routes,
            ResourceType::Access => &mut self.accesses,
            ResourceType::Destination => &mut self.destinations,
        }
    }
}

impl Subscription {
    /// Reads an ACK or NACK. A nonce that is not the outstanding one answers nothing.
    fn answered(&mut self, kind: ResourceType, request: &DeltaDiscoveryRequest) -> Event {
        let matching = |outstanding: &mut Outstanding| outstanding.nonce == request.response_nonce;
        match (self.outstanding.take_if(matching), &request.error_detail) {
            (None, _) if request.response_nonce.is_empty() => Event::None,
            (None, _) => Event::Expired(kind),
            (Some(answered), None) => Event::Acked(kind, answered.generation),
            (Some(answered), Some(status)) => Event::Nacked(kind, answered.generation, rejected(&status.message)),
        }
    }

    fn subscribe(&mut self, catalog: &Catalog, kind: ResourceType, request: DeltaDiscoveryRequest, first: bool) {
        let DeltaDiscoveryRequest { resource_names_subscribe, resource_names_unsubscribe, .. } = &request;
        let starts = resource_names_subscribe.iter().any(|name| name == "*");
        let stops = resource_names_unsubscribe.iter().any(|name| name == "*");
        let legacy = first && resource_names_subscribe.is_empty() && resource_names_unsubscribe.is_empty();
        let was = self.wildcard;
        self.wildcard = (was || starts || legacy) && !stops;
        for name in resource_names_subscribe.iter().filter(|name| *name != "*") {
            let name = Str::from(name.as_str());
            self.names.insert(name.clone());
            // Asking again is answered again.
            self.pending.insert(name);
        }
        for name in resource_names_unsubscribe {
            self.names.remove(name.as_str());
            self.pending.remove(name.as_str());
        }
        if was && !self.wildcard {
            self.owed = false;
            let names = &self.names;
            self.pending.retain(|name| names.contains(name));
        }
        let held = if first { request.initial_resource_versions } else { Default::default() };
        let live = catalog.entries(kind);
        if self.wildcard && !was {
            self.owed = true;
            let differs =
                |(name, entry): &(&Str, &Entry)| held.get(&***name).is_none_or(|version| *version != *entry.version);
            self.pending.extend(live.iter().filter(differs).map(|(name, _)| name.clone()));
            self.pending.extend(held.into_keys().map(Str::from).filter(|name| !live.contains_key(name)));
        } else if !self.wildcard {
            for (name, version) in held {
                let name = Str::from(name);
                if live.get(&name).is_none_or(|entry| *entry.version != *version) {
                    self.pending.insert(name.clone());
                }
                self.names.insert(name);
            }
        }
    }

    /// After names were asked for: what is to be sent counts from this generation on, unless older things wait already.
    fn note_behind(&mut self, generation: u64) {
        self.behind = (self.owed || !self.pending.is_empty()).then(|| self.behind.unwrap_or(generation));
    }

    fn sendable(&self) -> bool {
        self.asked && self.outstanding.is_none() && (self.owed || !self.pending.is_empty())
    }
}

/// Aliases are for those who may have asked by one.
fn resource(kind: ResourceType, name: &Str, entry: &Entry, wildcard: bool) -> Resource {
    let aliases = if wildcard { Vec::new() } else { entry.aliases.iter().map(ToString::to_string).collect() };
    Resource {
        name: name.to_string(),
        version: entry.version.to_string(),
        resource: Some(Any { type_url: kind.url().to_owned(), value: entry.bytes.clone() }),
        aliases,
        ttl: None,
    }
}

/// Reads `name: reason; name: reason` as far as it is that.
fn rejected(message: &str) -> Vec<Rejected> {
    let mut found: Vec<Rejected> = Vec::new();
    for part in message.split("; ").take(MAX_REJECTED) {
        match (part.split_once(": "), found.last_mut()) {
            // A resource's name has a slash and no space; else the part belongs to the reason before it.
            (Some((name, reason)), _) if name.contains('/') && !name.contains(' ') => {
                found.push(Rejected { name: name.to_owned(), reason: reason.to_owned() });
            }
            (_, Some(last)) => last.reason = format!("{}; {part}", last.reason),
            (_, None) => found.push(Rejected { name: String::new(), reason: part.to_owned() }),
        }
    }
    found
}

const MAX_REJECTED: usize = 1024;
