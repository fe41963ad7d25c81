//! `policy.json`: what is required of which image.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::identity::{Identity, Rule};
use super::key::PublicKey;
use super::name::Name;
use super::openpgp::GpgKeys;

/// The parsed policy. The default accepts every image, as when no policy is configured.
///
/// Understood are the types `insecureAcceptAnything`, `reject`, `sigstoreSigned` and `signedBy` with `keyPath` (a `kbs://` resource) or
/// `keyData`, and `signedIdentity`. Anything else is an error by name: a policy that is only half understood protects nobody.
#[derive(Debug, Clone)]
pub struct ImagePolicy {
    default: Vec<Requirement>,
    /// By scope.
    docker: BTreeMap<String, Vec<Requirement>>,
}

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImagePolicyError {
    /// Longer than any policy.
    #[error("the image policy is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Not JSON of that form.
    #[error("the image policy: {reason}")]
    Syntax {
        /// What and where.
        reason: String,
    },
    /// A requirement that contradicts itself, or says what cannot be.
    #[error("the image policy: requirement {number} of {scope}: {reason}")]
    Requirement {
        /// `default`, or a scope.
        scope: String,
        /// 1-based.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// A list without requirements, which would neither accept nor reject.
    #[error("the image policy: {scope} has an empty list of requirements")]
    Empty {
        /// `default`, or a scope.
        scope: String,
    },
}

/// What an image has to satisfy.
#[derive(Debug, Clone)]
pub(crate) enum Requirement {
    AcceptAnything,
    Reject,
    /// A signature of cosign with this key.
    Cosign {
        key: KeySource<PublicKey>,
        rule: Rule,
    },
    /// A signature of GPG with one of these keys.
    Gpg {
        keys: KeySource<GpgKeys>,
        rule: Rule,
    },
}

/// Where a requirement's key is.
#[derive(Debug, Clone)]
pub(crate) enum KeySource<K> {
    Inline(K),
    /// By resource URI; read at each pull, so that a key can be withdrawn.
    Resource(String),
}

/// Bytes of a policy: more than a key broker's resource or initdata has.
const MAX_BYTES: usize = 1 << 20;
/// Transports of containers-transports(5). Only `docker` concerns a pod VM; a name that is none of these is a slip of the pen.
const TRANSPORTS: [&str; 11] =
    ["atomic", "containers-storage", "dir", "docker", "docker-archive", "docker-daemon", "oci", "oci-archive", "ostree", "sif", "tarball"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: Option<Unique<Unique<Vec<RawRequirement>>>>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum RawRequirement {
    InsecureAcceptAnything {},
    Reject {},
    #[serde(rename_all = "camelCase")]
    SigstoreSigned {
        key_path: Option<String>,
        key_data: Option<String>,
        signed_identity: Option<Identity>,
    },
    #[serde(rename_all = "camelCase")]
    SignedBy {
        key_type: String,
        key_path: Option<String>,
        key_data: Option<String>,
        signed_identity: Option<Identity>,
    },
}

/// A map that says nothing twice: of two entries for one scope nobody knows which one is meant.
struct Unique<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((name, value)) = entries.next_entry::<String, V>()? {
                    if map.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("{name:?} is there twice")));
                    }
                    map.insert(name, value);
                }
                Ok(Unique(map))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self { default: vec![Requirement::AcceptAnything], docker: BTreeMap::new() }
    }
}

impl ImagePolicy {
    /// Parses the JSON text.
    pub fn parse(json: &[u8]) -> Result<Self, ImagePolicyError> {
        if json.len() > MAX_BYTES {
            return Err(ImagePolicyError::TooLarge { limit: MAX_BYTES });
        }
        let syntax = |reason| ImagePolicyError::Syntax { reason };
        let raw: RawPolicy = serde_json::from_slice(json).map_err(|error| syntax(error.to_string()))?;
        let default = requirements("default", raw.default)?;
        let mut docker = BTreeMap::new();
        for (transport, scopes) in raw.transports.map(|transports| transports.0).unwrap_or_default() {
            if !TRANSPORTS.contains(&transport.as_str()) {
                return Err(syntax(format!("transports has the unknown member {transport:?}")));
            }
            for (scope, list) in scopes.0 {
                let list = requirements(&format!("{transport} {scope:?}"), list)?;
                if transport == "docker" {
                    check_scope(&scope).map_err(|reason| syntax(format!("scope {scope:?}: {reason}")))?;
                    docker.insert(scope, list);
                }
            }
        }
        Ok(Self { default, docker })
    }

    /// What is required of an image, and the name of the part that says so.
    pub(crate) fn requirements(&self, name: &Name) -> (String, &[Requirement]) {
        let found = name.scopes().into_iter().find_map(|scope| self.docker.get(&scope).map(|list| (scope, list)));
        match found {
            Some((scope, list)) => (format!("scope {scope:?}"), list),
            None => ("default".to_owned(), &self.default),
        }
    }
}

/// `*.` and a domain, or a name without `*`.
fn check_scope(scope: &str) -> Result<(), &'static str> {
    let rest = scope.strip_prefix("*.").unwrap_or(scope);
    let is_domain = scope.starts_with("*.");
    if rest.contains('*') || (is_domain && (rest.is_empty() || rest.contains(['/', ':', '@']))) {
        return Err("a scope with * must be *. and a domain");
    }
    if scope.ends_with('/') || scope.starts_with('/') || scope.contains("://") {
        return Err("a scope is a host, a path below one, or a reference");
    }
    Ok(())
}

fn requirements(scope: &str, raw: Vec<RawRequirement>) -> Result<Vec<Requirement>, ImagePolicyError> {
    if raw.is_empty() {
        return Err(ImagePolicyError::Empty { scope: scope.to_owned() });
    }
    let with_place = |(index, raw): (usize, RawRequirement)| {
        raw.check().map_err(|reason| ImagePolicyError::Requirement { scope: scope.to_owned(), number: index + 1, reason })
    };
    raw.into_iter().enumerate().map(with_place).collect()
}

impl RawRequirement {
    fn check(self) -> Result<Requirement, String> {
        Ok(match self {
            Self::InsecureAcceptAnything {} => Requirement::AcceptAnything,
            Self::Reject {} => Requirement::Reject,
            Self::SigstoreSigned { key_path, key_data, signed_identity } => Requirement::Cosign {
                key: KeySource::new(key_path, key_data, cosign_key)?,
                rule: rule(signed_identity, Rule::CosignDefault)?,
            },
            Self::SignedBy { key_type, key_path, key_data, signed_identity } => {
                if key_type != "GPGKeys" {
                    return Err(format!("keyType {key_type:?} is not supported; only GPGKeys is"));
                }
                Requirement::Gpg {
                    keys: KeySource::new(key_path, key_data, gpg_keys)?,
                    rule: rule(signed_identity, Rule::Stated(Identity::MatchRepoDigestOrExact {}))?,
                }
            }
        })
    }
}

fn rule(identity: Option<Identity>, default: Rule) -> Result<Rule, String> {
    let Some(identity) = identity else { return Ok(default) };
    identity.check().map_err(|reason| format!("signedIdentity: {reason}"))?;
    Ok(Rule::Stated(identity))
}

impl<K> KeySource<K> {
    fn new(path: Option<String>, data: Option<String>, read: impl FnOnce(&str) -> Result<K, String>) -> Result<Self, String> {
        match (path, data) {
            (Some(path), None) if path.starts_with("kbs://") => Ok(Self::Resource(path)),
            (Some(path), None) => Err(format!("keyPath {path:?}: a pod VM has no key files; only kbs:// resources can be read")),
            (None, Some(data)) => read(&data).map(Self::Inline).map_err(|reason| format!("keyData: {reason}")),
            (Some(_), Some(_)) => Err("it has both keyPath and keyData".to_owned()),
            (None, None) => Err("it has neither keyPath nor keyData".to_owned()),
        }
    }
}

/// containers/image wants base64 here, the Confidential Data Hub the PEM itself.
fn cosign_key(data: &str) -> Result<PublicKey, String> {
    if data.trim_start().starts_with("-----BEGIN") {
        return PublicKey::from_pem(data.as_bytes());
    }
    PublicKey::from_pem(&STANDARD.decode(data.trim()).map_err(|_| "it is neither PEM nor base64")?)
}

fn gpg_keys(data: &str) -> Result<GpgKeys, String> {
    GpgKeys::parse(&STANDARD.decode(data.trim()).map_err(|_| "it is not base64")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ImagePolicy, String> {
        ImagePolicy::parse(json.as_bytes()).map_err(|error| error.to_string())
    }

    fn found(policy: &ImagePolicy, reference: &str) -> String {
        let (scope, list) = policy.requirements(&Name::of(&reference.parse().unwrap()));
        format!("{scope} {list:?}")
    }

    #[test]
    fn most_specific_scope_decides() {
        let list = |uri: &str| format!(r#"[{{"type":"sigstoreSigned","keyPath":"kbs:///{uri}"}}]"#);
        let policy = parse(&format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker-daemon":{{"":[{{"type":"insecureAcceptAnything"}}]}},"docker":{{
                "r.example/team/app:1":{},"r.example/team":{},"r.example":{},"*.wild.example":{},"docker.io/library/busybox":{}}}}}}}"#,
            list("tag"),
            list("team"),
            list("host"),
            list("wild"),
            list("busybox")
        ))
        .unwrap();
        for (reference, expected) in [
            ("r.example/team/app:1", "kbs:///tag"),
            ("r.example/team/app:2", "kbs:///team"),
            ("r.example/team/x/y:2", "kbs:///team"),
            ("r.example/teams/app:1", "kbs:///host"),
            ("a.b.wild.example:5000/app:1", "kbs:///wild"),
            ("wild.example/app:1", "Reject"),
            ("r.example:5000/app:1", "Reject"),
            ("busybox", "kbs:///busybox"),
        ] {
            assert!(found(&policy, reference).contains(expected), "{reference}: {}", found(&policy, reference));
        }
        let everything =
            parse(r#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"insecureAcceptAnything"}]}}}"#).unwrap();
        assert!(found(&everything, "r.example/app:1").contains("AcceptAnything"));
        assert!(found(&ImagePolicy::default(), "r.example/app:1").contains("default [AcceptAnything]"));
        assert!(found(&parse(r#"{"default":[{"type":"reject"}]}"#).unwrap(), "r.example/app:1").contains("default [Reject]"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let with = |requirement: &str| format!(r#"{{"default":[{requirement}]}}"#);
        for (json, named) in [
            ("".to_owned(), "EOF"),
            ("{}".to_owned(), "default"),
            (r#"{"default":[]}"#.to_owned(), "default has an empty list"),
            (r#"{"default":[{"type":"reject"}],"transport":{}}"#.to_owned(), "transport"),
            (r#"{"default":[{"type":"reject"}],"transports":{"dokcer":{}}}"#.to_owned(), "dokcer"),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"reject"}]}}}"#.to_owned(),
                "twice",
            ),
            (r#"{"default":[{"type":"reject"}],"transports":{"docker":{"*a":[{"type":"reject"}]}}}"#.to_owned(), "*a"),
            (r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}"#.to_owned(), "docker \"a\" has an empty list"),
            (with(r#"{"type":"signedBase"}"#), "signedBase"),
            (with(r#"{"type":"reject","keyPath":"x"}"#), "keyPath"),
            (with(r#"{"type":"sigstoreSigned"}"#), "neither keyPath nor keyData"),
            (with(r#"{"type":"sigstoreSigned","keyPath":"kbs:///a","keyData":"b"}"#), "both keyPath and keyData"),
            (with(r#"{"type":"sigstoreSigned","keyPath":"/etc/key.pub"}"#), "/etc/key.pub"),
            (with(r#"{"type":"sigstoreSigned","keyPath":"kbs:///a","rekorPublicKeyPath":"b"}"#), "rekorPublicKeyPath"),
            (with(r#"{"type":"sigstoreSigned","keyData":"?"}"#), "keyData: it is neither PEM nor base64"),
            (with(r#"{"type":"sigstoreSigned","keyPath":"kbs:///a","signedIdentity":{"type":"matchAll"}}"#), "matchAll"),
            (
                with(
                    r#"{"type":"sigstoreSigned","keyPath":"kbs:///a","signedIdentity":{"type":"exactReference","dockerReference":"a/b"}}"#,
                ),
                "signedIdentity: dockerReference",
            ),
            (with(r#"{"type":"signedBy","keyType":"signedByGPGKeys","keyPath":"kbs:///a"}"#), "signedByGPGKeys"),
            (with(r#"{"type":"signedBy","keyPath":"kbs:///a"}"#), "keyType"),
            (with(r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"YQ=="}"#), "keyData"),
        ] {
            let error = parse(&json).unwrap_err();
            assert!(error.contains(named), "{json}: {error}");
        }
        assert!(ImagePolicy::parse(&vec![b' '; MAX_BYTES + 1]).unwrap_err().to_string().contains("larger than"));
    }
}
