//! One finding, as it is printed and as it is kept quiet.

use std::fmt;
use std::str::FromStr;

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use stillmesh_k8s::{ObjectKey, Position};

use super::code::{ALL, Code, Level};

/// A finding. They sort by level, code and place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Message {
    pub(super) code: &'static Code,
    /// Where it is written; without a file where it is in none.
    pub(super) at: Position,
    /// What it is about; empty where that cannot be told.
    pub(super) object: String,
    /// Its namespace; empty for those that have none.
    namespace: String,
    pub(super) text: String,
}

impl Message {
    /// About an object.
    pub(super) fn new(code: &'static Code, object: &ObjectKey, at: Position, text: impl Into<String>) -> Self {
        Self::titled(code, &object.to_string(), at, text)
    }

    /// About an object that is known by its title: `Service shop/page`.
    pub(super) fn titled(code: &'static Code, object: &str, at: Position, text: impl Into<String>) -> Self {
        let (kind, place) = object.split_once(' ').unwrap_or_default();
        let namespace = match place.split_once('/') {
            Some((namespace, _)) => namespace,
            // A Namespace is its own.
            None if kind == "Namespace" => place,
            None => "",
        };
        Self { code, at, object: object.to_owned(), namespace: namespace.to_owned(), text: text.into() }
    }

    pub(super) fn level(&self) -> Level {
        self.code.level
    }

    /// Whether it is told where one namespace is asked about. What is in none always is.
    pub(super) fn is_of(&self, namespace: &str) -> bool {
        self.namespace.is_empty() || self.namespace == namespace
    }

    fn place(&self) -> String {
        if self.at.file.is_empty() { String::new() } else { Position { column: 0, ..self.at.clone() }.to_string() }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        let both = [self.object.as_str(), &place].into_iter().filter(|one| !one.is_empty()).collect::<Vec<_>>();
        write!(f, "{:?} [{}] ({}) {}", self.level(), self.code.id, both.join(" "), self.text)
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let lower = self.code.id.to_ascii_lowercase();
        let url = match self.code.id.starts_with("IST") {
            true => format!("https://istio.io/latest/docs/reference/config/analysis/{lower}/"),
            false => format!("docs/analyze.md#{lower}"),
        };
        let mut all = serializer.serialize_struct("Message", 6)?;
        all.serialize_field("code", self.code.id)?;
        all.serialize_field("documentationUrl", &url)?;
        all.serialize_field("level", &self.level())?;
        all.serialize_field("message", &self.text)?;
        all.serialize_field("origin", &self.object)?;
        all.serialize_field("reference", &self.place())?;
        all.end()
    }
}

/// What is not told: a code, and objects by a pattern in which `*` stands for anything.
#[derive(Clone, Debug)]
pub(super) struct Suppress {
    code: String,
    pattern: String,
}

impl FromStr for Suppress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (code, pattern) = text.split_once('=').ok_or("CODE=RESOURCE is accepted, as 'IST0127=Service shop/*'")?;
        if !ALL.iter().any(|one| one.id == code) {
            return Err(format!("there is no code {code:?}; --list-analyzers shows them"));
        }
        Ok(Self { code: code.to_owned(), pattern: pattern.to_owned() })
    }
}

impl Suppress {
    pub(super) fn covers(&self, message: &Message) -> bool {
        if message.code.id != self.code {
            return false;
        }
        // `Kind namespace/name`, or `Kind name.namespace` as Istio's command writes it.
        let other = message.object.split_once(' ').and_then(|(kind, place)| {
            let (namespace, name) = place.split_once('/')?;
            Some(format!("{kind} {name}.{namespace}"))
        });
        fits(&self.pattern, &message.object) || other.is_some_and(|other| fits(&self.pattern, &other))
    }
}

/// Whether a text is what a pattern says: `*` stands for any letters.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = left.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_quiet_is_named_by_code_and_object() {
        let message = Message::titled(ALL[0], "Service shop/page", Position::file(""), "x");
        for (text, covered) in [
            ("IST0101=Service shop/page", true),
            ("IST0101=Service page.shop", true),
            ("IST0101=*", true),
            ("IST0101=Service shop/*", true),
            ("IST0101=* */p*e", true),
            ("IST0101=Service other/*", false),
            ("IST0106=*", false),
        ] {
            assert_eq!(text.parse::<Suppress>().unwrap().covers(&message), covered, "{text}");
        }
        assert!("IST9999=*".parse::<Suppress>().is_err() && "IST0101".parse::<Suppress>().is_err());
    }
}
