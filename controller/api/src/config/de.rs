//! A deserialiser that knows the path it is at, and reads text as whatever type a field asks for.

use serde::de::value::StringDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::tree::{Tree, Value};

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: Vec<String>,
    pub(super) problem: String,
}

impl Fault {
    pub(super) fn key(&self) -> String {
        if self.path.is_empty() { "configuration".to_owned() } else { self.path.join(".") }
    }

    fn under(mut self, part: &str) -> Self {
        self.path.insert(0, part.to_owned());
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key(), self.problem)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: std::fmt::Display>(problem: T) -> Self {
        Self { path: Vec::new(), problem: problem.to_string() }
    }

    fn unknown_field(_field: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("unknown key; allowed here: {}", expected.join(", ")))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("{variant:?} is not allowed; allowed: {}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { path: vec![field.to_owned()], problem: "is required and missing".to_owned() }
    }
}

pub(super) fn from_tree<T: DeserializeOwned>(tree: &Tree) -> Result<T, Fault> {
    T::deserialize(At(tree))
}

struct At<'a>(&'a Tree);

impl At<'_> {
    /// Text as an inline TOML value of a kind; `None` when this is not text.
    fn text_as(&self, wanted: &str, is_wanted: fn(&toml::Value) -> bool) -> Option<Result<Tree, Fault>> {
        let Value::Text(text) = &self.0.value else { return None };
        let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok().filter(|table| table.len() == 1);
        let value = parsed.and_then(|mut table| table.remove("value")).filter(is_wanted);
        Some(match value {
            Some(value) => Ok(Tree::from_toml(value, self.0.origin(&[]))),
            None => Err(de::Error::custom(format!("is not {wanted}"))),
        })
    }
}

macro_rules! typed_text {
    ($($method:ident, $wanted:literal, $is_wanted:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.text_as($wanted, $is_wanted) {
                Some(tree) => At(&tree?).deserialize_any(visitor),
                None => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Table(table) => visitor.visit_map(Table { entries: table.iter(), next: None }),
            Value::Array(array) => visitor.visit_seq(Array { entries: array.iter().enumerate() }),
            Value::Text(text) => visitor.visit_str(text),
            Value::Scalar(toml::Value::String(text)) => visitor.visit_str(text),
            Value::Scalar(toml::Value::Integer(number)) => visitor.visit_i64(*number),
            Value::Scalar(toml::Value::Float(number)) => visitor.visit_f64(*number),
            Value::Scalar(toml::Value::Boolean(is_true)) => visitor.visit_bool(*is_true),
            Value::Scalar(other) => Err(de::Error::custom(format!("a {} is not allowed here", other.type_str()))),
        }
    }

    typed_text! {
        deserialize_bool, "true or false", toml::Value::is_bool;
        deserialize_i8, "a whole number", toml::Value::is_integer;
        deserialize_i16, "a whole number", toml::Value::is_integer;
        deserialize_i32, "a whole number", toml::Value::is_integer;
        deserialize_i64, "a whole number", toml::Value::is_integer;
        deserialize_u8, "a whole number", toml::Value::is_integer;
        deserialize_u16, "a whole number", toml::Value::is_integer;
        deserialize_u32, "a whole number", toml::Value::is_integer;
        deserialize_u64, "a whole number", toml::Value::is_integer;
        deserialize_f32, "a number", |v| v.is_float() || v.is_integer();
        deserialize_f64, "a number", |v| v.is_float() || v.is_integer();
        deserialize_seq, "a list like [\"a\", \"b\"]", toml::Value::is_array;
        deserialize_map, "a table like { a = 1 }", toml::Value::is_table;
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, variants: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        let (Value::Text(text) | Value::Scalar(toml::Value::String(text))) = &self.0.value else {
            return Err(de::Error::custom(format!("must be one of: {}", variants.join(", "))));
        };
        visitor.visit_enum(text.as_str().into_deserializer())
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Table<'a> {
    entries: std::collections::btree_map::Iter<'a, String, Tree>,
    next: Option<(&'a str, &'a Tree)>,
}

impl<'de> MapAccess<'de> for Table<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, tree)) = self.entries.next() else { return Ok(None) };
        self.next = Some((key, tree));
        let text: StringDeserializer<Fault> = key.clone().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|fault| fault.under(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, tree) = self.next.take().ok_or_else(|| <Fault as de::Error>::custom("a value was read before its key"))?;
        seed.deserialize(At(tree)).map_err(|fault| fault.under(key))
    }
}

struct Array<'a> {
    entries: std::iter::Enumerate<std::slice::Iter<'a, Tree>>,
}

impl<'de> SeqAccess<'de> for Array<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, tree)) = self.entries.next() else { return Ok(None) };
        seed.deserialize(At(tree)).map(Some).map_err(|fault| fault.under(&index.to_string()))
    }
}
