//! What is never told: headers and query parameters that are likely to hold secrets.

use std::borrow::Cow;

use serde::Serialize;

use crate::model::Str;

/// What stands for a value that is not told.
pub const HIDDEN: &str = "[redacted]";

/// Which values are not told. Names in lower case; one that begins with `*` stands for all that end so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redaction {
    /// Headers of requests and responses.
    pub headers: Vec<Str>,
    /// Parameters of queries.
    pub parameters: Vec<Str>,
}

/// Headers that are hidden unless somebody says otherwise.
const HEADERS: [&str; 9] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "*-token",
    "*-secret",
    "*-password",
    "x-amz-security-token",
];

/// Parameters of queries, likewise.
const PARAMETERS: [&str; 16] = [
    "*token",
    "*secret",
    "*password",
    "*passwd",
    "*api_key",
    "*apikey",
    "*api-key",
    "*signature",
    "*credential",
    "key",
    "pwd",
    "sig",
    "jwt",
    "auth",
    "authorization",
    "session",
];

impl Default for Redaction {
    fn default() -> Self {
        let all = |names: &[&str]| names.iter().map(|name| Str::from(*name)).collect();
        Self { headers: all(&HEADERS), parameters: all(&PARAMETERS) }
    }
}

impl Redaction {
    /// Changes a list as its user writes it: names with commas between them are added, `-name` is taken out of the defaults.
    /// `Err` has what is no name.
    pub fn edit(list: &mut Vec<Str>, written: &str) -> Result<(), String> {
        for one in written.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (name, leaves) = one.strip_prefix('-').map_or((one, false), |name| (name, true));
            let bare = name.strip_prefix('*').unwrap_or(name);
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'+-.^_`|~".contains(&byte);
            if bare.is_empty() || !bare.bytes().all(legal) {
                return Err(format!("{one:?} is no name"));
            }
            let name = Str::from(name.to_ascii_lowercase());
            list.retain(|known| *known != name);
            if !leaves {
                list.push(name);
            }
        }
        Ok(())
    }

    /// Whether the value of a header is not told; its name in lower case.
    pub fn hides_header(&self, name: &str) -> bool {
        hides(&self.headers, name)
    }

    /// A header's value as it may be told: values of others have queries in them.
    pub fn header<'a>(&self, name: &str, value: &'a str) -> Cow<'a, str> {
        match name {
            name if self.hides_header(name) => HIDDEN.into(),
            "referer" | "location" | "x-envoy-original-path" | ":path" => self.target(value),
            _ => value.into(),
        }
    }

    /// A path, with the query that it may have, as it may be told.
    pub fn target<'a>(&self, target: &'a str) -> Cow<'a, str> {
        let Some((path, query)) = target.split_once('?') else { return target.into() };
        let (query, fragment) = query.split_once('#').map_or((query, None), |(query, after)| (query, Some(after)));
        let hidden = |pair: &str| {
            let name = pair.split_once('=').map_or(pair, |(name, _)| name);
            hides(&self.parameters, &plain(name))
        };
        // `;` parts parameters too (HTML 4.01, appendix B.2.2), and some servers still read it so.
        if fragment.is_none() && !query.split(['&', ';']).any(hidden) {
            return target.into();
        }
        let mut told = format!("{path}?");
        let mut rest = query;
        loop {
            let end = rest.find(['&', ';']).unwrap_or(rest.len());
            let (pair, after) = rest.split_at(end);
            match pair.split_once('=') {
                Some((name, _)) if hidden(pair) => {
                    told.push_str(name);
                    told.push('=');
                    told.push_str(HIDDEN);
                }
                _ => told.push_str(pair),
            }
            let mut more = after.chars();
            match more.next() {
                Some(mark) => told.push(mark),
                None => return told.into(),
            }
            rest = more.as_str();
        }
    }
}

fn hides(list: &[Str], name: &str) -> bool {
    list.iter().any(|one| match one.strip_prefix('*') {
        Some(end) => name.ends_with(end),
        None => **one == *name,
    })
}

/// A parameter's name without its encoding, in lower case: `to%6ben` is a token too.
fn plain(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut left = name.as_bytes();
    while let Some((first, rest)) = left.split_first() {
        let decoded = match (first, rest) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => Some((high << 4 | low, after)),
                _ => None,
            },
            _ => None,
        };
        let (byte, after) = decoded.unwrap_or((*first, rest));
        bytes.push(byte.to_ascii_lowercase());
        left = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
