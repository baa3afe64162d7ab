//! A document as a tree in which every value and key knows its place.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A line and a column, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub line: u32,
    pub column: u32,
}

impl Place {
    /// Moves a place from a part of a text to the text: the part starts after `lines` lines.
    pub fn below(self, lines: u32) -> Self {
        Self { line: self.line.saturating_add(lines), ..self }
    }
}

/// A value and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub at: Place,
    pub value: Value,
}

/// A value as YAML or JSON has them.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Large(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One entry of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: String,
    pub at: Place,
    pub node: Node,
}

impl Node {
    /// The value under a key of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The value at the end of a path of keys.
    pub fn at_path(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The entries of a map; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none for anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether there is nothing here.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// Whether a map in it has a key twice.
    pub fn repeats_a_key(&self) -> bool {
        let mut keys: Vec<&str> = self.entries().iter().map(|entry| entry.key.as_str()).collect();
        keys.sort_unstable();
        keys.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
            || self.entries().iter().any(|entry| entry.node.repeats_a_key())
            || self.items().iter().any(Self::repeats_a_key)
    }

    /// It without its places.
    pub fn plain(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => (*value).into(),
            Value::Large(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::plain).collect(),
            Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), entry.node.plain())).collect(),
        }
    }

    /// Moves all places down by a number of lines.
    pub fn shift(&mut self, lines: u32) {
        self.at = self.at.below(lines);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.at = entry.at.below(lines);
                entry.node.shift(lines);
            }),
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Placed>::deserialize(deserializer)?;
        Ok(Self { at: place(spanned.referenced), value: spanned.value.0 })
    }
}

/// A tree from JSON, where no place is known: everything is at the start.
pub(super) struct Unplaced(pub Node);

impl<'de> Deserialize<'de> for Unplaced {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(ValueVisitor::<Unplaced>(PhantomData))?;
        Ok(Self(Node { at: START, value }))
    }
}

const START: Place = Place { line: 1, column: 1 };

pub(super) fn place(location: serde_saphyr::Location) -> Place {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Place { line: number(location.line()), column: number(location.column()) }
}

/// A value whose parts know their places.
struct Placed(Value);

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor::<Node>(PhantomData)).map(Self)
    }
}

/// A node within a value, with or without its place, and the keys that go with it.
trait Part: DeserializeOwned {
    type Key: DeserializeOwned;

    fn node(self) -> Node;
    fn key(key: Self::Key) -> (String, Place);
}

impl Part for Node {
    // Keys are texts as they stand: `on` is no boolean there.
    type Key = Spanned<String>;

    fn node(self) -> Node {
        self
    }

    fn key(key: Spanned<String>) -> (String, Place) {
        (key.value, place(key.referenced))
    }
}

impl Part for Unplaced {
    type Key = String;

    fn node(self) -> Node {
        self.0
    }

    fn key(key: String) -> (String, Place) {
        (key, START)
    }
}

struct ValueVisitor<P>(PhantomData<P>);

impl<'de, P: Part> Visitor<'de> for ValueVisitor<P> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of YAML")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Large(value), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<P>()? {
            items.push(item.node());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<P::Key>()? {
            let (key, at) = P::key(key);
            entries.push(Entry { key, at, node: access.next_value::<P>()?.node() });
        }
        Ok(Value::Map(entries))
    }
}
