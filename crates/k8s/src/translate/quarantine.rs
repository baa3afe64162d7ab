//! The policies that a Quarantine becomes: one that the pods that are cut off name, and one for the whole mesh.

use std::net::IpAddr;

use stillmesh_core::model::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope};

use crate::object::ObjectKey;

/// The key of the policy that is named by the workloads that an order cuts off.
pub fn of_quarantine_key(order: &ObjectKey) -> PolicyKey {
    PolicyKey::of_quarantine(order.namespace.clone(), &order.name)
}

/// The key of the policy by which everybody refuses what comes from them.
pub fn from_quarantine_key(order: &ObjectKey) -> PolicyKey {
    PolicyKey::from_quarantine(order.namespace.clone(), &order.name)
}

/// Refuses everything to the workloads that name it. It says which object the order is, by UID: tunnels count what they cut
/// for each.
pub fn of_quarantine(order: &ObjectKey, uid: &str) -> Policy {
    let order_uid = (!uid.is_empty()).then(|| uid.into());
    Policy { order: order_uid, ..denial(of_quarantine_key(order), Scope::WorkloadSelector, Rule::default()) }
}

/// Refuses, everywhere, what comes from these addresses; `None` where there are none.
pub fn from_quarantine(order: &ObjectKey, addresses: &[IpAddr]) -> Option<Policy> {
    let source_ips = addresses.iter().copied().map(Into::into).collect();
    let rule = Rule { clauses: vec![Clause { matches: vec![Match { source_ips, ..Match::default() }] }] };
    (!addresses.is_empty()).then(|| denial(from_quarantine_key(order), Scope::Global, rule))
}

fn denial(key: PolicyKey, scope: Scope, rule: Rule) -> Policy {
    Policy { key, scope, action: Action::Deny, rules: vec![rule], dry_run: false, unreadable: None, order: None }
}
