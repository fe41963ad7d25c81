//! The controller's folder: what is made once and must outlive every process.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use peerpods_controller_api::OwnerTag;
use peerpods_tunnel::credential::{BinderCa, CredentialError};

use crate::RedbJournal;
use crate::journal::OpenError;

/// The folder's content.
#[derive(Debug)]
pub struct StateDir {
    /// The Journal; holds the folder's lock.
    pub journal: RedbJournal,
    /// On everything that this controller owns.
    pub owner: OwnerTag,
    /// Certifies nodes.
    pub binder_ca: BinderCa,
}

/// A folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file cannot be made or read.
    #[error("cannot use {}", path.display())]
    UseFile {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The Journal cannot be opened.
    #[error("cannot open the journal in {}", path.display())]
    OpenJournal {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The binder CA cannot be made or read.
    #[error("cannot use the binder CA in {}", path.display())]
    UseCa {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CredentialError,
    },
    /// The owner tag is not one.
    #[error("{} does not hold an owner tag", path.display())]
    ReadOwner {
        /// Its file.
        path: PathBuf,
    },
}

impl StateDir {
    /// Opens the folder, making what is missing. Fails if another controller has it open.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let fail = |source| StateError::UseFile { path: folder.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        // First, because it is the lock: whatever follows is made by one process alone.
        let journal = RedbJournal::open(&folder.join("journal.redb"))
            .map_err(|source| StateError::OpenJournal { path: folder.to_owned(), source })?;

        let path = folder.join("owner");
        let text = read_or_make(&path, || Ok(format!("peerpods-{:016x}\n", random() >> 64)))?;
        let owner = OwnerTag::new(text.trim_end()).map_err(|_| StateError::ReadOwner { path })?;

        let path = folder.join("binder-ca.pem");
        let failed = |source| StateError::UseCa { path: path.clone(), source };
        let pem = read_or_make(&path, || Ok(BinderCa::generate().map_err(failed)?.to_pem()))?;
        let binder_ca = BinderCa::from_pem(&pem).map_err(failed)?;
        Ok(Self { journal, owner, binder_ca })
    }
}

/// A random number from the kernel-seeded generator.
pub(crate) fn random() -> u128 {
    let mut bytes = [0; 16];
    #[expect(clippy::expect_used, reason = "the generator fails only if the process cannot get entropy; nothing can go on then")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    u128::from_le_bytes(bytes)
}

/// A file's text; made whole, synced and only then given its name, if it is missing.
fn read_or_make(path: &Path, make: impl FnOnce() -> Result<String, StateError>) -> Result<String, StateError> {
    let fail = |source| StateError::UseFile { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result.map_err(fail),
    }
    let text = make()?;
    write_once(path, &text).map_err(fail)?;
    Ok(text)
}

fn write_once(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    // What a process that died left under this name is worth nothing.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn owner_and_ca_are_made_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("controller");
        let first = StateDir::open(&path).expect("is made");
        let (owner, ca) = (first.owner.clone(), first.binder_ca.spki_sha256_hex());
        assert!(matches!(StateDir::open(&path), Err(StateError::OpenJournal { .. })), "one controller at a time");
        drop(first);
        let second = StateDir::open(&path).expect("is opened again");
        assert_eq!((second.owner.clone(), second.binder_ca.spki_sha256_hex()), (owner, ca));
        let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("binder-ca.pem"))), (0o700, 0o600));
    }

    #[test]
    fn half_written_file_is_replaced_and_damage_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("owner.new"), "peerp").expect("written");
        drop(StateDir::open(folder.path()).expect("is made"));
        std::fs::write(folder.path().join("owner"), "").expect("written");
        assert!(matches!(StateDir::open(folder.path()), Err(StateError::ReadOwner { .. })), "an empty tag would own everything");
    }
}
