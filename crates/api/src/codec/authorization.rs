//! `istio.security.Authorization`: policies (contract 5.1). A policy is never read as if a part of it were absent:
//! what cannot be read in full becomes a policy that says so, and the snapshot decides what stays in force.

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message as _;
use stillmesh_core::model::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, Str, StringMatch,
};

use super::scan::{Field, Schema, unknown_field};
use super::{CodecError, FieldError, fields};
use crate::proto::google::protobuf::{Any, Empty};
use crate::proto::istio::security as wire;
use crate::proto::istio::workload::Extension;
use wire::string_match::MatchType;

/// The extension with the UID of the Quarantine that a policy was made of, and what it is in.
const ORDER: &str = "stillmesh.io/order";
const ORDER_TYPE: &str = "type.googleapis.com/google.protobuf.StringValue";
/// The API server's UIDs have 36.
const MOST_UID_BYTES: usize = 128;

/// Reads an Authorization. Fails only where the resource's name is no key; everything else that is wrong comes
/// back as [`Policy::unreadable`], with the widest scope where the scope itself is lost. Such a policy carries
/// "allow nothing", so that even evaluating it by mistake admits nobody.
pub fn decode(name: &str, bytes: Bytes) -> Result<Policy, CodecError> {
    let key =
        PolicyKey::parse(name).ok_or_else(|| FieldError::new("name", "<namespace>/<name> is accepted").of(name))?;
    let message = match wire::Authorization::decode(bytes.clone()) {
        Ok(message) => message,
        Err(error) => return Ok(unreadable(key, Scope::Global, false, &format!("not a message: {error}"))),
    };
    let Some(scope) = scope(message.scope) else {
        let why = format!("scope: {}: 0 to 2 are known", message.scope);
        return Ok(unreadable(key, Scope::Global, message.dry_run, &why));
    };
    let dry_run = message.dry_run;
    let read = unknown_field(bytes, AUTHORIZATION)
        .map_err(|found| FieldError::new("authorization", found))
        .and_then(|()| policy(key.clone(), scope, message));
    Ok(read.unwrap_or_else(|error| unreadable(key, scope, dry_run, &format!("{}: {}", error.field, error.problem))))
}

/// The wire form of a policy.
pub fn encode(policy: &Policy) -> Vec<u8> {
    wire::Authorization {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: match policy.scope {
            Scope::Global => wire::Scope::Global.into(),
            Scope::Namespace => wire::Scope::Namespace.into(),
            Scope::WorkloadSelector => wire::Scope::WorkloadSelector.into(),
        },
        action: match policy.action {
            Action::Allow => wire::Action::Allow.into(),
            Action::Deny => wire::Action::Deny.into(),
        },
        rules: policy.rules.iter().map(rule_wire).collect(),
        dry_run: policy.dry_run,
        extensions: policy.order.as_deref().map(order_wire).into_iter().collect(),
    }
    .encode_to_vec()
}

fn unreadable(key: PolicyKey, scope: Scope, dry_run: bool, why: &str) -> Policy {
    Policy { key, scope, action: Action::Allow, rules: Vec::new(), dry_run, unreadable: Some(why.into()), order: None }
}

fn scope(number: i32) -> Option<Scope> {
    match wire::Scope::try_from(number).ok()? {
        wire::Scope::Global => Some(Scope::Global),
        wire::Scope::Namespace => Some(Scope::Namespace),
        wire::Scope::WorkloadSelector => Some(Scope::WorkloadSelector),
    }
}

fn policy(key: PolicyKey, scope: Scope, wire: wire::Authorization) -> Result<Policy, FieldError> {
    if *wire.namespace != *key.namespace || *wire.name != *key.name {
        let problem = format!("the resource's own key is {:?}", format!("{}/{}", wire.namespace, wire.name));
        return Err(FieldError::new("name", problem));
    }
    let action = match wire::Action::try_from(wire.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(FieldError::new("action", format!("{}: 0 and 1 are known", wire.action))),
    };
    let rules = wire.rules.into_iter().map(rule).collect::<Result<_, _>>()?;
    let order = wire.extensions.iter().find_map(order);
    Ok(Policy { key, scope, action, rules, dry_run: wire.dry_run, unreadable: None, order })
}

/// A remark: one that cannot be read is none.
fn order(wire: &Extension) -> Option<Str> {
    let config = wire.config.as_ref().filter(|config| wire.name == ORDER && config.type_url == ORDER_TYPE)?;
    let uid = String::decode(config.value.clone()).ok()?;
    (!uid.is_empty() && uid.len() <= MOST_UID_BYTES).then(|| uid.into())
}

fn order_wire(uid: &str) -> Extension {
    let value = uid.to_owned().encode_to_vec().into();
    Extension { name: ORDER.to_owned(), config: Some(Any { type_url: ORDER_TYPE.to_owned(), value }) }
}

fn rule(wire: wire::Rule) -> Result<Rule, FieldError> {
    let clause = |wire: wire::Clause| {
        let matches = wire.matches.into_iter().map(matching).collect::<Result<_, _>>();
        matches.map(|matches| Clause { matches })
    };
    let clauses = wire.clauses.into_iter().map(clause).collect::<Result<_, FieldError>>();
    clauses.map(|clauses| Rule { clauses }).map_err(|error| error.within("rules.clauses.matches"))
}

fn matching(wire: wire::Match) -> Result<Match, FieldError> {
    // An extension of a match narrows it in a way that is not known here.
    if let Some(extension) = wire.extensions.first() {
        return Err(FieldError::new("extensions", format!("{:?} is not known", extension.name)));
    }
    Ok(Match {
        namespaces: texts("namespaces", wire.namespaces)?,
        not_namespaces: texts("not_namespaces", wire.not_namespaces)?,
        principals: texts("principals", wire.principals)?,
        not_principals: texts("not_principals", wire.not_principals)?,
        source_ips: ranges("source_ips", &wire.source_ips)?,
        not_source_ips: ranges("not_source_ips", &wire.not_source_ips)?,
        destination_ips: ranges("destination_ips", &wire.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", &wire.not_destination_ips)?,
        destination_ports: ports("destination_ports", &wire.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &wire.not_destination_ports)?,
        service_accounts: accounts("service_accounts", &wire.service_accounts)?,
        not_service_accounts: accounts("not_service_accounts", &wire.not_service_accounts)?,
    })
}

fn texts(field: &str, wire: Vec<wire::StringMatch>) -> Result<Vec<StringMatch>, FieldError> {
    let one = |wire: wire::StringMatch| match wire.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(Empty {})) => Ok(StringMatch::Presence),
        None => Err(FieldError::new(field, "a match without a kind: exact, prefix, suffix and presence are known")),
    };
    wire.into_iter().map(one).collect()
}

fn ranges(field: &str, wire: &[wire::Address]) -> Result<Vec<IpNet>, FieldError> {
    wire.iter().map(|range| fields::cidr(field, &range.address, range.length)).collect()
}

fn ports(field: &str, wire: &[u32]) -> Result<Vec<u16>, FieldError> {
    wire.iter().map(|port| fields::port_or_zero(field, *port)).collect()
}

fn accounts(field: &str, wire: &[wire::ServiceAccountMatch]) -> Result<Vec<ServiceAccountMatch>, FieldError> {
    let part = |text: &str| match text {
        "" => Err(FieldError::new(field, "an empty namespace or service account")),
        text => Ok(Str::from(text)),
    };
    let one = |wire: &wire::ServiceAccountMatch| {
        Ok(ServiceAccountMatch { namespace: part(&wire.namespace)?, service_account: part(&wire.service_account)? })
    };
    wire.iter().map(one).collect()
}

fn rule_wire(rule: &Rule) -> wire::Rule {
    let clause = |clause: &Clause| wire::Clause { matches: clause.matches.iter().map(match_wire).collect() };
    wire::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn match_wire(matching: &Match) -> wire::Match {
    let texts = |texts: &[StringMatch]| texts.iter().map(text_wire).collect();
    let ranges = |ranges: &[IpNet]| ranges.iter().map(range_wire).collect();
    let ports = |ports: &[u16]| ports.iter().map(|port| u32::from(*port)).collect();
    let accounts = |accounts: &[ServiceAccountMatch]| accounts.iter().map(account_wire).collect();
    wire::Match {
        namespaces: texts(&matching.namespaces),
        not_namespaces: texts(&matching.not_namespaces),
        principals: texts(&matching.principals),
        not_principals: texts(&matching.not_principals),
        source_ips: ranges(&matching.source_ips),
        not_source_ips: ranges(&matching.not_source_ips),
        destination_ips: ranges(&matching.destination_ips),
        not_destination_ips: ranges(&matching.not_destination_ips),
        destination_ports: ports(&matching.destination_ports),
        not_destination_ports: ports(&matching.not_destination_ports),
        service_accounts: accounts(&matching.service_accounts),
        not_service_accounts: accounts(&matching.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn text_wire(text: &StringMatch) -> wire::StringMatch {
    let match_type = match text {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(Empty {}),
    };
    wire::StringMatch { match_type: Some(match_type) }
}

fn range_wire(range: &IpNet) -> wire::Address {
    wire::Address { address: fields::ip_bytes(range.addr()), length: range.prefix_len().into() }
}

fn account_wire(account: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    }
}

// The fields of contract 5.1, level by level. An extension of the policy as a whole is a remark on it and may hold
// anything; its frame is checked all the same.
const AUTHORIZATION: Schema = &[
    (1, Field::Plain),
    (2, Field::Plain),
    (3, Field::Plain),
    (4, Field::Plain),
    (5, Field::Message("rule", RULE)),
    (6, Field::Plain),
    (7, Field::Plain),
];
const RULE: Schema = &[(1, Field::Message("clause", CLAUSE))];
const CLAUSE: Schema = &[(2, Field::Message("match", MATCH))];
const MATCH: Schema = &[
    (1, Field::Message("namespaces", TEXT)),
    (2, Field::Message("not_namespaces", TEXT)),
    (3, Field::Message("principals", TEXT)),
    (4, Field::Message("not_principals", TEXT)),
    (5, Field::Message("source_ips", RANGE)),
    (6, Field::Message("not_source_ips", RANGE)),
    (7, Field::Message("destination_ips", RANGE)),
    (8, Field::Message("not_destination_ips", RANGE)),
    (9, Field::Plain),
    (10, Field::Plain),
    (11, Field::Message("service_accounts", ACCOUNT)),
    (12, Field::Message("not_service_accounts", ACCOUNT)),
    (13, Field::Plain),
];
const TEXT: Schema = &[(1, Field::Plain), (2, Field::Plain), (3, Field::Plain), (4, Field::Message("presence", &[]))];
const RANGE: Schema = &[(1, Field::Plain), (2, Field::Plain)];
const ACCOUNT: Schema = &[(1, Field::Plain), (2, Field::Plain)];
