//! What the containerd program itself says: which files it reads, and what it makes of ours.

use std::path::Path;
use std::process::Command;

use toml_edit::{DocumentMut, Item};

use super::edit::FileVersion;

/// The version of configuration that this program writes by itself; `None` when it does not say.
pub(super) fn file_version(program: &Path) -> Option<FileVersion> {
    let output = Command::new(program).arg("--version").output().ok()?;
    // "containerd github.com/containerd/containerd 1.7.24 …" or "containerd containerd.io/… v2.1.0 …"
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = text.split_whitespace().find_map(|word| {
        let (major, rest) = word.trim_start_matches('v').split_once('.')?;
        rest.starts_with(|c: char| c.is_ascii_digit()).then(|| major.parse::<u32>().ok())?
    })?;
    Some(if major >= 2 { FileVersion::V3 } else { FileVersion::V2 })
}

/// Whether this program, reading that file and all that it imports, has our runtime; `Err` says why it could not be asked.
pub(super) fn has_runtime(program: &Path, config: &Path, handler: &str) -> Result<bool, String> {
    let output = Command::new(program).arg("--config").arg(config).args(["config", "dump"]).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let document: DocumentMut = text.parse().map_err(|error| format!("its answer is not TOML: {error}"))?;
    let plugins = document.get("plugins").and_then(Item::as_table_like);
    let of_plugin = |plugin: &Item| -> Option<bool> {
        let runtime = plugin.get("containerd")?.get("runtimes")?.get(handler)?;
        Some(runtime.get("snapshotter")?.as_str()? == "peerpods")
    };
    Ok(plugins.into_iter().flat_map(|plugins| plugins.iter()).any(|(_, plugin)| of_plugin(plugin) == Some(true)))
}
