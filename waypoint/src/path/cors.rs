//! What core says of requests of other origins ([`cors::cross`]), carried out on responses.

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use stillmesh_core::decide::cors::{self, Cross};
use stillmesh_core::model::http::Cors;

use super::plan::{Answer, Seen};

/// What becomes of one request.
pub struct Crossed(Cross);

impl Crossed {
    /// By a rule.
    pub fn judge(rule: &Cors, head: &Parts) -> Self {
        Self(cors::cross(rule, head.method.as_str(), &Seen(&head.headers)))
    }

    /// The answer, where it is given here.
    pub fn answer(&self) -> Option<Answer> {
        matches!(self.0, Cross::Question(_)).then(|| Answer::of(StatusCode::OK))
    }

    /// Writes into a response what is permitted.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let (Cross::Question(permission) | Cross::Request(permission)) = &self.0 else { return };
        for name in cors::NAMES {
            headers.remove(name);
        }
        for (name, value) in permission {
            if let Ok(value) = HeaderValue::try_from(value.as_str()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        // Another origin is told something else: caches have to know.
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}
