//! Conditions and values in the part of CEL that users of access logs and metrics write. Bounded: a text is at most
//! [`LONGEST`] bytes, nests at most 32 deep, and takes time in proportion to its length.
//!
//! What is absent makes a comparison neither true nor false, as in CEL: a condition that comes out so does not hold.

use std::borrow::Cow;
use std::fmt;

use regex::Regex;
use serde::{Serialize, Serializer};

use super::Wanted;
use super::facts::{Facts, Field, Value};
use super::parse;
use crate::model::Str;

/// Longest text that is read, bytes.
pub(super) const LONGEST: usize = 4096;

/// An expression, read. Two are equal if they are written alike.
#[derive(Clone)]
pub struct Expression {
    text: Str,
    root: Node,
}

/// One node of it.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Bool(bool),
    Number(f64),
    Text(Str),
    /// Microseconds.
    Duration(i64),
    List(Vec<Node>),
    Attribute(Attribute),
    Not(Box<Node>),
    Minus(Box<Node>),
    Has(Attribute),
    Both(Box<Node>, Box<Node>),
    Either(Box<Node>, Box<Node>),
    Compared(Box<Node>, Comparison, Box<Node>),
    In(Box<Node>, Box<Node>),
    Joined(Box<Node>, Box<Node>),
    Chosen(Box<Node>, Box<Node>, Box<Node>),
    Called(Box<Node>, Method, Box<Node>),
    Matches(Box<Node>, Regex),
    Size(Box<Node>),
    AsText(Box<Node>),
    AsNumber(Box<Node>),
}

/// Something that is known of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Attribute {
    Field(Field),
    Request(Str),
    Response(Str),
    /// All headers, of the request or of the response: to ask whether one is there.
    Headers {
        of_request: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    StartsWith,
    EndsWith,
    Contains,
}

impl Expression {
    /// Reads one. `Err` says what is not CEL, or not supported of it, and where.
    pub fn read(text: &str) -> Result<Self, String> {
        Ok(Self { root: parse::read(text)?, text: text.into() })
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it holds.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        matches!(value(&self.root, facts), Value::Bool(true))
    }

    /// What it comes to, as text; `None` where something that it needs is absent.
    pub fn text<'a>(&'a self, facts: &'a Facts<'_>) -> Option<Cow<'a, str>> {
        match value(&self.root, facts) {
            Value::Text(text) => Some(text),
            other => other.text().map(|text| text.into_owned().into()),
        }
    }

    /// Which headers it reads.
    pub fn wants(&self, wanted: &mut Wanted) {
        wants(&self.root, wanted);
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.text)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

fn value<'a>(node: &'a Node, facts: &'a Facts<'_>) -> Value<'a> {
    match node {
        Node::Bool(one) => Value::Bool(*one),
        Node::Number(one) => Value::Number(*one),
        Node::Text(text) => Value::from(&**text),
        Node::Duration(micros) => Value::Duration(*micros),
        Node::List(_) => Value::Absent,
        Node::Attribute(attribute) => of(attribute, facts),
        Node::Has(attribute) => Value::Bool(of(attribute, facts) != Value::Absent),
        Node::Not(inner) => match value(inner, facts) {
            Value::Bool(one) => Value::Bool(!one),
            _ => Value::Absent,
        },
        Node::Minus(inner) => match value(inner, facts) {
            Value::Number(one) => Value::Number(-one),
            Value::Duration(micros) => Value::Duration(micros.saturating_neg()),
            _ => Value::Absent,
        },
        Node::Both(one, other) => decided(one, other, facts, false),
        Node::Either(one, other) => decided(one, other, facts, true),
        Node::Compared(one, comparison, other) => {
            compared(&value(one, facts), *comparison, &value(other, facts)).map_or(Value::Absent, Value::Bool)
        }
        Node::In(one, all) => is_in(one, all, facts).map_or(Value::Absent, Value::Bool),
        Node::Joined(one, other) => match (value(one, facts), value(other, facts)) {
            (Value::Text(one), Value::Text(other)) => Value::Text(format!("{one}{other}").into()),
            (Value::Number(one), Value::Number(other)) => Value::Number(one + other),
            _ => Value::Absent,
        },
        Node::Chosen(condition, yes, no) => match value(condition, facts) {
            Value::Bool(true) => value(yes, facts),
            Value::Bool(false) => value(no, facts),
            _ => Value::Absent,
        },
        Node::Called(one, method, other) => match (value(one, facts), value(other, facts)) {
            (Value::Text(one), Value::Text(other)) => Value::Bool(match method {
                Method::StartsWith => one.starts_with(&*other),
                Method::EndsWith => one.ends_with(&*other),
                Method::Contains => one.contains(&*other),
            }),
            _ => Value::Absent,
        },
        Node::Matches(one, regex) => match value(one, facts) {
            Value::Text(text) => Value::Bool(regex.is_match(&text)),
            _ => Value::Absent,
        },
        Node::Size(one) => match value(one, facts) {
            Value::Text(text) => Value::Number(text.chars().count() as f64),
            _ => Value::Absent,
        },
        Node::AsText(one) => match value(one, facts) {
            Value::Text(text) => Value::Text(text),
            other => other.text().map_or(Value::Absent, |text| Value::Text(text.into_owned().into())),
        },
        Node::AsNumber(one) => match value(one, facts) {
            Value::Number(number) => Value::Number(number.trunc()),
            Value::Text(text) => {
                text.trim().parse::<i64>().map_or(Value::Absent, |number| Value::Number(number as f64))
            }
            _ => Value::Absent,
        },
    }
}

/// `&&` and `||`: one side is enough for `wins`, whatever the other is (CEL, «logical operators»).
fn decided<'a>(one: &'a Node, other: &'a Node, facts: &'a Facts<'_>, wins: bool) -> Value<'a> {
    match value(one, facts) {
        Value::Bool(first) if first == wins => Value::Bool(wins),
        Value::Bool(_) => match value(other, facts) {
            Value::Bool(second) => Value::Bool(second),
            _ => Value::Absent,
        },
        _ => match value(other, facts) {
            Value::Bool(second) if second == wins => Value::Bool(wins),
            _ => Value::Absent,
        },
    }
}

fn compared(one: &Value<'_>, comparison: Comparison, other: &Value<'_>) -> Option<bool> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.partial_cmp(other)?,
        (Value::Text(one), Value::Text(other)) => one.cmp(other),
        (Value::Duration(one), Value::Duration(other)) => one.cmp(other),
        (Value::Bool(one), Value::Bool(other)) if matches!(comparison, Comparison::Equal | Comparison::Unequal) => {
            one.cmp(other)
        }
        _ => return None,
    };
    Some(match comparison {
        Comparison::Equal => order == Equal,
        Comparison::Unequal => order != Equal,
        Comparison::Less => order == Less,
        Comparison::AtMost => order != Greater,
        Comparison::More => order == Greater,
        Comparison::AtLeast => order != Less,
    })
}

fn is_in(one: &Node, all: &Node, facts: &Facts<'_>) -> Option<bool> {
    let one = value(one, facts);
    match all {
        Node::List(items) => {
            if one == Value::Absent {
                return None;
            }
            Some(items.iter().any(|item| compared(&one, Comparison::Equal, &value(item, facts)) == Some(true)))
        }
        Node::Attribute(Attribute::Headers { of_request }) => match one {
            Value::Text(name) => Some(match of_request {
                true => facts.request_header(&name.to_ascii_lowercase()).is_some(),
                false => facts.response_header(&name.to_ascii_lowercase()).is_some(),
            }),
            _ => None,
        },
        _ => None,
    }
}

fn of<'a>(attribute: &'a Attribute, facts: &'a Facts<'_>) -> Value<'a> {
    match attribute {
        Attribute::Field(field) => facts.field(*field),
        Attribute::Request(name) => facts.request_header(name).map_or(Value::Absent, Value::from),
        Attribute::Response(name) => facts.response_header(name).map_or(Value::Absent, Value::Text),
        Attribute::Headers { .. } => Value::Absent,
    }
}

fn wants(node: &Node, wanted: &mut Wanted) {
    let mut of = |attribute: &Attribute| match attribute {
        Attribute::Request(name) => drop(wanted.request.insert(name.clone())),
        Attribute::Response(name) => drop(wanted.response.insert(name.clone())),
        Attribute::Field(Field::UserAgent) => drop(wanted.request.insert("user-agent".into())),
        Attribute::Field(Field::Referer) => drop(wanted.request.insert("referer".into())),
        Attribute::Field(_) | Attribute::Headers { .. } => {}
    };
    match node {
        Node::Attribute(attribute) | Node::Has(attribute) => of(attribute),
        Node::Bool(_) | Node::Number(_) | Node::Text(_) | Node::Duration(_) => {}
        Node::List(items) => items.iter().for_each(|item| wants(item, wanted)),
        Node::In(one, all) => {
            if let (Node::Text(name), Node::Attribute(Attribute::Headers { of_request })) = (&**one, &**all) {
                let name = Str::from(name.to_ascii_lowercase());
                if *of_request { &mut wanted.request } else { &mut wanted.response }.insert(name);
            }
            wants(one, wanted);
            wants(all, wanted);
        }
        Node::Not(one) | Node::Minus(one) | Node::Size(one) | Node::AsText(one) | Node::AsNumber(one) => {
            wants(one, wanted);
        }
        Node::Matches(one, _) => wants(one, wanted),
        Node::Both(one, other)
        | Node::Either(one, other)
        | Node::Compared(one, _, other)
        | Node::Joined(one, other)
        | Node::Called(one, _, other) => {
            wants(one, wanted);
            wants(other, wanted);
        }
        Node::Chosen(condition, yes, no) => {
            [condition, yes, no].into_iter().for_each(|node| wants(node, wanted));
        }
    }
}
