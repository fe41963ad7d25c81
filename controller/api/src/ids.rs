//! Names and identities, each a type of its own that prints as bare text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A name or identity that breaks its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} must be 1 to {max} characters of {alphabet}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    max: usize,
    alphabet: &'static str,
}

/// Letters of a Kubernetes object's name.
const NAME: (&str, fn(u8) -> bool) = ("[A-Za-z0-9._-]", |b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
/// Letters of keys, which are joined from names.
const KEY: (&str, fn(u8) -> bool) = ("[A-Za-z0-9._:/-]", |b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
const HEX: (&str, fn(u8) -> bool) = ("[0-9a-f]", |b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));

fn check(what: &'static str, value: &str, max: usize, (alphabet, is_letter): (&'static str, fn(u8) -> bool)) -> Result<(), InvalidId> {
    if (1..=max).contains(&value.len()) && value.bytes().all(is_letter) {
        return Ok(());
    }
    // An error may be logged; a hostile value must not fill the log.
    let value = value.chars().take(max.min(80)).collect();
    Err(InvalidId { what, value, max, alphabet })
}

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal, $grammar:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks the grammar.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                check($what, &value, $max, $grammar)?;
                Ok(Self(value))
            }

            /// The bare text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }
    };
}

id!(
    /// What a node calls a claim: the pod's UID, or `node/namespace/name` where the shim sends no UID.
    /// A second sandbox of the same pod finds the pod VM of the first one by it.
    ClaimKey, "claim key", 600, KEY
);
id!(
    /// One life of a claim: random, 32 hex digits. A key that is claimed again after its release gets another one, so that nothing of
    /// the old life is taken for the new one's.
    ClaimId, "claim id", 32, HEX
);
id!(
    /// A class's name, the last part of its table in the configuration (`[class.NAME]`).
    ClassName, "class name", 63, NAME
);
id!(
    /// A node's name as its cluster knows it.
    NodeName, "node name", 253, NAME
);

impl ClaimId {
    /// From a number that must be random.
    pub fn from_random(value: u128) -> Self {
        Self(format!("{value:032x}"))
    }
}

/// One life of one claim, as other records refer to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRef {
    /// The claim's key.
    pub key: ClaimKey,
    /// Which life of it.
    pub id: ClaimId,
}

/// The pod that a pod VM is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "PodFields", into = "PodFields")]
pub struct PodRef {
    namespace: String,
    name: String,
    uid: Option<String>,
}

impl PodRef {
    /// Checks the grammar of all three parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, uid: Option<String>) -> Result<Self, InvalidId> {
        let (namespace, name) = (namespace.into(), name.into());
        check("pod namespace", &namespace, 63, NAME)?;
        check("pod name", &name, 253, NAME)?;
        if let Some(uid) = &uid {
            check("pod UID", uid, 128, NAME)?;
        }
        Ok(Self { namespace, name, uid })
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pod's UID; `None` where the shim does not know it.
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PodFields {
    namespace: String,
    name: String,
    uid: Option<String>,
}

impl TryFrom<PodFields> for PodRef {
    type Error = InvalidId;
    fn try_from(fields: PodFields) -> Result<Self, InvalidId> {
        Self::new(fields.namespace, fields.name, fields.uid)
    }
}

impl From<PodRef> for PodFields {
    fn from(pod: PodRef) -> Self {
        Self { namespace: pod.namespace, name: pod.name, uid: pod.uid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_grammar_is_enforced() {
        assert!(ClaimKey::new("node-1/default/web-0").is_ok());
        for bad in ["", "a b", "ü", "a\n"] {
            assert!(ClaimKey::new(bad).is_err(), "{bad:?}");
        }
        assert!(ClaimKey::new("x".repeat(601)).is_err());
        assert!(NodeName::new("node/1").is_err(), "a slash would forge another key");
        assert!(PodRef::new("default", "a/b", None).is_err());
    }

    #[test]
    fn error_does_not_repeat_a_long_value() {
        let error = ClaimKey::new("é".repeat(100_000)).expect_err("not in the alphabet");
        assert!(error.to_string().len() < 1024);
    }

    #[test]
    fn pod_is_checked_when_deserialised() {
        assert!(serde_json::from_str::<PodRef>(r#"{"namespace":"default","name":"web","uid":null}"#).is_ok());
        assert!(serde_json::from_str::<PodRef>(r#"{"namespace":"default","name":"we b","uid":null}"#).is_err());
    }
}
