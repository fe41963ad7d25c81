//! `$(NAME)` in commands, arguments and environment variables, as the kubelet expands it.

/// Part of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Known to the letter.
    Text(String),
    /// Known by its form: a regular expression without anchors.
    Pattern(String),
}

/// Expands a text. `value` gives a variable's value; a name that it does not know stays as it is written.
pub(crate) fn expand(text: &str, value: impl Fn(&str) -> Option<Vec<Part>>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        push(&mut parts, &rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            push(&mut parts, "$");
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|after| after.split_once(')')) {
            match value(name) {
                Some(known) => known.into_iter().for_each(|part| match part {
                    Part::Text(text) => push(&mut parts, &text),
                    pattern @ Part::Pattern(_) => parts.push(pattern),
                }),
                None => push(&mut parts, &format!("$({name})")),
            }
            rest = after;
        } else {
            push(&mut parts, "$");
            rest = after;
        }
    }
    push(&mut parts, rest);
    parts
}

/// The text of parts that are all known.
pub(crate) fn text(parts: &[Part]) -> Option<String> {
    parts.iter().map(|part| if let Part::Text(text) = part { Some(text.as_str()) } else { None }).collect()
}

/// A regular expression without anchors for parts of both kinds.
pub(crate) fn pattern(parts: &[Part]) -> String {
    parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => escaped(text),
            Part::Pattern(pattern) => pattern.clone(),
        })
        .collect()
}

/// A regular expression that is this text.
pub(crate) fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

fn push(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(last)) => last.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Option<Vec<Part>> {
        match name {
            "A" => Some(vec![Part::Text("1.2".to_owned())]),
            "IP" => Some(vec![Part::Pattern("[0-9.]+".to_owned())]),
            _ => None,
        }
    }

    /// The cases of Kubernetes' own expansion tests that say something of their own.
    #[test]
    fn variables_are_expanded_as_by_the_kubelet() {
        for (written, expected) in [
            ("$(A)", "1.2"),
            ("x$(A)y$(A)", "x1.2y1.2"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1.2"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("", ""),
            ("$()", "$()"),
            ("$", "$"),
            ("$$", "$"),
        ] {
            assert_eq!(text(&expand(written, value)).unwrap(), expected, "{written}");
        }
    }

    #[test]
    fn unknown_values_make_patterns() {
        let parts = expand("http://$(IP):$(A)/", value);
        assert_eq!(text(&parts), None);
        assert_eq!(pattern(&parts), r"http://[0-9.]+:1\.2/");
        assert_eq!(escaped(r"a.b*c\d(e)-/f"), r"a\.b\*c\\d\(e\)-/f");
    }
}
