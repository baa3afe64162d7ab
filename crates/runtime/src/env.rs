//! Reads the environment: the only place that does. Raw strings become typed values here, and every problem is
//! collected, so that an operator sees all of them at once, each with key, value and what is accepted.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use stillmesh_core::{Diagnose, Fault};

/// Reads keys from one set of strings and collects what is wrong with them.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    values: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

/// One value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// Its value; `None` when a required key is absent.
    pub value: Option<String>,
    /// What is accepted.
    pub accepted: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(out, "{}={value:?}: accepted is {}", self.key, self.accepted),
            None => write!(out, "{} is not set: needed is {}", self.key, self.accepted),
        }
    }
}

/// Every problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment cannot be used: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Problems(pub Vec<Problem>);

impl Diagnose for Problems {
    fn code(&self) -> &'static str {
        "ENV001"
    }

    fn fault(&self) -> Fault {
        Fault::Config
    }

    fn remedy(&self) -> &'static str {
        "set each key to what is accepted, or unset it for its default"
    }
}

impl Reader {
    /// The environment of this process. Values that are not UTF-8 are reported as problems.
    #[must_use]
    pub fn process() -> Self {
        let mut reader = Self::default();
        for (key, value) in std::env::vars_os() {
            let key = key.to_string_lossy().into_owned();
            match value.into_string() {
                Ok(value) => {
                    reader.values.insert(key, value);
                }
                // Only a problem for who reads the key: most of the environment is not ours.
                Err(value) => {
                    reader.values.insert(key, value.to_string_lossy().into_owned());
                }
            }
        }
        reader
    }

    /// Given values, for tests and for flags that stand in for the environment.
    pub fn from_values<K: Into<String>, V: Into<String>>(values: impl IntoIterator<Item = (K, V)>) -> Self {
        let values = values.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self { values, problems: Vec::new() }
    }

    /// The value as given; an empty one counts as absent.
    #[must_use]
    pub fn string(&self, key: &str) -> Option<String> {
        self.values.get(key).filter(|value| !value.is_empty()).cloned()
    }

    /// The value, which must be there; else the empty string and a problem.
    pub fn required(&mut self, key: &str, accepted: &str) -> String {
        self.string(key).unwrap_or_else(|| {
            self.problem(key, accepted);
            String::new()
        })
    }

    /// A typed value, if there is one that can be used. `accepted` says in words what is.
    pub fn parse<T: FromStr>(&mut self, key: &str, accepted: &str) -> Option<T> {
        self.parse_with(key, accepted, |value| value.parse().ok())
    }

    /// A typed value, or the default when absent (and, with a problem, when it cannot be used).
    pub fn parse_or<T: FromStr>(&mut self, key: &str, default: T, accepted: &str) -> T {
        self.parse(key, accepted).unwrap_or(default)
    }

    /// A typed value that must be there; `None` goes with a problem.
    pub fn parse_required<T: FromStr>(&mut self, key: &str, accepted: &str) -> Option<T> {
        if self.string(key).is_none() {
            self.problem(key, accepted);
        }
        self.parse(key, accepted)
    }

    /// A value understood by `parse`, if there is one that can be used.
    pub fn parse_with<T>(&mut self, key: &str, accepted: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = self.string(key)?;
        let parsed = parse(value.trim());
        if parsed.is_none() {
            self.problem(key, accepted);
        }
        parsed
    }

    /// A switch, in the forms of Go's `ParseBool`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        self.parse_with(key, "true or false", parse_bool).unwrap_or(default)
    }

    /// A duration in Go's form, such as `10s`, `1m30s`, `250ms`.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.parse_with(key, "a duration such as 10s, 1m30s or 250ms", parse_duration).unwrap_or(default)
    }

    /// Whole seconds without a unit.
    pub fn seconds(&mut self, key: &str, default: Duration) -> Duration {
        self.parse(key, "a whole number of seconds").map_or(default, Duration::from_secs)
    }

    /// All keys that start with `prefix`, the prefix taken off.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> BTreeMap<String, String> {
        let strip = |(key, value): (&String, &String)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone()));
        self.values.iter().filter_map(strip).collect()
    }

    /// Reports that the value of a key cannot be used, for a check that needs more than one key.
    pub fn problem(&mut self, key: &str, accepted: &str) {
        let value = self.string(key);
        self.problems.push(Problem { key: key.to_owned(), value, accepted: accepted.to_owned() });
    }

    /// Ends the reading: the problems, if there are any.
    pub fn finish(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }
}

/// A switch in the forms of Go's `ParseBool`.
#[must_use]
pub fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A non-negative duration in Go's form: numbers with a unit (`h`, `m`, `s`, `ms`, `us`, `ns`), added up; `0` alone.
#[must_use]
pub fn parse_duration(value: &str) -> Option<Duration> {
    if value == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = value;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(number_end)?;
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit_end)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_together_with_key_value_and_what_is_accepted() {
        let mut reader = Reader::from_values([("PORT", "80800"), ("WAIT", "fast"), ("ON", "maybe")]);
        assert_eq!(reader.parse_or::<u16>("PORT", 1, "a port, 1 to 65535"), 1);
        assert_eq!(reader.duration("WAIT", Duration::from_secs(3)), Duration::from_secs(3));
        assert!(reader.flag("ON", true));
        assert_eq!(reader.required("NODE", "the node's name"), "");
        let problems = reader.finish().unwrap_err();
        assert_eq!(problems.0.len(), 4);
        let text = problems.to_string();
        assert!(text.contains("PORT=\"80800\": accepted is a port, 1 to 65535"), "{text}");
        assert!(text.contains("NODE is not set: needed is the node's name"), "{text}");
    }

    #[test]
    fn an_empty_value_counts_as_absent() {
        let mut reader = Reader::from_values([("A", "")]);
        assert_eq!(reader.parse_or("A", 5, "a number"), 5);
        assert!(reader.finish().is_ok());
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases =
            [("10s", 10_000), ("1m30s", 90_000), ("250ms", 250), ("1.5h", 5_400_000), ("0", 0), ("2m0s", 120_000)];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1d", "1s2", "..s", "1e9h", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn prefixed_keys_come_without_the_prefix() {
        let reader = Reader::from_values([("ISTIO_META_A", "1"), ("OTHER", "2")]);
        assert_eq!(reader.prefixed("ISTIO_META_"), BTreeMap::from([("A".to_owned(), "1".to_owned())]));
    }
}
