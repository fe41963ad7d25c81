//! `WWW-Authenticate` as registries send it: which kind of credentials, and where a token is to be had.

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// The token service.
        realm: String,
        /// The name of the registry at the token service.
        service: Option<String>,
    },
}

/// The strongest challenge of these header values that this version can answer.
pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in challenges(header) {
            let find = |wanted: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.clone());
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = find("realm")
            {
                return Some(Challenge::Bearer { realm, service: find("service") });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// `Scheme name=value, name="quoted", Scheme …`: a word that `=` follows is a parameter, any other word a scheme.
fn challenges(header: &str) -> Vec<(&str, Parameters)> {
    let mut found: Vec<(&str, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            Some(value) => {
                let (value, remaining) = value_of(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = remaining;
            }
            None if word.is_empty() => return found,
            None => {
                found.push((word, Vec::new()));
                rest = after;
            }
        }
    }
}

/// A quoted string or a token, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    }

    #[test]
    fn bearer_is_preferred_and_quotes_are_undone() {
        let hub = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        assert_eq!(parse([hub].into_iter()), bearer("https://auth.example/token", Some("registry.example")));
        assert_eq!(parse([r#"Basic realm="x", bearer Realm = "https://a/\"q\"""#].into_iter()), bearer("https://a/\"q\"", None));
        assert_eq!(parse(["Basic realm=\"x\"", "Bearer realm=https://t/"].into_iter()), bearer("https://t/", None));
        assert_eq!(parse(["Negotiate", "Basic"].into_iter()), Some(Challenge::Basic));
        assert_eq!(parse(["Digest realm=\"x\"", "Bearer service=\"no realm\""].into_iter()), None);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(header in "\\PC{0,80}") {
            parse([header.as_str()].into_iter());
        }
    }
}
