//! Whether a token holds: who made it, for whom, until when, and whether the signature is one of the issuer's keys.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};
use stillmesh_core::model::access::JwtRule;

use super::keys::{Key, Keys, KeysError};

/// Why a token does not hold, in the words of Istio's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not three parts of base64url that are JSON.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Malformed,
    /// No rule is about its issuer.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// It is for somebody else.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// It was true.
    #[error("Jwt is expired")]
    Expired,
    /// It will be true.
    #[error("Jwt not yet valid")]
    NotYet,
    /// No key of the issuer has its key's name or kind.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// The signature is not the issuer's.
    #[error("Jwt verification fails")]
    Signature,
    /// The issuer's keys cannot be had.
    #[error("Jwks remote fetch is failed")]
    Unavailable,
    /// The issuer's keys are none.
    #[error("Jwks is invalid")]
    Keys,
}

impl Problem {
    /// For logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "jwt_malformed",
            Self::Issuer => "jwt_issuer",
            Self::Audience => "jwt_audience",
            Self::Expired => "jwt_expired",
            Self::NotYet => "jwt_not_yet_valid",
            Self::NoKey => "jwt_no_key",
            Self::Signature => "jwt_signature",
            Self::Unavailable => "jwks_unavailable",
            Self::Keys => "jwks_invalid",
        }
    }
}

/// How far clocks may differ, seconds (Envoy's default).
const LEEWAY: u64 = 60;

/// The longest token that is looked at, bytes.
const LONGEST: usize = 32 << 10;

/// A token's claims, where it holds under a rule.
pub async fn verify(keys: &Keys, rule: &JwtRule, token: &str) -> Result<Map<String, Value>, Problem> {
    let claims = unverified(token)?;
    if claims.get("iss").and_then(Value::as_str) != Some(&*rule.issuer) {
        return Err(Problem::Issuer);
    }
    let header = decode_header(token).map_err(|_| Problem::Malformed)?;
    // What must be understood is not (RFC 7515 section 4.1.11).
    if part(token, 0)?.contains_key("crit") {
        return Err(Problem::Malformed);
    }
    if !is_for(rule, &claims) {
        return Err(Problem::Audience);
    }
    let set = keys.of(rule, header.kid.as_deref()).await.map_err(|error| match error {
        KeysError::Unavailable => Problem::Unavailable,
        KeysError::Invalid => Problem::Keys,
    })?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY;
    validation.validate_aud = false;
    validation.validate_nbf = true;
    validation.required_spec_claims.clear();
    let mut problem = Problem::NoKey;
    for key in set.iter().filter(|key| fits(key, header.kid.as_deref(), header.alg)) {
        match decode::<Map<String, Value>>(token, &key.key, &validation) {
            Ok(verified) => return Ok(verified.claims),
            Err(error) => match error.kind() {
                ErrorKind::ExpiredSignature => return Err(Problem::Expired),
                ErrorKind::ImmatureSignature => return Err(Problem::NotYet),
                _ => problem = Problem::Signature,
            },
        }
    }
    Err(problem)
}

fn fits(key: &Key, kid: Option<&str>, alg: jsonwebtoken::Algorithm) -> bool {
    let is_named = match (key.id.as_deref(), kid) {
        (Some(id), Some(kid)) => id == kid,
        _ => true,
    };
    is_named && key.key.family() == alg.family() && key.alg.is_none_or(|only| only == alg)
}

/// What a token says, whether true or not.
fn unverified(token: &str) -> Result<Map<String, Value>, Problem> {
    if token.len() > LONGEST || token.split('.').count() != 3 {
        return Err(Problem::Malformed);
    }
    part(token, 1)
}

fn part(token: &str, index: usize) -> Result<Map<String, Value>, Problem> {
    let text = token.split('.').nth(index).ok_or(Problem::Malformed)?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Problem::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Problem::Malformed)
}

/// Whether a token with these claims is for somebody that the rule names.
pub fn is_for(rule: &JwtRule, claims: &Map<String, Value>) -> bool {
    if rule.audiences.is_empty() {
        return true;
    }
    let wanted = |text: &str| rule.audiences.iter().any(|audience| **audience == *text);
    match claims.get("aud") {
        Some(Value::String(text)) => wanted(text),
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).any(wanted),
        _ => false,
    }
}
