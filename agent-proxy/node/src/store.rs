//! The folder of sandbox files: `<state_dir>/sandboxes/<sandbox_id>.json`, mode 0600.
//!
//! A file is written under another name, flushed, renamed, and the folder flushed: a reader sees the old file or the new one. Writes
//! block the caller for a flush; the folder belongs on a tmpfs (`/run`), where that is nothing, and each sandbox has one writer.
//! A file that cannot be read is set aside under another name and reported; one of an unknown version stops the daemon untouched.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::id::SandboxId;
use crate::record::{SandboxRecord, VERSION};

/// The folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be made or listed.
    #[error("cannot {action} {path}")]
    Folder {
        /// What was being done.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written or removed.
    #[error("cannot {action} {path}: is the disk full?")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// A newer daemon wrote it.
    #[error(
        "{path} has version {found}, this daemon knows 1: start the release that wrote it, or stop the node's peer pods with that \
         release before going back; nothing was changed"
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// A file that holds no record.
#[derive(Debug)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: String,
}

/// What the folder holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every sandbox, by name.
    pub records: Vec<SandboxRecord>,
    /// Files that hold none.
    pub damaged: Vec<Damaged>,
}

const SUFFIX: &str = ".json";
const TEMPORARY: &str = ".tmp";
const SET_ASIDE: &str = ".damaged";

impl Store {
    /// Makes the folder if need be.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let folder = state_dir.join("sandboxes");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| StoreError::Folder { action: "make", path: folder.clone(), source })?;
        Ok(Self { folder })
    }

    /// Reads every file and changes nothing.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        Self::read_folder(&self.folder)
    }

    /// As [`Store::load`], for one who only looks: a folder that is not there holds nothing.
    pub fn look(state_dir: &Path) -> Result<Loaded, StoreError> {
        match Self::read_folder(&state_dir.join("sandboxes")) {
            Err(StoreError::Folder { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Loaded::default()),
            loaded => loaded,
        }
    }

    /// Moves damaged files out of the way, keeping their bytes, and removes half-written ones.
    pub fn tidy(&self, damaged: &[Damaged]) -> Result<(), StoreError> {
        for file in damaged {
            let aside = free_name(&file.path);
            let moved = std::fs::rename(&file.path, &aside);
            moved.map_err(|source| StoreError::File { action: "set aside", path: file.path.clone(), source })?;
            tracing::error!(path = %file.path.display(), kept_as = %aside.display(), cause = file.cause,
                "a sandbox's file is damaged: its pod VM, network and link, if any, must be removed by hand");
        }
        for path in names(&self.folder)?.into_iter().filter(|path| has_suffix(path, TEMPORARY)) {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    /// Replaces the sandbox's file; when this returns, a reader after any crash finds this record.
    pub fn write(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        let path = self.path(&record.sandbox_id);
        let failed = |source| StoreError::File { action: "write", path: path.clone(), source };
        let mut bytes = serde_json::to_vec_pretty(record).map_err(|e| failed(std::io::Error::other(e)))?;
        bytes.push(b'\n');
        let temporary = self.folder.join(format!("{}{TEMPORARY}", record.sandbox_id));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(failed)
    }

    /// Removes the sandbox's file; one that is not there is no error.
    pub fn remove(&self, id: &SandboxId) -> Result<(), StoreError> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::File { action: "remove", path, source }),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.folder.join(format!("{id}{SUFFIX}"))
    }

    fn read_folder(folder: &Path) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        for path in names(folder)?.into_iter().filter(|path| has_suffix(path, SUFFIX)) {
            match read_file(&path) {
                Ok(Some(record)) => loaded.records.push(record),
                Ok(None) => {}
                Err(Unreadable::Version(found)) => return Err(StoreError::UnknownVersion { path, found }),
                Err(Unreadable::Damaged(cause)) => loaded.damaged.push(Damaged { path, cause }),
            }
        }
        Ok(loaded)
    }
}

enum Unreadable {
    Version(u64),
    Damaged(String),
}

/// `None` when the file went away meanwhile, as it does under a running daemon.
fn read_file(path: &Path) -> Result<Option<SandboxRecord>, Unreadable> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Unreadable::Damaged(error.to_string())),
    };
    let damaged = |error: serde_json::Error| Unreadable::Damaged(error.to_string());
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(VERSION) => {}
        Some(found) => return Err(Unreadable::Version(found)),
        None => return Err(Unreadable::Damaged("it has no version".to_owned())),
    }
    let record: SandboxRecord = serde_json::from_value(value).map_err(damaged)?;
    if path.file_name().and_then(|name| name.to_str()) != Some(&format!("{}{SUFFIX}", record.sandbox_id)) {
        return Err(Unreadable::Damaged(format!("it is the record of sandbox {}", record.sandbox_id)));
    }
    Ok(Some(record))
}

fn names(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let list = || std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut names = list().map_err(|source| StoreError::Folder { action: "list", path: folder.to_owned(), source })?;
    names.sort();
    Ok(names)
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(suffix))
}

fn free_name(path: &Path) -> PathBuf {
    (0_u32..)
        .map(|n| {
            let mut name = path.as_os_str().to_owned();
            name.push(if n == 0 { SET_ASIDE.to_owned() } else { format!("{SET_ASIDE}.{n}") });
            PathBuf::from(name)
        })
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| path.with_extension("damaged"))
}
