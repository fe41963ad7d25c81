//! What was done to containerd's configuration, version 1: one JSON file beside the file as it was before.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::edit::Change;

/// The version of the file.
pub(super) const VERSION: u32 = 1;

/// An installation: written before the configuration is changed, and again after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallRecord {
    /// Format of the file: 1.
    pub version: u32,
    /// containerd's configuration.
    pub config: PathBuf,
    /// SHA-256 of what was there before the first change, in hex; `None`: there was no file.
    pub before: Option<String>,
    /// SHA-256 of what was there before the last change, in hex.
    pub changed_from: Option<String>,
    /// SHA-256 of what is there once the last change is made, in hex.
    pub after: String,
    /// Whether somebody else changed the file between two changes of ours: then what was there before the first one is not what he
    /// wants back, and only our entries are taken out.
    pub is_edited: bool,
    /// Our entries.
    pub changes: Vec<Change>,
}

impl InstallRecord {
    /// Whether a file of this digest is one that we wrote, with the last change or, if that was not made, before it.
    pub(super) fn is_ours(&self, found: Option<&str>) -> bool {
        found == Some(self.after.as_str()) || found == self.changed_from.as_deref()
    }
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not what it should be.
    #[error("{path} is damaged; next: take our entries out of containerd's configuration by hand, then remove this file")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another release wrote it.
    #[error("{path} has version {found}, this release reads {VERSION}: use the release that wrote it")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It is about another file.
    #[error("{path} says that {config} was changed: uninstall there first, or name another --state-dir")]
    OtherConfig {
        /// The file.
        path: PathBuf,
        /// The configuration that it is about.
        config: PathBuf,
    },
}

/// SHA-256 in hex.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
