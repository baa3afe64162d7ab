//! Who may ask what of a service, as a waypoint decides it request by request: AuthorizationPolicy with `targetRefs`,
//! RequestAuthentication, and what the mesh says of requests in general (contract 7.4). What is told of requests
//! ([`super::telemetry`]) travels and is kept with them, and decides nothing.
//!
//! One user's object is one value. What of it cannot be read makes it [`RequestPolicy::unreadable`]: it then refuses what
//! it is attached to, and its last good version stays in force where there is one ([`crate::snapshot`]).

mod authentication;
mod condition;
mod path;
mod template;

use std::fmt;

pub use authentication::{ClaimHeader, JwtKeys, JwtRule, RequestAuthentication, TokenLocation};
pub use condition::{Alternative, Condition, RequestClause, RequestRule, Sense, Wanted};
pub use path::{AmbiguousPath, PathNormalization, normalize};
use serde::Serialize;
pub use template::{InvalidTemplate, PathPattern, PathTemplate};

use super::telemetry::{Telemetry, TelemetrySettings};
use super::{Identity, PolicyKey, ServiceKey, Str};

/// Names an object that decides about requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct AccessKey {
    /// What it is.
    pub kind: AccessKind,
    /// Its namespace and name.
    pub key: PolicyKey,
}

impl fmt::Display for AccessKey {
    /// `AuthorizationPolicy namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// Which kind of object decides about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum AccessKind {
    /// Who may ask what.
    AuthorizationPolicy,
    /// Whose tokens are believed.
    RequestAuthentication,
    /// What holds for all requests.
    MeshConfig,
    /// What is told of them. Decides nothing.
    Telemetry,
    /// By whom it is told.
    TelemetrySettings,
}

impl AccessKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::MeshConfig,
        Self::Telemetry,
        Self::TelemetrySettings,
    ];
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::MeshConfig => "MeshConfig",
            Self::Telemetry => "Telemetry",
            Self::TelemetrySettings => "TelemetrySettings",
        })
    }
}

/// One object that decides about requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Access {
    /// Who may ask what.
    Policy(RequestPolicy),
    /// Whose tokens are believed.
    Authentication(RequestAuthentication),
    /// What holds for all requests.
    Settings(RequestSettings),
    /// What is told of them.
    Telemetry(Telemetry),
    /// By whom it is told.
    TelemetrySettings(TelemetrySettings),
}

impl Access {
    /// Its primary key.
    pub fn key(&self) -> AccessKey {
        let (kind, key) = match self {
            Self::Policy(policy) => (AccessKind::AuthorizationPolicy, &policy.key),
            Self::Authentication(authentication) => (AccessKind::RequestAuthentication, &authentication.key),
            Self::Settings(settings) => (AccessKind::MeshConfig, &settings.key),
            Self::Telemetry(telemetry) => (AccessKind::Telemetry, &telemetry.key),
            Self::TelemetrySettings(settings) => (AccessKind::TelemetrySettings, &settings.key),
        };
        AccessKey { kind, key: key.clone() }
    }

    /// What it guards; settings guard nothing and hold everywhere, and telemetry has a scope of its own.
    pub fn attached(&self) -> Option<&Attachment> {
        match self {
            Self::Policy(policy) => Some(&policy.attached),
            Self::Authentication(authentication) => Some(&authentication.attached),
            Self::Settings(_) | Self::Telemetry(_) | Self::TelemetrySettings(_) => None,
        }
    }

    /// Whether anything is decided by it.
    pub fn decides(&self) -> bool {
        !matches!(self, Self::Telemetry(_) | Self::TelemetrySettings(_))
    }

    /// What of it cannot be read.
    pub fn unreadable(&self) -> Option<&Str> {
        match self {
            Self::Policy(policy) => policy.unreadable.as_ref(),
            Self::Authentication(authentication) => authentication.unreadable.as_ref(),
            Self::Settings(_) | Self::Telemetry(_) | Self::TelemetrySettings(_) => None,
        }
    }
}

/// What an object that decides about requests is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Attachment {
    /// These services. That of a waypoint itself stands for all that it carries (`targetRefs` to a Gateway or GatewayClass).
    To(Vec<ServiceKey>),
    /// What it is attached to cannot be read: it counts for everything.
    Everything,
}

/// One AuthorizationPolicy for requests. Without rules it matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestPolicy {
    /// Primary key.
    pub key: PolicyKey,
    /// What it is attached to.
    pub attached: Attachment,
    /// What a match means.
    pub action: RequestAction,
    /// Any rule that matches makes the policy match.
    pub rules: Vec<RequestRule>,
    /// Counted and logged only, never enforced.
    pub dry_run: bool,
    /// A part of it that cannot be read. Such a policy is never evaluated as if the part were absent.
    pub unreadable: Option<Str>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RequestAction {
    /// Let pass, and refuse what no allow policy matches.
    Allow,
    /// Refuse.
    Deny,
    /// Write it down; nothing is decided by it.
    Audit,
}

/// What holds for all requests of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestSettings {
    /// Where it is written.
    pub key: PolicyKey,
    /// What becomes of paths before anything is decided by them.
    pub normalization: PathNormalization,
    /// Whose word on others is believed (`x-forwarded-for`, `x-forwarded-client-cert`): the mesh's gateways. Sorted.
    pub gateways: Vec<Identity>,
}
