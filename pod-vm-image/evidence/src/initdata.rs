//! Initdata: the TOML document that a workload's owner attaches to a pod, measured into the pod VM's initdata register.
//!
//! ```toml
//! version = "0.1.0"
//! algorithm = "sha384"
//!
//! [data]
//! "aa.toml" = "..."
//! ```
//!
//! The digest is over the raw text, so every byte counts, comments and line ends included. Initdata is public: the host sees it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// The only version of the format.
pub const VERSION: &str = "0.1.0";

/// Longest text that is read. It must fit, escaped as JSON, into a Bind of 1 MiB; Kubernetes allows 256 KiB of annotations.
pub const MAX_BYTES: usize = 512 << 10;

/// What is measured for a pod without initdata, so that its VM, too, leaves the reset state: these bytes, hashed with SHA-256, which fits
/// every register.
pub const EMPTY: &str = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n";

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initdata {
    /// Format version, always [`VERSION`].
    pub version: String,
    /// How the text is hashed.
    pub algorithm: Algorithm,
    /// File name to content, for example `aa.toml`, `cdh.toml`, `policy.rego`.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
}

/// Hash algorithms of initdata, spelled as in Trustee and guest-components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
}

/// Why initdata was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InitdataError {
    /// More than [`MAX_BYTES`].
    #[error("initdata has {0} bytes; at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// Not the TOML of this format; the text says which key.
    #[error("initdata is malformed: {0}")]
    Malformed(String),
    /// Another version of the format.
    #[error("initdata has version {0:?}; only {VERSION:?} is known")]
    UnknownVersion(String),
}

impl Initdata {
    /// Reads a document; the text may be anything.
    pub fn parse(text: &str) -> Result<Self, InitdataError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: String,
        }
        if text.len() > MAX_BYTES {
            return Err(InitdataError::TooLong(text.len()));
        }
        let malformed = |error: toml::de::Error| InitdataError::Malformed(error.to_string().trim_end().to_owned());
        let Versioned { version } = toml::from_str(text).map_err(malformed)?;
        if version != VERSION {
            return Err(InitdataError::UnknownVersion(version));
        }
        toml::from_str(text).map_err(malformed)
    }
}

impl Algorithm {
    /// Hashes bytes.
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        })
    }
}

/// The digest of the text by the algorithm that it names itself; `None` stands for [`EMPTY`].
/// An unreadable text has no digest, and must not be measured under a guess.
pub fn digest(text: Option<&str>) -> Result<Vec<u8>, InitdataError> {
    let text = text.unwrap_or(EMPTY);
    Ok(Initdata::parse(text)?.algorithm.digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = '''\npackage agent_policy\n'''\n";

    #[test]
    fn document_parses_with_its_files() {
        let initdata = Initdata::parse(TEXT).unwrap();
        assert_eq!(initdata.algorithm, Algorithm::Sha256);
        assert_eq!(initdata.data["policy.rego"], "package agent_policy\n");
    }

    #[test]
    fn digest_is_of_the_raw_text_by_its_own_algorithm() {
        assert_eq!(digest(Some(TEXT)).unwrap(), Sha256::digest(TEXT).to_vec());
        let other = TEXT.replace("sha256", "sha512");
        assert_eq!(digest(Some(&other)).unwrap(), Sha512::digest(&other).to_vec());
        assert_ne!(digest(Some(TEXT)), digest(Some(&format!("{TEXT}\n"))));
    }

    #[test]
    fn empty_document_has_a_fixed_digest() {
        // `printf 'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n' | sha256sum`
        let expected = "8042cc8a65ff2a61c55127924ce8bd58f7c44d6fce009fa81bf07ac067619290";
        assert_eq!(hex::encode(digest(None).unwrap()), expected);
        assert!(Initdata::parse(EMPTY).unwrap().data.is_empty());
    }

    #[test]
    fn malformed_documents_are_refused_by_key() {
        let refused = |from: &str, to: &str| Initdata::parse(&TEXT.replace(from, to)).unwrap_err();
        assert_eq!(refused("0.1.0", "0.2.0"), InitdataError::UnknownVersion("0.2.0".to_owned()));
        for (from, to, named) in [
            ("sha256", "sha-256", "sha-256"),
            ("sha256", "sm3", "sm3"),
            ("[data]", "[datas]", "datas"),
            ("'''\npackage", "'''\0\npackage", ""),
        ] {
            assert!(matches!(refused(from, to), InitdataError::Malformed(text) if text.contains(named)), "{to:?}");
        }
        assert!(matches!(Initdata::parse("algorithm = \"sha256\""), Err(InitdataError::Malformed(text)) if text.contains("version")));
        assert_eq!(Initdata::parse(&" ".repeat(MAX_BYTES + 1)), Err(InitdataError::TooLong(MAX_BYTES + 1)));
    }
}
