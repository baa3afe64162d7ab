//! The node's side: which requests to send, what a response changes, what to acknowledge, when to redial.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use stillmesh_core::snapshot::Change;
use stillmesh_runtime::Backoff;

use crate::codec;
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::proto::google::rpc::Status;
use crate::xds::{Batch, IDENTIFIER, Rejected, ResourceType};

/// The state of one client over all its streams.
#[derive(Debug)]
pub struct Client {
    node: Node,
    types: BTreeMap<ResourceType, Held>,
    backoff: Backoff,
    opened: Option<Instant>,
}

/// What is held of one type.
#[derive(Debug, Default)]
struct Held {
    /// Versions of what is in force, by name.
    versions: HashMap<String, String>,
    /// A response was acknowledged.
    complete: bool,
}

/// A response that is being applied: to be given back to [`Client::acknowledge`].
#[derive(Debug)]
#[must_use = "a response that is not acknowledged blocks its type"]
pub struct Ticket {
    kind: ResourceType,
    nonce: String,
    /// Name and version of what is in force once the batch is applied.
    versions: Vec<(String, String)>,
    /// Names of which something is in force that must not count as this or any version.
    unreadable: Vec<String>,
    removed: Vec<String>,
    rejected: Vec<Rejected>,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The control plane closed it in order.
    Clean,
    /// Anything else, dialling included.
    Failed,
}

impl Client {
    /// The first wait before redialling.
    pub const MIN_BACKOFF: Duration = Duration::from_millis(10);
    /// The longest.
    pub const MAX_BACKOFF: Duration = Duration::from_secs(15);
    /// A stream that lived this long makes up for earlier failures.
    pub const STABLE: Duration = Duration::from_secs(1);
    /// How long a new stream may stay without any response.
    pub const FIRST_RESPONSE: Duration = Duration::from_secs(60);

    /// A client that holds nothing, and subscribes to these types.
    pub fn new(node: Node, kinds: &[ResourceType]) -> Self {
        let types = kinds.iter().map(|kind| (*kind, Held::default())).collect();
        Self { node, types, backoff: Backoff::new(Self::MIN_BACKOFF, Self::MAX_BACKOFF), opened: None }
    }

    /// A stream is open: the requests to send first, one per type, with the versions held.
    pub fn opened(&mut self, now: Instant) -> Vec<DeltaDiscoveryRequest> {
        self.opened = Some(now);
        let request = |(kind, held): (&ResourceType, &Held)| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.url().to_owned(),
            initial_resource_versions: held.versions.clone().into_iter().collect(),
            ..DeltaDiscoveryRequest::default()
        };
        // Policies first: a control plane that answers in order then sends them before what names them.
        self.types.iter().rev().map(request).collect()
    }

    /// Reads a response. `Err` is the request that refuses it whole: its type was not asked for.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<(Batch, Ticket), Box<DeltaDiscoveryRequest>> {
        let kind = ResourceType::from_url(&response.type_url);
        let Some((kind, held)) = kind.and_then(|kind| self.types.get(&kind).map(|held| (kind, held))) else {
            let why = format!("type {:?} was not asked for", response.type_url);
            return Err(Box::new(reply(response.type_url, response.nonce, Some(why))));
        };
        let bytes = prost::Message::encoded_len(&response);
        let ours = response.control_plane.as_ref().is_some_and(|sender| sender.identifier == IDENTIFIER);
        let mut ticket = Ticket {
            kind,
            nonce: response.nonce,
            versions: Vec::with_capacity(response.resources.len()),
            unreadable: Vec::new(),
            removed: response.removed_resources,
            rejected: Vec::new(),
        };
        let mut changes = Vec::with_capacity(response.resources.len() + ticket.removed.len());
        for resource in response.resources {
            changes.extend(ticket.read(resource));
        }
        changes.extend(ticket.removed.iter().filter_map(|name| codec::removed(kind, name)));
        Ok((Batch { kind, changes, first: !held.complete, ours, bytes }, ticket))
    }

    /// The batch was applied but for `refused`. Returns the ACK or NACK to send.
    pub fn acknowledge(&mut self, ticket: Ticket, refused: Vec<Rejected>) -> DeltaDiscoveryRequest {
        let Ticket { kind, nonce, versions, unreadable, removed, mut rejected } = ticket;
        if let Some(held) = self.types.get_mut(&kind) {
            held.complete = true;
            let not_taken: HashSet<&str> = refused.iter().map(|refused| refused.name.as_str()).collect();
            for (name, version) in versions {
                // What was refused keeps the version that is still in force.
                if !not_taken.contains(name.as_str()) {
                    held.versions.insert(name, version);
                }
            }
            for name in unreadable {
                // Equal to no version: it is sent again, or reported as removed, after a reconnect.
                held.versions.entry(name).or_default();
            }
            for name in removed {
                held.versions.remove(&name);
            }
        }
        rejected.extend(refused);
        let problem = (!rejected.is_empty()).then(|| nack(&rejected));
        reply(kind.url().to_owned(), nonce, problem)
    }

    /// Whether one response of each type has been acknowledged. Never unset.
    pub fn ready(&self) -> bool {
        self.types.values().all(|held| held.complete)
    }

    /// The stream ended, or could not be opened: how long to wait before the next. `jitter` is a random number
    /// from 0 to 1.
    pub fn ended(&mut self, how: Ended, now: Instant, jitter: f64) -> Duration {
        let lived = self.opened.take().map(|opened| now.saturating_duration_since(opened));
        if lived.is_some_and(|lived| lived >= Self::STABLE) {
            self.backoff.reset();
            if how == Ended::Clean {
                return Duration::ZERO;
            }
        }
        self.backoff.next(jitter)
    }
}

impl Ticket {
    fn read(&mut self, resource: Resource) -> Option<Change> {
        let Resource { name, version, resource, .. } = resource;
        let any = resource.unwrap_or_default();
        if any.type_url != self.kind.url() {
            self.reject(name, format!("resource: of type {:?}", any.type_url));
            return None;
        }
        match codec::decode(self.kind, &name, any.value) {
            Ok(Change::Policy(policy)) if policy.unreadable.is_some() => {
                self.reject(name.clone(), policy.unreadable.as_deref().unwrap_or_default().to_owned());
                self.unreadable.push(name);
                Some(Change::Policy(policy))
            }
            Ok(change) => {
                self.versions.push((name, version));
                Some(change)
            }
            Err(error) => {
                self.reject(name, error.reason());
                None
            }
        }
    }

    fn reject(&mut self, name: String, reason: String) {
        self.rejected.push(Rejected { name, reason });
    }
}

fn reply(type_url: String, response_nonce: String, problem: Option<String>) -> DeltaDiscoveryRequest {
    let error_detail = problem.map(|message| Status { code: INVALID_ARGUMENT, message, details: Vec::new() });
    DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..DeltaDiscoveryRequest::default() }
}

/// `name: reason; name: reason` (contract 4.1), bounded: a control plane that sends nothing but garbage does not
/// get all of it back.
fn nack(rejected: &[Rejected]) -> String {
    let shorten = |text: &str| text.chars().take(MAX_NACK_PART).collect::<String>();
    let mut parts: Vec<String> = rejected
        .iter()
        .take(MAX_NACK_RESOURCES)
        .map(|one| format!("{}: {}", shorten(&one.name), shorten(&one.reason)))
        .collect();
    if let Some(more) = rejected.len().checked_sub(MAX_NACK_RESOURCES).filter(|more| *more > 0) {
        parts.push(format!("and others: {more} more resources"));
    }
    parts.join("; ")
}

const INVALID_ARGUMENT: i32 = 3;
const MAX_NACK_RESOURCES: usize = 256;
const MAX_NACK_PART: usize = 512;
