//! L4 authorization (contract 5.2), and what is done about policies that cannot be asked (design: a policy is never
//! skipped).

use std::sync::Arc;

use super::Verdict;
use super::matching::{Seen, matching_rule};
use crate::attrs::InboundAttrs;
use crate::explain::{NAMED_POLICIES, Reason};
use crate::model::{Action, Policy, PolicyKey, Scope, Workload};
use crate::snapshot::{Snapshot, UnknownPolicies};

/// Whether `attrs` may pass under the policies of `snapshot`. For an open connection, ask again and take
/// [`Verdict::ends_open_connection`].
///
/// In this order: a deny policy that matches refuses. A policy that is named and not here, or that cannot be read,
/// refuses (or is passed over, see [`UnknownPolicies`]). Where allow policies apply, one of them must match. Dry-run
/// policies decide nothing. The order of policies decides nothing: of several, the first by name is the reason.
///
/// Where `snapshot` knows the destination, its version counts and not the caller's, which may be older: a policy that
/// was attached meanwhile is not missed.
pub fn authorize(snapshot: &Snapshot, attrs: &InboundAttrs<'_>) -> Verdict {
    judge(snapshot, attrs, |_| true)
}

/// [`authorize`] for a waypoint's own port, where what arrives is for others: only policies that select the waypoint itself
/// are asked. Those of its namespace and of the mesh are meant for what is behind it (contract 7.4). Whom a Quarantine cuts off
/// reaches nobody through it, either.
pub fn authorize_at_waypoint(snapshot: &Snapshot, attrs: &InboundAttrs<'_>) -> Verdict {
    judge(snapshot, attrs, |policy| policy.scope == Scope::WorkloadSelector || policy.key.quarantine().is_some())
}

/// Why a connection that a workload has open, or opens, ends: the workload is cut off.
pub fn cut_off(snapshot: &Snapshot, workload: &Workload) -> Option<Reason> {
    let policy = snapshot.newest(workload).quarantine()?.clone();
    Some(Reason::Quarantined { policy })
}

fn judge(snapshot: &Snapshot, attrs: &InboundAttrs<'_>, counts: impl Fn(&Policy) -> bool) -> Verdict {
    let seen = Seen::new(attrs);
    let destination = snapshot.newest(attrs.destination);
    let mut policies: Vec<&Arc<Policy>> = snapshot.policies_of(destination).filter(|policy| counts(policy)).collect();
    policies.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    policies.dedup_by(|one, other| one.key == other.key);
    let (dry_run, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.dry_run);

    let undecided = undecided(snapshot, destination, &enforced);
    // What says that the destination is cut off need not have arrived: that it is named is enough.
    let denial = cut_off(snapshot, destination).or_else(|| first_denial(&enforced, &seen));
    let (reason, skipped) = match (denial, snapshot.unknown_policies()) {
        (Some(denial), _) => (denial, Vec::new()),
        (None, UnknownPolicies::Refuse) => match undecided.into_iter().next() {
            Some((_, undecided)) => (undecided, Vec::new()),
            None => (admission(&enforced, &seen), Vec::new()),
        },
        (None, UnknownPolicies::Allow) => {
            (admission(&enforced, &seen), undecided.into_iter().map(|(key, _)| key).collect())
        }
    };
    let allowed = matches!(reason, Reason::NoPolicy | Reason::AllowedBy { .. });
    let dry_run = if dry_run.is_empty() { Vec::new() } else { otherwise(&dry_run, &enforced, &reason, &seen) };
    Verdict { allowed, reason, dry_run, skipped }
}

/// The policies that cannot be asked, first by name.
fn undecided(snapshot: &Snapshot, destination: &Workload, enforced: &[&Arc<Policy>]) -> Vec<(PolicyKey, Reason)> {
    let missing = snapshot
        .missing_policies(destination)
        .map(|policy| (policy.clone(), Reason::PolicyUnknown { policy: policy.clone() }));
    let unreadable = enforced.iter().filter_map(|policy| {
        let (policy, detail) = (policy.key.clone(), policy.unreadable.clone()?);
        Some((policy.clone(), Reason::PolicyUnreadable { policy, detail }))
    });
    let mut all: Vec<_> = missing.chain(unreadable).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all.dedup_by(|(one, _), (other, _)| one == other);
    all
}

fn readable<'a>(policies: &'a [&Arc<Policy>], action: Action) -> impl Iterator<Item = &'a Policy> {
    policies
        .iter()
        .map(|policy| policy.as_ref())
        .filter(move |policy| policy.action == action && policy.unreadable.is_none())
}

fn first_denial(policies: &[&Arc<Policy>], seen: &Seen<'_>) -> Option<Reason> {
    // That an end is cut off says more than any other policy does.
    let quarantines = readable(policies, Action::Deny).filter(|policy| policy.key.quarantine().is_some());
    let others = readable(policies, Action::Deny).filter(|policy| policy.key.quarantine().is_none());
    quarantines.chain(others).find_map(|policy| {
        let rule = matching_rule(policy, seen)?;
        let policy = policy.key.clone();
        if policy.quarantine().is_some() {
            return Some(Reason::Quarantined { policy });
        }
        let is_mutual_tls = is_converted_peer_authentication(&policy) && seen.principal().is_none();
        Some(if is_mutual_tls { Reason::MutualTlsRequired { policy } } else { Reason::DeniedBy { policy, rule } })
    })
}

/// What the allow policies say.
fn admission(policies: &[&Arc<Policy>], seen: &Seen<'_>) -> Reason {
    let mut missed = Vec::new();
    for policy in readable(policies, Action::Allow) {
        if let Some(rule) = matching_rule(policy, seen) {
            return Reason::AllowedBy { policy: policy.key.clone(), rule };
        }
        if missed.len() < NAMED_POLICIES {
            missed.push(policy.key.clone());
        }
    }
    if missed.is_empty() { Reason::NoPolicy } else { Reason::NoAllowMatched { policies: missed } }
}

/// What dry-run policies would have turned round, if they were enforced beside the others.
fn otherwise(dry_run: &[&Arc<Policy>], enforced: &[&Arc<Policy>], reason: &Reason, seen: &Seen<'_>) -> Vec<Reason> {
    let admitted = admission(dry_run, seen);
    match reason {
        Reason::NoPolicy | Reason::AllowedBy { .. } => {
            let by_allow =
                matches!(admitted, Reason::NoAllowMatched { .. }) && readable(enforced, Action::Allow).next().is_none();
            first_denial(dry_run, seen).into_iter().chain(by_allow.then_some(admitted)).collect()
        }
        Reason::NoAllowMatched { .. } if matches!(admitted, Reason::AllowedBy { .. }) => vec![admitted],
        _ => Vec::new(),
    }
}

/// Whether a policy is what the control plane made of a PeerAuthentication (contract 5.4). No user's object can have
/// such a name: Kubernetes names have no `_`.
fn is_converted_peer_authentication(policy: &PolicyKey) -> bool {
    &*policy.name == "istio_converted_static_strict" || policy.name.starts_with("converted_peer_authentication_")
}

#[cfg(test)]
mod tests;
