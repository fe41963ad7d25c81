//! Where an image is fetched from: a subset of registries.conf version 2.
//!
//! Understood: `unqualified-search-registries` (ignored: references are complete here) and `[[registry]]` with `prefix`,
//! `location`, `insecure`, `blocked` and `[[registry.mirror]]` (`location`, `insecure`). `insecure` means plain HTTP for that
//! location only; a certificate that does not verify is never accepted. Any other key is an error.

use oci_spec::distribution::Reference;
use serde::Deserialize;

/// The parsed configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    #[serde(rename = "unqualified-search-registries")]
    _unqualified_search_registries: Vec<String>,
    registry: Vec<Registry>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// Not TOML of that form.
    #[error("the registry configuration: {reason}")]
    Syntax {
        /// What and where.
        reason: String,
    },
    /// A `[[registry]]` without a name.
    #[error("the registry configuration: [[registry]] number {number} has neither prefix nor location")]
    Unnamed {
        /// 1-based.
        number: usize,
    },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
}

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) reference: Reference,
    pub(crate) scheme: Scheme,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// No place may be tried.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Blocked;

impl Registries {
    /// Parses the TOML text.
    pub fn parse(text: &str) -> Result<Self, RegistriesError> {
        let registries: Self = toml::from_str(text).map_err(|error| RegistriesError::Syntax { reason: error.to_string() })?;
        registries.check()
    }

    /// Takes a table of another document, such as `registry_config` of `cdh.toml`.
    pub fn from_table(table: toml::Table) -> Result<Self, RegistriesError> {
        let registries: Self = table.try_into().map_err(|error: toml::de::Error| RegistriesError::Syntax { reason: error.to_string() })?;
        registries.check()
    }

    /// A configuration that allows plain HTTP to one location (`host:port` or a path below it).
    pub fn insecure(location: &str) -> Self {
        let registry = Registry { location: Some(location.to_owned()), insecure: true, ..Registry::default() };
        Self { registry: vec![registry], ..Self::default() }
    }

    fn check(self) -> Result<Self, RegistriesError> {
        match self.registry.iter().position(|registry| registry.name().is_none()) {
            Some(index) => Err(RegistriesError::Unnamed { number: index + 1 }),
            None => Ok(self),
        }
    }

    /// The places to try for a reference, in order. The longest matching prefix decides.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Blocked> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let best =
            self.registry.iter().filter(|registry| registry.covers(&name)).max_by_key(|registry| registry.name().map_or(0, str::len));
        let Some(registry) = best else { return Ok(vec![Endpoint { reference: reference.clone(), scheme: Scheme::Https }]) };
        if registry.blocked {
            return Err(Blocked);
        }
        let prefix = registry.name().unwrap_or_default();
        let rest = &name[prefix.len()..];
        let own = registry.location.as_deref().unwrap_or(prefix);
        let places = registry.mirror.iter().map(|mirror| (mirror.location.as_str(), mirror.insecure)).chain([(own, registry.insecure)]);
        Ok(places
            .filter_map(|(location, insecure)| {
                let reference = relocate(reference, &format!("{location}{rest}"))?;
                Some(Endpoint { reference, scheme: if insecure { Scheme::Http } else { Scheme::Https } })
            })
            .collect())
    }
}

impl Registry {
    fn name(&self) -> Option<&str> {
        self.prefix.as_deref().or(self.location.as_deref()).filter(|name| !name.is_empty())
    }

    /// Whether the prefix is the name or ends at a `/` of it.
    fn covers(&self, name: &str) -> bool {
        self.name().and_then(|prefix| name.strip_prefix(prefix)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The same tag or digest under another name.
fn relocate(reference: &Reference, name: &str) -> Option<Reference> {
    let (registry, repository) = name.split_once('/')?;
    let (registry, repository) = (registry.to_owned(), repository.to_owned());
    Some(match (reference.tag(), reference.digest()) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned()),
        (_, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(config: &str, reference: &str) -> Vec<(String, Scheme)> {
        let registries = Registries::parse(config).unwrap();
        let endpoints = registries.endpoints(&reference.parse().unwrap()).unwrap();
        endpoints.into_iter().map(|endpoint| (endpoint.reference.to_string(), endpoint.scheme)).collect()
    }

    #[test]
    fn https_is_the_default() {
        assert_eq!(endpoints("", "r.example/a/b:1"), [("r.example/a/b:1".to_owned(), Scheme::Https)]);
        let other = "[[registry]]\nlocation = \"other.example\"\ninsecure = true\n";
        assert_eq!(endpoints(other, "other.example.org/a:1")[0].1, Scheme::Https);
        assert_eq!(endpoints(other, "other.example/a:1")[0].1, Scheme::Http);
    }

    #[test]
    fn mirrors_come_first_and_the_longest_prefix_decides() {
        let config = r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            prefix = "r.example/team"
            location = "real.example:5000/x"
            [[registry.mirror]]
            location = "mirror.example/y"
            insecure = true
            [[registry]]
            location = "r.example"
            blocked = true
        "#;
        assert_eq!(
            endpoints(config, "r.example/team/app:2"),
            [("mirror.example/y/app:2".to_owned(), Scheme::Http), ("real.example:5000/x/app:2".to_owned(), Scheme::Https)]
        );
        let registries = Registries::parse(config).unwrap();
        assert_eq!(registries.endpoints(&"r.example/other:1".parse().unwrap()), Err(Blocked));
    }

    #[test]
    fn unknown_keys_and_unnamed_registries_are_errors() {
        assert!(Registries::parse("[[registry]]\nlocation = \"a\"\nskip-tls = true\n").unwrap_err().to_string().contains("skip-tls"));
        assert!(matches!(Registries::parse("[[registry]]\ninsecure = true\n"), Err(RegistriesError::Unnamed { number: 1 })));
    }
}
