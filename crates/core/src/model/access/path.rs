//! What becomes of a path before anything is decided by it. What comes out is what policies and routes see, and byte for
//! byte what the endpoint gets. Case is never changed, and the query is never touched.
//!
//! | written | `NONE` | `BASE` | `MERGE_SLASHES` | `DECODE_AND_MERGE_SLASHES` |
//! | --- | --- | --- | --- | --- |
//! | `/a/./b`, `/a/../b` | as written | `/a/b`, `/b` | `/a/b`, `/b` | `/a/b`, `/b` |
//! | `\` | as written | `/` | `/` | `/` |
//! | `%41`, `%2e` (unreserved characters of RFC 3986) | as written | `A`, `.` | `A`, `.` | `A`, `.` |
//! | `//` | as written | as written | `/` | `/` |
//! | `%2F`, `%5C` | as written | as written | as written | `/` |
//! | `%20`, `%3B` and other escapes | as written | as written | as written | as written |
//! | `%00` | as written | refused | refused | refused |
//! | `%`, `%zz`: no escapes | as written | as written | as written | as written |
//! | `%%341`: no escape that would become one | as written | refused | refused | refused |
//! | `/..;a`, `/.;a`: dot segments to those who know parameters | as written | refused | refused | refused |
//! | `*`, and what does not begin with `/` | as written | as written | as written | as written |
//!
//! In this order: escapes, dot segments (RFC 3986 section 5.2.4; above the root is the root), slashes. A path that has been
//! through it does not change when it goes through it again: an endpoint that does the same sees the same.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// How much is done about the many ways to write a path (Istio's `meshConfig.pathNormalization`). See the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// Nothing.
    None,
    /// Dot segments, backslashes, escapes that stand for what needs none.
    #[default]
    Base,
    /// And several slashes are one.
    MergeSlashes,
    /// And escaped slashes are slashes.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// Every level.
    pub const ALL: [Self; 4] = [Self::None, Self::Base, Self::MergeSlashes, Self::DecodeAndMergeSlashes];

    /// The level of that name; `DEFAULT` is `BASE`.
    pub fn named(name: &str) -> Option<Self> {
        if name == "DEFAULT" {
            return Some(Self::default());
        }
        Self::ALL.into_iter().find(|level| level.to_string() == name)
    }
}

impl fmt::Display for PathNormalization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "NONE",
            Self::Base => "BASE",
            Self::MergeSlashes => "MERGE_SLASHES",
            Self::DecodeAndMergeSlashes => "DECODE_AND_MERGE_SLASHES",
        })
    }
}

/// A path that would mean different things to different readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmbiguousPath {
    /// `%00`.
    #[error("the path has a zero byte")]
    Zero,
    /// `..;a`.
    #[error("the path has a dot segment with parameters")]
    Dots,
    /// Something that is no escape and becomes one when it is read once more.
    #[error("the path has a malformed escape")]
    Escape,
}

/// The path (without its query) as it is decided by and sent on.
pub fn normalize(path: &str, level: PathNormalization) -> Result<Cow<'_, str>, AmbiguousPath> {
    if level == PathNormalization::None || !path.starts_with('/') || is_plain(path, level) {
        return Ok(Cow::Borrowed(path));
    }
    let (normalized, is_malformed) = once(path, level)?;
    if is_malformed && once(&normalized, level)?.0 != normalized {
        return Err(AmbiguousPath::Escape);
    }
    Ok(Cow::Owned(normalized))
}

/// Whether there is nothing to be done: most paths.
fn is_plain(path: &str, level: PathNormalization) -> bool {
    let mut after_slash = false;
    for byte in path.bytes() {
        let is_special = match byte {
            b'%' | b'\\' => true,
            b'.' => after_slash,
            b'/' => after_slash && level >= PathNormalization::MergeSlashes,
            _ => false,
        };
        if is_special {
            return false;
        }
        after_slash = byte == b'/';
    }
    true
}

/// And whether it has a `%` that begins no escape.
fn once(path: &str, level: PathNormalization) -> Result<(String, bool), AmbiguousPath> {
    let (unescaped, is_malformed) = unescape(path, level)?;
    if unescaped.split('/').any(|segment| segment.starts_with("..;") || segment.starts_with(".;")) {
        return Err(AmbiguousPath::Dots);
    }
    let dotless = without_dots(&unescaped);
    let merged = if level >= PathNormalization::MergeSlashes { merge(&dotless) } else { dotless };
    Ok((merged, is_malformed))
}

fn unescape(path: &str, level: PathNormalization) -> Result<(String, bool), AmbiguousPath> {
    let mut new = String::with_capacity(path.len());
    let mut is_malformed = false;
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        let (before, special) = rest.split_at(at);
        new.push_str(before);
        if let Some(after) = special.strip_prefix('\\') {
            new.push('/');
            rest = after;
            continue;
        }
        let escape = special.get(1..3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let Some(byte) = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            is_malformed = true;
            new.push('%');
            rest = special.get(1..).unwrap_or_default();
            continue;
        };
        match byte {
            0 => return Err(AmbiguousPath::Zero),
            b'/' | b'\\' if level == PathNormalization::DecodeAndMergeSlashes => new.push('/'),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => new.push(char::from(byte)),
            _ => new.push_str(special.get(..3).unwrap_or_default()),
        }
        rest = special.get(3..).unwrap_or_default();
    }
    new.push_str(rest);
    if is_malformed && strays(&new) < strays(path) {
        // A `%` that began nothing begins an escape now.
        return Err(AmbiguousPath::Escape);
    }
    Ok((new, is_malformed))
}

/// How many `%` begin no escape.
fn strays(path: &str) -> usize {
    let is_stray = |(index, _): &(usize, &str)| {
        let digits = path.as_bytes().get(index + 1..index + 3);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    path.match_indices('%').filter(is_stray).count()
}

/// Takes out `.` and `..` segments.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." if is_last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if is_last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    let mut new = String::with_capacity(path.len());
    for segment in kept {
        new.push('/');
        new.push_str(segment);
    }
    if new.is_empty() {
        new.push('/');
    }
    new
}

fn merge(path: &str) -> String {
    let mut new = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !new.ends_with('/') {
            new.push(character);
        }
    }
    new
}

#[cfg(test)]
mod tests;
