//! The other way: what decides about requests as a message.

use std::time::Duration;

use ipnet::IpNet;
use prost::Message as _;
use stillmesh_core::model::access::{
    Access, Attachment, Condition, JwtKeys, JwtRule, PathNormalization, PathPattern, RequestAction, RequestPolicy,
    RequestRule, RequestSettings, Sense, TokenLocation, Wanted,
};
use stillmesh_core::model::{Str, StringMatch};

use super::telemetry;
use crate::proto::google::protobuf::Duration as WireDuration;
use crate::proto::stillmesh::config::v1 as wire;
use wire::access::Object;
use wire::text::Kind;

/// The wire form of what decides about requests.
pub fn encode(access: &Access) -> Vec<u8> {
    let key = access.key().key;
    let object = match access {
        Access::Policy(one) => Object::Policy(policy(one)),
        Access::Authentication(one) => Object::Authentication(wire::RequestAuthentication {
            attached: attached(&one.attached),
            rules: one.rules.iter().map(jwt_rule).collect(),
            unreadable: text(one.unreadable.as_ref()),
        }),
        Access::Settings(one) => Object::Settings(settings(one)),
        Access::Telemetry(one) => Object::Telemetry(telemetry::write(one)),
        Access::TelemetrySettings(one) => Object::TelemetrySettings(telemetry::write_settings(one)),
    };
    wire::Access { namespace: key.namespace.to_string(), name: key.name.to_string(), object: Some(object) }
        .encode_to_vec()
}

fn text(text: Option<&Str>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

pub(super) fn strings(texts: &[Str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// Of what lost its attachment nothing is listed.
fn attached(attached: &Attachment) -> Vec<wire::Service> {
    match attached {
        Attachment::Everything => Vec::new(),
        Attachment::To(services) => services
            .iter()
            .map(|key| wire::Service { namespace: key.namespace.to_string(), hostname: key.hostname.to_string() })
            .collect(),
    }
}

fn policy(policy: &RequestPolicy) -> wire::RequestPolicy {
    wire::RequestPolicy {
        attached: attached(&policy.attached),
        action: match policy.action {
            RequestAction::Allow => wire::RequestAction::Allow.into(),
            RequestAction::Deny => wire::RequestAction::Deny.into(),
            RequestAction::Audit => wire::RequestAction::Audit.into(),
        },
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.dry_run,
        unreadable: text(policy.unreadable.as_ref()),
    }
}

fn rule(rule: &RequestRule) -> wire::RequestRule {
    let clauses = rule.clauses.iter().map(|clause| {
        let alternatives = clause.alternatives.iter().map(|alternative| wire::Alternative {
            conditions: alternative.conditions.iter().map(condition).collect(),
        });
        wire::RequestClause { alternatives: alternatives.collect() }
    });
    wire::RequestRule { clauses: clauses.collect() }
}

fn condition(condition: &Condition) -> wire::Condition {
    use wire::condition::Wanted as Wire;
    let wanted = match &condition.wanted {
        Wanted::Namespace(values) => Wire::Namespace(texts(values)),
        Wanted::Principal(values) => Wire::Principal(texts(values)),
        Wanted::ServiceAccount(values) => Wire::ServiceAccount(exact(values)),
        Wanted::SourceIp(values) => Wire::SourceIp(ranges(values)),
        Wanted::RemoteIp(values) => Wire::RemoteIp(ranges(values)),
        Wanted::DestinationIp(values) => Wire::DestinationIp(ranges(values)),
        Wanted::DestinationPort(values) => {
            Wire::DestinationPort(wire::Ports { values: values.iter().copied().map(u32::from).collect() })
        }
        Wanted::ServerName(values) => Wire::ServerName(texts(values)),
        Wanted::RequestPrincipal(values) => Wire::RequestPrincipal(texts(values)),
        Wanted::Audience(values) => Wire::Audience(texts(values)),
        Wanted::Presenter(values) => Wire::Presenter(texts(values)),
        Wanted::Claim { path, values } => {
            Wire::Claim(wire::ClaimTexts { path: strings(path), values: texts(values).values })
        }
        Wanted::Host(values) => Wire::Host(texts(values)),
        Wanted::Method(values) => Wire::Method(texts(values)),
        Wanted::Path(values) => Wire::Path(wire::Texts { values: values.iter().map(path).collect() }),
        Wanted::Header { name, values } => {
            Wire::Header(wire::HeaderTexts { name: name.to_string(), values: texts(values).values })
        }
    };
    wire::Condition { none_of: condition.sense == Sense::NoneOf, wanted: Some(wanted) }
}

fn texts(values: &[StringMatch]) -> wire::Texts {
    wire::Texts { values: values.iter().map(string).collect() }
}

fn exact<T: ToString>(values: &[T]) -> wire::Texts {
    let one = |value: &T| wire::Text { kind: Some(Kind::Exact(value.to_string())) };
    wire::Texts { values: values.iter().map(one).collect() }
}

fn ranges(values: &[IpNet]) -> wire::Texts {
    exact(values)
}

fn string(value: &StringMatch) -> wire::Text {
    let kind = match value {
        StringMatch::Exact(text) => Kind::Exact(text.to_string()),
        StringMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        StringMatch::Suffix(text) => Kind::Suffix(text.to_string()),
        StringMatch::Presence => Kind::Present(true),
    };
    wire::Text { kind: Some(kind) }
}

fn path(value: &PathPattern) -> wire::Text {
    match value {
        PathPattern::Text(value) => string(value),
        PathPattern::Template(template) => wire::Text { kind: Some(Kind::Template(template.to_string())) },
    }
}

fn jwt_rule(rule: &JwtRule) -> wire::JwtRule {
    use wire::jwt_rule::Keys;
    use wire::token_location::Place;
    let location = |location: &TokenLocation| {
        let place = match location {
            TokenLocation::Header { name, prefix } => {
                Place::Header(wire::HeaderPlace { name: name.to_string(), prefix: prefix.to_string() })
            }
            TokenLocation::Parameter(name) => Place::Parameter(name.to_string()),
            TokenLocation::Cookie(name) => Place::Cookie(name.to_string()),
        };
        wire::TokenLocation { place: Some(place) }
    };
    let claim_headers = rule
        .claim_headers
        .iter()
        .map(|claimed| wire::ClaimHeader { header: claimed.header.to_string(), claim: claimed.claim.to_string() });
    wire::JwtRule {
        issuer: rule.issuer.to_string(),
        audiences: strings(&rule.audiences),
        keys: match &rule.keys {
            JwtKeys::Inline(text) => Some(Keys::Jwks(text.to_string())),
            JwtKeys::At(text) => Some(Keys::JwksUri(text.to_string())),
            JwtKeys::Discovered => None,
        },
        from: rule.from.iter().map(location).collect(),
        forwards_token: rule.forwards_token,
        payload_header: text(rule.payload_header.as_ref()),
        claim_headers: claim_headers.collect(),
        timeout: Some(duration(rule.timeout)),
    }
}

pub(super) fn duration(time: Duration) -> WireDuration {
    WireDuration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
    }
}

fn settings(settings: &RequestSettings) -> wire::RequestSettings {
    wire::RequestSettings {
        normalization: match settings.normalization {
            PathNormalization::Base => wire::PathNormalization::Base.into(),
            PathNormalization::None => wire::PathNormalization::None.into(),
            PathNormalization::MergeSlashes => wire::PathNormalization::MergeSlashes.into(),
            PathNormalization::DecodeAndMergeSlashes => wire::PathNormalization::DecodeAndMergeSlashes.into(),
        },
        gateways: settings.gateways.iter().map(ToString::to_string).collect(),
    }
}
