//! What tests are handed by `cargo xtask`, in variables that it sets.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Where our binaries are: `PEERPODS_BINARIES`, set by `cargo xtask`, else beside the running program.
pub fn binaries_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("PEERPODS_BINARIES") {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe()?;
    let folder = own.ancestors().find(|folder| folder.join("peerpods-node").is_file());
    folder.map(Path::to_owned).context("set PEERPODS_BINARIES to the folder of our binaries")
}

/// Where the pod VM image is: `PEERPODS_IMAGE`, set by `cargo xtask`.
pub fn image_folder() -> Result<PathBuf> {
    std::env::var_os("PEERPODS_IMAGE").map(PathBuf::from).context("set PEERPODS_IMAGE to the pod VM image's folder")
}

/// Where skopeo and cosign of Debian trixie are, in `bin`: `PEERPODS_TRIXIE`, set by `cargo xtask`.
pub fn trixie_folder() -> Result<PathBuf> {
    std::env::var_os("PEERPODS_TRIXIE").map(PathBuf::from).context("set PEERPODS_TRIXIE to the folder of Debian trixie's tools")
}
