//! What a route asks of a request.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

use crate::model::Str;

/// Any segment of a path.
const ANY: &str = "[^/]+";

/// The compiled size that a pattern may have, bytes.
const PATTERN_BYTES: usize = 1 << 18;

/// All that is set must hold; nothing set holds for every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// The path, without the query.
    pub path: Option<PathMatch>,
    /// The method.
    pub method: Option<TextMatch>,
    /// The `Host` or `:authority`.
    pub authority: Option<TextMatch>,
    /// The scheme.
    pub scheme: Option<TextMatch>,
    /// Headers that must be as said.
    pub headers: Vec<HeaderMatch>,
    /// Headers that must not be as said.
    pub without_headers: Vec<HeaderMatch>,
    /// Query parameters that must be as said.
    pub query: Vec<QueryMatch>,
    /// The port of the service that was dialled.
    pub port: Option<u16>,
    /// Claims of the request's verified token that must be as said.
    pub claims: Vec<ClaimMatch>,
    /// Claims that must not be as said.
    pub without_claims: Vec<ClaimMatch>,
}

/// A claim of a verified token, and how it is compared; of several texts one must be as said. Without a token there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClaimMatch {
    /// Its name, and within it the names of claims in it.
    pub path: Vec<Str>,
    /// Its value.
    pub value: TextMatch,
}

/// How a path is compared. Case counts, unless it is said that it does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// Equal.
    Exact(Str),
    /// Begins with these segments: `/a` holds for `/a`, `/a/` and `/a/b`, not for `/ab`. Without a `/` at its end; empty
    /// holds for every path (Gateway API, `PathPrefix`).
    Segments(Str),
    /// Begins with this text (Istio, `prefix`).
    Prefix(Str),
    /// The whole path is described by the pattern.
    Regex(Pattern),
    /// Equal but for case.
    ExactIgnoringCase(Str),
    /// Begins with this text but for case.
    PrefixIgnoringCase(Str),
}

impl PathMatch {
    /// The segments of Gateway API's `PathPrefix`, whose last `/` means nothing.
    pub fn segments(prefix: &str) -> Self {
        Self::Segments(prefix.trim_end_matches('/').into())
    }

    /// The path of a gRPC request, whose service and method are described by expressions; none is any. Where both are known
    /// a path that is equal, or the service's segments, say it better.
    pub fn grpc(service: Option<&str>, method: Option<&str>) -> Result<Self, InvalidPattern> {
        let part = |part: Option<&str>| part.map_or_else(|| ANY.to_owned(), |part| format!("(?:{part})"));
        Pattern::new(&format!("/{}/{}", part(service), part(method))).map(Self::Regex)
    }

    /// How many characters of a gRPC request's service and method are asked for (Gateway API, GRPCRoute's precedence).
    pub(crate) fn grpc_lengths(&self) -> (usize, usize) {
        let text = match self {
            Self::Exact(text) | Self::ExactIgnoringCase(text) | Self::Segments(text) => text,
            Self::Prefix(text) | Self::PrefixIgnoringCase(text) => text,
            Self::Regex(pattern) => {
                let text = pattern.text().strip_prefix('/').unwrap_or_default();
                let length = |part: &str| part.trim_start_matches("(?:").trim_end_matches(')').len();
                return match text.strip_prefix(ANY).and_then(|rest| rest.strip_prefix('/')) {
                    Some(method) => (0, length(method)),
                    None => match text.split_once(")/") {
                        Some((service, ANY)) => (length(service), 0),
                        Some((service, method)) => (length(service), length(method)),
                        None => (0, 0),
                    },
                };
            }
        };
        let text = text.strip_prefix('/').unwrap_or(text);
        text.split_once('/').map_or((text.len(), 0), |(service, method)| (service.len(), method.len()))
    }

    /// Whether `path` (without query) is what is asked for.
    pub fn holds(&self, path: &str) -> bool {
        let begins = |prefix: &str| path.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Segments(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::Regex(pattern) => pattern.holds(path),
            Self::ExactIgnoringCase(exact) => path.eq_ignore_ascii_case(exact),
            Self::PrefixIgnoringCase(prefix) => begins(prefix),
        }
    }
}

/// How a text is compared. Case counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TextMatch {
    /// Equal.
    Exact(Str),
    /// Begins with.
    Prefix(Str),
    /// All of it is described by the pattern.
    Regex(Pattern),
    /// Is there, whatever it is.
    Present,
}

impl TextMatch {
    /// Whether `text` is what is asked for.
    pub fn holds(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Regex(pattern) => pattern.holds(text),
            Self::Present => true,
        }
    }
}

/// A header and its value; several of one name are one value, joined by commas (RFC 9110 section 5.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderMatch {
    /// Its name, in lower case.
    pub name: Str,
    /// Its value.
    pub value: TextMatch,
}

/// A query parameter and its value, as they are written: nothing is decoded. Of several of one name the first counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueryMatch {
    /// Its name.
    pub name: Str,
    /// Its value.
    pub value: TextMatch,
}

/// A regular expression that describes a text as a whole. Matching takes time in proportion to the text.
#[derive(Clone)]
pub struct Pattern {
    text: Str,
    regex: Regex,
}

/// A text that is no regular expression, or one too big to be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a regular expression that can be used: {problem}")]
pub struct InvalidPattern {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Pattern {
    /// Compiles `text` (RE2's syntax, as Istio and Envoy have it). Refuses what compiles to more than 256 KiB.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        let whole = RegexBuilder::new(&format!("^(?:{text})$")).size_limit(PATTERN_BYTES).build();
        // What is no pattern by itself must not become one between our brackets.
        compiled(text)?;
        let regex = whole.map_err(|error| InvalidPattern::new(text, &error))?;
        Ok(Self { text: text.into(), regex })
    }

    /// Whether all of `text` is described.
    pub fn holds(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// As it was written.
    pub fn text(&self) -> &Str {
        &self.text
    }
}

fn compiled(text: &str) -> Result<Regex, InvalidPattern> {
    let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES).build();
    built.map_err(|error| InvalidPattern::new(text, &error))
}

impl InvalidPattern {
    fn new(text: &str, error: &regex::Error) -> Self {
        let problem = error.to_string();
        let last = problem.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Self { text: text.to_owned(), problem: last }
    }
}

/// Writes every place of a text anew that an expression describes (Istio, `uriRegexRewrite`).
#[derive(Clone, Serialize)]
pub struct Substitution {
    pattern: Str,
    substitution: Str,
    #[serde(skip)]
    regex: Regex,
    /// [`Self::substitution`] as the library writes groups.
    #[serde(skip)]
    template: Str,
}

impl Substitution {
    /// `pattern` is found anywhere; `substitution` has `\\1` for its first group, `\\0` for all of it.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, InvalidPattern> {
        let regex = compiled(pattern)?;
        let mut template = String::new();
        let mut rest = substitution.chars();
        while let Some(next) = rest.next() {
            match next {
                '$' => template.push_str("$$"),
                '\\' => match rest.next() {
                    Some(digit) if digit.is_ascii_digit() => {
                        template.push_str("${");
                        template.push(digit);
                        template.push('}');
                    }
                    Some(other) => template.push(other),
                    None => template.push('\\'),
                },
                other => template.push(other),
            }
        }
        Ok(Self { pattern: pattern.into(), substitution: substitution.into(), regex, template: template.into() })
    }

    /// The text with every place written anew.
    pub fn apply(&self, text: &str) -> String {
        self.regex.replace_all(text, &*self.template).into_owned()
    }

    /// The expression as it was written.
    pub fn pattern(&self) -> &Str {
        &self.pattern
    }

    /// What comes in its place, as it was written.
    pub fn substitution(&self) -> &Str {
        &self.substitution
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, &self.substitution) == (&other.pattern, &other.substitution)
    }
}

impl Eq for Substitution {}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Substitution({:?} -> {:?})", self.pattern, self.substitution)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
