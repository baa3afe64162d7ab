//! Makes the next snapshot from the current one and finds out what that means for live connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Change, Snapshot, Touched};
use crate::model::access::{Access, AccessKey, Attachment};
use crate::model::destination::DestinationRule;
use crate::model::http::{HttpRoute, RouteKey};
use crate::model::{NetworkAddress, Policy, PolicyKey, Scope, TunnelProtocol, Workload, WorkloadUid};

/// A snapshot in the making.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) next: Snapshot,
    /// What each changed policy was before.
    policies: BTreeMap<PolicyKey, Option<Arc<Policy>>>,
    /// What each changed workload was before.
    workloads: BTreeMap<WorkloadUid, Option<Arc<Workload>>>,
    /// Routes as they come to be, joined at the end.
    routes: BTreeMap<RouteKey, Option<Arc<HttpRoute>>>,
    /// Rules about endpoints likewise.
    destinations: BTreeMap<PolicyKey, Option<Arc<DestinationRule>>>,
    /// What each changed object that decides about requests was before.
    accesses: BTreeMap<AccessKey, Option<Arc<Access>>>,
}

impl Edit {
    pub(super) fn new(current: &Snapshot) -> Self {
        let mut next = current.clone();
        next.generation += 1;
        Self {
            next,
            policies: BTreeMap::new(),
            workloads: BTreeMap::new(),
            routes: BTreeMap::new(),
            destinations: BTreeMap::new(),
            accesses: BTreeMap::new(),
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Workload(new) => self.put_workload(new),
            Change::WorkloadRemoved(uid) => {
                if let Some(old) = self.next.workload(uid).cloned() {
                    self.workloads.entry(uid.clone()).or_insert(Some(old));
                    self.next.tables.remove_workload(uid);
                }
            }
            Change::Service(new) => {
                if self.next.service(&new.key) != Some(new) {
                    self.next.tables.put_service(new);
                }
            }
            Change::ServiceRemoved(key) => self.next.tables.remove_service(key),
            Change::Policy(new) => self.put_policy(new),
            Change::PolicyRemoved(key) => {
                if let Some(old) = self.next.policy(key).cloned() {
                    self.policies.entry(key.clone()).or_insert(Some(old));
                    self.next.tables.remove_policy(key);
                }
            }
            Change::Route(new) => drop(self.routes.insert(new.key.clone(), Some(new.clone()))),
            Change::RouteRemoved(key) => drop(self.routes.insert(key.clone(), None)),
            Change::Access(new) => {
                self.remember_access(new.key());
                self.next.tables.accesses.put(new);
            }
            Change::AccessRemoved(key) => {
                self.remember_access(key.clone());
                self.next.tables.accesses.remove(key);
            }
            Change::Destination(new) => drop(self.destinations.insert(new.key.clone(), Some(new.clone()))),
            Change::DestinationRemoved(key) => drop(self.destinations.insert(key.clone(), None)),
        }
    }

    fn put_workload(&mut self, new: &Arc<Workload>) {
        let old = self.next.workload(&new.uid);
        if old != Some(new) {
            self.workloads.entry(new.uid.clone()).or_insert_with(|| old.cloned());
            self.next.tables.put_workload(new);
        }
    }

    /// A version that cannot be read does not replace one that can: the last good one stays in force.
    fn put_policy(&mut self, new: &Arc<Policy>) {
        let old = self.next.policy(&new.key);
        let keeps_last_good = new.unreadable.is_some() && old.is_some_and(|old| old.unreadable.is_none());
        if old != Some(new) && !keeps_last_good {
            self.policies.entry(new.key.clone()).or_insert_with(|| old.cloned());
            self.next.tables.put_policy(new);
        }
    }

    fn remember_access(&mut self, key: AccessKey) {
        let old = self.next.access(&key).cloned();
        self.accesses.entry(key).or_insert(old);
    }

    /// Addresses of workloads in the mesh that are nobody's any more.
    pub(super) fn departed(&self) -> Vec<NetworkAddress> {
        let changed = self.workloads.values().flatten().filter(|old| old.tunnel_protocol == TunnelProtocol::Hbone);
        let addresses = changed
            .flat_map(|old| old.addresses.iter().map(|address| NetworkAddress::new(old.network.clone(), *address)));
        addresses.filter(|address| self.next.workload_at(address).is_none()).collect()
    }

    /// The next snapshot, and what differs for live connections between it and the one the edit started from.
    pub(super) fn finish(mut self) -> (Snapshot, Touched) {
        self.next.tables.routes.apply(std::mem::take(&mut self.routes));
        self.next.tables.destinations.apply(std::mem::take(&mut self.destinations));
        let (mut everything, mut namespaces, mut workloads) = (false, BTreeSet::new(), BTreeSet::new());
        for (key, old) in &self.policies {
            let new = self.next.policy(key);
            if old.as_ref() == new {
                continue;
            }
            for scope in old.iter().chain(new).map(|policy| policy.scope) {
                match scope {
                    Scope::Global => everything = true,
                    Scope::Namespace => drop(namespaces.insert(key.namespace.clone())),
                    Scope::WorkloadSelector => (),
                }
            }
            workloads.extend(self.next.workloads_naming(key).cloned());
        }
        for (uid, old) in self.workloads {
            let Some(new) = self.next.workload(&uid) else { continue };
            if old.is_none_or(|old| judged_otherwise(&old, new)) {
                workloads.insert(uid);
            }
        }
        let mut services = BTreeSet::new();
        for (key, old) in &self.accesses {
            let new = self.next.access(key);
            if old.as_ref() == new {
                continue;
            }
            for access in old.iter().chain(new).filter(|access| access.decides()) {
                match access.attached() {
                    Some(Attachment::To(attached)) => services.extend(attached.iter().cloned()),
                    Some(Attachment::Everything) | None => everything = true,
                }
            }
        }
        let touched = Touched {
            everything,
            namespaces: namespaces.into_iter().collect(),
            workloads: workloads.into_iter().collect(),
            services: services.into_iter().collect(),
        };
        (self.next, touched)
    }
}

/// Whether other policies apply to `new` than to `old`, it is no longer the same one to them, or may not do without tunnels any more.
fn judged_otherwise(old: &Workload, new: &Workload) -> bool {
    old.authorization_policies != new.authorization_policies
        || old.namespace != new.namespace
        || old.service_account != new.service_account
        || old.trust_domain != new.trust_domain
        // What is open without a tunnel may be so no longer.
        || (old.direct && !new.direct)
}
