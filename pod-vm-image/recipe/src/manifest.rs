//! `manifest.json`: what an image is, for those who boot, publish or verify it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measure::ReferenceValues;
use crate::pins::Pin;

/// The manifest of an image folder. Readers ignore fields that they do not know; a changed meaning gets a new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: 1.
    pub version: u32,
    /// The kernel command line that belongs to the image. A hypervisor that boots `vmlinux` directly passes it, and may append
    /// what its machine type needs; `uki.efi` contains it.
    pub cmdline: String,
    /// `uname -r` of the kernel.
    pub kernel: String,
    /// The other files, by name.
    pub files: BTreeMap<String, File>,
    /// What a TPM shows after `uki.efi` was booted ([`crate::measure`]); `None` in manifests of older images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurements: Option<ReferenceValues>,
    /// SHA-256 of the guest binary.
    pub guest_sha256: String,
    /// SHA-256 of the programs of the upstream profile ([`crate::upstream`]) by name; empty for an image with our own agent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstream: BTreeMap<String, String>,
    /// The packages that the image is made of.
    pub inputs: Vec<Pin>,
    /// True when the inputs are not the pinned ones: nobody else can rebuild this image.
    pub unpinned: bool,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The name of the manifest.
pub const FILE_NAME: &str = "manifest.json";
