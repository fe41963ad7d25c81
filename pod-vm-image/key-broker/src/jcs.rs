//! Canonical JSON (RFC 8785), as far as the protocol needs it: no fractions.
//!
//! Numbers are left out beyond integers since their canonical form is that of ECMAScript's doubles, and nothing that evidence is
//! bound to holds one.

use serde_json::{Number, Value};

/// Largest integer that every JSON reader keeps exact: 2^53 - 1.
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// Why a value has no canonical form here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no integer that every JSON reader keeps exact")]
pub struct JcsError(String);

/// Writes a value without white space, with the members of every object sorted by their names' UTF-16 code units.
pub fn to_string(value: &Value) -> Result<String, JcsError> {
    let mut text = String::new();
    write(value, &mut text)?;
    Ok(text)
}

fn write(value: &Value, text: &mut String) -> Result<(), JcsError> {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&integer(number)?),
        Value::String(value) => write_string(value, text),
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write(value, text)?;
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            text.push('{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_string(name, text);
                text.push(':');
                write(value, text)?;
            }
            text.push('}');
        }
    }
    Ok(())
}

fn integer(number: &Number) -> Result<String, JcsError> {
    let safe = number.as_i64().filter(|value| (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(value));
    safe.map(|value| value.to_string()).ok_or_else(|| JcsError(number.to_string()))
}

/// Section 3.2.2.2: short escapes where there are such, lower-case `\u` for the other controls, everything else as it is.
fn write_string(value: &str, text: &mut String) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c < '\u{20}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_are_sorted_as_in_the_specification() {
        // RFC 8785 section 3.2.3; U+1F600 sorts before U+FB33 by UTF-16, after it by code point.
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh", "1": "One",
            "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis",
        });
        let expected = "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\"\u{f6}\":\"Latin Small Letter O With Diaeresis\",\
                        \"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}";
        assert_eq!(to_string(&value).unwrap(), expected);
    }

    #[test]
    fn strings_and_literals_are_written_as_in_the_specification() {
        // RFC 8785 section 3.2.2.
        let value = json!({ "string": "\u{20ac}$\u{f}\nA'\u{42}\u{22}\u{5c}\\\"/", "literals": [null, true, false], "n": -7 });
        assert_eq!(
            to_string(&value).unwrap(),
            "{\"literals\":[null,true,false],\"n\":-7,\"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
    }

    #[test]
    fn numbers_without_one_form_are_refused() {
        for value in [json!(1.5), json!(1e30), json!(9_007_199_254_740_992_i64), json!(u64::MAX)] {
            assert!(to_string(&value).is_err(), "{value}");
        }
        assert_eq!(to_string(&json!(9_007_199_254_740_991_i64)).unwrap(), "9007199254740991");
    }
}
