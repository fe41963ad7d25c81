//! The CA bundle: what Debian's `update-ca-certificates` would write with all of Mozilla's certificates, in a fixed order.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::package::files_below;

/// Concatenates every certificate of the unpacked `ca-certificates` package in the order of their file names.
pub fn bundle(unpacked: &Path) -> Result<Vec<u8>> {
    let folder = unpacked.join("usr/share/ca-certificates");
    let mut out = Vec::new();
    for path in files_below(&folder)? {
        if path.extension().is_none_or(|e| e != "crt") {
            continue;
        }
        let pem = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"), "{} is not a PEM certificate", path.display());
        out.extend_from_slice(&pem);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
    ensure!(!out.is_empty(), "{} has no certificate", folder.display());
    Ok(out)
}
