//! Where an image is fetched from: a subset of registries.conf version 2.
//!
//! Understood, as containers-registries.conf(5) has it: `[[registry]]` with `prefix` (also `*.example.com`), `location`, `insecure`,
//! `blocked`, `mirror-by-digest-only` and `[[registry.mirror]]` (`location`, `insecure`, `pull-from-mirror`). `insecure` means plain HTTP
//! for that location only; a certificate that does not verify is never accepted. `unqualified-search-registries` and `short-name-mode`
//! are read and have nothing to do, since references are complete here. `credential-helpers` other than `containers-auth.json` are
//! refused: there is no program to run. Any other key is an error.

use oci_spec::distribution::Reference;
use serde::Deserialize;

/// The parsed configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    #[serde(rename = "unqualified-search-registries")]
    _unqualified_search_registries: Vec<String>,
    #[serde(rename = "short-name-mode")]
    _short_name_mode: Option<ShortNameMode>,
    #[serde(rename = "credential-helpers")]
    credential_helpers: Vec<String>,
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
    /// A `[[registry]]` that contradicts itself, or says what cannot be.
    #[error("the registry configuration: registry {name}: {reason}")]
    Registry {
        /// Its prefix or location.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A program that would have to be run.
    #[error("the registry configuration: credential-helpers: {helper} would have to be run, and a pod VM has no such program")]
    CredentialHelper {
        /// Its name.
        helper: String,
    },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShortNameMode {
    Enforcing,
    Permissive,
    Disabled,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    #[serde(rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(rename = "pull-from-mirror")]
    pull_from_mirror: Option<PullFromMirror>,
}

/// Which references a mirror is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFromMirror {
    All,
    DigestOnly,
    TagOnly,
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
        if let Some(helper) = self.credential_helpers.iter().find(|helper| *helper != "containers-auth.json") {
            return Err(RegistriesError::CredentialHelper { helper: helper.clone() });
        }
        for (index, registry) in self.registry.iter().enumerate() {
            let name = registry.name().ok_or(RegistriesError::Unnamed { number: index + 1 })?;
            registry.check().map_err(|reason| RegistriesError::Registry { name: name.to_owned(), reason })?;
        }
        Ok(self)
    }

    /// The places to try for a reference, in order. The longest match decides, and an exact one before one of `*.`.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Blocked> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let matching = self.registry.iter().filter_map(|registry| Some((registry.matched(&name)?, registry)));
        let best = matching.max_by_key(|(matched, registry)| (*matched, registry.wildcard().is_none()));
        let Some((matched, registry)) = best else { return Ok(vec![Endpoint { reference: reference.clone(), scheme: Scheme::Https }]) };
        if registry.blocked {
            return Err(Blocked);
        }
        let (prefix, rest) = name.split_at(matched);
        let own = registry.location.as_deref().unwrap_or(prefix);
        let mirrors = registry.mirror.iter().filter(|mirror| registry.may_ask(mirror, reference));
        let places = mirrors.map(|mirror| (mirror.location.as_str(), mirror.insecure)).chain([(own, registry.insecure)]);
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

    /// `.example.com` of `*.example.com`.
    fn wildcard(&self) -> Option<&str> {
        self.name()?.strip_prefix('*')
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_domain = |rest: &str| rest.len() > 1 && rest.starts_with('.') && !rest.contains(['/', '*']);
        if self.wildcard().is_some_and(|rest| !is_domain(rest)) {
            return Err("a prefix with * must be *. and a domain, without a path");
        }
        if self.location.as_deref().is_some_and(|location| location.contains('*')) {
            return Err("location cannot have *");
        }
        if self.mirror_by_digest_only && self.mirror.iter().any(|mirror| mirror.pull_from_mirror.is_some()) {
            return Err("mirror-by-digest-only and pull-from-mirror exclude each other");
        }
        Ok(())
    }

    /// How much of the name the prefix stands for: it is the name, ends at a `/` of it, or is a domain above its host.
    fn matched(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.wildcard() {
            let host = name.find('/').unwrap_or(name.len());
            return (host > domain.len() && name[..host].ends_with(domain)).then_some(host);
        }
        let prefix = self.name()?;
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
    }

    fn may_ask(&self, mirror: &Mirror, reference: &Reference) -> bool {
        let by_default = if self.mirror_by_digest_only { PullFromMirror::DigestOnly } else { PullFromMirror::All };
        match mirror.pull_from_mirror.unwrap_or(by_default) {
            PullFromMirror::All => true,
            PullFromMirror::DigestOnly => reference.digest().is_some(),
            PullFromMirror::TagOnly => reference.digest().is_none(),
        }
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

    #[test]
    fn domains_match_hosts_below_them() {
        let config = r#"
            [[registry]]
            prefix = "*.example.com"
            location = "mirror.example:5000/all"
            [[registry]]
            prefix = "exact.example.com"
            insecure = true
            [[registry]]
            prefix = "*.other.com"
            insecure = true
        "#;
        let at = |reference: &str| endpoints(config, reference).remove(0);
        assert_eq!(at("a.b.example.com/team/app:1"), ("mirror.example:5000/all/team/app:1".to_owned(), Scheme::Https));
        assert_eq!(at("exact.example.com/app:1"), ("exact.example.com/app:1".to_owned(), Scheme::Http));
        assert_eq!(at("x.other.com/app:1"), ("x.other.com/app:1".to_owned(), Scheme::Http));
        for elsewhere in ["example.com/app:1", "badexample.com/app:1", "example.com.evil/x:1", "evil/a.example.com/x:1"] {
            assert_eq!(at(elsewhere).1, Scheme::Https, "{elsewhere}");
            assert!(!at(elsewhere).0.contains("mirror"), "{elsewhere}");
        }
    }

    #[test]
    fn mirrors_are_asked_for_what_they_are_for() {
        let digest = format!("r.example/app@sha256:{}", "a".repeat(64));
        let asked = |config: &str, reference: &str| endpoints(config, reference).len() == 2;
        for (of_registry, of_mirror, tag, by_digest) in [
            ("", "", true, true),
            ("", "pull-from-mirror = \"all\"", true, true),
            ("", "pull-from-mirror = \"tag-only\"", true, false),
            ("", "pull-from-mirror = \"digest-only\"", false, true),
            ("mirror-by-digest-only = true", "", false, true),
        ] {
            let config = format!(
                "[[registry]]\nlocation = \"r.example\"\n{of_registry}\n[[registry.mirror]]\nlocation = \"m.example\"\n{of_mirror}\n"
            );
            assert_eq!((asked(&config, "r.example/app:1"), asked(&config, &digest)), (tag, by_digest), "{config}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (config, named) in [
            ("credential-helpers = [\"secretservice\"]", "secretservice"),
            ("short-name-mode = \"odd\"", "short-name-mode"),
            ("[[registry]]\nprefix = \"*example.com\"", "*example.com"),
            ("[[registry]]\nprefix = \"*.example.com/team\"", "*.example.com/team"),
            ("[[registry]]\nprefix = \"a\"\nlocation = \"*.b\"", "location"),
            (
                "[[registry]]\nlocation = \"a\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"all\"",
                "exclude each other",
            ),
            ("[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"some\"", "pull-from-mirror"),
        ] {
            let error = Registries::parse(config).unwrap_err().to_string();
            assert!(error.contains(named), "{config}: {error}");
        }
        Registries::parse("credential-helpers = [\"containers-auth.json\"]\nshort-name-mode = \"enforcing\"\n").unwrap();
    }
}
