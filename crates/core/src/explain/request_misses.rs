//! The nearest misses of a request: which rules came close, and what stood between.

use super::Miss;
use super::misses::{LISTED, unlikeness};
use crate::attrs::AccessAttrs;
use crate::decide::access::{RequestSeen, clause_holds, holds, matching_rule};
use crate::model::access::{Alternative, Condition, RequestAction, RequestPolicy, RequestRule, Sense};
use crate::snapshot::Snapshot;

/// The rules that came nearest to letting a request pass, best first, at most `limit` differences; as
/// [`super::nearest_misses`] for connections.
pub fn nearest_request_misses(snapshot: &Snapshot, attrs: &AccessAttrs<'_>, limit: usize) -> Vec<Miss> {
    let seen = RequestSeen::new(attrs);
    let mut policies = snapshot.request_policies(attrs.waypoint, attrs.target.service().map(|service| &service.key));
    policies.retain(|policy| !policy.dry_run && policy.unreadable.is_none());
    let of = |action| policies.iter().filter(move |policy| policy.action == action);
    let denials: Vec<(&RequestPolicy, usize)> =
        of(RequestAction::Deny).filter_map(|policy| Some((*policy, matching_rule(policy, &seen)?))).collect();
    let mut misses: Vec<(usize, usize, Vec<Miss>)> = Vec::new();
    if !denials.is_empty() {
        for (policy, index) in denials {
            let differences = policy.rules.get(index).map(|rule| escapes(policy, index, rule, &seen));
            misses.extend(differences.map(|differences| (0, differences.len(), differences)));
        }
    } else if !of(RequestAction::Allow).any(|policy| matching_rule(policy, &seen).is_some()) {
        for policy in of(RequestAction::Allow) {
            if policy.rules.is_empty() {
                misses.push((usize::MAX, 0, vec![nothing(policy, "rules", "nothing: the policy has no rules")]));
            }
            for (index, rule) in policy.rules.iter().enumerate() {
                let (unlike, differences) = lacks(policy, index, rule, &seen);
                misses.push((differences.len(), unlike, differences));
            }
        }
    }
    misses.sort_by_key(|(differences, unlike, _)| (*differences, *unlike));
    misses.into_iter().flat_map(|(_, _, misses)| misses).take(limit).collect()
}

fn nothing(policy: &RequestPolicy, attribute: &str, wanted: &str) -> Miss {
    Miss {
        policy: policy.key.clone(),
        rule: 0,
        attribute: attribute.into(),
        wanted: wanted.to_owned(),
        seen: "a request".to_owned(),
    }
}

/// What keeps an allow rule from matching: in each clause that fails, its nearest alternative. And how unlike the texts are.
fn lacks(policy: &RequestPolicy, rule: usize, content: &RequestRule, seen: &RequestSeen<'_>) -> (usize, Vec<Miss>) {
    let (mut total, mut misses) = (0, Vec::new());
    for clause in content.clauses.iter().filter(|clause| !clause_holds(clause, policy.action, seen)) {
        let nearest = clause.alternatives.iter().map(|one| differences(policy, rule, one, seen));
        if let Some((unlike, differences)) = nearest.min_by_key(|(unlike, misses)| (misses.len(), *unlike)) {
            total += unlike;
            misses.extend(differences);
        }
    }
    (total, misses)
}

fn differences(
    policy: &RequestPolicy,
    rule: usize,
    alternative: &Alternative,
    seen: &RequestSeen<'_>,
) -> (usize, Vec<Miss>) {
    let failing = alternative.conditions.iter().filter(|condition| !holds(condition, policy.action, seen));
    let (mut total, mut misses) = (0, Vec::new());
    for condition in failing {
        let (unlike, miss) = miss(policy, rule, condition, condition.sense, seen);
        total += unlike;
        misses.push(miss);
    }
    (total, misses)
}

/// What would have to differ for a deny rule not to match: any one of these.
fn escapes(policy: &RequestPolicy, rule: usize, content: &RequestRule, seen: &RequestSeen<'_>) -> Vec<Miss> {
    let all = content.clauses.iter().flat_map(|clause| &clause.alternatives).flat_map(|one| &one.conditions);
    let mut misses: Vec<Miss> = Vec::new();
    for condition in all.filter(|condition| holds(condition, policy.action, seen)) {
        let opposite = match condition.sense {
            Sense::AnyOf => Sense::NoneOf,
            Sense::NoneOf => Sense::AnyOf,
        };
        let (_, miss) = miss(policy, rule, condition, opposite, seen);
        if !misses.contains(&miss) {
            misses.push(miss);
        }
    }
    if misses.is_empty() {
        misses.push(Miss { rule, ..nothing(policy, "rule", "nothing: the rule matches every request") });
    }
    misses
}

/// One condition as a difference, its values with those most like what is there first.
fn miss(
    policy: &RequestPolicy,
    rule: usize,
    condition: &Condition,
    sense: Sense,
    seen: &RequestSeen<'_>,
) -> (usize, Miss) {
    let seen = seen.text(&condition.wanted);
    let mut values: Vec<(usize, String)> =
        condition.wanted.values().into_iter().map(|value| (unlikeness(&value, &seen), value)).collect();
    values.sort_by_key(|(unlike, _)| *unlike);
    let unlike = values.first().map_or(0, |(unlike, _)| *unlike);
    let more = values.len().saturating_sub(LISTED);
    let listed: Vec<_> = values.into_iter().take(LISTED).map(|(_, text)| text).collect();
    let mut wanted = if sense == Sense::NoneOf { "not ".to_owned() } else { String::new() };
    wanted += &listed.join(" or ");
    if more > 0 {
        wanted += &format!(" or {more} more");
    }
    (unlike, Miss { policy: policy.key.clone(), rule, attribute: condition.wanted.attribute(), wanted, seen })
}
