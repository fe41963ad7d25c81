//! A configuration's reference as Markdown, from the types that read it: keys, what they may be, defaults, and their documentation.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::Configuration;

/// All keys of a configuration, one table for each of its tables.
pub fn reference<T: Configuration>() -> String {
    let root = schemars::schema_for!(T).to_value();
    let mut text = String::new();
    let mut open = vec![(String::new(), root.clone())];
    while let Some((name, schema)) = open.pop() {
        let inner = table(&mut text, &name, &schema, &root);
        open.extend(inner.into_iter().rev());
    }
    text
}

/// Writes one table, and gives those that are in it.
fn table(text: &mut String, name: &str, schema: &Value, root: &Value) -> Vec<(String, Value)> {
    let mut inner = Vec::new();
    if !name.is_empty() {
        let _ = write!(text, "\n## `[{name}]`\n\n{}\n", description(schema));
    }
    let _ = write!(text, "\n| key | may be | default | is |\n|---|---|---|---|\n");
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let meant = resolve(property, root);
        let path = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        if meant["properties"].is_object() {
            inner.push((path, meant));
            continue;
        }
        if meant["additionalProperties"].is_object() && resolve(&meant["additionalProperties"], root)["properties"].is_object() {
            inner.push((format!("{path}.NAME"), resolve(&meant["additionalProperties"], root)));
            continue;
        }
        let default = match property.get("default") {
            Some(Value::Null) | None if required.contains(&key.as_str()) => "required".to_owned(),
            Some(Value::Null) | None => "none".to_owned(),
            Some(value) => format!("`{value}`"),
        };
        // What a key is for stands at the key; what its values mean stands at their type.
        let is = if description(property).is_empty() { description(&meant) } else { description(property) };
        let _ = writeln!(text, "| `{key}` | {} | {default} | {is} |", kind(&meant, root));
    }
    inner
}

/// What a reference, or the part of a choice that is not null, refers to.
fn resolve(schema: &Value, root: &Value) -> Value {
    if let Some(path) = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return resolve(root.pointer(path).unwrap_or(&Value::Null), root);
    }
    let choice = schema["anyOf"].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null"));
    choice.map_or_else(|| schema.clone(), |one| resolve(one, root))
}

fn description(schema: &Value) -> String {
    // The code's word for a key that is not there.
    schema["description"].as_str().unwrap_or_default().replace(['\n', '\r'], " ").replace('|', "\\|").replace("`None`", "left out")
}

/// What a value may be, in words.
fn kind(schema: &Value, root: &Value) -> String {
    let words: Vec<String> =
        schema["oneOf"].as_array().into_iter().flatten().filter_map(|one| Some(format!("`{}`", one["const"].as_str()?))).collect();
    if !words.is_empty() {
        return words.join(", ");
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(|word| format!("`{}`", word.as_str().unwrap_or_default())).collect::<Vec<_>>().join(", ");
    }
    let is = |name: &str| schema["type"] == name || schema["type"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let empty = Map::new();
    let fields = schema.as_object().unwrap_or(&empty);
    match () {
        () if is("array") => format!("list of {}", kind(&resolve(&schema["items"], root), root)),
        () if is("object") => "table of text".to_owned(),
        () if is("boolean") => "true, false".to_owned(),
        () if is("integer") || is("number") => "number".to_owned(),
        () if fields.contains_key("writeOnly") => "text, never shown".to_owned(),
        () => "text".to_owned(),
    }
}
