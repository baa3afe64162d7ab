//! AuthorizationPolicy to the policy that nodes enforce (contract 5.3).
//!
//! Nodes see connections, not requests. What cannot be seen makes a policy stricter, never weaker: an ALLOW rule that
//! asks for it is left out, a DENY rule is enforced as if it had not asked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_core::model::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, Str, StringMatch,
};

use super::{Mesh, boolean};
use crate::istio;
use crate::labels;
use crate::status::Condition;

/// Annotation of a policy that is only logged.
const DRY_RUN: &str = "istio.io/dry-run";

/// What an AuthorizationPolicy means for nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    /// The policy to send; `None` where nodes do not enforce it.
    pub policy: Option<Policy>,
    /// What to say about it in its status; `None` for policies that are for waypoints only.
    pub condition: Option<Condition>,
}

/// Whether a policy is only logged.
pub(super) fn is_dry_run(metadata: &ObjectMeta) -> bool {
    labels::of(&metadata.annotations).get(DRY_RUN).and_then(|text| boolean(text)) == Some(true)
}

/// Translates a policy.
pub fn authorization(written: &istio::AuthorizationPolicy, mesh: &Mesh) -> Authorization {
    let namespace: Str = written.metadata.namespace.as_deref().unwrap_or(crate::object::DEFAULT_NAMESPACE).into();
    let name: Str = written.metadata.name.as_deref().unwrap_or_default().into();
    let spec = &written.spec;
    let rejected = |message: String| Authorization {
        policy: None,
        condition: Some(Condition::ztunnel_accepted("False", "UnsupportedValue", message)),
    };
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        return Authorization { policy: None, condition: None };
    }
    let dry_run = is_dry_run(&written.metadata);
    if dry_run && !mesh.dry_run {
        return rejected(format!(
            "found policy \"{namespace}/{name}\" using dry-run annotation, but support for ambient dry-run \
             authorizationPolicies isn't enabled"
        ));
    }
    let action = match spec.action {
        istio::Action::Allow => Action::Allow,
        istio::Action::Deny => Action::Deny,
        other => return rejected(format!("ztunnel does not support the {} action", other.as_str())),
    };
    let scope = match (&spec.selector, namespace == mesh.root_namespace) {
        (Some(_), _) => Scope::WorkloadSelector,
        (None, true) => Scope::Global,
        (None, false) => Scope::Namespace,
    };
    let mut unseen = BTreeSet::new();
    let rules = spec.rules.iter().filter_map(|written| rule(action, written, &namespace, &mut unseen)).collect();
    let key = PolicyKey::new(namespace, name);
    let policy = Policy { key, scope, action, rules, dry_run, unreadable: None, order: None };
    let condition = if unseen.is_empty() {
        Condition::ztunnel_accepted("True", "Accepted", "attached to ztunnel".to_owned())
    } else {
        let found: Vec<&str> = unseen.iter().map(String::as_str).collect();
        let outcome = match action {
            Action::Allow => "Within an ALLOW policy, rules matching HTTP attributes are omitted.",
            Action::Deny => "Within a DENY policy, rules are enforced without their HTTP attributes.",
        };
        Condition::ztunnel_accepted(
            "True",
            "UnsupportedValue",
            format!(
                "ztunnel does not support HTTP attributes (found: {}). In ambient mode you must use a waypoint proxy to \
                 enforce HTTP rules. {outcome} This will be more restrictive than requested.",
                found.join(", ")
            ),
        )
    };
    Authorization { policy: Some(policy), condition: Some(condition) }
}

/// One rule: a clause from all `to`, one from all `from`, one per `when`. `None` leaves the rule out.
fn rule(action: Action, written: &istio::Rule, namespace: &Str, unseen: &mut BTreeSet<String>) -> Option<Rule> {
    let mut unseen_here = BTreeSet::new();
    let mut clauses = Vec::new();
    let mut add = |matches: Vec<Side>| clauses.extend(clause(action, matches));
    if !written.to.is_empty() {
        let none = istio::Operation::default();
        let of = |to: &istio::RuleTo| operation(action, to.operation.as_ref().unwrap_or(&none));
        written.to.iter().for_each(|to| unseen_operation(to.operation.as_ref().unwrap_or(&none), &mut unseen_here));
        add(written.to.iter().map(of).collect());
    }
    if !written.from.is_empty() {
        let none = istio::Source::default();
        let of = |from: &istio::RuleFrom| source(action, from.source.as_ref().unwrap_or(&none), namespace);
        written.from.iter().for_each(|from| unseen_source(from.source.as_ref().unwrap_or(&none), &mut unseen_here));
        add(written.from.iter().map(of).collect());
    }
    for condition in &written.when {
        match when(action, condition) {
            Some(side) => add(vec![side]),
            None => {
                unseen_here.insert(condition.key.clone());
            }
        }
    }
    let left_out = action == Action::Allow && !unseen_here.is_empty();
    unseen.append(&mut unseen_here);
    (!left_out).then_some(Rule { clauses })
}

/// One alternative of a clause; `None` asks for something that cannot be and never holds.
type Side = Option<Match>;

/// The clause of some alternatives; `None` where every connection satisfies it. A match with nothing in it never
/// matches on a node (contract 5.2), which is right for ALLOW; for DENY it would let pass what was to be refused.
fn clause(action: Action, sides: Vec<Side>) -> Option<Clause> {
    let mut matches = Vec::new();
    for side in sides {
        match side {
            None => {}
            Some(one) if one == Match::default() && action == Action::Deny => return None,
            Some(one) => matches.push(one),
        }
    }
    if matches.is_empty() {
        // Nothing of it can hold; a clause without matches would.
        matches.push(Match::default());
    }
    Some(Clause { matches })
}

fn operation(action: Action, written: &istio::Operation) -> Side {
    let mut sides = Sides::new(action);
    let one = Match {
        destination_ports: sides.wanted(&written.ports, port),
        not_destination_ports: sides.unwanted(&written.not_ports, port),
        ..Match::default()
    };
    sides.side(one)
}

fn source(action: Action, written: &istio::Source, namespace: &Str) -> Side {
    let account = |text: &str| Some(service_account(text, namespace));
    let mut sides = Sides::new(action);
    let one = Match {
        namespaces: sides.wanted(&written.namespaces, string),
        not_namespaces: sides.unwanted(&written.not_namespaces, string),
        principals: sides.wanted(&written.principals, string),
        not_principals: sides.unwanted(&written.not_principals, string),
        source_ips: sides.wanted(&written.ip_blocks, block),
        not_source_ips: sides.unwanted(&written.not_ip_blocks, block),
        service_accounts: sides.wanted(&written.service_accounts, account),
        not_service_accounts: sides.unwanted(&written.not_service_accounts, account),
        ..Match::default()
    };
    sides.side(one)
}

fn when(action: Action, written: &istio::Condition) -> Option<Side> {
    let mut sides = Sides::new(action);
    let mut one = Match::default();
    match written.key.as_str() {
        "source.namespace" => {
            one.namespaces = sides.wanted(&written.values, string);
            one.not_namespaces = sides.unwanted(&written.not_values, string);
        }
        "source.principal" => {
            one.principals = sides.wanted(&written.values, string);
            one.not_principals = sides.unwanted(&written.not_values, string);
        }
        "source.ip" => {
            one.source_ips = sides.wanted(&written.values, block);
            one.not_source_ips = sides.unwanted(&written.not_values, block);
        }
        "destination.ip" => {
            one.destination_ips = sides.wanted(&written.values, block);
            one.not_destination_ips = sides.unwanted(&written.not_values, block);
        }
        "destination.port" => {
            one.destination_ports = sides.wanted(&written.values, port);
            one.not_destination_ports = sides.unwanted(&written.not_values, port);
        }
        // A condition on what nodes cannot see is dropped; for DENY that leaves the rest of the rule, which is more.
        _ => return None,
    }
    Some(sides.side(one))
}

/// Reads lists of values. Values that cannot be read are dropped (contract 5.3); where that empties a list of an
/// ALLOW, no value of it can match, so that nothing does.
struct Sides {
    action: Action,
    never: bool,
}

impl Sides {
    fn new(action: Action) -> Self {
        Self { action, never: false }
    }

    fn wanted<T>(&mut self, values: &[String], read: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let list: Vec<T> = values.iter().filter_map(|value| read(value)).collect();
        self.never |= list.is_empty() && !values.is_empty() && self.action == Action::Allow;
        list
    }

    fn unwanted<T>(&mut self, values: &[String], read: impl Fn(&str) -> Option<T>) -> Vec<T> {
        values.iter().filter_map(|value| read(value)).collect()
    }

    fn side(&self, one: Match) -> Side {
        (!self.never).then_some(one)
    }
}

pub(super) fn string(text: &str) -> Option<StringMatch> {
    Some(match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
        ("*", _, _) => StringMatch::Presence,
        (_, Some(end), _) => StringMatch::Suffix(end.into()),
        (_, _, Some(start)) => StringMatch::Prefix(start.into()),
        _ => StringMatch::Exact(text.into()),
    })
}

pub(super) fn service_account(text: &str, namespace: &Str) -> ServiceAccountMatch {
    match text.split_once('/') {
        Some((namespace, account)) => {
            ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
        }
        None => ServiceAccountMatch { namespace: namespace.clone(), service_account: text.into() },
    }
}

pub(super) fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

pub(super) fn block(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().ok().map(|net| net.trunc()),
    }
}

fn unseen_operation(written: &istio::Operation, unseen: &mut BTreeSet<String>) {
    let lists = [
        ("hosts", &written.hosts),
        ("notHosts", &written.not_hosts),
        ("methods", &written.methods),
        ("notMethods", &written.not_methods),
        ("paths", &written.paths),
        ("notPaths", &written.not_paths),
    ];
    unseen.extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, _)| name.to_owned()));
}

fn unseen_source(written: &istio::Source, unseen: &mut BTreeSet<String>) {
    let lists = [
        ("remoteIpBlocks", &written.remote_ip_blocks),
        ("notRemoteIpBlocks", &written.not_remote_ip_blocks),
        ("requestPrincipals", &written.request_principals),
        ("notRequestPrincipals", &written.not_request_principals),
    ];
    unseen.extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, _)| name.to_owned()));
}

#[cfg(test)]
mod tests;
