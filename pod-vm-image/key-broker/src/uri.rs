//! Resource URIs: `kbs://[host[:port]]/repository/type/tag`.

use std::fmt;
use std::str::FromStr;

/// Longest part of a path, in bytes.
const MAX_PART_BYTES: usize = 80;
/// Longest host, in bytes: a DNS name with a port.
const MAX_HOST_BYTES: usize = 260;

/// The name of a resource. The host is kept for printing only: which broker is asked is configured, and it alone is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceUri {
    host: String,
    parts: [String; 3],
}

/// Why text is no resource URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceUriError {
    /// It does not begin with `kbs://`.
    #[error("a resource URI begins with kbs://")]
    Scheme,
    /// The host has characters that no host has, or is too long.
    #[error("the host of a resource URI has letters, digits, '.', '-', ':', '[' and ']', at most {MAX_HOST_BYTES} of them")]
    Host,
    /// The path has not exactly three parts.
    #[error("the path of a resource URI has three parts: repository, type and tag")]
    Parts,
    /// A part is empty, too long, begins with a dot, or has other characters.
    #[error("{0} of a resource URI has letters, digits, '.', '_' and '-', at most {MAX_PART_BYTES} of them, and no dot in front")]
    Part(&'static str),
}

impl ResourceUri {
    /// A resource by the parts of its path, without host.
    pub fn new(repository: &str, resource_type: &str, tag: &str) -> Result<Self, ResourceUriError> {
        for (name, part) in [("the repository", repository), ("the type", resource_type), ("the tag", tag)] {
            let is_valid = (1..=MAX_PART_BYTES).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            if !is_valid {
                return Err(ResourceUriError::Part(name));
            }
        }
        Ok(Self { host: String::new(), parts: [repository, resource_type, tag].map(str::to_owned) })
    }

    /// A resource by `repository/type/tag`.
    pub fn from_path(path: &str) -> Result<Self, ResourceUriError> {
        let parts: Vec<&str> = path.splitn(4, '/').collect();
        match parts[..] {
            [repository, resource_type, tag] => Self::new(repository, resource_type, tag),
            _ => Err(ResourceUriError::Parts),
        }
    }

    /// The host with its port, or nothing.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `repository/type/tag`.
    pub fn path(&self) -> String {
        self.parts.join("/")
    }

    /// Repository, type and tag.
    pub fn parts(&self) -> &[String; 3] {
        &self.parts
    }
}

impl FromStr for ResourceUri {
    type Err = ResourceUriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("kbs://").ok_or(ResourceUriError::Scheme)?;
        let (host, path) = rest.split_once('/').ok_or(ResourceUriError::Parts)?;
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if host.len() > MAX_HOST_BYTES || !host.bytes().all(is_host) {
            return Err(ResourceUriError::Host);
        }
        Ok(Self { host: host.to_owned(), ..Self::from_path(path)? })
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs://{}/{}", self.host, self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_is_optional() {
        for (text, host) in [
            ("kbs:///default/key/1", ""),
            ("kbs://kbs.example:8080/default/key/1", "kbs.example:8080"),
            ("kbs://[::1]:80/default/key/1", "[::1]:80"),
        ] {
            let uri: ResourceUri = text.parse().unwrap();
            assert_eq!((uri.host(), uri.path().as_str(), uri.to_string().as_str()), (host, "default/key/1", text));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        use ResourceUriError::{Host, Part, Parts, Scheme};
        for (text, error) in [
            ("http:///default/key/1", Scheme),
            ("default/key/1", Scheme),
            ("kbs://", Parts),
            ("kbs:///default/key", Parts),
            ("kbs:///default/key/1/2", Parts),
            ("kbs://user@host/default/key/1", Host),
            ("kbs:///../key/1", Part("the repository")),
            ("kbs:///default//1", Part("the type")),
            ("kbs:///default/key/..", Part("the tag")),
            ("kbs:///default/key/a%2fb", Part("the tag")),
            ("kbs:///default/key/1?x=y", Part("the tag")),
            ("kbs:///default/key/\u{e4}", Part("the tag")),
            ("kbs:///default/key/a b", Part("the tag")),
        ] {
            assert_eq!(text.parse::<ResourceUri>(), Err(error), "{text}");
        }
        assert_eq!(ResourceUri::new("a", "b", &"c".repeat(81)), Err(Part("the tag")));
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "kbs://[a-z.:/%]{0,12}/[a-z.]{0,3}/[a-z_]{0,3}/[-0-9]{0,3}") {
            if let Ok(uri) = text.parse::<ResourceUri>() {
                prop_assert_eq!(uri.to_string(), text);
            }
        }
    }
}
