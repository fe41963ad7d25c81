//! Values with where they came from.

use std::collections::BTreeMap;

use super::ConfigError;

/// A value of the merged configuration.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) value: Value,
    origin: String,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(BTreeMap<String, Tree>),
    Array(Vec<Tree>),
    Scalar(toml::Value),
    /// From the environment or `--set`: has no type until a field asks for one.
    Text(String),
}

impl Tree {
    pub(super) fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
            ConfigError::ParseToml { origin: origin.to_owned(), detail: format!("line {line}: {}", error.message()) }
        })?;
        Ok(Self::from_toml(toml::Value::Table(table), origin))
    }

    pub(super) fn from_toml(value: toml::Value, origin: &str) -> Self {
        let value = match value {
            toml::Value::Table(table) => Value::Table(table.into_iter().map(|(k, v)| (k, Self::from_toml(v, origin))).collect()),
            toml::Value::Array(array) => Value::Array(array.into_iter().map(|v| Self::from_toml(v, origin)).collect()),
            scalar => Value::Scalar(scalar),
        };
        Self { value, origin: origin.to_owned() }
    }

    /// Puts text at `path`, making tables on the way; what stood there is replaced.
    pub(super) fn set(&mut self, path: &[String], text: &str, origin: &str) -> Result<(), ConfigError> {
        let mut at = self;
        for (depth, part) in path.iter().enumerate() {
            let Value::Table(table) = &mut at.value else {
                let key = path[..depth].join(".");
                let problem = format!("is a value and has no key {part:?}");
                return Err(ConfigError::Key { key, origin: origin.to_owned(), problem });
            };
            let empty = || Self { value: Value::Table(BTreeMap::new()), origin: origin.to_owned() };
            at = table.entry(part.clone()).or_insert_with(empty);
        }
        *at = Self { value: Value::Text(text.to_owned()), origin: origin.to_owned() };
        Ok(())
    }

    /// Where the deepest existing part of `path` came from.
    pub(super) fn origin(&self, path: &[String]) -> &str {
        let child = match (&self.value, path.split_first()) {
            (Value::Table(table), Some((first, rest))) => table.get(first).map(|child| child.origin(rest)),
            (Value::Array(array), Some((first, rest))) => {
                first.parse::<usize>().ok().and_then(|i| array.get(i)).map(|child| child.origin(rest))
            }
            _ => None,
        };
        child.unwrap_or(&self.origin)
    }
}
