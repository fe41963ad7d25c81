//! `pins.toml`: which packages an image is made of, by digest.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// The pins that this program was built with.
pub const BUILT_IN: &str = include_str!("../pins.toml");

const HEADER: &str = "\
# What the pod VM image is made of. Written by `peerpods-recipe update`; checked by every build.
# `path` is relative to the root of a Debian archive; `sha256` is what makes an image reproducible.
";

/// The inputs of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// Version of this format: 1.
    pub version: u32,
    /// The packages, in order of their role and name.
    #[serde(rename = "package")]
    pub packages: Vec<Pin>,
}

/// One Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// What the image takes from it.
    pub role: Role,
    /// The package's name.
    pub name: String,
    /// Its Debian version.
    pub version: String,
    /// Its file, relative to the archive's root.
    pub path: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
}

/// What a package is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Kernel, its modules, its configuration.
    Kernel,
    /// The EFI program in front of a UKI.
    Stub,
    /// Mozilla's CA certificates.
    Certificates,
}

impl Role {
    /// All roles; an image needs each.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Stub, Self::Certificates];

    /// Which measurements of a pod VM change with this input.
    pub fn measured_as(self) -> &'static str {
        match self {
            Self::Kernel => "vmlinux, initrd and uki.efi: SNP launch digest with kernel hashes, TDX RTMR 1 and 2, PCR 4, 9 and 11",
            Self::Stub => "uki.efi: PCR 4, TDX RTMR 1",
            Self::Certificates => "initrd and uki.efi: SNP launch digest with kernel hashes, TDX RTMR 2, PCR 4, 9 and 11",
        }
    }
}

impl Pins {
    /// Reads pins and checks that every role is filled and every digest is one.
    pub fn parse(text: &str) -> Result<Self> {
        let pins: Self = toml::from_str(text).context("pins.toml")?;
        ensure!(pins.version == 1, "pins.toml has version {}, this program reads version 1", pins.version);
        for role in Role::ALL {
            ensure!(pins.packages.iter().any(|p| p.role == role), "pins.toml has no package for role {role:?}");
        }
        for pin in &pins.packages {
            let is_digest = pin.sha256.len() == 64 && pin.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            ensure!(is_digest, "{}: sha256 is not 64 lower-case hexadecimal digits", pin.name);
            ensure!(!pin.path.starts_with('/') && !pin.path.contains(".."), "{}: path leaves the archive", pin.name);
        }
        Ok(pins)
    }

    /// The text of `pins.toml`.
    pub fn render(&self) -> Result<String> {
        Ok(format!("{HEADER}{}", toml::to_string(self)?))
    }

    /// Writes `pins.toml`.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.render()?).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_pins_are_valid_and_written_back_unchanged() {
        let pins = Pins::parse(BUILT_IN).expect("pins.toml of this crate");
        assert_eq!(pins.render().expect("render"), BUILT_IN);
    }

    #[test]
    fn pin_with_a_bad_digest_or_path_is_refused() {
        let short = BUILT_IN.replacen("sha256 = \"", "sha256 = \"0", 1);
        assert!(Pins::parse(&short).is_err());
        let outside = BUILT_IN.replacen("path = \"pool/", "path = \"../pool/", 1);
        assert!(Pins::parse(&outside).is_err());
    }

    #[test]
    fn unknown_key_is_refused() {
        assert!(Pins::parse(&format!("{BUILT_IN}mirror = \"x\"\n")).is_err());
    }
}
