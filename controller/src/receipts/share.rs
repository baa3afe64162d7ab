//! What one replica tells the others of the clients that are connected to it, in a text of bounded size: who they are, a hash of
//! all that this replica publishes, and only what somebody lacks. Where hashes differ, another replica's clients count as
//! lagging: it has seen other objects than this one.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use stillmesh_api::xds;
use stillmesh_core::model::Str;
use stillmesh_k8s::ObjectKey;

use super::Tracked;
use super::flight::{Flights, Took};
use super::judge::Seen;

/// Objects are hashed in so many parts, so that one that changes puts only its part in doubt.
const PARTS: usize = 64;
/// Clients that are told; of more, others do not know.
const MOST_CLIENTS: usize = 4096;
/// Pairs of an object and a client that lacks it. The parts of objects beyond are told as unknown.
const MOST_LACKING: usize = 4096;
/// Texts of refusals.
const MOST_REFUSALS: usize = 64;
/// Objects of which durations are told, those with the newest content.
const MOST_DURATIONS: usize = 64;

/// Hashes of all objects with their contents, by part; 0: not told.
pub(super) type Parts = Vec<u64>;

/// What is told. At most some 300 KiB as JSON, with the longest names; 30 KiB for a thousand nodes where nothing lags.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    parts: Parts,
    clients: Vec<Str>,
    /// Numbers of the clients that do not have an object in force.
    lacking: BTreeMap<String, Vec<usize>>,
    /// What clients said.
    refusals: Vec<(String, usize, String)>,
    /// How long contents took.
    took: BTreeMap<String, Took>,
}

/// Another replica's summary, to be asked.
#[derive(Debug, Default)]
pub(super) struct Remote {
    parts: Parts,
    clients: HashMap<Str, usize>,
    lacking: HashMap<String, HashSet<usize>>,
    refusals: HashMap<(String, usize), String>,
    took: BTreeMap<String, Took>,
}

/// The object that is asked about.
pub(super) struct Asked {
    name: String,
    part: usize,
}

impl Asked {
    pub fn new(key: &ObjectKey) -> Self {
        let name = key.to_string();
        Self { part: part_of(&name), name }
    }
}

fn part_of(key: &str) -> usize {
    usize::try_from(xds::hash(key.as_bytes()) % PARTS as u64).unwrap_or_default()
}

/// An object and its content.
fn named(key: &ObjectKey, object: &Tracked) -> String {
    format!("{key} {:x}", object.content)
}

/// The hashes of all objects.
pub(super) fn parts(objects: &BTreeMap<ObjectKey, Tracked>) -> Parts {
    // Nothing has the hash of nothing, which is not that of what is not told.
    let mut parts = vec![1; PARTS];
    for (key, object) in objects {
        if let Some(part) = parts.get_mut(part_of(&key.to_string())) {
            *part ^= xds::hash(named(key, object).as_bytes());
        }
    }
    parts
}

impl Summary {
    /// Of the clients that are connected here, by pod.
    pub(super) fn new(objects: &BTreeMap<ObjectKey, Tracked>, seen: &BTreeMap<Str, Seen>, flights: &Flights) -> Self {
        let here: Vec<(&Str, &Seen)> = seen.iter().filter(|(_, one)| one.is_here()).take(MOST_CLIENTS).collect();
        let mut summary = Self {
            parts: parts(objects),
            clients: here.iter().map(|(pod, _)| (*pod).clone()).collect(),
            ..Self::default()
        };
        let mut pairs = 0;
        // What everybody has need not be asked of each.
        let all_have_before = here.iter().map(|(_, one)| one.has_before()).min().unwrap_or(u64::MAX);
        for (key, object) in objects.iter().filter(|(_, object)| object.generation >= all_have_before) {
            let lacking: Vec<(usize, &Seen)> = here
                .iter()
                .enumerate()
                .filter(|(_, (_, one))| one.carries(&object.about) && one.lacks_here(object).is_some())
                .map(|(number, (_, one))| (number, *one))
                .collect();
            if lacking.is_empty() {
                continue;
            }
            pairs += lacking.len();
            if pairs > MOST_LACKING {
                if let Some(part) = summary.parts.get_mut(part_of(&key.to_string())) {
                    *part = 0;
                }
                continue;
            }
            for (number, one) in &lacking {
                if let Some(text) = one.refuses(object)
                    && summary.refusals.len() < MOST_REFUSALS
                {
                    summary.refusals.push((key.to_string(), *number, text));
                }
            }
            summary.lacking.insert(key.to_string(), lacking.into_iter().map(|(number, _)| number).collect());
        }
        let mut newest: Vec<(&ObjectKey, &Tracked)> =
            objects.iter().filter(|(_, object)| object.arrived.is_some()).collect();
        newest.sort_by_key(|(_, object)| std::cmp::Reverse(object.arrived));
        for (key, object) in newest.into_iter().take(MOST_DURATIONS) {
            let waypoints = !object.about.waypoints.is_empty();
            if let Some(took) = flights.took(object.generation, object.about.nodes, waypoints) {
                summary.took.insert(named(key, object), took);
            }
        }
        summary
    }
}

impl From<Summary> for Remote {
    fn from(summary: Summary) -> Self {
        let Summary { parts, clients, lacking, refusals, took } = summary;
        Self {
            parts,
            clients: clients.into_iter().enumerate().map(|(number, pod)| (pod, number)).collect(),
            lacking: lacking.into_iter().map(|(key, who)| (key, who.into_iter().collect())).collect(),
            refusals: refusals.into_iter().map(|(key, number, text)| ((key, number), text)).collect(),
            took,
        }
    }
}

impl Remote {
    /// The number of a client that is connected there.
    pub fn client(&self, pod: &Str) -> Option<usize> {
        self.clients.get(pod).copied()
    }

    /// Why an object is not in force at a client there, where this replica publishes `parts`.
    pub fn lacks(&self, client: usize, asked: &Asked, parts: &Parts) -> Option<String> {
        let lacking =
            !self.agrees(asked, parts) || self.lacking.get(&asked.name).is_some_and(|who| who.contains(&client));
        lacking.then(|| match self.refusals.get(&(asked.name.clone(), client)) {
            Some(text) => format!("rejected: {text}"),
            None => "not yet acknowledged".to_owned(),
        })
    }

    /// Whether an object is in force at all clients there.
    pub fn nobody_lacks(&self, asked: &Asked, parts: &Parts) -> bool {
        self.agrees(asked, parts) && !self.lacking.contains_key(&asked.name)
    }

    /// Whether the same is published there, of the part that the object is in.
    fn agrees(&self, asked: &Asked, parts: &Parts) -> bool {
        parts.get(asked.part).is_some_and(|own| self.parts.get(asked.part) == Some(own))
    }

    /// How long this content of an object took there.
    pub fn took(&self, key: &ObjectKey, object: &Tracked) -> Option<Took> {
        self.took.get(&named(key, object)).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use stillmesh_api::xds::{ResourceType, Standing};
    use stillmesh_k8s::Kind;

    use super::super::judge::{self, Place, Receipt};
    use super::*;
    use crate::build::{About, Role};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::AuthorizationPolicy, "shop", name)
    }

    fn object(generation: u64, content: u64) -> Tracked {
        Tracked {
            generation,
            observed: Some(1),
            resources: [(ResourceType::Authorization, "shop/a".into())].into(),
            content,
            about: About { nodes: true, ..About::default() },
            arrived: Some(Instant::now()),
        }
    }

    /// A tunnel on a node of its own name that is connected here.
    fn here(name: &str, behind: Option<u64>, refuses: Option<&str>) -> (Str, Seen) {
        let refused = refuses.map(|text| ((ResourceType::Authorization, "shop/a".into()), text.into()));
        let standing = Standing { asked: ResourceType::NODE.to_vec(), behind, refused: refused.into_iter().collect() };
        (name.into(), Seen::of(name.into(), Role::Tunnel, &standing))
    }

    /// As another replica reads it.
    fn heard(objects: &BTreeMap<ObjectKey, Tracked>, seen: Vec<(Str, Seen)>) -> Arc<Remote> {
        let summary = Summary::new(objects, &seen.into_iter().collect(), &Flights::default());
        let text = serde_json::to_string(&summary).unwrap();
        let read: Summary = serde_json::from_str(&text).unwrap();
        assert_eq!(read, summary);
        Arc::new(read.into())
    }

    /// What a replica makes of it to which nobody is connected.
    fn judged(objects: &BTreeMap<ObjectKey, Tracked>, remote: &Arc<Remote>, pods: &[&str]) -> Vec<Receipt> {
        let seen = pods.iter().map(|pod| {
            let place = remote.client(&Str::from(*pod)).map(|client| Place::There(Arc::clone(remote), client));
            Seen { name: (*pod).into(), role: Role::Tunnel, place: place.unwrap_or(Place::Nowhere) }
        });
        judge::receipts(objects, seen.collect(), &Flights::default(), &[])
    }

    #[test]
    fn replicas_together_know_where_things_are_in_force() {
        // Generations are each replica's own.
        let there = BTreeMap::from([(key("a"), object(7, 1)), (key("b"), object(8, 2))]);
        let own = BTreeMap::from([(key("a"), object(3, 1)), (key("b"), object(2, 2))]);
        let clients = vec![here("n1", None, None), here("n2", Some(8), None), here("n3", None, Some("odd"))];
        let remote = heard(&there, clients);
        let receipts = judged(&own, &remote, &["n1", "n2", "n3", "n4"]);
        let said = |at: usize| {
            let receipt: &Receipt = &receipts[at];
            let lagging = receipt.lagging.iter().map(|one| format!("{} {}", one.name, one.reason)).collect::<Vec<_>>();
            (receipt.in_force, receipt.expected, lagging.join(", "))
        };
        assert_eq!(said(0), (2, 4, "n3 rejected: odd, n4 not connected".into()));
        assert_eq!(said(1), (1, 4, "n2 not yet acknowledged, n3 rejected: odd, n4 not connected".into()));
    }

    #[test]
    fn a_replica_that_has_seen_another_content_confirms_nothing() {
        let there = BTreeMap::from([(key("a"), object(7, 1))]);
        let remote = heard(&there, vec![here("n1", None, None)]);
        for (content, in_force) in [(1, 1), (2, 0)] {
            let receipts = judged(&BTreeMap::from([(key("a"), object(3, content))]), &remote, &["n1"]);
            assert_eq!(receipts[0].in_force, in_force);
        }
        let more = BTreeMap::from([(key("a"), object(3, 1)), (key("b"), object(4, 1))]);
        assert_eq!(judged(&more, &remote, &["n1"])[1].in_force, 0, "it knows nothing of b");
        let garbage = Arc::new(Remote::from(Summary::default()));
        assert_eq!(judged(&there, &garbage, &["n1"])[0].in_force, 0);
    }

    #[test]
    fn what_is_told_is_bounded_and_never_claims_too_much() {
        let objects: BTreeMap<_, _> = (0..100_u64).map(|n| (key(&format!("p{n}")), object(5, n + 1))).collect();
        let clients = || (0..1000).map(|n| here(&format!("ztunnel-{n:05}"), Some(5), None)).collect::<Vec<_>>();
        let summary = Summary::new(&objects, &clients().into_iter().collect(), &Flights::default());
        let text = serde_json::to_string(&summary).unwrap();
        assert!(text.len() < 100 << 10, "{} bytes", text.len());
        let remote = heard(&objects, clients());
        let receipts = judged(&objects, &remote, &["ztunnel-00001", "ztunnel-00999"]);
        assert!(receipts.iter().all(|receipt| receipt.in_force == 0), "nobody has anything");
        let calm = (0..1000).map(|n| here(&format!("ztunnel-{n:05}"), None, None)).collect();
        let summary = Summary::new(&objects, &calm, &Flights::default());
        assert!(serde_json::to_string(&summary).unwrap().len() < 30 << 10);
        let receipts = judged(&objects, &heard(&objects, calm.into_iter().collect()), &["ztunnel-00001"]);
        assert!(receipts.iter().all(|receipt| receipt.in_force == 1));
    }
}
