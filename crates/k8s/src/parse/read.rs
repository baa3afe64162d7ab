//! Reading typed values from a tree: a serde deserializer whose errors know their place and path, and which remembers
//! the fields that the types do not have.

use std::cell::RefCell;
use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::node::{Entry, Node, Place, Value};

/// A field that the type does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub at: Place,
    pub path: String,
    pub name: String,
    pub accepted: &'static [&'static str],
}

/// Why a tree is not a value of the type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub at: Option<Place>,
    pub path: String,
    pub message: String,
    pub hint: String,
}

/// Reads a value and tells which fields had no place in it. `skip` names top-level fields that are known otherwise.
pub(super) fn typed<T: DeserializeOwned>(
    node: &Node,
    skip: &'static [&'static str],
) -> Result<(T, Vec<Unknown>), Mismatch> {
    let unknown = RefCell::new(Vec::new());
    let reader = Reader { node, path: &Path::Root, unknown: &unknown, field: None, skip };
    let value = T::deserialize(reader).map_err(|error| error.placed(node.at, &Path::Root))?;
    Ok((value, unknown.into_inner()))
}

/// The way from the document's root to a value.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) if plain(name) => write!(f, "{parent}.{name}"),
            Self::Field(parent, name) => write!(f, "{parent}[{name:?}]"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

fn plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

struct Reader<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<Unknown>>,
    /// The key that led here, and the fields of the struct that was being read.
    field: Option<(&'a Entry, &'static [&'static str])>,
    skip: &'static [&'static str],
}

impl<'a> Reader<'a> {
    fn child(&self, node: &'a Node, path: &'a Path<'a>) -> Reader<'a> {
        Reader { node, path, unknown: self.unknown, field: None, skip: &[] }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V, fields: &'static [&'static str]) -> Result<V::Value, Mismatch> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Large(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { reader: &self, items: items.iter(), index: 0 }),
            Value::Map(entries) => {
                visitor.visit_map(Entries { reader: &self, entries: entries.iter(), current: None, fields })
            }
        };
        result.map_err(|error| error.placed(self.node.at, self.path))
    }
}

macro_rules! as_any {
    ($($method:ident),+ $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            self.visit(visitor, &[])
        })+
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Mismatch;

    as_any! {
        deserialize_any, deserialize_bool, deserialize_i8, deserialize_i16, deserialize_i32, deserialize_i64,
        deserialize_u8, deserialize_u16, deserialize_u32, deserialize_u64, deserialize_f32, deserialize_f64,
        deserialize_char, deserialize_str, deserialize_string, deserialize_bytes, deserialize_byte_buf,
        deserialize_unit, deserialize_seq, deserialize_map, deserialize_identifier,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mismatch> {
        self.visit(visitor, &[])
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Mismatch> {
        // Quantities may be written as numbers.
        let number = match (name, &self.node.value) {
            ("Quantity", Value::Integer(number)) => Some(number.to_string()),
            ("Quantity", Value::Float(number)) => Some(number.to_string()),
            _ => None,
        };
        match number {
            Some(text) => {
                let text: StrDeserializer<'_, Mismatch> = text.as_str().into_deserializer();
                visitor.visit_newtype_struct(text)
            }
            None => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.visit(visitor, &[])
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.visit(visitor, &[])
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.visit(visitor, fields)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let (at, path) = (self.node.at, self.path);
        match &self.node.value {
            Value::Text(text) => visitor.visit_enum(Variant(text)).map_err(|error| error.placed(at, path)),
            other => Err(Mismatch {
                at: Some(at),
                path: path.to_string(),
                message: format!("wrong type: {}", shown(&unexpected(other))),
                hint: format!("one of {} is accepted", variants.join(", ")),
            }),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if let Some((entry, accepted)) = self.field
            && !self.skip.contains(&entry.key.as_str())
        {
            let path = self.path.to_string();
            self.unknown.borrow_mut().push(Unknown { at: entry.at, path, name: entry.key.clone(), accepted });
        }
        visitor.visit_unit()
    }
}

struct Items<'a, 'b> {
    reader: &'b Reader<'a>,
    items: std::slice::Iter<'a, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.reader.path, self.index);
        self.index += 1;
        seed.deserialize(self.reader.child(node, &path)).map(Some).map_err(|error| error.placed(node.at, &path))
    }
}

struct Entries<'a, 'b> {
    reader: &'b Reader<'a>,
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
    fields: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        // Of a struct, a field without a value is as good as absent; of a map it is not.
        let entry = match self.fields {
            [] => self.entries.next(),
            _ => self.entries.by_ref().find(|entry| !entry.node.is_null()),
        };
        let Some(entry) = entry else { return Ok(None) };
        self.current = Some(entry);
        let path = Path::Field(self.reader.path, &entry.key);
        let key: StrDeserializer<'_, Mismatch> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.placed(entry.at, &path))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some(entry) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Field(self.reader.path, &entry.key);
        let mut reader = self.reader.child(&entry.node, &path);
        reader.field = (!self.fields.is_empty()).then_some((entry, self.fields));
        reader.skip = self.reader.skip;
        seed.deserialize(reader).map_err(|error| error.placed(entry.node.at, &path))
    }
}

struct Variant<'a>(&'a str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Mismatch;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mismatch> {
        let name: StrDeserializer<'_, Mismatch> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Mismatch> {
        Err(de::Error::custom("a word alone is not accepted"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("a word alone is not accepted"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Mismatch> {
        Err(de::Error::custom("a word alone is not accepted"))
    }
}

impl Mismatch {
    fn new(message: String, hint: String) -> Self {
        Self { at: None, path: String::new(), message, hint }
    }

    /// Says where it happened, unless something further inside has said so.
    fn placed(mut self, at: Place, path: &Path<'_>) -> Self {
        if self.at.is_none() {
            self.at = Some(at);
            self.path = path.to_string();
        }
        self
    }
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.message, self.hint)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(message.to_string(), String::new())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expectation(&expected.to_string());
        let remedy = match (found, expected.as_str()) {
            (
                Unexpected::Signed(_) | Unexpected::Unsigned(_) | Unexpected::Float(_) | Unexpected::Bool(_),
                "a text",
            ) => ": put it in quotes",
            (Unexpected::Str(text), "a whole number") if text.parse::<i64>().is_ok() => ": remove the quotes",
            (Unexpected::Str("true" | "false"), "true or false") => ": remove the quotes",
            _ => "",
        };
        Self::new(format!("wrong type: {}", shown(&found)), format!("{expected} is accepted{remedy}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expectation(&expected.to_string());
        Self::new(format!("impossible value: {}", shown(&found)), format!("{expected} is accepted"))
    }

    fn unknown_variant(variant: &str, accepted: &'static [&'static str]) -> Self {
        Self::new(format!("unknown value {variant:?}"), format!("one of {} is accepted", accepted.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("{field} is missing"), String::new())
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Integer(value) => Unexpected::Signed(*value),
        Value::Large(value) => Unexpected::Unsigned(*value),
        Value::Float(value) => Unexpected::Float(*value),
        Value::Text(text) => Unexpected::Str(text),
        Value::List(_) => Unexpected::Seq,
        Value::Map(_) => Unexpected::Map,
    }
}

/// What was found, in a manifest writer's words.
fn shown(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(text) if text.chars().count() > 60 => {
            format!("the text {:?}…", text.chars().take(60).collect::<String>())
        }
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

/// What was expected, in a manifest writer's words.
fn expectation(text: &str) -> String {
    match text {
        "a string" | "string" | "str" => "a text",
        "a boolean" | "bool" => "true or false",
        "i32" | "i64" | "u32" | "u16" | "a 32-bit integer" => "a whole number",
        "IntOrString" => "a number or a name",
        "a sequence" | "sequence" => "a list",
        "a map" | "map" => "a map",
        other if other.starts_with("struct ") || other.chars().next().is_some_and(char::is_uppercase) => "a map",
        other => return other.to_owned(),
    }
    .to_owned()
}
