//! PeerAuthentication to policies that nodes enforce (contract 5.4).
//!
//! Nodes know no modes, only policies: STRICT is a policy that denies whoever has no identity. A workload names at
//! most one such policy: the static one, or one of its own where single ports differ from the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;

use stillmesh_core::model::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};

use super::Mesh;
use crate::istio::{Mode, PeerAuthentication};
use crate::labels::{self, Labels};
use crate::object::DEFAULT_NAMESPACE;

/// Name of the policy of workloads that are STRICT on every port; `_` cannot be in a name that a user chose.
const STATIC_STRICT: &str = "istio_converted_static_strict";
const CONVERTED: &str = "converted_peer_authentication_";

/// What a PeerAuthentication is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The whole mesh.
    Mesh,
    /// Its namespace.
    Namespace,
    /// The workloads of its namespace that it selects.
    Workload,
    /// Nothing: selectors have no effect in the root namespace.
    Nothing,
}

/// What a PeerAuthentication is about.
pub fn level(policy: &PeerAuthentication, mesh: &Mesh) -> Level {
    let root = policy.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE) == &*mesh.root_namespace;
    let selects = policy.spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    match (root, selects) {
        (true, false) => Level::Mesh,
        (false, false) => Level::Namespace,
        (false, true) => Level::Workload,
        (true, true) => Level::Nothing,
    }
}

/// Of several policies of one level, the one that holds: the oldest; by name where the age does not tell.
pub fn oldest<'a>(policies: impl IntoIterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    let created = |one: &PeerAuthentication| one.metadata.creation_timestamp.as_ref().map(|time| time.0);
    policies.into_iter().min_by(|a, b| {
        // No time sorts after any time.
        let (a_time, b_time) = (created(a), created(b));
        a_time.is_none().cmp(&b_time.is_none()).then(a_time.cmp(&b_time)).then(a.metadata.name.cmp(&b.metadata.name))
    })
}

/// Whether a namespace is STRICT, by the policies that hold for the mesh and for the namespace.
pub fn parent_is_strict(mesh: Option<&PeerAuthentication>, namespace: Option<&PeerAuthentication>) -> bool {
    let strict =
        |inherited: bool, policy: Option<&PeerAuthentication>| resolve(policy.map_or(Mode::Unset, mode), inherited);
    strict(strict(false, mesh), namespace)
}

fn mode(policy: &PeerAuthentication) -> Mode {
    policy.spec.mtls.map_or(Mode::Unset, |mtls| mtls.mode)
}

fn resolve(mode: Mode, inherited: bool) -> bool {
    match mode {
        Mode::Strict => true,
        Mode::Permissive | Mode::Disable => false,
        Mode::Unset => inherited,
    }
}

/// The policy that a workload names, if any. `selecting` are the workload-level policies of its namespace.
pub fn attached_policy<'a>(
    workload: &Labels,
    parent_strict: bool,
    selecting: impl IntoIterator<Item = &'a PeerAuthentication>,
    mesh: &Mesh,
) -> Option<PolicyKey> {
    let matches = |policy: &&PeerAuthentication| {
        policy.spec.selector.as_ref().is_some_and(|selector| labels::match_all(&selector.match_labels, workload))
    };
    match oldest(selecting.into_iter().filter(matches)) {
        Some(own) => match port_policy(own, parent_strict, mesh, &[]) {
            Some(policy) => Some(policy.key),
            None => resolve(mode(own), parent_strict).then(|| static_strict_key(mesh)),
        },
        None => parent_strict.then(|| static_strict_key(mesh)),
    }
}

/// The policy of a workload-level PeerAuthentication whose ports differ from the rest; `None` where none does. Clear text
/// from `bypassed` addresses passes: of pods that a Bypass keeps out of the mesh.
pub fn port_policy(
    policy: &PeerAuthentication,
    parent_strict: bool,
    mesh: &Mesh,
    bypassed: &[IpAddr],
) -> Option<Policy> {
    if level(policy, mesh) != Level::Workload {
        return None;
    }
    let strict = resolve(mode(policy), parent_strict);
    let ports: BTreeMap<u16, bool> = policy
        .spec
        .port_level_mtls
        .iter()
        .filter_map(|(port, mtls)| {
            Some((port.parse::<u16>().ok().filter(|port| *port > 0)?, resolve(mtls.mode, strict)))
        })
        .collect();
    let differing: Vec<u16> = ports.into_iter().filter(|(_, port)| *port != strict).map(|(port, _)| port).collect();
    if differing.is_empty() {
        return None;
    }
    let clause = |one: Match| Clause { matches: vec![one] };
    let rules = if strict {
        let open = |port| clause(Match { not_destination_ports: vec![port], ..Match::default() });
        vec![Rule { clauses: differing.into_iter().map(open).chain([clause(no_identity(bypassed))]).collect() }]
    } else {
        let closed =
            |port| Rule { clauses: vec![clause(Match { destination_ports: vec![port], ..no_identity(bypassed) })] };
        differing.into_iter().map(closed).collect()
    };
    let namespace = policy.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    Some(denial(port_policy_key(namespace, policy.metadata.name.as_deref().unwrap_or_default()), rules))
}

/// The key of the policy that [`port_policy`] makes of a PeerAuthentication of this name.
pub fn port_policy_key(namespace: &str, name: &str) -> PolicyKey {
    PolicyKey::new(namespace, format!("{CONVERTED}{name}"))
}

/// The key of the policy of workloads that are STRICT on every port.
pub fn static_strict_key(mesh: &Mesh) -> PolicyKey {
    PolicyKey::new(mesh.root_namespace.clone(), STATIC_STRICT)
}

/// The policy of workloads that are STRICT on every port. It is there as soon as any PeerAuthentication is. Clear text from
/// `bypassed` addresses passes.
pub fn static_strict_policy(mesh: &Mesh, bypassed: &[IpAddr]) -> Policy {
    denial(static_strict_key(mesh), vec![Rule { clauses: vec![Clause { matches: vec![no_identity(bypassed)] }] }])
}

fn no_identity(bypassed: &[IpAddr]) -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        not_source_ips: bypassed.iter().copied().map(Into::into).collect(),
        ..Match::default()
    }
}

fn denial(key: PolicyKey, rules: Vec<Rule>) -> Policy {
    Policy {
        key,
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules,
        dry_run: false,
        unreadable: None,
        order: None,
    }
}

#[cfg(test)]
mod tests;
