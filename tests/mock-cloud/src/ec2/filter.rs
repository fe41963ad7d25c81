//! `Filter.N`: all filters must match, each by any of its values; `*` and `?` are wildcards.

use super::error::Ec2Error;
use super::query::Query;

/// A filter.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) name: String,
    values: Vec<String>,
}

impl Filter {
    pub(super) fn all(query: &Query) -> Result<Vec<Self>, Ec2Error> {
        let read = |begin: &String| {
            let name = query.required(&format!("{begin}Name"))?.to_owned();
            let values = query.list(&format!("{begin}Value"));
            if values.is_empty() || values.len() > 200 {
                return Err(Ec2Error::new("InvalidParameterValue", 400, format!("The filter '{name}' needs 1 to 200 values")));
            }
            Ok(Self { name, values })
        };
        query.structures("Filter").iter().map(read).collect()
    }

    /// For what takes no filter here.
    pub(super) fn none(query: &Query) -> Result<(), Ec2Error> {
        Self::all(query)?.first().map_or(Ok(()), |filter| Err(filter.unknown()))
    }

    /// Whether something that has these values (none, or several) matches.
    pub(super) fn matches<'a>(&self, has: impl IntoIterator<Item = &'a str>) -> bool {
        has.into_iter().any(|value| self.values.iter().any(|pattern| is_like(pattern.as_bytes(), value.as_bytes())))
    }

    /// A filter that this cloud does not know.
    pub(super) fn unknown(&self) -> Ec2Error {
        Ec2Error::new("InvalidParameterValue", 400, format!("The filter '{}' is invalid", self.name))
    }
}

fn is_like(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skipped| is_like(rest, &text[skipped..])),
        (Some((b'?', pattern)), Some((_, text))) => is_like(pattern, text),
        (Some((p, pattern)), Some((t, text))) => p == t && is_like(pattern, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_ec2s() {
        let like = |pattern: &str, text: &str| is_like(pattern.as_bytes(), text.as_bytes());
        assert!(like("a*c", "abbc") && like("a?c", "abc") && like("*", "") && like("abc", "abc"));
        assert!(!like("a?c", "ac") && !like("abc", "abcd") && !like("ABC", "abc"));
    }
}
