//! User data: what the cloud hands to a pod VM at launch, as JSON.
//!
//! The same bytes for every launch with one launch key, readable by the cloud, and without a secret. It only says whose
//! assignments the VM accepts and which evidence it makes; a lying cloud can break the launch, not gain anything by it.

use serde::{Deserialize, Serialize};

/// The version that this crate writes.
pub const USER_DATA_VERSION: u32 = 1;

/// Longest encoding that is read. Clouds allow 16 KiB and more; ours needs a fraction.
pub const MAX_USER_DATA_BYTES: usize = 1024;

/// What a pod VM is told at launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserData {
    /// Format version, [`USER_DATA_VERSION`].
    pub version: u32,
    /// SHA-256 of the binder CA's SubjectPublicKeyInfo in DER, as 64 lower-case hex digits.
    pub binder_ca_sha256: String,
    /// The kind of evidence that the VM makes, for example `sample`.
    pub tee: String,
}

/// Why user data was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserDataError {
    /// More than [`MAX_USER_DATA_BYTES`].
    #[error("user data has {0} bytes; at most {MAX_USER_DATA_BYTES} are read")]
    TooLong(usize),
    /// Not the JSON of this version.
    #[error("user data is malformed: {0}")]
    Malformed(String),
    /// Written by another release.
    #[error(
        "user data has version {0}; this pod VM image reads version {USER_DATA_VERSION}: launch with an image of the controller's release"
    )]
    UnknownVersion(u64),
    /// `binder_ca_sha256` is not 64 lower-case hex digits.
    #[error("binder_ca_sha256 in user data is not 64 lower-case hex digits")]
    BadFingerprint,
    /// `tee` is empty or not lower-case letters, digits and hyphens.
    #[error("tee in user data is not made of lower-case letters, digits and hyphens")]
    BadTee,
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl UserData {
    /// User data of the current version.
    pub fn new(binder_ca_sha256: impl Into<String>, tee: impl Into<String>) -> Self {
        Self { version: USER_DATA_VERSION, binder_ca_sha256: binder_ca_sha256.into(), tee: tee.into() }
    }

    /// The bytes for the cloud; equal values give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of strings and integers always serializes")
    }

    /// Reads and checks user data; the bytes come from the cloud and may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, UserDataError> {
        if bytes.len() > MAX_USER_DATA_BYTES {
            return Err(UserDataError::TooLong(bytes.len()));
        }
        let malformed = |error: serde_json::Error| UserDataError::Malformed(error.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != u64::from(USER_DATA_VERSION) {
            return Err(UserDataError::UnknownVersion(version));
        }
        let data: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        data.binder_ca_fingerprint()?;
        if data.tee.is_empty() || !data.tee.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(UserDataError::BadTee);
        }
        Ok(data)
    }

    /// The fingerprint as bytes.
    pub fn binder_ca_fingerprint(&self) -> Result<[u8; 32], UserDataError> {
        crate::bind::decode_hex32(&self.binder_ca_sha256).ok_or(UserDataError::BadFingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/compat/user-data/v1/sample.json");

    #[test]
    fn version_1_bytes_decode_and_encode_unchanged() {
        let data = UserData::decode(GOLDEN).unwrap();
        assert_eq!(data, UserData::new("0123456789abcdef".repeat(4), "sample"));
        assert_eq!(data.encode(), GOLDEN);
    }

    #[test]
    fn unknown_version_is_refused_by_its_number() {
        let later = br#"{"version":2,"something":"else"}"#;
        assert_eq!(UserData::decode(later), Err(UserDataError::UnknownVersion(2)));
    }

    #[test]
    fn unknown_fields_and_bad_values_are_refused() {
        let with = |change: fn(&mut serde_json::Value)| {
            let mut value: serde_json::Value = serde_json::from_slice(GOLDEN).unwrap();
            change(&mut value);
            UserData::decode(&serde_json::to_vec(&value).unwrap())
        };
        assert!(matches!(with(|value| value["extra"] = 1.into()), Err(UserDataError::Malformed(text)) if text.contains("extra")));
        assert_eq!(with(|value| value["binder_ca_sha256"] = "AB".repeat(32).into()), Err(UserDataError::BadFingerprint));
        assert_eq!(with(|value| value["tee"] = "a b".into()), Err(UserDataError::BadTee));
        assert_eq!(UserData::decode(&[b' '; 1025]), Err(UserDataError::TooLong(1025)));
    }
}
