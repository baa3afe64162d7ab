//! Holds back what would leave a workload without a policy that it names, for a bounded time: the policies that were
//! in force stay in force. A state machine: the clock is passed in.
//!
//! Held back are, per workload, an update's list of policies while one of them has not arrived, and, per policy, a
//! removal while workloads still name it. All else of an update (addresses, health, services) takes effect at once, so
//! that traffic never goes by a stale endpoint. A workload that was not known, or that is another pod than before, has
//! nothing to fall back to: it is published at once (its traffic is tunnelled, never in the clear) and new connections
//! to it are refused until its policies are here.
//!
//! Addresses that workloads left are remembered for a while, so that nothing is sent there in clear.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::edit::Edit;
use super::{Change, Snapshot, Touched};
use crate::model::{Policy, PolicyKey, Workload, WorkloadUid};

/// What to do about a policy that a workload names and that has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum UnknownPolicies {
    /// Hold back, then refuse new connections (our own control plane).
    Refuse,
    /// Let pass, as Istio does (a foreign control plane). Each verdict lists what was passed over, to be counted:
    /// [`crate::decide::Verdict::skipped`].
    Allow,
}

/// The one writer's state: the current snapshot and what is held back.
#[derive(Debug)]
pub struct Stage {
    current: Snapshot,
    /// Updates whose policies have not all arrived, and until when they wait.
    workloads: BTreeMap<WorkloadUid, (Arc<Workload>, Instant)>,
    /// Removed policies that are still named, and until when they stay.
    removals: BTreeMap<PolicyKey, Instant>,
}

/// A batch, by key: the last change to a key counts.
#[derive(Default)]
struct Batch {
    policies: Vec<Arc<Policy>>,
    removals: Vec<PolicyKey>,
    workloads: BTreeMap<WorkloadUid, Option<Arc<Workload>>>,
    services: Vec<Change>,
}

impl Stage {
    /// How long an incomplete update is held back.
    pub const HOLD: Duration = Duration::from_secs(5);

    /// How long the address of a workload that left counts as its own ([`Snapshot::is_departed`]).
    pub const DEPARTED: Duration = Duration::from_secs(60);

    /// Starts from a view.
    pub fn new(initial: Snapshot, unknown: UnknownPolicies) -> Self {
        let current = initial.with_unknown_policies(unknown);
        Self { current, workloads: BTreeMap::new(), removals: BTreeMap::new() }
    }

    /// From the next batch on, policies that are named and not known do as `unknown` says.
    pub fn set_unknown_policies(&mut self, unknown: UnknownPolicies) {
        self.current = self.current.clone().with_unknown_policies(unknown);
    }

    /// The current view.
    pub fn current(&self) -> &Snapshot {
        &self.current
    }

    /// How many workload updates and policy removals are held back.
    pub fn held(&self) -> usize {
        self.workloads.len() + self.removals.len()
    }

    /// Takes a batch. Returns the next view and what it touched.
    pub fn apply(&mut self, changes: Vec<Change>, now: Instant) -> (Snapshot, Touched) {
        let mut edit = Edit::new(&self.current);
        match self.current.unknown_policies() {
            UnknownPolicies::Allow => {
                // Held back before that was said.
                let workloads =
                    std::mem::take(&mut self.workloads).into_values().map(|(held, _)| Change::Workload(held));
                let removals = std::mem::take(&mut self.removals).into_keys().map(Change::PolicyRemoved);
                workloads.chain(removals).for_each(|change| edit.apply(&change));
                changes.iter().for_each(|change| edit.apply(change));
            }
            UnknownPolicies::Refuse => self.apply_held(Batch::new(changes), now, &mut edit),
        }
        edit.next.departed.turn(now, edit.departed(), now + Self::DEPARTED);
        let (next, touched) = edit.finish();
        self.current = next.clone();
        (next, touched)
    }

    /// When [`Stage::apply`] must be called next, with no changes if there are none.
    pub fn deadline(&self) -> Option<Instant> {
        let workloads = self.workloads.values().map(|(_, deadline)| *deadline);
        workloads.chain(self.removals.values().copied()).chain(self.current.departed.deadline()).min()
    }

    /// Policies first, whatever their order in the batch; removals of policies last.
    fn apply_held(&mut self, batch: Batch, now: Instant, edit: &mut Edit) {
        let policies_changed = !batch.policies.is_empty();
        for policy in batch.policies {
            self.removals.remove(&policy.key);
            edit.apply(&Change::Policy(policy));
        }
        batch.services.iter().for_each(|change| edit.apply(change));
        for (uid, workload) in batch.workloads {
            match workload {
                Some(workload) => self.put_workload(workload, now, edit),
                None => {
                    self.workloads.remove(&uid);
                    edit.apply(&Change::WorkloadRemoved(uid));
                }
            }
        }
        self.workloads.retain(|_, (workload, deadline)| {
            let arrived = policies_changed && is_complete(&edit.next, workload);
            if arrived || *deadline <= now {
                edit.apply(&Change::Workload(workload.clone()));
            }
            !arrived && *deadline > now
        });
        for key in batch.removals {
            self.removals.entry(key).or_insert(now + Self::HOLD);
        }
        self.removals.retain(|key, deadline| {
            let stays = *deadline > now && edit.next.workloads_naming(key).next().is_some();
            if !stays {
                edit.apply(&Change::PolicyRemoved(key.clone()));
            }
            stays
        });
    }

    fn put_workload(&mut self, new: Arc<Workload>, now: Instant, edit: &mut Edit) {
        let waiting = self.workloads.remove(&new.uid);
        let in_force =
            edit.next.workload(&new.uid).filter(|old| is_same_pod(old, &new) && is_complete(&edit.next, old));
        let Some(old) = in_force.filter(|_| !is_complete(&edit.next, &new)) else {
            return edit.apply(&Change::Workload(new));
        };
        let meanwhile =
            Workload { authorization_policies: old.authorization_policies.clone(), ..Workload::clone(&new) };
        let deadline = waiting.map_or(now + Self::HOLD, |(_, deadline)| deadline);
        self.workloads.insert(new.uid.clone(), (new, deadline));
        edit.apply(&Change::Workload(Arc::new(meanwhile)));
    }
}

impl Batch {
    fn new(changes: Vec<Change>) -> Self {
        let mut batch = Self::default();
        let mut removed = BTreeMap::new();
        for change in changes {
            match change {
                Change::Policy(policy) => {
                    removed.insert(policy.key.clone(), false);
                    batch.policies.push(policy);
                }
                Change::PolicyRemoved(key) => drop(removed.insert(key, true)),
                Change::Workload(workload) => drop(batch.workloads.insert(workload.uid.clone(), Some(workload))),
                Change::WorkloadRemoved(uid) => drop(batch.workloads.insert(uid, None)),
                // Nothing is decided by name of these before they are here: they pass as they come.
                Change::Service(_)
                | Change::ServiceRemoved(_)
                | Change::Route(_)
                | Change::RouteRemoved(_)
                | Change::Access(_)
                | Change::AccessRemoved(_)
                | Change::Destination(_)
                | Change::DestinationRemoved(_) => batch.services.push(change),
            }
        }
        batch.policies.retain(|policy| removed.get(&policy.key) == Some(&false));
        batch.removals = removed.into_iter().filter(|(_, is_removed)| *is_removed).map(|(key, _)| key).collect();
        batch
    }
}

/// Whether every policy that `workload` names is here and can be read.
fn is_complete(snapshot: &Snapshot, workload: &Workload) -> bool {
    let readable = |key| snapshot.policy(key).is_some_and(|policy| policy.unreadable.is_none());
    workload.authorization_policies.iter().all(readable)
}

/// Whether an update speaks of the same pod: a StatefulSet's pod comes back under the same key as another one.
fn is_same_pod(old: &Workload, new: &Workload) -> bool {
    old.node == new.node
        && old.namespace == new.namespace
        && old.service_account == new.service_account
        && old.trust_domain == new.trust_domain
        && (old.addresses == new.addresses || old.addresses.iter().any(|address| new.addresses.contains(address)))
}

#[cfg(test)]
mod tests;
