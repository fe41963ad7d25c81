//! As much of YAML as registries.d files have: maps of maps of strings, by indentation. Anything else is an error with its line.
//!
//! Deliberately no YAML library: anchors, tags, types that are guessed and documents in documents have no place in what decides about
//! signatures.

use serde_json::{Map, Value};

struct Line<'a> {
    number: usize,
    indent: usize,
    key: String,
    /// Empty when a map or nothing follows.
    value: &'a str,
}

/// The document as JSON. Keys without a value are null.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') || (content == "---" && lines.is_empty()) {
            continue;
        }
        let number = index + 1;
        lines.push(read(line, number).map_err(|reason| format!("line {number}: {reason}"))?);
    }
    let mut rest = lines.as_slice();
    let value = map(&mut rest, lines.first().map_or(0, |line| line.indent))?;
    match rest.first() {
        None => Ok(value),
        Some(line) => Err(format!("line {}: it is indented less than the first", line.number)),
    }
}

fn map(lines: &mut &[Line<'_>], indent: usize) -> Result<Value, String> {
    let mut map = Map::new();
    while let Some((line, after)) = lines.split_first() {
        let fail = |reason: &str| Err(format!("line {}: {reason}", line.number));
        if line.indent < indent {
            break;
        }
        if line.indent > indent {
            return fail("it is indented more than the one before");
        }
        *lines = after;
        let deeper = lines.first().map(|next| next.indent).filter(|next| *next > indent);
        let value = match (line.value, deeper) {
            ("", Some(deeper)) => self::map(lines, deeper)?,
            ("" | "{}", None) => Value::Null,
            (_, Some(_)) => return fail("it has a value, and more below it"),
            (value, None) => Value::String(scalar(value).map_err(|reason| format!("line {}: {reason}", line.number))?),
        };
        if map.insert(line.key.clone(), value).is_some() {
            return fail("this key is there twice");
        }
    }
    Ok(Value::Object(map))
}

fn read(line: &str, number: usize) -> Result<Line<'_>, String> {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let content = line[indent..].trim_end();
    if content.starts_with('\t') {
        return Err("it is indented with a tab".to_owned());
    }
    let (key, value) = match content.starts_with(['"', '\'']) {
        true => {
            let end = content[1..].find(&content[..1]).ok_or("its quote does not end")? + 2;
            let (key, after) = content.split_at(end);
            (key, after.trim_start().strip_prefix(':').ok_or("no colon after its key")?)
        }
        false => match content.split_once(": ") {
            Some(pair) => pair,
            None => (without_comment(content).strip_suffix(':').ok_or("it is not `key: value` or `key:`")?, ""),
        },
    };
    Ok(Line { number, indent, key: scalar(key.trim_end())?, value: without_comment(value.trim()) })
}

fn without_comment(text: &str) -> &str {
    if text.starts_with('#') {
        return "";
    }
    if text.starts_with(['"', '\'']) {
        let end = text[1..].find(&text[..1]).map_or(text.len(), |end| end + 2);
        return if text[end..].trim_start().starts_with('#') { &text[..end] } else { text };
    }
    text.split_once(" #").map_or(text, |(before, _)| before).trim_end()
}

fn scalar(text: &str) -> Result<String, String> {
    let Some(quote) = text.chars().next().filter(|first| matches!(first, '"' | '\'')) else {
        return match text.starts_with(['[', '{', '&', '*', '!', '|', '>', '%', '@', '`', '?', '-', ',']) {
            true => Err(format!("{text:?} is more of YAML than is read here")),
            false => Ok(text.to_owned()),
        };
    };
    let inner = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)).filter(|inner| !inner.contains([quote, '\\']));
    inner.map(str::to_owned).ok_or_else(|| format!("{text} has a quote or a backslash inside, which is not read here"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn registries_d_file_is_read() {
        let text = "---\n# everything\ndefault-docker:\n  lookaside: \"https://sig.example/all\" # here\n\ndocker:\n    localhost:5000:\n      sigstore: http://localhost:9999\n    'r.example/team':   # ours\n      lookaside: https://sig.example/team#x\n    empty.example:\n";
        let expected = json!({
            "default-docker": {"lookaside": "https://sig.example/all"},
            "docker": {
                "localhost:5000": {"sigstore": "http://localhost:9999"},
                "r.example/team": {"lookaside": "https://sig.example/team#x"},
                "empty.example": null,
            },
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), json!({}));
        assert_eq!(parse("docker: {}\n").unwrap(), json!({"docker": null}));
    }

    #[test]
    fn the_rest_of_yaml_is_refused_by_line() {
        for (text, line) in [
            ("a: b\n  c: d\n", 1),
            ("a:\n  b: c\n d: e\n", 3),
            ("  a:\n b:\n", 2),
            ("a: [b]\n", 1),
            ("a: &x b\n", 1),
            ("a:\n  - b\n", 2),
            ("a: |\n", 1),
            ("a: b\na: c\n", 2),
            ("\ta: b\n", 1),
            ("just words\n", 1),
            ("'a: b\n", 1),
            ("a: \"b\\n\"\n", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}: ")), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[ a:#'\"{}\n\t\\-é]{0,60}") {
            let _ = parse(&text);
        }
    }
}
