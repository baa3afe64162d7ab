//! The node's side: which requests to send, what a response changes, what to acknowledge, when to redial.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec;
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::proto::google::rpc::Status;
use crate::xds::{Batch, Rejected, ResourceType};

/// The state of one client over all its streams.
#[derive(Debug)]
pub struct Client {
    node: Node,
    types: BTreeMap<ResourceType, Held>,
    backoff: Duration,
    opened: Option<Instant>,
}

/// What is held of one type.
#[derive(Debug, Default)]
struct Held {
    /// Versions of what is in force, by name.
    versions: HashMap<String, String>,
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

    /// A client that holds nothing.
    pub fn new(node: Node) -> Self {
        let types = ResourceType::ALL.into_iter().map(|kind| (kind, Held::default())).collect();
        Self { node, types, backoff: Duration::ZERO, opened: None }
    }

    /// A stream is open: the requests to send first, one per type, with the versions held.
    pub fn opened(&mut self, now: Instant) -> Vec<DeltaDiscoveryRequest> {
        self.opened = Some(now);
        let request = |kind: &ResourceType| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.url().to_owned(),
            initial_resource_versions: self
                .types
                .get(kind)
                .map(|held| held.versions.iter().map(|(name, version)| (name.clone(), version.clone())).collect())
                .unwrap_or_default(),
            ..DeltaDiscoveryRequest::default()
        };
        ResourceType::ALL.iter().map(request).collect()
    }

    /// Reads a response. `Err` is the request that refuses it whole: its type was not asked for.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<(Batch, Ticket), Box<DeltaDiscoveryRequest>> {
        let Some(kind) = ResourceType::from_url(&response.type_url) else {
            let why = format!("type {:?} was not asked for", response.type_url);
            return Err(Box::new(reply(response.type_url, response.nonce, Some(why))));
        };
        let mut ticket =
            Ticket { kind, nonce: response.nonce, versions: Vec::new(), removed: Vec::new(), rejected: Vec::new() };
        let mut changes = Vec::with_capacity(response.resources.len() + response.removed_resources.len());
        for Resource { name, version, resource, .. } in response.resources {
            let sent = resource.map_or_else(String::new, |any| {
                changes.extend(self.read(kind, &name, version, &any.type_url, any.value, &mut ticket));
                String::new()
            });
            drop(sent);
        }
        for name in response.removed_resources {
            changes.extend(codec::removed(kind, &name));
            ticket.removed.push(name);
        }
        let first = self.types.get(&kind).is_some_and(|held| !held.complete);
        Ok((Batch { kind, changes, first }, ticket))
    }
}
