//! `stillmesh.config.v1.Access`: what decides about requests at waypoints. A policy or authentication is never read as if a
//! part of it were absent: what cannot be read in full comes back as one that says so, and the snapshot decides what stays
//! in force.

mod telemetry;
mod write;

use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message as _;
use stillmesh_core::model::access::{
    Access, AccessKey, AccessKind, Alternative, Attachment, ClaimHeader, Condition, JwtKeys, JwtRule,
    PathNormalization, PathPattern, PathTemplate, RequestAction, RequestAuthentication, RequestClause, RequestPolicy,
    RequestRule, RequestSettings, Sense, TokenLocation, Wanted,
};
use stillmesh_core::model::{Identity, PolicyKey, ServiceAccountMatch, ServiceKey, Str, StringMatch};
pub use write::encode;

use super::route::{duration, needed};
use super::{CodecError, FieldError, fields};
use crate::proto::stillmesh::config::v1 as wire;
use wire::access::Object;

/// The name under which one travels: `<kind>/<namespace>/<name>`.
pub fn name(key: &AccessKey) -> String {
    format!("{}/{}", key.kind, key.key)
}

/// Reads such a name.
pub fn key(name: &str) -> Option<AccessKey> {
    let (kind, rest) = name.split_once('/')?;
    let kind = AccessKind::ALL.into_iter().find(|known| known.to_string() == kind)?;
    Some(AccessKey { kind, key: PolicyKey::parse(rest)? })
}

/// Reads one. Fails where the resource's name is no key, and for what guards nothing; everything else that is
/// wrong comes back as something unreadable, attached to everything where its attachment is lost.
pub fn decode(name: &str, bytes: Bytes) -> Result<Access, CodecError> {
    let key = key(name).ok_or_else(|| FieldError::new("name", "<kind>/<namespace>/<name> is accepted").of(name))?;
    let message = match wire::Access::decode(bytes.clone()) {
        Ok(message) => message,
        Err(error) => {
            return unreadable(
                key,
                Attachment::Everything,
                FieldError::new("access", format!("not a message: {error}")),
            )
            .map_err(|error| error.of(name));
        }
    };
    let attached = attached(&message).unwrap_or(Attachment::Everything);
    // What is not known is lost in reading, and then it is not written as it came.
    let read = if message.encode_to_vec() == *bytes {
        access(&key, message)
    } else {
        Err(FieldError::new("access", "has parts that this version does not know"))
    };
    read.or_else(|error| unreadable(key, attached, error)).map_err(|error| error.of(name))
}

fn unreadable(key: AccessKey, attached: Attachment, error: FieldError) -> Result<Access, FieldError> {
    let why: Str = format!("{}: {}", error.field, error.problem).into();
    match key.kind {
        AccessKind::AuthorizationPolicy => Ok(Access::Policy(RequestPolicy {
            key: key.key,
            attached,
            // Even evaluated by mistake it admits nobody.
            action: RequestAction::Allow,
            rules: Vec::new(),
            dry_run: false,
            unreadable: Some(why),
        })),
        AccessKind::RequestAuthentication => Ok(Access::Authentication(RequestAuthentication {
            key: key.key,
            attached,
            rules: Vec::new(),
            unreadable: Some(why),
        })),
        AccessKind::MeshConfig | AccessKind::Telemetry | AccessKind::TelemetrySettings => Err(error),
    }
}

/// What the message says that it is attached to, if that can be read.
fn attached(message: &wire::Access) -> Option<Attachment> {
    let services = match message.object.as_ref()? {
        Object::Policy(policy) => &policy.attached,
        Object::Authentication(authentication) => &authentication.attached,
        Object::Settings(_) | Object::Telemetry(_) | Object::TelemetrySettings(_) => return None,
    };
    services_of(services, false).ok()
}

/// Of something whose attachment the control plane could not read nothing is listed.
fn services_of(wire: &[wire::Service], is_unreadable: bool) -> Result<Attachment, FieldError> {
    if wire.is_empty() && is_unreadable {
        return Ok(Attachment::Everything);
    }
    let one = |wire: &wire::Service| fields::service_key("attached", &wire.namespace, &wire.hostname);
    let services: Vec<ServiceKey> = wire.iter().map(one).collect::<Result<_, _>>()?;
    Ok(Attachment::To(services))
}

fn access(key: &AccessKey, message: wire::Access) -> Result<Access, FieldError> {
    let object = needed("object", message.object)?;
    let kind = match &object {
        Object::Policy(_) => AccessKind::AuthorizationPolicy,
        Object::Authentication(_) => AccessKind::RequestAuthentication,
        Object::Settings(_) => AccessKind::MeshConfig,
        Object::Telemetry(_) => AccessKind::Telemetry,
        Object::TelemetrySettings(_) => AccessKind::TelemetrySettings,
    };
    let own = AccessKey { kind, key: PolicyKey::new(message.namespace, message.name) };
    if own != *key {
        return Err(FieldError::new("name", format!("the resource's own key is {:?}", name(&own))));
    }
    Ok(match object {
        Object::Policy(wire) => Access::Policy(policy(own.key, wire)?),
        Object::Authentication(wire) => Access::Authentication(RequestAuthentication {
            key: own.key,
            attached: services_of(&wire.attached, !wire.unreadable.is_empty())?,
            rules: wire.rules.into_iter().map(jwt_rule).collect::<Result<_, _>>()?,
            unreadable: text(wire.unreadable),
        }),
        Object::Settings(wire) => Access::Settings(settings(own.key, &wire)?),
        Object::Telemetry(wire) => Access::Telemetry(telemetry::read(own.key, wire)?),
        Object::TelemetrySettings(wire) => Access::TelemetrySettings(telemetry::read_settings(own.key, wire)?),
    })
}

fn text(text: String) -> Option<Str> {
    (!text.is_empty()).then(|| text.into())
}

fn policy(key: PolicyKey, wire: wire::RequestPolicy) -> Result<RequestPolicy, FieldError> {
    let action = match wire::RequestAction::try_from(wire.action) {
        Ok(wire::RequestAction::Allow) => RequestAction::Allow,
        Ok(wire::RequestAction::Deny) => RequestAction::Deny,
        Ok(wire::RequestAction::Audit) => RequestAction::Audit,
        Err(_) => return Err(FieldError::new("action", format!("{}: 0 to 2 are known", wire.action))),
    };
    Ok(RequestPolicy {
        key,
        attached: services_of(&wire.attached, !wire.unreadable.is_empty())?,
        action,
        rules: wire.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
        dry_run: wire.dry_run,
        unreadable: text(wire.unreadable),
    })
}

fn rule(wire: wire::RequestRule) -> Result<RequestRule, FieldError> {
    let alternative = |wire: wire::Alternative| {
        let conditions = wire.conditions.into_iter().map(condition).collect::<Result<_, _>>();
        conditions.map(|conditions| Alternative { conditions })
    };
    let clause = |wire: wire::RequestClause| {
        let alternatives = wire.alternatives.into_iter().map(alternative).collect::<Result<_, _>>();
        alternatives.map(|alternatives| RequestClause { alternatives })
    };
    let clauses = wire.clauses.into_iter().map(clause).collect::<Result<_, FieldError>>();
    clauses.map(|clauses| RequestRule { clauses }).map_err(|error| error.within("rules"))
}

fn condition(wire: wire::Condition) -> Result<Condition, FieldError> {
    use wire::condition::Wanted as Wire;
    let sense = if wire.none_of { Sense::NoneOf } else { Sense::AnyOf };
    let wanted = match needed("conditions", wire.wanted)? {
        Wire::Namespace(wire) => Wanted::Namespace(texts("namespace", wire.values)?),
        Wire::Principal(wire) => Wanted::Principal(texts("principal", wire.values)?),
        Wire::ServiceAccount(wire) => Wanted::ServiceAccount(accounts(wire.values)?),
        Wire::SourceIp(wire) => Wanted::SourceIp(ranges("source_ip", wire.values)?),
        Wire::RemoteIp(wire) => Wanted::RemoteIp(ranges("remote_ip", wire.values)?),
        Wire::DestinationIp(wire) => Wanted::DestinationIp(ranges("destination_ip", wire.values)?),
        Wire::DestinationPort(wire) => {
            let port = |port: &u32| fields::port_or_zero("destination_port", *port);
            Wanted::DestinationPort(wire.values.iter().map(port).collect::<Result<_, _>>()?)
        }
        Wire::ServerName(wire) => Wanted::ServerName(texts("server_name", wire.values)?),
        Wire::RequestPrincipal(wire) => Wanted::RequestPrincipal(texts("request_principal", wire.values)?),
        Wire::Audience(wire) => Wanted::Audience(texts("audience", wire.values)?),
        Wire::Presenter(wire) => Wanted::Presenter(texts("presenter", wire.values)?),
        Wire::Claim(wire) => {
            Wanted::Claim { path: wire.path.into_iter().map(Str::from).collect(), values: texts("claim", wire.values)? }
        }
        Wire::Host(wire) => Wanted::host(texts("host", wire.values)?),
        Wire::Method(wire) => Wanted::Method(texts("method", wire.values)?),
        Wire::Path(wire) => Wanted::Path(wire.values.into_iter().map(path).collect::<Result<_, _>>()?),
        Wire::Header(wire) => Wanted::header(&wire.name, texts("header", wire.values)?),
    };
    Ok(Condition { sense, wanted })
}

fn texts(field: &'static str, wire: Vec<wire::Text>) -> Result<Vec<StringMatch>, FieldError> {
    wire.into_iter().map(|wire| string(field, wire)).collect()
}

fn string(field: &'static str, wire: wire::Text) -> Result<StringMatch, FieldError> {
    use wire::text::Kind;
    Ok(match needed(field, wire.kind)? {
        Kind::Exact(text) => StringMatch::Exact(text.into()),
        Kind::Prefix(text) => StringMatch::Prefix(text.into()),
        Kind::Suffix(text) => StringMatch::Suffix(text.into()),
        Kind::Present(true) => StringMatch::Presence,
        Kind::Present(false) => return Err(FieldError::new(field, "present is true, or another kind is set")),
        Kind::Template(_) => return Err(FieldError::new(field, "only paths are described by templates")),
    })
}

fn path(wire: wire::Text) -> Result<PathPattern, FieldError> {
    match wire.kind {
        Some(wire::text::Kind::Template(text)) => PathTemplate::new(&text)
            .map(PathPattern::Template)
            .map_err(|error| FieldError::new("path", error.to_string())),
        kind => string("path", wire::Text { kind }).map(PathPattern::Text),
    }
}

/// A text that is one value.
fn exact(field: &'static str, wire: wire::Text) -> Result<Str, FieldError> {
    match string(field, wire)? {
        StringMatch::Exact(text) => Ok(text),
        _ => Err(FieldError::new(field, "only exact values are accepted")),
    }
}

fn accounts(wire: Vec<wire::Text>) -> Result<Vec<ServiceAccountMatch>, FieldError> {
    let field = "service_account";
    let one = |wire| {
        let text = exact(field, wire)?;
        let parts = text.split_once('/').filter(|(one, other)| !one.is_empty() && !other.is_empty());
        let (namespace, service_account) =
            parts.ok_or_else(|| FieldError::new(field, "<namespace>/<name> is accepted"))?;
        Ok(ServiceAccountMatch { namespace: namespace.into(), service_account: service_account.into() })
    };
    wire.into_iter().map(one).collect()
}

fn ranges(field: &'static str, wire: Vec<wire::Text>) -> Result<Vec<IpNet>, FieldError> {
    let one = |wire| {
        let text = exact(field, wire)?;
        let net: IpNet = text.parse().map_err(|_| FieldError::new(field, "<address>/<length> is accepted"))?;
        Ok(net.trunc())
    };
    wire.into_iter().map(one).collect()
}

fn jwt_rule(wire: wire::JwtRule) -> Result<JwtRule, FieldError> {
    use wire::jwt_rule::Keys;
    let location = |wire: wire::TokenLocation| {
        use wire::token_location::Place;
        Ok::<_, FieldError>(match needed("rules.from", wire.place)? {
            Place::Header(wire) => {
                TokenLocation::Header { name: wire.name.to_ascii_lowercase().into(), prefix: wire.prefix.into() }
            }
            Place::Parameter(name) => TokenLocation::Parameter(name.into()),
            Place::Cookie(name) => TokenLocation::Cookie(name.into()),
        })
    };
    let claimed = |wire: wire::ClaimHeader| ClaimHeader {
        header: wire.header.to_ascii_lowercase().into(),
        claim: wire.claim.into(),
    };
    Ok(JwtRule {
        issuer: wire.issuer.into(),
        audiences: wire.audiences.into_iter().map(Str::from).collect(),
        keys: match wire.keys {
            Some(Keys::Jwks(text)) => JwtKeys::Inline(text.into()),
            Some(Keys::JwksUri(text)) => JwtKeys::At(text.into()),
            None => JwtKeys::Discovered,
        },
        from: wire.from.into_iter().map(location).collect::<Result<_, _>>()?,
        forwards_token: wire.forwards_token,
        payload_header: text(wire.payload_header.to_ascii_lowercase()),
        claim_headers: wire.claim_headers.into_iter().map(claimed).collect(),
        timeout: duration("rules.timeout", wire.timeout)?.unwrap_or(DEFAULT_TIMEOUT),
    })
}

/// What Istio gives the fetching of keys where a rule does not say it.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

fn settings(key: PolicyKey, wire: &wire::RequestSettings) -> Result<RequestSettings, FieldError> {
    let normalization = match wire::PathNormalization::try_from(wire.normalization) {
        Ok(wire::PathNormalization::Base) => PathNormalization::Base,
        Ok(wire::PathNormalization::None) => PathNormalization::None,
        Ok(wire::PathNormalization::MergeSlashes) => PathNormalization::MergeSlashes,
        Ok(wire::PathNormalization::DecodeAndMergeSlashes) => PathNormalization::DecodeAndMergeSlashes,
        Err(_) => return Err(FieldError::new("normalization", format!("{}: 0 to 3 are known", wire.normalization))),
    };
    let gateway =
        |text: &String| text.parse::<Identity>().map_err(|error| FieldError::new("gateways", error.to_string()));
    let gateways = wire.gateways.iter().map(gateway).collect::<Result<_, _>>()?;
    Ok(RequestSettings { key, normalization, gateways })
}
