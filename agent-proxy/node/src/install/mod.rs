//! `peerpods-node install` and `uninstall`: our entries in containerd's configuration, put in and taken out.
//!
//! The main file is edited rather than a file that it imports: containerd 1.7 lets an import replace the whole table of a plugin, and
//! with it every other runtime. [`edit`] decides, on text alone; [`files`] carries it out. What was there before is kept beside a
//! [`record`] of what was done: intent first, then the file by rename, then the result, so that a run that was killed at any line is
//! finished, or undone, by the next one. containerd is not restarted; it is said how.

pub mod command;
mod containerd;
mod edit;
mod files;
mod record;

use std::path::PathBuf;

use similar::TextDiff;

pub use edit::{Change, EditError, FileVersion, Wanted, add, remove};
pub use files::{Installer, Outcome};
pub use record::{InstallRecord, RecordError};

/// Where containerd looks for its configuration.
pub const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// Where it is kept what was there before; unlike the daemon's state it outlives a boot.
pub const STATE_DIR: &str = "/var/lib/peerpods/install";
/// The program that containerd starts for runtime type `io.containerd.peerpods.v2`.
pub const SHIM: &str = "containerd-shim-peerpods-v2";

/// Why nothing was installed, or not everything uninstalled.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The configuration cannot be changed as it is.
    #[error("{path} cannot be changed")]
    Edit {
        /// containerd's configuration.
        path: PathBuf,
        /// What is wrong, and what to do.
        #[source]
        source: EditError,
    },
    /// A file cannot be read, written or removed.
    #[error("{action} {path}")]
    File {
        /// Such as "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is not text.
    #[error("{path} is not UTF-8; containerd's configuration is TOML")]
    NotText {
        /// containerd's configuration.
        path: PathBuf,
    },
    /// What was done before cannot be known.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What a change of the file looks like, in the form of `diff -u`; empty when nothing changes.
pub fn diff(before: &str, after: &str, path: &str) -> String {
    TextDiff::from_lines(before, after).unified_diff().header(&format!("{path} (now)"), &format!("{path} (new)")).to_string()
}

/// The Kubernetes object that lets pods name the handler.
pub fn runtime_class(handler: &str) -> String {
    format!("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {handler}\nhandler: {handler}\n")
}

/// A program of that name in the folders of a PATH.
pub fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    path.split(':').filter(|folder| !folder.is_empty()).map(|folder| PathBuf::from(folder).join(name)).find(is_program)
}
