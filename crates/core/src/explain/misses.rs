//! The nearest misses: which rules came close, and what stood between. Computed only when somebody asks, so that
//! denials cost an attacker more than us.

use std::fmt::Display;
use std::sync::Arc;

use serde::Serialize;

use crate::attrs::InboundAttrs;
use crate::decide::matching::{
    Attribute, FIELDS, List, Seen, Sense, failing_clauses, holds, list, matching_rule, seen_text,
};
use crate::model::{Action, Match, Policy, PolicyKey, Rule, Str};
use crate::snapshot::Snapshot;

/// How closely a rule missed: what it wanted and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The policy.
    pub policy: PolicyKey,
    /// The rule in it, from 0.
    pub rule: usize,
    /// The attribute that differed, for example `principal`.
    pub attribute: Str,
    /// What the rule wants.
    pub wanted: String,
    /// What the connection has.
    pub seen: String,
}

/// How many items of a list [`Miss::wanted`] writes out.
pub(super) const LISTED: usize = 3;

/// The rules that came nearest to letting `attrs` pass, best first, at most `limit` differences.
///
/// Where a deny policy matched: what would have to differ for its rule not to match. Else, where allow policies apply
/// and none matched: per rule of theirs, what would have to differ for it to match, the rules with the fewest
/// differences first, then those that want the most similar text. Empty where nothing is refused by a readable policy.
pub fn nearest_misses(snapshot: &Snapshot, attrs: &InboundAttrs<'_>, limit: usize) -> Vec<Miss> {
    let seen = Seen::new(attrs);
    let mut policies: Vec<&Arc<Policy>> = snapshot
        .policies_of(snapshot.newest(attrs.destination))
        .filter(|policy| !policy.dry_run && policy.unreadable.is_none())
        .collect();
    policies.sort_by(|one, other| one.key.cmp(&other.key));
    policies.dedup_by(|one, other| one.key == other.key);
    let matches = |action| {
        let of_action = policies.iter().filter(move |policy| policy.action == action);
        of_action.filter_map(|policy| Some((*policy, matching_rule(policy, &seen)?)))
    };
    let mut misses: Vec<(usize, usize, Vec<Miss>)> = Vec::new();
    let denials: Vec<_> = matches(Action::Deny).collect();
    if !denials.is_empty() {
        for (policy, index) in denials {
            if let Some(rule) = policy.rules.get(index) {
                let differences = escapes(policy, index, rule, &seen);
                misses.push((0, differences.len(), differences));
            }
        }
    } else if matches(Action::Allow).next().is_none() {
        for policy in policies.iter().filter(|policy| policy.action == Action::Allow) {
            if policy.rules.is_empty() {
                let miss = Miss {
                    policy: policy.key.clone(),
                    rule: 0,
                    attribute: "rules".into(),
                    wanted: "nothing: the policy has no rules".into(),
                    seen: "a connection".into(),
                };
                misses.push((usize::MAX, 0, vec![miss]));
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

/// What keeps an allow rule from matching: in each clause that fails, its nearest match. And how unlike the texts are.
fn lacks(policy: &Policy, rule: usize, content: &Rule, seen: &Seen<'_>) -> (usize, Vec<Miss>) {
    let (mut total, mut misses) = (0, Vec::new());
    for clause in failing_clauses(content, seen) {
        let nearest = clause.matches.iter().map(|matched| differences(policy, rule, matched, seen));
        if let Some((_, unlike, differences)) = nearest.min_by_key(|(differences, unlike, _)| (*differences, *unlike)) {
            total += unlike;
            misses.extend(differences);
        }
    }
    (total, misses)
}

/// The set fields of `matched` that do not hold: how many, how unlike, and what.
fn differences(policy: &Policy, rule: usize, matched: &Match, seen: &Seen<'_>) -> (usize, usize, Vec<Miss>) {
    if *matched == Match::default() {
        let miss = Miss {
            policy: policy.key.clone(),
            rule,
            attribute: "match".into(),
            wanted: "nothing: an empty match never matches".into(),
            seen: "a connection".into(),
        };
        return (usize::MAX, 0, vec![miss]);
    }
    let failing = FIELDS.into_iter().filter(|field| holds(matched, *field, seen) == Some(false));
    let (mut total, mut misses) = (0, Vec::new());
    for field in failing {
        let seen = seen_text(field.0, seen);
        let items = ordered(&list(matched, field), &seen);
        total += items.first().map_or(0, |(unlike, _)| *unlike);
        misses.push(miss(policy, rule, field, items, seen));
    }
    (misses.len(), total, misses)
}

/// What would have to differ for a deny rule not to match: any one of these.
fn escapes(policy: &Policy, rule: usize, content: &Rule, seen: &Seen<'_>) -> Vec<Miss> {
    let matched = content.clauses.iter().flat_map(|clause| &clause.matches);
    let set = matched.flat_map(|matched| FIELDS.into_iter().map(move |field| (matched, field)));
    let mut misses: Vec<Miss> = Vec::new();
    for (matched, field) in set.filter(|(matched, field)| holds(matched, *field, seen) == Some(true)) {
        let opposite = match field.1 {
            Sense::AnyOf => Sense::NoneOf,
            Sense::NoneOf => Sense::AnyOf,
        };
        let seen = seen_text(field.0, seen);
        let miss = miss(policy, rule, (field.0, opposite), ordered(&list(matched, field), &seen), seen);
        if !misses.contains(&miss) {
            misses.push(miss);
        }
    }
    if misses.is_empty() {
        let wanted = "nothing: the rule matches every connection".into();
        misses.push(Miss {
            policy: policy.key.clone(),
            rule,
            attribute: "rule".into(),
            wanted,
            seen: "a connection".into(),
        });
    }
    misses
}

fn miss(policy: &Policy, rule: usize, field: (Attribute, Sense), items: Vec<(usize, String)>, seen: String) -> Miss {
    let attribute = match field.0 {
        Attribute::Namespace => "namespace",
        Attribute::Principal => "principal",
        Attribute::ServiceAccount => "service_account",
        Attribute::SourceIp => "source_ip",
        Attribute::DestinationIp => "destination_ip",
        Attribute::DestinationPort => "destination_port",
    };
    let more = items.len().saturating_sub(LISTED);
    let listed: Vec<_> = items.into_iter().take(LISTED).map(|(_, text)| text).collect();
    let mut wanted = if field.1 == Sense::NoneOf { "not ".to_owned() } else { String::new() };
    wanted += &listed.join(" or ");
    if more > 0 {
        wanted += &format!(" or {more} more");
    }
    Miss { policy: policy.key.clone(), rule, attribute: attribute.into(), wanted, seen }
}

/// The items of a list as text, with how unlike `seen` they are: texts most like it first, numbers as listed.
fn ordered(list: &List<'_>, seen: &str) -> Vec<(usize, String)> {
    let mut items: Vec<(usize, String)> = match list {
        List::Texts(items) => items.iter().map(|item| alike(item, seen)).collect(),
        List::Accounts(items) => items.iter().map(|item| alike(item, seen)).collect(),
        List::Ranges(items) => items.iter().map(|item| (0, item.to_string())).collect(),
        List::Ports(items) => items.iter().map(|item| (0, item.to_string())).collect(),
    };
    items.sort_by_key(|(unlike, _)| *unlike);
    items
}

fn alike(item: &impl Display, seen: &str) -> (usize, String) {
    let text = item.to_string();
    (unlikeness(&text, seen), text)
}

/// How many characters of `wanted` lie outside what both begin and end with alike.
pub(super) fn unlikeness(wanted: &str, seen: &str) -> usize {
    let begin = wanted.bytes().zip(seen.bytes()).take_while(|(one, other)| one == other).count();
    let end = wanted.bytes().rev().zip(seen.bytes().rev()).take_while(|(one, other)| one == other).count();
    wanted.len().saturating_sub(begin + end)
}
