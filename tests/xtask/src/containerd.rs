//! containerd 1.7 and 2.x from Debian, side by side in the target folder; nothing is installed.
//!
//! Of other releases only containerd itself is taken, which is statically linked enough to run on older ones; runc is not, and is
//! this release's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::stage::Stages;
use crate::{binaries, debian};

/// The variable that tells tests, demo and benchmarks where the versions are.
pub(crate) const VARIABLE: &str = "PEERPODS_CONTAINERD";

/// A version: the folder's name, how its number begins, and the releases that may have it, the likeliest first.
const VERSIONS: [(&str, &str, &[&str]); 2] = [("1.7", "1.7.", &["trixie"]), ("2", "2.", &["sid", "forky", "trixie-backports"])];

/// Makes sure that both are there, fetching what is not; gives the folder that holds them.
pub(crate) fn ensure(stages: &mut Stages) -> Result<PathBuf, String> {
    stages.run("containerd 1.7 and 2.x", || {
        let folder = binaries::containerd_folder()?;
        for (name, number, suites) in VERSIONS {
            let version = match version(&folder.join(name)) {
                Some(version) if version.starts_with(number) => version,
                _ => fetch(&folder, name, number, suites)?,
            };
            println!("    containerd {name}: {version}");
        }
        Ok(folder)
    })
}

/// What `containerd --version` says: `containerd <import path> <version> <commit>`.
fn version(unpacked: &Path) -> Option<String> {
    let out = Command::new(unpacked.join("usr/bin/containerd")).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let word = text.split_whitespace().nth(2)?;
    out.status.success().then(|| word.trim_start_matches('v').to_owned())
}

fn fetch(folder: &Path, name: &str, number: &str, suites: &[&str]) -> Result<String, String> {
    let mut failures = Vec::new();
    for suite in suites {
        let unpacked = folder.join(format!("{name}.new"));
        let _ = std::fs::remove_dir_all(&unpacked);
        match debian::unpack(suite, &["containerd"], &folder.join("apt"), &unpacked) {
            Err(error) => failures.push(format!("{suite}: {error}")),
            Ok(_) => match version(&unpacked) {
                Some(version) if version.starts_with(number) => {
                    let _ = std::fs::remove_dir_all(folder.join(name));
                    std::fs::rename(&unpacked, folder.join(name)).map_err(|e| format!("{}: {e}", unpacked.display()))?;
                    let _ = std::fs::remove_dir_all(folder.join("apt"));
                    return Ok(version);
                }
                Some(version) => failures.push(format!("{suite}: has {version}")),
                None => failures.push(format!("{suite}: its containerd does not start here")),
            },
        }
    }
    Err(format!("no containerd {number}x: {}", failures.join("; ")))
}
