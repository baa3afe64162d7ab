//! Patterns of paths: texts, and templates with `{*}` and `{**}`.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::model::{Str, StringMatch};

/// How a path is compared. Case counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathPattern {
    /// As any text.
    Text(StringMatch),
    /// By segments.
    Template(PathTemplate),
}

impl PathPattern {
    /// Whether `path` is what is asked for.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Template(template) => template.fmt(f),
        }
    }
}

/// A path in which `{*}` stands for one segment, and `{**}` for any number of them, or none. `{**}` comes once, after every
/// `{*}`; both are whole segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    text: Str,
    /// What comes before each `{*}`, then what comes after the last one, up to `{**}`.
    literals: Vec<Str>,
    /// What comes after `{**}`, where there is one.
    end: Option<Str>,
}

/// A text that is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no path template: {problem}")]
pub struct InvalidTemplate {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

const ONE: &str = "{*}";
const ANY: &str = "{**}";

impl PathTemplate {
    /// Whether `text` asks for a template.
    pub fn is_meant(text: &str) -> bool {
        text.contains(['{', '}'])
    }

    /// Reads a template.
    pub fn new(text: &str) -> Result<Self, InvalidTemplate> {
        let invalid = |problem| InvalidTemplate { text: text.chars().take(256).collect(), problem };
        if !text.starts_with('/') {
            return Err(invalid("it begins with /"));
        }
        let mut literals = Vec::new();
        let mut literal = String::new();
        let mut after_any = None;
        for (index, segment) in text.split('/').enumerate() {
            if index > 0 {
                literal.push('/');
            }
            match segment {
                ONE | ANY if after_any.is_some() => return Err(invalid("{**} is the last operator")),
                ONE => literals.push(std::mem::take(&mut literal)),
                ANY => after_any = Some(std::mem::take(&mut literal)),
                other if other.contains(['{', '}']) => {
                    return Err(invalid("{*} and {**} are whole segments, and nothing else has braces"));
                }
                other if !other.bytes().all(is_literal) => {
                    return Err(invalid("a segment has a character that a path has not"));
                }
                other => literal.push_str(other),
            }
        }
        let (last, end) = match after_any {
            Some(before) => (before, Some(literal)),
            None => (literal, None),
        };
        literals.push(last);
        let literals = literals.into_iter().map(Str::from).collect();
        Ok(Self { text: text.into(), literals, end: end.map(Str::from) })
    }

    /// Whether `path` is described, all of it.
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for (index, literal) in self.literals.iter().enumerate() {
            if index > 0 {
                // A segment is not empty.
                let end = rest.find('/').unwrap_or(rest.len());
                if end == 0 {
                    return false;
                }
                rest = rest.get(end..).unwrap_or_default();
            }
            match rest.strip_prefix(&**literal) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        match &self.end {
            Some(end) => rest.ends_with(&**end),
            None => rest.is_empty(),
        }
    }
}

/// What a path may have besides `/` (RFC 3986, `pchar`), but for `*`, which would be taken for an operator.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;=:@".contains(&byte)
}

impl fmt::Display for PathTemplate {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for PathTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_describe_whole_paths_segment_by_segment() {
        #[rustfmt::skip]
        let table = [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/bar/", false),
            ("/{*}/bar", "/foo/bar", true),
            ("/{*}/bar", "//bar", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}", "/foo/bar/baz", true),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/bar/baz.txt/", true),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/", false),
            ("/foo/{**}/", "/foo/bar", false),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
            ("/foo/{*}/bar/{**}", "/foo/a/b/bar/baz", false),
            ("/{*}/{*}", "/a/b", true),
            ("/{*}/{*}", "/a/b/c", false),
            ("/{**}", "/", true),
            ("/Foo/{*}", "/foo/a", false),
        ];
        for (template, path, holds) in table {
            assert_eq!(PathTemplate::new(template).unwrap().matches(path), holds, "{template} for {path}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in ["foo/{*}", "/{**}/{*}", "/{**}/{**}", "/foo{*}", "/{*}bar", "/{a}", "/*/{*}", "/{", "/a b/{*}"] {
            assert!(PathTemplate::new(text).is_err(), "{text}");
        }
    }
}
