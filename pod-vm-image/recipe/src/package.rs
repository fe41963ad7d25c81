//! Unpacking Debian packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Unpacks a package's files into a folder.
pub fn unpack(deb: &Path, into: &Path) -> Result<()> {
    let status = Command::new("dpkg-deb").arg("--extract").arg(deb).arg(into).status().context("run dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb --extract {}: {status}", deb.display());
    Ok(())
}

/// Decompresses an xz file with the system's xz: the result does not depend on its version.
pub fn unxz(path: &Path) -> Result<Vec<u8>> {
    let out = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output().context("run xz")?;
    ensure!(out.status.success(), "xz {}: {}", path.display(), String::from_utf8_lossy(&out.stderr).trim());
    Ok(out.stdout)
}

/// All files below a folder, sorted.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The one file below a folder that has this name.
pub fn file_named(folder: &Path, name: &str) -> Result<PathBuf> {
    let found: Vec<PathBuf> = files_below(folder)?.into_iter().filter(|p| p.file_name().is_some_and(|n| n == name)).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("no package contains a file named {name}"),
        many => bail!("more than one file is named {name}: {many:?}"),
    }
}
