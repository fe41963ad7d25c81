//! containerd's filters (containerd `pkg/filters`): `path==value,path!=value`, all of which must hold; paths are `name`, `parent`, `kind`
//! and `labels."key"`; values may be quoted as Go strings.

use super::store::Snapshot;

/// One condition of a filter.
#[derive(Debug, PartialEq, Eq)]
struct Condition {
    path: Vec<String>,
    is_equal: bool,
    value: String,
}

/// Conditions that must all hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter(Vec<Condition>);

impl Filter {
    /// Reads a filter; the error says what is not understood.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let mut conditions = Vec::new();
        while !rest.is_empty() {
            let (path, after) = path(rest)?;
            let (is_equal, after) = match (after.strip_prefix("=="), after.strip_prefix("!=")) {
                (Some(after), _) => (true, after),
                (_, Some(after)) => (false, after),
                _ => return Err(format!("filter {text:?}: only == and != are known")),
            };
            let (value, after) = value(after)?;
            conditions.push(Condition { path, is_equal, value });
            rest = after.strip_prefix(',').unwrap_or(after);
            if rest.len() == after.len() && !rest.is_empty() {
                return Err(format!("filter {text:?}: unexpected {rest:?}"));
            }
        }
        Ok(Self(conditions))
    }

    pub(super) fn holds(&self, snapshot: &Snapshot) -> bool {
        self.0.iter().all(|condition| {
            let found = match condition.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["name"] => snapshot.name.as_str(),
                ["parent"] => snapshot.parent.as_str(),
                ["kind"] => snapshot.kind.as_str(),
                ["labels", key] => snapshot.labels.get(key).map_or("", String::as_str),
                _ => "",
            };
            (found == condition.value) == condition.is_equal
        })
    }
}

fn path(text: &str) -> Result<(Vec<String>, &str), String> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = if rest.starts_with('"') {
            quoted(rest)?
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        };
        if part.is_empty() {
            return Err(format!("filter {text:?}: a name is missing"));
        }
        parts.push(part);
        match after.strip_prefix('.') {
            Some(after) => rest = after,
            None => return Ok((parts, after)),
        }
    }
}

fn value(text: &str) -> Result<(String, &str), String> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let end = text.find(',').unwrap_or(text.len());
    Ok((text[..end].to_owned(), &text[end..]))
}

/// Snapshots' names need no other escapes than these two.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut plain = String::new();
    let mut signs = text.char_indices().skip(1);
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => return Ok((plain, &text[at + 1..])),
            '\\' => match signs.next() {
                Some((_, escaped @ ('"' | '\\'))) => plain.push(escaped),
                _ => return Err(format!("filter {text:?}: unknown escape")),
            },
            other => plain.push(other),
        }
    }
    Err(format!("filter {text:?}: a quote is not closed"))
}

#[cfg(test)]
mod tests {
    use super::super::store::{Kind, Snapshot};
    use super::*;

    fn snapshot() -> Snapshot {
        let labels = [("containerd.io/snapshot.ref".to_owned(), "sha256:aa".to_owned())].into();
        Snapshot { labels, parent: "sha256:00".to_owned(), ..Snapshot::new("sha256:aa", Kind::Committed) }
    }

    #[test]
    fn the_question_of_containerds_metadata_store_is_understood() {
        let ask = |text: &str| Filter::parse(text).unwrap().holds(&snapshot());
        assert!(ask(r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="sha256:00""#));
        assert!(!ask(r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="""#));
        assert!(!ask(r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="sha256:00""#));
        assert!(ask("kind==committed,name!=x"));
        assert!(ask(""));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["name~=x", "==x", "name==\"x", "name", "name==\"a\"b", "labels.==x"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
