//! What a browser is told that asks for a page of another origin (Fetch, section 3.2; Gateway API's `HTTPCORSFilter`; Istio's
//! `corsPolicy`). It is the browser that keeps to it.

use crate::attrs::Headers;
use crate::model::Str;
use crate::model::http::Cors;

/// Headers of a response.
pub type Permission = Vec<(&'static str, String)>;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cross {
    /// It is not for the rule: no other origin, or one that the rule leaves to the endpoint.
    No,
    /// It is a question that is answered here, with these headers; without any nothing is permitted.
    Question(Permission),
    /// It goes on, and its response gets these headers; those of these names that it has are the endpoint's, and go.
    Request(Permission),
}

/// The names of all headers that permit something.
pub const NAMES: [&str; 6] = [ORIGIN, METHODS, HEADERS, EXPOSE, MAX_AGE, CREDENTIALS];

const ORIGIN: &str = "access-control-allow-origin";
const METHODS: &str = "access-control-allow-methods";
const HEADERS: &str = "access-control-allow-headers";
const EXPOSE: &str = "access-control-expose-headers";
const MAX_AGE: &str = "access-control-max-age";
const CREDENTIALS: &str = "access-control-allow-credentials";

/// Judges a request by its origin.
pub fn cross(rule: &Cors, method: &str, headers: &dyn Headers) -> Cross {
    let Some(origin) = headers.value("origin") else { return Cross::No };
    let wanted = headers.value("access-control-request-method").filter(|_| method == "OPTIONS");
    let is_permitted = rule.origins.iter().any(|permitted| permitted.holds(&origin));
    match (wanted, is_permitted) {
        (_, false) if rule.forward_unmatched => Cross::No,
        (Some(_), false) => Cross::Question(Permission::new()),
        (None, false) => Cross::Request(Permission::new()),
        (None, true) => Cross::Request(always(rule, &origin)),
        (Some(wanted), true) => {
            let mut permission = always(rule, &origin);
            // `*` in an answer means all but for requests with credentials: those are told what they ask for.
            if let Some(methods) = listed(&rule.methods, || rule.credentials.then(|| wanted.into_owned())) {
                permission.push((METHODS, methods));
            }
            let asked = || headers.value("access-control-request-headers").map(std::borrow::Cow::into_owned);
            if let Some(names) = listed(&rule.headers, asked) {
                permission.push((HEADERS, names));
            }
            if let Some(age) = rule.max_age {
                permission.push((MAX_AGE, age.as_secs().to_string()));
            }
            Cross::Question(permission)
        }
    }
}

/// What both kinds of response say.
fn always(rule: &Cors, origin: &str) -> Permission {
    let mut permission = vec![(ORIGIN, origin.to_owned())];
    if rule.credentials {
        permission.push((CREDENTIALS, "true".to_owned()));
    }
    if let Some(names) = listed(&rule.expose, || None) {
        permission.push((EXPOSE, names));
    }
    permission
}

/// A list as a header has it; where all are permitted, what is asked for, or `*`. `None` where the list is empty.
fn listed(values: &[Str], asked: impl FnOnce() -> Option<String>) -> Option<String> {
    if values.iter().any(|value| **value == *"*") {
        return Some(asked().unwrap_or_else(|| "*".to_owned()));
    }
    (!values.is_empty()).then(|| values.join(", "))
}

#[cfg(test)]
mod tests;
