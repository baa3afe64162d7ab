//! What is told of a request or connection that has ended, as users write it: Envoy's formats ([`Format`]), conditions and
//! values in a part of CEL ([`Expression`]), and what is never told ([`Redaction`]). Pure: the facts come as [`Facts`].

mod expression;
mod facts;
mod format;
mod parse;
mod redact;
mod time;

pub use expression::Expression;
pub use facts::{Captured, Facts, Field, Value};
pub use format::{Format, InvalidFormat, Layout, json};
pub use redact::{HIDDEN, Redaction};

/// What reads a request's or response's headers: so that only these are kept until it has ended. Names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of the request.
    pub request: std::collections::BTreeSet<crate::model::Str>,
    /// Of the response.
    pub response: std::collections::BTreeSet<crate::model::Str>,
}

#[cfg(test)]
mod tests;
