//! Formats of access logs: Envoy's `%` operators, as text or as JSON (contract 9.4).

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;

use super::facts::{Facts, Field, Value};
use super::{Wanted, time};
use crate::model::Str;

/// A format, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    pieces: Vec<Piece>,
}

/// What a format cannot be read for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operator}: {problem}")]
pub struct InvalidFormat {
    /// The operator as written.
    pub operator: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Plain(String),
    Operator(Operator, Option<usize>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    Field(Field),
    Request(Str, Option<Str>),
    Response(Str, Option<Str>),
    Began(String),
    /// What this version does not know: written as if it were absent.
    Unknown,
}

impl Format {
    /// Reads a format. What is not known in it is written as `-`, and told.
    pub fn read(text: &str) -> (Self, Vec<InvalidFormat>) {
        let (mut pieces, mut problems, mut plain) = (Vec::new(), Vec::new(), String::new());
        let mut left = text;
        while let Some((before, after)) = left.split_once('%') {
            plain.push_str(before);
            if let Some(rest) = after.strip_prefix('%') {
                plain.push('%');
                left = rest;
                continue;
            }
            let (operator, rest) = ended(after);
            let Some(operator) = operator else {
                let problem = "a % that nothing ends; %% is one";
                problems.push(InvalidFormat { operator: format!("%{after}"), problem });
                left = "";
                break;
            };
            if !plain.is_empty() {
                pieces.push(Piece::Plain(std::mem::take(&mut plain)));
            }
            let (read, longest) = match operator_of(operator) {
                Ok(read) => read,
                Err(problem) => {
                    problems.push(InvalidFormat { operator: format!("%{operator}%"), problem });
                    (Operator::Unknown, None)
                }
            };
            pieces.push(Piece::Operator(read, longest));
            left = rest;
        }
        plain.push_str(left);
        if !plain.is_empty() {
            pieces.push(Piece::Plain(plain));
        }
        (Self { pieces }, problems)
    }

    /// Which headers it reads.
    pub fn wants(&self, wanted: &mut Wanted) {
        for piece in &self.pieces {
            match piece {
                Piece::Operator(Operator::Request(one, other), _) => {
                    wanted.request.extend([one.clone()].into_iter().chain(other.clone()));
                }
                Piece::Operator(Operator::Response(one, other), _) => {
                    wanted.response.extend([one.clone()].into_iter().chain(other.clone()));
                }
                _ => {}
            }
        }
    }

    /// Writes a line; what is absent as `-`. Line breaks and other control characters of values are escaped.
    pub fn text(&self, facts: &Facts<'_>) -> String {
        let mut line = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(text) => line.push_str(text),
                Piece::Operator(operator, longest) => match operator.value(facts).text() {
                    Some(text) => escape(&mut line, &cut(text, *longest)),
                    None => line.push('-'),
                },
            }
        }
        line
    }

    /// One value of JSON: what is one operator keeps its type.
    fn json(&self, facts: &Facts<'_>) -> String {
        if let [Piece::Operator(operator, longest)] = self.pieces.as_slice() {
            return match operator.value(facts) {
                Value::Absent => "null".to_owned(),
                Value::Number(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                value @ Value::Duration(_) => value.text().map_or_else(|| "null".to_owned(), Cow::into_owned),
                Value::Text(text) => quoted(&cut(text, *longest)),
            };
        }
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(plain) => text.push_str(plain),
                Piece::Operator(operator, longest) => match operator.value(facts).text() {
                    Some(value) => text.push_str(&cut(value, *longest)),
                    None => text.push('-'),
                },
            }
        }
        quoted(&text)
    }
}

/// One line's layout, as its user writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Layout {
    /// A format.
    Text(Str),
    /// Keys, each with its format. Written in order of the keys, as Envoy does.
    Json(Vec<(Str, Str)>),
}

impl Layout {
    /// Istio's default.
    pub fn text() -> Self {
        Self::Text(TEXT.into())
    }

    /// Istio's default as JSON.
    pub fn json() -> Self {
        Self::Json(JSON.iter().map(|(key, format)| (Str::from(*key), Str::from(*format))).collect())
    }

    /// What cannot be carried out of it, each with the key that it is under (none: it is text).
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Text(format) => Format::read(format).1.iter().map(ToString::to_string).collect(),
            Self::Json(keys) => keys
                .iter()
                .flat_map(|(key, format)| {
                    Format::read(format).1.into_iter().map(move |problem| format!("{key}: {problem}"))
                })
                .collect(),
        }
    }
}

/// Writes an object in JSON, and a line break.
pub fn json(keys: &[(Str, Format)], facts: &Facts<'_>) -> String {
    let mut line = String::from("{");
    for (index, (key, format)) in keys.iter().enumerate() {
        if index > 0 {
            line.push(',');
        }
        line.push_str(&quoted(key));
        line.push(':');
        line.push_str(&format.json(facts));
    }
    line.push_str("}\n");
    line
}

/// The operator up to the `%` that ends it, and what follows. A `%` within parentheses is its argument's.
fn ended(text: &str) -> (Option<&str>, &str) {
    let mut depth = 0_usize;
    for (at, next) in text.char_indices() {
        match next {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => {
                let (operator, rest) = text.split_at(at);
                return (Some(operator), rest.strip_prefix('%').unwrap_or(rest));
            }
            _ => {}
        }
    }
    (None, "")
}

fn operator_of(text: &str) -> Result<(Operator, Option<usize>), &'static str> {
    let (name, argument, after) = match text.split_once('(') {
        Some((name, rest)) => {
            let (argument, after) = rest.rsplit_once(')').ok_or("a parenthesis that nothing closes")?;
            (name, Some(argument), after)
        }
        None => match text.split_once(':') {
            Some((name, _)) => (name, None, text.get(name.len()..).unwrap_or_default()),
            None => (text, None, ""),
        },
    };
    let longest = match after.strip_prefix(':') {
        Some(digits) => Some(digits.parse::<usize>().map_err(|_| "what follows : is the longest length, a number")?),
        None if after.is_empty() => None,
        None => return Err("nothing but : and a number may follow"),
    };
    let headers = || {
        let argument = argument.filter(|argument| !argument.is_empty()).ok_or("it needs a header's name")?;
        let (one, other) = argument.split_once('?').map_or((argument, None), |(one, other)| (one, Some(other)));
        let name = |name: &str| Str::from(name.to_ascii_lowercase());
        Ok::<_, &'static str>((name(one), other.filter(|other| !other.is_empty()).map(name)))
    };
    let operator = match (name, argument) {
        ("REQ", _) => headers().map(|(one, other)| Operator::Request(one, other))?,
        ("RESP", _) => headers().map(|(one, other)| Operator::Response(one, other))?,
        ("START_TIME", argument) => {
            let format = argument.filter(|format| !format.is_empty()).unwrap_or(time::DEFAULT);
            time::write(format, 0).map_err(|_| "a letter of the time's format is not supported")?;
            Operator::Began(format.to_owned())
        }
        (name, None) => {
            let known = Field::ALL.iter().find(|(_, operator, _)| !operator.is_empty() && *operator == name);
            Operator::Field(known.map(|(field, ..)| *field).ok_or("not supported")?)
        }
        (_, Some(_)) => return Err("not supported"),
    };
    Ok((operator, longest))
}

impl Operator {
    fn value<'a>(&self, facts: &'a Facts<'_>) -> Value<'a> {
        match self {
            Self::Field(field) => facts.field(*field),
            Self::Request(one, other) => {
                let found = facts.request_header(one);
                let found = found.or_else(|| facts.request_header(other.as_ref()?));
                found.map_or(Value::Absent, Value::from)
            }
            Self::Response(one, other) => {
                let found = facts.response_header(one);
                let found = found.or_else(|| facts.response_header(other.as_ref()?));
                found.map_or(Value::Absent, Value::Text)
            }
            Self::Began(format) => {
                time::write(format, facts.began_us).map_or(Value::Absent, |text| Value::Text(text.into()))
            }
            Self::Unknown => Value::Absent,
        }
    }
}

fn cut(text: Cow<'_, str>, longest: Option<usize>) -> Cow<'_, str> {
    match longest.and_then(|longest| text.char_indices().nth(longest).map(|(at, _)| at)) {
        Some(at) => text.get(..at).unwrap_or_default().to_owned().into(),
        None => text,
    }
}

/// A client cannot write lines of its own.
fn escape(line: &mut String, text: &str) {
    for next in text.chars() {
        match next {
            next if next.is_control() => line.extend(next.escape_default()),
            next => line.push(next),
        }
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for next in text.chars() {
        match next {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            next if next.is_control() => {
                // Writing to a text cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(next));
            }
            next => quoted.push(next),
        }
    }
    quoted.push('"');
    quoted
}

/// Istio's (contract 9.4).
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
                    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
                    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
                    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
                    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
                    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
                    %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The same as JSON.
const JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];
