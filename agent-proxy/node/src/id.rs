//! The shim's name for a sandbox.

use serde::{Deserialize, Serialize};

/// A CRI sandbox id: 64 hex digits in practice. It names files, so its grammar is narrow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// Not a sandbox id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sandbox id {shown:?} must be 1 to 128 characters of [A-Za-z0-9._-] and begin with a letter or digit")]
pub struct InvalidSandboxId {
    /// The id, cut after 80 characters.
    shown: String,
}

impl SandboxId {
    /// Checks the grammar.
    pub fn new(value: impl Into<String>) -> Result<Self, InvalidSandboxId> {
        let value = value.into();
        let is_valid = (1..=128).contains(&value.len())
            && value.as_bytes()[0].is_ascii_alphanumeric()
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if is_valid { Ok(Self(value)) } else { Err(InvalidSandboxId { shown: value.chars().take(80).collect() }) }
    }

    /// The bare text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SandboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidSandboxId;
    fn try_from(value: String) -> Result<Self, InvalidSandboxId> {
        Self::new(value)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_their_folder() {
        assert!(SandboxId::new("0123456789abcdef".repeat(4)).is_ok());
        for bad in ["", ".", "..", "a/b", "../a", ".hidden", "-x", "a b", "a\0", "ü"] {
            assert!(SandboxId::new(bad).is_err(), "{bad:?}");
        }
        assert!(SandboxId::new("a".repeat(129)).is_err());
    }
}
