//! Whether a text can be given to the engine, whose parser, analysis and evaluation call themselves for every level of an expression
//! and end the program when the stack is used up.
//!
//! A level is a bracket, or another operator, index or word in one expression: `((1))`, `- - 1`, `1 + 1 + 1`, `a[0][0]`. Those of an
//! expression are counted with those of the expressions around it. Commas, semicolons, colons of objects, and line ends between
//! statements begin anew, so long lists and objects, which genpolicy's data is made of, have few levels.

/// Brackets in brackets. genpolicy's data has about eight.
const MAX_DEPTH: usize = 16;
/// Brackets in what an array or set begins with, each of which the parser reads twice: it may be a comprehension.
const MAX_REPEATED: usize = 8;
/// Words and signs of an expression with those around it. genpolicy's longest lines have about forty.
const MAX_TOKENS: usize = 384;
/// Words that go on with the expression of the line before or after.
const JOINING: [&str; 6] = ["contains", "else", "if", "in", "not", "with"];

/// An open bracket, or the whole text.
struct Level {
    is_body: bool,
    /// Only its first term has come, and it is no parenthesis.
    is_repeated: bool,
    tokens: usize,
}

/// The line, counted from 1, at which the text has too many levels.
pub(super) fn too_deep(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut levels = vec![Level { is_body: true, is_repeated: false, tokens: 0 }];
    let (mut line, mut position) = (1, 0);
    // Whether the last token wants another one, and whether a line has ended since.
    let (mut is_open, mut is_new_line) = (false, false);
    while let Some(&byte) = bytes.get(position) {
        let start = position;
        position = end(bytes, start);
        let token = &text.get(start..position).unwrap_or("?");
        match byte {
            b'\n' => {
                line += 1;
                is_new_line = true;
                continue;
            }
            b'#' => continue,
            _ if byte.is_ascii_whitespace() => continue,
            _ => {}
        }
        let is_word = is_word(byte) || matches!(byte, b'"' | b'`');
        let is_joining = JOINING.contains(token) || (!is_word && !matches!(byte, b'{' | b'}' | b']' | b')'));
        let level = levels.last_mut()?;
        if is_new_line && !is_open && !is_joining && level.is_body {
            (level.tokens, level.is_repeated) = (0, false);
        }
        level.is_repeated &= is_word || matches!(byte, b'.' | b'(' | b'[' | b'{' | b')' | b']' | b'}');
        is_new_line = false;
        is_open = is_joining;
        match byte {
            b',' | b';' => level.tokens = 0,
            b':' if bytes.get(position) != Some(&b'=') => level.tokens = 0,
            b')' | b']' | b'}' => {
                // One too many is for the parser to tell.
                if levels.len() > 1 {
                    levels.pop();
                }
            }
            _ => level.tokens += 1,
        }
        if matches!(byte, b'(' | b'[' | b'{') {
            levels.push(Level { is_body: byte == b'{', is_repeated: byte != b'(', tokens: 0 });
        }
        let repeated = levels.iter().filter(|level| level.is_repeated).count();
        let tokens: usize = levels.iter().map(|level| level.tokens).sum();
        if levels.len() > MAX_DEPTH || repeated > MAX_REPEATED || tokens > MAX_TOKENS {
            return Some(line);
        }
        line += token.bytes().filter(|byte| *byte == b'\n').count();
    }
    None
}

/// Where the token, comment or space that begins there ends.
fn end(bytes: &[u8], start: usize) -> usize {
    let rest = &bytes[start..];
    let length = match rest[0] {
        b'#' => rest.iter().position(|byte| *byte == b'\n'),
        b'`' => rest[1..].iter().position(|byte| *byte == b'`').map(|length| length + 2),
        b'"' => {
            let mut is_escaped = false;
            let is_end = |byte: &u8| {
                let is_end = matches!(byte, b'"' | b'\n') && !is_escaped;
                is_escaped = *byte == b'\\' && !is_escaped;
                is_end
            };
            // A line's end ends it too: the parser refuses that, and must not be shown less than was counted.
            rest[1..].iter().position(is_end).map(|length| length + 1 + usize::from(rest[1 + length] == b'"'))
        }
        byte if is_word(byte) => rest.iter().position(|byte| !is_word(*byte)),
        _ => Some(1),
    };
    start + length.unwrap_or(rest.len())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_policies_are_shallow() {
        for text in [include_str!("built_in_default.rego"), include_str!("strict_default.rego"), include_str!("tests/sample.rego")] {
            assert_eq!(too_deep(text), None);
        }
        let list = format!("A := [{}]", "{\"a\": [1, -1], \"b\": \"((((\\\"((\"},\n".repeat(10_000));
        assert_eq!(too_deep(&list), None);
        assert_eq!(too_deep(&"A if {\n\tx := f(input.a[0])\n\tx == `\n((\n`\n}\n# ((\n".repeat(1000)), None);
        assert_eq!(too_deep("]]}}))\"\\"), None);
    }

    #[test]
    fn deep_expressions_are_found_at_their_line() {
        for (text, line) in [
            (format!("a\n{}", "[".repeat(100)), 2),
            (format!("`\n\n`\n\n{}", "({".repeat(100)), 5),
            (format!("a\n{}1", "-".repeat(1000)), 2),
            (format!("a := 1{}", "+1".repeat(1000)), 1),
            (format!("a := b{}", "[0]".repeat(1000)), 1),
            (format!("a := b{}", ".a".repeat(1000)), 1),
            (format!("a := [{}]", "b\n".repeat(1000)), 384),
            (format!("a := {{1}}{}", "\n|{1}".repeat(1000)), 128),
        ] {
            let found = too_deep(&text).unwrap();
            assert!(found.abs_diff(line) < 80, "{found} instead of {line} in {}", &text[..20]);
        }
        assert!(too_deep(&"[".repeat(9)).is_some() && too_deep(&"[1, ".repeat(9)).is_none());
        for joined in ["+\n1", "\n+ 1", "in\nb ", "\nin b", "\n.a", "\n[0]", "\n# comment\n.a", ":=\nb"] {
            assert!(too_deep(&format!("a := 1 {}", joined.repeat(1000))).is_some(), "{joined:?}");
        }
    }
}
