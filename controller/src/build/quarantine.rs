//! Quarantines: pods that nobody reaches and that reach nobody.
//!
//! Each becomes two policies. The workloads that it means name one that refuses everything; by that name tunnels also know that
//! they open nothing. The other one, for the whole mesh, refuses what comes from their addresses, for tunnels and waypoints
//! that have it from somebody whose tunnel does not know quarantines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use stillmesh_core::model::{PolicyKey, Str};
use stillmesh_core::snapshot::Change;
use stillmesh_k8s::steering::{CutReceipt, Order, Orders};
use stillmesh_k8s::{ObjectKey, translate};

use super::steering::{Done, Standing, Words};
use super::world::Name;
use super::{Builder, Dirty};

/// Pods that are cut off.
pub(super) type CutOff = BTreeMap<Name, Cut>;

/// A pod that is cut off.
#[derive(Debug, PartialEq)]
pub(super) struct Cut {
    /// By which orders.
    orders: Vec<ObjectKey>,
    addresses: Vec<IpAddr>,
}

/// What statuses of Quarantines say.
pub(super) const WORDS: Words =
    Words { done: "cut off", is_done: "CutOff", returned: "connected again", is_returned: "Connected" };

impl Builder {
    /// Before anything is built of dirty pods: which of them are cut off, and whose policies change by that.
    pub(super) fn cut_off(&mut self, dirty: &mut Dirty) {
        if self.steering.quarantines.is_empty() && self.steering.cut.is_empty() {
            return;
        }
        for name in &dirty.pods {
            let after = self.world.pods.get(name).and_then(|pod| self.cut_of(pod));
            let before = match after {
                Some(after) if self.steering.cut.get(name) == Some(&after) => continue,
                Some(after) => {
                    dirty.quarantines.extend(after.orders.iter().cloned());
                    self.steering.cut.insert(name.clone(), after)
                }
                None => self.steering.cut.remove(name),
            };
            dirty.quarantines.extend(before.into_iter().flat_map(|before| before.orders));
        }
        // An order's status counts its pods.
        let touched: BTreeSet<&Str> = dirty.pods.iter().map(|(namespace, _)| namespace).collect();
        let concerned = self.steering.quarantines.all().filter(|order| touched.contains(&order.key.namespace));
        dirty.orders.extend(concerned.map(|order| order.key.clone()));
    }

    fn cut_of(&self, pod: &Pod) -> Option<Cut> {
        let in_force = self.steering.quarantines.about(pod).filter(|order| order.is_in_force());
        let orders: Vec<ObjectKey> = in_force.map(|order| order.key.clone()).collect();
        let is_cut = !orders.is_empty() && self.is_in_mesh(pod);
        is_cut.then(|| Cut { orders, addresses: translate::pod_addresses(pod) })
    }

    pub(super) fn is_cut_off(&self, pod: &Name) -> bool {
        self.steering.cut.contains_key(pod)
    }

    /// The policies that a pod names because it is cut off.
    pub(super) fn quarantines_of(&self, pod: &Name) -> impl Iterator<Item = PolicyKey> {
        let orders = self.steering.cut.get(pod).into_iter().flat_map(|cut| &cut.orders);
        orders.map(translate::of_quarantine_key)
    }

    /// The policies of an order.
    pub(super) fn build_quarantine(&mut self, order: &ObjectKey, set: &mut Vec<Change>, removed: &mut Vec<Change>) {
        let cut: Vec<&Cut> = self.steering.cut.values().filter(|cut| cut.orders.contains(order)).collect();
        let mut addresses: Vec<IpAddr> = cut.iter().flat_map(|cut| &cut.addresses).copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let uid = self.steering.quarantines.get(order).map(|one| one.uid.as_str()).unwrap_or_default();
        let of = (!cut.is_empty()).then(|| translate::of_quarantine(order, uid));
        let from = translate::from_quarantine(order, &addresses);
        self.publish_policy(translate::of_quarantine_key(order), of, set, removed);
        self.publish_policy(translate::from_quarantine_key(order), from, set, removed);
    }
}

/// How a Quarantine stands on a pod. A pod names one; where two mean it, that is as good for the other.
pub(super) fn standing(order: &Order, pod: &Pod, quarantines: &Orders) -> Standing {
    let receipt = CutReceipt::of(&pod.metadata);
    let as_before = receipt.as_ref().is_none_or(|receipt| !receipt.is_of(order));
    let counts = |receipt: &CutReceipt| quarantines.about(pod).any(|one| one.is_in_force() && receipt.is_of(one));
    let done = receipt.filter(|receipt| !as_before || counts(receipt)).map(|receipt| Done {
        at: receipt.time,
        took_ms: receipt.took_ms,
        connections: if as_before { 0 } else { u32::try_from(receipt.cut).unwrap_or(u32::MAX) },
    });
    Standing { done, as_before }
}

#[cfg(test)]
mod tests;
