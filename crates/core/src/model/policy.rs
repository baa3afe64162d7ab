//! An L4 authorization policy as nodes enforce it (contract 5.1, 5.2).

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::{Identity, PolicyKey, Str};

/// One policy. A policy without rules matches nothing; a rule without clauses matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Primary key.
    pub key: PolicyKey,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Any rule that matches makes the policy match.
    pub rules: Vec<Rule>,
    /// Counted and logged only, never enforced.
    pub dry_run: bool,
    /// A part of the policy that this version cannot read (an unknown field, enum value or malformed element).
    /// Such a policy is never evaluated as if the part were absent: see [`crate::snapshot`].
    pub unreadable: Option<Str>,
    /// The UID of the Quarantine that it was made of: one that is made again under its name is another one. Nothing is decided
    /// by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Str>,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// All workloads of the mesh.
    Global,
    /// All workloads of the policy's namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Let pass, and refuse what no allow policy matches.
    Allow,
    /// Refuse.
    Deny,
}

/// All clauses must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rule {
    /// The clauses; none matches everything.
    pub clauses: Vec<Clause>,
}

/// Any match must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Clause {
    /// The matches; none matches everything.
    pub matches: Vec<Match>,
}

/// Every list that is set must hold: any of a positive list, none of a negative one. Nothing set never matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Source namespaces.
    pub namespaces: Vec<StringMatch>,
    /// Excluded source namespaces.
    pub not_namespaces: Vec<StringMatch>,
    /// Source identities without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Excluded source identities.
    pub not_principals: Vec<StringMatch>,
    /// TCP peer addresses.
    pub source_ips: Vec<IpNet>,
    /// Excluded TCP peer addresses.
    pub not_source_ips: Vec<IpNet>,
    /// Addresses of the workload.
    pub destination_ips: Vec<IpNet>,
    /// Excluded addresses.
    pub not_destination_ips: Vec<IpNet>,
    /// Target ports.
    pub destination_ports: Vec<u16>,
    /// Excluded target ports.
    pub not_destination_ports: Vec<u16>,
    /// Source service accounts, in any trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Excluded source service accounts.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum StringMatch {
    /// Equal.
    Exact(Str),
    /// Starts with.
    Prefix(Str),
    /// Ends with.
    Suffix(Str),
    /// Is there at all, and not empty.
    Presence,
}

/// A service account of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Str,
    /// Its name.
    pub service_account: Str,
}

impl StringMatch {
    /// Whether `text` is what is asked for. Case counts.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl fmt::Display for StringMatch {
    /// As written in an AuthorizationPolicy: `x`, `x*`, `*x`, `*` (contract 5.3).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

impl ServiceAccountMatch {
    /// Whether it is `identity`'s account, in whatever trust domain.
    pub fn matches(&self, identity: &Identity) -> bool {
        self.namespace == identity.namespace && self.service_account == identity.service_account
    }
}

impl fmt::Display for ServiceAccountMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}
