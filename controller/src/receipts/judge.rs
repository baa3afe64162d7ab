//! From what clients have said to receipts. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use stillmesh_api::xds::{ResourceType, Standing};
use stillmesh_core::model::Str;
use stillmesh_k8s::ObjectKey;
use stillmesh_k8s::status::Condition;

use super::Tracked;
use super::flight::{Flights, Took};
use super::share::{self, Asked, Parts, Remote};
use crate::build::{About, Role};

/// Names of those who lag that a receipt tells.
pub(super) const NAMED: usize = 5;
/// The longest text of a client's that a receipt repeats, in characters.
const TEXT: usize = 200;

/// The condition's type.
pub(crate) const IN_FORCE: &str = "stillmesh.io/InForce";

/// Where an object is in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Receipt {
    #[serde(serialize_with = "of_object", flatten)]
    pub object: ObjectKey,
    /// Hash of the content that it is about.
    pub content: String,
    /// The generation of the object that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// On how many nodes and waypoint replicas together.
    pub in_force: usize,
    /// Of how many.
    pub expected: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoints: Option<Count>,
    /// Who does not have it in force, the first of them.
    pub lagging: Vec<Lagging>,
    /// How long it took, of those that were there when it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took: Option<Took>,
    /// Its newest version is not used.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// It was there before this process.
    #[serde(skip)]
    pub is_older: bool,
    /// When it came.
    #[serde(skip)]
    pub arrived: Option<std::time::Instant>,
}

/// Of how many of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Count {
    pub in_force: usize,
    pub expected: usize,
}

/// Who lags, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Lagging {
    pub name: Str,
    pub reason: String,
}

fn of_object<S: serde::Serializer>(key: &ObjectKey, serializer: S) -> Result<S::Ok, S::Error> {
    let names = [("kind", key.kind.as_str()), ("namespace", &*key.namespace), ("name", &*key.name)];
    serializer.collect_map(names)
}

/// Where a client is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Its stream ends in this process: generations before this one are in force there, but for what it refuses.
    Here { behind: u64, refused: BTreeMap<(ResourceType, Str), Str> },
    /// It is connected to another replica, and has this number there.
    There(Arc<Remote>, usize),
    /// No replica knows of it.
    Nowhere,
}

/// A client, or a pod that ought to be one.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// How it is told.
    pub name: Str,
    pub role: Role,
    pub place: Place,
}

impl Seen {
    /// A client that is connected.
    pub fn of(name: Str, role: Role, standing: &Standing) -> Self {
        let wanted: &[ResourceType] = match role {
            Role::Tunnel => &ResourceType::NODE,
            Role::Waypoint(_) => &ResourceType::ALL,
        };
        let asks = wanted.iter().all(|kind| standing.asked.contains(kind));
        let behind = if asks { standing.behind.unwrap_or(u64::MAX) } else { 0 };
        Self { name, role, place: Place::Here { behind, refused: standing.refused.clone() } }
    }

    pub fn is_here(&self) -> bool {
        matches!(self.place, Place::Here { .. })
    }

    /// Whether it carries out what is about these.
    pub fn carries(&self, about: &About) -> bool {
        match &self.role {
            Role::Tunnel => about.nodes,
            Role::Waypoint(gateway) => about.waypoints.contains(gateway),
        }
    }

    /// Why something is not in force here.
    fn lacks(&self, asked: &Asked, object: &Tracked, parts: &Parts) -> Option<String> {
        match &self.place {
            Place::Here { .. } => self.lacks_here(object),
            Place::There(remote, client) => remote.lacks(*client, asked, parts),
            Place::Nowhere => Some("not connected".to_owned()),
        }
    }

    /// All that came before this generation is in force here, and nothing is refused.
    pub fn has_before(&self) -> u64 {
        match &self.place {
            Place::Here { behind, refused } if refused.is_empty() => *behind,
            _ => 0,
        }
    }

    /// Likewise, going by what it has said here.
    pub fn lacks_here(&self, object: &Tracked) -> Option<String> {
        let Place::Here { behind, .. } = &self.place else { return None };
        if *behind <= object.generation {
            return Some("not yet acknowledged".to_owned());
        }
        self.refuses(object).map(|text| format!("rejected: {text}"))
    }

    /// What it said of a resource of the object that it refuses.
    pub fn refuses(&self, object: &Tracked) -> Option<String> {
        let Place::Here { refused, .. } = &self.place else { return None };
        if refused.is_empty() {
            return None;
        }
        let text = object.resources.iter().find_map(|resource| refused.get(resource))?;
        Some(text.chars().take(TEXT).collect())
    }
}

/// Who carries things out, by what they are and by name: of a node's tunnel there may be two pods, while one follows the other.
struct Fleet {
    groups: BTreeMap<Role, Group>,
    parts: Parts,
}

/// All of one kind.
struct Group {
    clients: BTreeMap<Str, Vec<Seen>>,
    /// What all that are connected here have; nothing while somebody is connected nowhere.
    have_before: u64,
    /// Where the others are connected.
    remotes: Vec<Arc<Remote>>,
}

impl Default for Group {
    fn default() -> Self {
        Self { clients: BTreeMap::new(), have_before: u64::MAX, remotes: Vec::new() }
    }
}

impl Group {
    fn add(&mut self, one: Seen) {
        match &one.place {
            Place::There(remote, _) if self.remotes.iter().any(|known| Arc::ptr_eq(known, remote)) => {}
            Place::There(remote, _) => self.remotes.push(Arc::clone(remote)),
            Place::Here { .. } | Place::Nowhere => self.have_before = self.have_before.min(one.has_before()),
        }
        self.clients.entry(one.name.clone()).or_default().push(one);
    }

    /// Whether nobody lacks an object, as it is most of the time: then nobody is asked one by one.
    fn all_have(&self, asked: &Asked, object: &Tracked, parts: &Parts) -> bool {
        self.have_before > object.generation && self.remotes.iter().all(|remote| remote.nobody_lacks(asked, parts))
    }
}

/// The receipts of all objects.
pub(super) fn receipts(
    objects: &BTreeMap<ObjectKey, Tracked>,
    seen: Vec<Seen>,
    flights: &Flights,
    remotes: &[Arc<Remote>],
) -> Vec<Receipt> {
    let mut groups: BTreeMap<Role, Group> = BTreeMap::new();
    for one in seen {
        groups.entry(one.role.clone()).or_default().add(one);
    }
    let fleet = Fleet { groups, parts: share::parts(objects) };
    let each = objects.iter().map(|(key, object)| {
        let about = &object.about;
        let here = flights.took(object.generation, about.nodes, !about.waypoints.is_empty());
        let there = remotes.iter().filter_map(|remote| remote.took(key, object));
        let took = here.into_iter().chain(there).reduce(Took::and);
        Receipt { took, ..receipt(key, object, &fleet) }
    });
    each.collect()
}

fn receipt(key: &ObjectKey, object: &Tracked, fleet: &Fleet) -> Receipt {
    let mut lagging = Vec::new();
    let asked = Asked::new(key);
    let mut count = |roles: &mut dyn Iterator<Item = Role>| {
        let mut count = Count { in_force: 0, expected: 0 };
        for group in roles.filter_map(|role| fleet.groups.get(&role)) {
            count.expected += group.clients.len();
            if group.all_have(&asked, object, &fleet.parts) {
                count.in_force += group.clients.len();
                continue;
            }
            for (name, pods) in &group.clients {
                match pods.iter().find_map(|pod| pod.lacks(&asked, object, &fleet.parts)) {
                    None => count.in_force += 1,
                    Some(reason) if lagging.len() < NAMED => lagging.push(Lagging { name: name.clone(), reason }),
                    Some(_) => {}
                }
            }
        }
        count
    };
    let about = &object.about;
    let nodes = about.nodes.then(|| count(&mut std::iter::once(Role::Tunnel)));
    let waypoints = &about.waypoints;
    let waypoints =
        (!about.nodes || !waypoints.is_empty()).then(|| count(&mut waypoints.iter().cloned().map(Role::Waypoint)));
    let both = || nodes.iter().chain(&waypoints);
    Receipt {
        object: key.clone(),
        content: format!("{:x}", object.content),
        observed_generation: object.observed,
        in_force: both().map(|count| count.in_force).sum(),
        expected: both().map(|count| count.expected).sum(),
        nodes,
        waypoints,
        lagging,
        took: None,
        refused: about.refused,
        is_older: object.arrived.is_none(),
        arrived: object.arrived,
    }
}

impl Receipt {
    /// Whether everybody has it in force.
    pub fn is_complete(&self) -> bool {
        !self.refused && self.in_force == self.expected && self.expected > 0
    }

    /// What the object's status says.
    pub fn condition(&self) -> Condition {
        let content = format!("; content {}", self.content);
        let condition = |status, reason, message: String| Condition { type_: IN_FORCE, status, reason, message };
        if self.refused {
            let message = "the newest version is not used; the other conditions say why";
            return condition("False", "NotUsed", format!("{message}{content}"));
        }
        if self.expected == 0 {
            return condition("Unknown", "Nobody", format!("nobody is there to carry it out{content}"));
        }
        let part = |what: &str, count: &Count| format!("{} of {} {what}", count.in_force, count.expected);
        let nodes = self.nodes.iter().map(|count| part("nodes", count));
        let waypoints = self.waypoints.iter().map(|count| part("waypoint replicas", count));
        let places: Vec<String> = nodes.chain(waypoints).collect();
        let mut message = format!("in force on {}", places.join(" and "));
        if self.is_complete() {
            if let Some(took) = &self.took {
                message = format!("{message}, p99 {} ms", took.p99_ms);
            }
            return condition("True", "InForce", message + &content);
        }
        let named: Vec<String> = self.lagging.iter().map(|one| format!("{} ({})", one.name, one.reason)).collect();
        message = format!("{message}; lagging: {}", named.join(", "));
        let more = (self.expected - self.in_force).saturating_sub(self.lagging.len());
        if more > 0 {
            message = format!("{message} and {more} more");
        }
        let rejected = self.lagging.iter().any(|one| one.reason.starts_with("rejected"));
        condition("False", if rejected { "Rejected" } else { "Lagging" }, message + &content)
    }
}
