//! What is published: encoded once, indexed for the questions that sessions ask. Plain data, owned by the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use stillmesh_core::model::{Service, Str, Workload};
use stillmesh_core::snapshot::Change;
use twox_hash::XxHash64;

use crate::codec;
use crate::xds::ResourceType;

/// One published resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Lower-case hexadecimal xxHash64 of the bytes (contract 4.1).
    pub version: Str,
    /// Encoded, shared by all sessions.
    pub bytes: Bytes,
    /// Other names it is found under: `<network>/<ip>`.
    pub aliases: Vec<Str>,
    /// Of a workload: keys of the services that it is an endpoint of.
    pub services: Vec<Str>,
    /// Of a workload: its node.
    pub node: Option<Str>,
}

/// One name whose resource changed, with what makes sessions interested in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Its type.
    pub kind: ResourceType,
    /// Its primary key.
    pub name: Str,
    /// Names by which it was or is reached: aliases, and for a workload its services with theirs.
    pub related: BTreeSet<Str>,
    /// Nodes that it was or is on.
    pub nodes: BTreeSet<Str>,
}

/// Everything published.
#[derive(Debug, Default)]
pub struct Catalog {
    addresses: BTreeMap<Str, Entry>,
    policies: BTreeMap<Str, Entry>,
    routes: BTreeMap<Str, Entry>,
    accesses: BTreeMap<Str, Entry>,
    destinations: BTreeMap<Str, Entry>,
    by_alias: BTreeMap<Str, BTreeSet<Str>>,
    by_service: BTreeMap<Str, BTreeSet<Str>>,
    by_node: BTreeMap<Str, BTreeSet<Str>>,
    generation: u64,
}

impl Catalog {
    /// Takes changes and says what they touched: nothing for what is equal to what is published.
    pub fn apply(&mut self, changes: &[Change]) -> Vec<Touched> {
        let touched: Vec<Touched> = changes.iter().filter_map(|change| self.apply_one(change)).collect();
        if !touched.is_empty() {
            self.generation += 1;
        }
        touched
    }

    fn apply_one(&mut self, change: &Change) -> Option<Touched> {
        let (kind, name) = codec::name(change);
        let name = Str::from(name);
        let new = entry(change);
        let old = self.entries(kind).get(&name);
        if old.map(|old| &old.version) == new.as_ref().map(|new| &new.version) {
            return None;
        }
        let old = self.entries_mut(kind).remove(&name);
        let mut touched = Touched { kind, name: name.clone(), related: BTreeSet::new(), nodes: BTreeSet::new() };
        if let Some(old) = &old {
            self.unindex(&name, old);
            self.note(&mut touched, old);
        }
        if let Some(new) = new {
            self.index(&name, &new);
            self.note(&mut touched, &new);
            self.entries_mut(kind).insert(name, new);
        }
        Some(touched)
    }

    fn note(&self, touched: &mut Touched, entry: &Entry) {
        touched.related.extend(entry.aliases.iter().cloned());
        touched.nodes.extend(entry.node.clone());
        for service in &entry.services {
            touched.related.insert(service.clone());
            touched.related.extend(self.addresses.get(service).into_iter().flat_map(|entry| entry.aliases.clone()));
        }
    }

    fn index(&mut self, name: &Str, entry: &Entry) {
        for alias in &entry.aliases {
            self.by_alias.entry(alias.clone()).or_default().insert(name.clone());
        }
        for service in &entry.services {
            self.by_service.entry(service.clone()).or_default().insert(name.clone());
        }
        if let Some(node) = &entry.node {
            self.by_node.entry(node.clone()).or_default().insert(name.clone());
        }
    }

    fn unindex(&mut self, name: &Str, entry: &Entry) {
        let out = |index: &mut BTreeMap<Str, BTreeSet<Str>>, key: &Str| {
            if let Some(names) = index.get_mut(key) {
                names.remove(name);
                if names.is_empty() {
                    index.remove(key);
                }
            }
        };
        entry.aliases.iter().for_each(|alias| out(&mut self.by_alias, alias));
        entry.services.iter().for_each(|service| out(&mut self.by_service, service));
        entry.node.iter().for_each(|node| out(&mut self.by_node, node));
    }

    /// Counts up with every change that touched something.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All resources of a type, by primary key.
    pub fn entries(&self, kind: ResourceType) -> &BTreeMap<Str, Entry> {
        match kind {
            ResourceType::Address => &self.addresses,
            ResourceType::Authorization => &self.policies,
            ResourceType::Route => &self.routes,
            ResourceType::Access => &self.accesses,
            ResourceType::Destination => &self.destinations,
        }
    }

    fn entries_mut(&mut self, kind: ResourceType) -> &mut BTreeMap<Str, Entry> {
        match kind {
            ResourceType::Address => &mut self.addresses,
            ResourceType::Authorization => &mut self.policies,
            ResourceType::Route => &mut self.routes,
            ResourceType::Access => &mut self.accesses,
            ResourceType::Destination => &mut self.destinations,
        }
    }

    /// Primary keys of what somebody who asks for `key` (a primary key or an alias) needs: for a service, its
    /// endpoints too. Nothing where nothing has that name.
    pub fn resolve(&self, kind: ResourceType, key: &str) -> BTreeSet<Str> {
        let mut found = BTreeSet::new();
        if let Some((name, _)) = self.entries(kind).get_key_value(key) {
            found.insert(name.clone());
        }
        if kind == ResourceType::Address {
            found.extend(self.by_alias.get(key).into_iter().flatten().cloned());
            let endpoints: Vec<Str> =
                found.iter().filter_map(|name| self.by_service.get(name)).flatten().cloned().collect();
            found.extend(endpoints);
        }
        found
    }

    /// Workloads on a node.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Str> {
        self.by_node.get(node).into_iter().flatten()
    }
}

/// What a change publishes; `None` for a removal.
fn entry(change: &Change) -> Option<Entry> {
    let bytes = codec::encode(change)?;
    let mut entry = Entry {
        version: format!("{:x}", XxHash64::oneshot(0, &bytes)).into(),
        bytes: bytes.into(),
        aliases: Vec::new(),
        services: Vec::new(),
        node: None,
    };
    match change {
        Change::Workload(workload) => {
            entry.aliases = workload_aliases(workload);
            entry.services = workload.services.iter().map(|(key, _)| key.to_string().into()).collect();
            entry.node = (!workload.node.is_empty()).then(|| workload.node.clone());
        }
        Change::Service(service) => entry.aliases = service_aliases(service),
        _ => {}
    }
    Some(entry)
}

fn workload_aliases(workload: &Workload) -> Vec<Str> {
    workload.network_addresses().map(|address| address.to_string().into()).collect()
}

fn service_aliases(service: &Service) -> Vec<Str> {
    service.vips.iter().map(|address| address.to_string().into()).collect()
}
