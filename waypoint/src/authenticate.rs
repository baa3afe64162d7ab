//! Whose token a request carries (RequestAuthentication): found, verified, and written into headers that only a verified
//! token can have. A request without a token passes as one that nobody vouches for; one whose token does not hold is
//! refused. Keys that are not there verify nothing.

mod fetch;
mod keys;
mod place;
mod verify;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use serde_json::Value;
use stillmesh_core::attrs::{Claim, Token};
use stillmesh_core::model::Str;
use stillmesh_core::model::access::{JwtRule, RequestAuthentication};

pub use keys::{Keys, Settings};
pub use place::cookies;
pub use verify::{Problem, is_for};

/// Verifies what a request's token is, and makes its head what the endpoint is to see. `None`: it has none.
pub async fn authenticate(
    keys: &Keys,
    authentications: &[&RequestAuthentication],
    head: &mut Parts,
) -> Result<Option<Token>, Problem> {
    // What a verified token is told by is never what a client says itself.
    for name in authentications.iter().flat_map(|one| one.reserved_headers()) {
        head.headers.remove(&**name);
    }
    let rules = || authentications.iter().flat_map(|one| &one.rules);
    let (mut verified, mut problem) = (None, None);
    for rule in rules() {
        for token in place::tokens(rule, head) {
            // Few requests need it, and all would have room for it.
            match Box::pin(verify::verify(keys, rule, &token)).await {
                Ok(claims) => {
                    verified.get_or_insert((rule, token, claims));
                }
                // That another rule's issuer made it says less than what is wrong with it.
                Err(Problem::Issuer) if problem.is_some() => {}
                Err(other) => problem = Some(other),
            }
        }
    }
    let Some((rule, token, claims)) = verified else { return problem.map_or(Ok(None), Err) };
    tell(rule, &token, &claims, head);
    if !rule.forwards_token {
        place::remove(rule, &token, head);
    }
    let claims = claims.into_iter().map(|(name, value)| (Str::from(name), claim(value)));
    Ok(Some(Token::new(claims.collect::<BTreeMap<Str, Claim>>())))
}

/// A claim as policies see it.
pub fn claim(value: Value) -> Claim {
    match value {
        Value::String(text) => Claim::Text(text.into()),
        Value::Array(values) => {
            let texts = values.into_iter().filter_map(|value| match value {
                Value::String(text) => Some(Str::from(text)),
                _ => None,
            });
            Claim::List(texts.collect())
        }
        Value::Object(values) => {
            Claim::Object(values.into_iter().map(|(name, value)| (Str::from(name), claim(value))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Claim::Other,
    }
}

/// Writes what a token says into the headers that its rule names.
fn tell(rule: &JwtRule, token: &str, claims: &serde_json::Map<String, Value>, head: &mut Parts) {
    let mut set = |name: &Str, text: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&**name), HeaderValue::try_from(text)) {
            head.headers.insert(name, value);
        }
    };
    if let Some(name) = &rule.payload_header
        && let Some(payload) = token.split('.').nth(1)
    {
        set(name, payload);
    }
    for told in &rule.claim_headers {
        // The name as it is counts before names inside names.
        let value = claims.get(&*told.claim).or_else(|| {
            let mut names = told.claim.split('.');
            let first = claims.get(names.next()?)?;
            names.try_fold(first, |value, name| value.get(name))
        });
        match value {
            Some(Value::String(text)) => set(&told.header, text),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => set(&told.header, &value.to_string()),
            // As Envoy has it: what is no plain value is told as JSON in base64url.
            Some(value @ (Value::Array(_) | Value::Object(_))) => {
                set(&told.header, &BASE64_URL_SAFE_NO_PAD.encode(value.to_string()));
            }
            Some(Value::Null) | None => {}
        }
    }
}

#[cfg(test)]
mod tests;
