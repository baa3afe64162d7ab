//! Whether a policy's rules match a connection. Evaluation and explanation go by the same twelve attributes, so that
//! what is explained is what was decided.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::attrs::InboundAttrs;
pub(crate) use crate::model::access::Sense;
use crate::model::{Clause, Identity, Match, Policy, Rule, ServiceAccountMatch, StringMatch};

/// The connection as policies see it.
pub(crate) struct Seen<'a> {
    identity: Option<&'a Identity>,
    principal: OnceCell<String>,
    source_ip: IpAddr,
    destination: SocketAddr,
}

impl<'a> Seen<'a> {
    pub(crate) fn new(attrs: &InboundAttrs<'a>) -> Self {
        let destination = SocketAddr::new(attrs.upstream.ip().to_canonical(), attrs.upstream.port());
        let source_ip = attrs.source_ip.to_canonical();
        Self { identity: attrs.source_identity, principal: OnceCell::new(), source_ip, destination }
    }

    /// The identity without `spiffe://`; written out only when a policy asks.
    pub(crate) fn principal(&self) -> Option<&str> {
        self.identity.map(|identity| self.principal.get_or_init(|| identity.principal()).as_str())
    }

    /// The identity's namespace; empty without one (contract 5.2).
    fn namespace(&self) -> &str {
        self.identity.map_or("", |identity| &identity.namespace)
    }
}

/// What of a [`Match`] is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    Namespace,
    Principal,
    ServiceAccount,
    SourceIp,
    DestinationIp,
    DestinationPort,
}

/// Every field of a [`Match`].
pub(crate) const FIELDS: [(Attribute, Sense); 12] = [
    (Attribute::Namespace, Sense::AnyOf),
    (Attribute::Namespace, Sense::NoneOf),
    (Attribute::Principal, Sense::AnyOf),
    (Attribute::Principal, Sense::NoneOf),
    (Attribute::ServiceAccount, Sense::AnyOf),
    (Attribute::ServiceAccount, Sense::NoneOf),
    (Attribute::SourceIp, Sense::AnyOf),
    (Attribute::SourceIp, Sense::NoneOf),
    (Attribute::DestinationIp, Sense::AnyOf),
    (Attribute::DestinationIp, Sense::NoneOf),
    (Attribute::DestinationPort, Sense::AnyOf),
    (Attribute::DestinationPort, Sense::NoneOf),
];

/// The list behind a field.
pub(crate) enum List<'a> {
    Texts(&'a [StringMatch]),
    Accounts(&'a [ServiceAccountMatch]),
    Ranges(&'a [IpNet]),
    Ports(&'a [u16]),
}

impl List<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Texts(list) => list.is_empty(),
            Self::Accounts(list) => list.is_empty(),
            Self::Ranges(list) => list.is_empty(),
            Self::Ports(list) => list.is_empty(),
        }
    }
}

/// The list of `matched` that `field` stands for; empty where it is not set.
pub(crate) fn list(matched: &Match, field: (Attribute, Sense)) -> List<'_> {
    use Sense::{AnyOf, NoneOf};
    match field {
        (Attribute::Namespace, AnyOf) => List::Texts(&matched.namespaces),
        (Attribute::Namespace, NoneOf) => List::Texts(&matched.not_namespaces),
        (Attribute::Principal, AnyOf) => List::Texts(&matched.principals),
        (Attribute::Principal, NoneOf) => List::Texts(&matched.not_principals),
        (Attribute::ServiceAccount, AnyOf) => List::Accounts(&matched.service_accounts),
        (Attribute::ServiceAccount, NoneOf) => List::Accounts(&matched.not_service_accounts),
        (Attribute::SourceIp, AnyOf) => List::Ranges(&matched.source_ips),
        (Attribute::SourceIp, NoneOf) => List::Ranges(&matched.not_source_ips),
        (Attribute::DestinationIp, AnyOf) => List::Ranges(&matched.destination_ips),
        (Attribute::DestinationIp, NoneOf) => List::Ranges(&matched.not_destination_ips),
        (Attribute::DestinationPort, AnyOf) => List::Ports(&matched.destination_ports),
        (Attribute::DestinationPort, NoneOf) => List::Ports(&matched.not_destination_ports),
    }
}

/// Whether a field holds; `None` where it is not set. Without an identity no principal and no service account
/// matches, so that a positive list fails and a negative one holds.
pub(crate) fn holds(matched: &Match, field: (Attribute, Sense), seen: &Seen<'_>) -> Option<bool> {
    let list = list(matched, field);
    if list.is_empty() {
        return None;
    }
    let any = match (list, field.0) {
        (List::Texts(texts), Attribute::Namespace) => texts.iter().any(|text| text.matches(seen.namespace())),
        (List::Texts(texts), _) => seen.principal().is_some_and(|seen| texts.iter().any(|text| text.matches(seen))),
        (List::Accounts(accounts), _) => {
            seen.identity.is_some_and(|identity| accounts.iter().any(|account| account.matches(identity)))
        }
        (List::Ranges(ranges), Attribute::SourceIp) => ranges.iter().any(|range| range.contains(&seen.source_ip)),
        (List::Ranges(ranges), _) => ranges.iter().any(|range| range.contains(&seen.destination.ip())),
        (List::Ports(ports), _) => ports.contains(&seen.destination.port()),
    };
    Some(any == (field.1 == Sense::AnyOf))
}

/// All set fields must hold; nothing set never matches.
pub(crate) fn matches(matched: &Match, seen: &Seen<'_>) -> bool {
    let mut is_set = false;
    for field in FIELDS {
        match holds(matched, field, seen) {
            Some(false) => return false,
            Some(true) => is_set = true,
            None => (),
        }
    }
    is_set
}

fn clause_matches(clause: &Clause, seen: &Seen<'_>) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|matched| matches(matched, seen))
}

pub(crate) fn failing_clauses<'a>(rule: &'a Rule, seen: &'a Seen<'_>) -> impl Iterator<Item = &'a Clause> {
    rule.clauses.iter().filter(|clause| !clause_matches(clause, seen))
}

/// The first rule that matches.
pub(crate) fn matching_rule(policy: &Policy, seen: &Seen<'_>) -> Option<usize> {
    policy.rules.iter().position(|rule| failing_clauses(rule, seen).next().is_none())
}

/// What the connection has where `attribute` is compared, as text.
pub(crate) fn seen_text(attribute: Attribute, seen: &Seen<'_>) -> String {
    let none = || "none (clear text)".to_owned();
    match attribute {
        Attribute::Namespace => seen.identity.map_or_else(none, |identity| identity.namespace.to_string()),
        Attribute::Principal => seen.principal().map_or_else(none, str::to_owned),
        Attribute::ServiceAccount => {
            seen.identity.map_or_else(none, |identity| format!("{}/{}", identity.namespace, identity.service_account))
        }
        Attribute::SourceIp => seen.source_ip.to_string(),
        Attribute::DestinationIp => seen.destination.ip().to_string(),
        Attribute::DestinationPort => seen.destination.port().to_string(),
    }
}
