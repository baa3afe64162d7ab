//! Whose tokens are believed, and where they are looked for.

use std::time::Duration;

use serde::Serialize;

use super::Attachment;
use crate::model::{PolicyKey, Str};

/// One RequestAuthentication. A request without a token passes as one that nobody vouches for; one with a token that does
/// not hold is refused (401).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// Primary key.
    pub key: PolicyKey,
    /// What it is attached to.
    pub attached: Attachment,
    /// Whose tokens are believed.
    pub rules: Vec<JwtRule>,
    /// A part of it that cannot be read.
    pub unreadable: Option<Str>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// Tokens' `iss`.
    pub issuer: Str,
    /// One of these must be in tokens' `aud`; empty: any, or none.
    pub audiences: Vec<Str>,
    /// The keys that sign.
    pub keys: JwtKeys,
    /// Where tokens are looked for; empty: `Authorization: Bearer`, then query parameter `access_token`.
    pub from: Vec<TokenLocation>,
    /// The token goes on to the endpoint.
    pub forwards_token: bool,
    /// The header that gets the verified payload, in base64url.
    pub payload_header: Option<Str>,
    /// Headers that get a claim.
    pub claim_headers: Vec<ClaimHeader>,
    /// How long the keys may take to be fetched.
    pub timeout: Duration,
}

/// The keys that sign tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum JwtKeys {
    /// A JSON Web Key Set (RFC 7517 section 5).
    Inline(Str),
    /// Where there is one.
    At(Str),
    /// Found by the issuer's name (OpenID Connect Discovery 1.0 section 4).
    Discovered,
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenLocation {
    /// A header, after a prefix.
    Header {
        /// Its name, in lower case.
        name: Str,
        /// What comes before the token; may be empty.
        prefix: Str,
    },
    /// A query parameter.
    Parameter(Str),
    /// A cookie.
    Cookie(Str),
}

/// A header that gets a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimHeader {
    /// Its name, in lower case.
    pub header: Str,
    /// The claim; `.` goes into it.
    pub claim: Str,
}

impl RequestAuthentication {
    /// Every header that an endpoint may take for a verified claim: a client's own of that name never gets there.
    pub fn reserved_headers(&self) -> impl Iterator<Item = &Str> {
        self.rules
            .iter()
            .flat_map(|rule| rule.payload_header.iter().chain(rule.claim_headers.iter().map(|claimed| &claimed.header)))
    }
}
