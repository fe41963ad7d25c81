//! The sandbox's bundle: what `delete` finds when the shim that served the pod is gone.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// `peerpods.json` in the bundle of a sandbox, written before the node daemon is asked for anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxFile {
    /// Format of this file: 1.
    pub version: u32,
    /// The CRI sandbox id.
    pub sandbox_id: String,
    /// Where the node daemon answers.
    pub hypervisor_socket: PathBuf,
    /// The cgroup that the shim made for itself, relative to the root of every hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// The version of the file.
pub const VERSION: u32 = 1;
const NAME: &str = "peerpods.json";

impl SandboxFile {
    /// Writes the file, mode 0600, by rename.
    pub fn write(&self, bundle: &Path) -> std::io::Result<()> {
        let path = bundle.join(NAME);
        let new = path.with_extension("new");
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(new, path)
    }

    /// Reads the file; `None` in the bundle of a container that is no sandbox.
    pub fn read(bundle: &Path) -> std::io::Result<Option<Self>> {
        let bytes = match std::fs::read(bundle.join(NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let file: Self = serde_json::from_slice(&bytes)?;
        if file.version != VERSION {
            return Err(std::io::Error::other(format!("{NAME} has version {}, this shim reads {VERSION}", file.version)));
        }
        Ok(Some(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_of_a_container_has_no_file_and_that_of_a_sandbox_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SandboxFile::read(dir.path()).unwrap(), None);
        let file = SandboxFile { version: VERSION, sandbox_id: "s".to_owned(), hypervisor_socket: "/h".into(), cgroup: None };
        file.write(dir.path()).unwrap();
        assert_eq!(SandboxFile::read(dir.path()).unwrap(), Some(file.clone()));
        SandboxFile { version: 2, ..file }.write(dir.path()).unwrap();
        assert!(SandboxFile::read(dir.path()).unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn files_of_version_1_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), include_bytes!("../../../tests/compat/shim/v1/peerpods.json")).unwrap();
        let file = SandboxFile::read(dir.path()).unwrap().unwrap();
        assert_eq!((file.sandbox_id.as_str(), file.cgroup.as_deref()), ("s", Some(Path::new("/kubepods/pod1/s"))));
    }
}
