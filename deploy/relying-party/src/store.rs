//! The state folder: small files, each replaced as a whole.
//!
//! A write goes to a temporary file, which is flushed and then renamed, and the folder is flushed: after a crash a file has its old
//! content or its new one. Temporary files that a crash left are ignored, and removed at the next start. One process at a time has
//! the folder. Modes are 0700 and 0600; a folder that others can read is refused, since resources lie in it in clear.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The folder of one broker.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    _lock: File,
}

/// Where a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// Keys, certificate, resource policy.
    Top,
    /// `repository,type,tag`.
    Resources,
    /// By policy id.
    AttestationPolicies,
    /// By name.
    ReferenceValues,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// For example `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a folder that `init` made.
    #[error("{} is no state folder; make one with `peerpods-relying-party init`", .0.display())]
    NoState(PathBuf),
    /// `init` where there is one.
    #[error("{} is a state folder already", .0.display())]
    Exists(PathBuf),
    /// Written by a program that is newer.
    #[error("{} has version {found:?}; this program knows {VERSION}: use the program that wrote it", path.display())]
    Version {
        /// The folder.
        path: PathBuf,
        /// Its version file.
        found: String,
    },
    /// Others than the owner can read or write it.
    #[error("{} can be used by others than its owner; make its mode 0700", .0.display())]
    Mode(PathBuf),
    /// Another process has it.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Not a name that a file here can have.
    #[error("{0:?} is no name of a file here")]
    Name(String),
    /// Longer than what is ever written.
    #[error("{} is longer than {MAX_FILE_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
}

/// The only version of the layout.
const VERSION: &str = "1";
const VERSION_FILE: &str = "version";
const LOCK_FILE: &str = "lock";
const TEMPORARY: &str = ".tmp-";
/// Longest file, in bytes: twice the longest body that is taken.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Longest name, in bytes; file systems take 255.
const MAX_NAME_BYTES: usize = 250;

impl Folder {
    const ALL: [Self; 4] = [Self::Top, Self::Resources, Self::AttestationPolicies, Self::ReferenceValues];

    fn path(self, root: &Path) -> PathBuf {
        match self {
            Self::Top => root.to_owned(),
            Self::Resources => root.join("resources"),
            Self::AttestationPolicies => root.join("attestation-policies"),
            Self::ReferenceValues => root.join("reference-values"),
        }
    }
}

impl Store {
    /// Makes the folder, lets `fill` write its first files, and marks it as complete last: a crash leaves a folder that is none, and
    /// that this takes again.
    pub fn create<E: From<StoreError>>(root: &Path, fill: impl FnOnce(&Self) -> Result<(), E>) -> Result<Self, E> {
        for folder in Folder::ALL {
            let path = folder.path(root);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("make", &path))?;
        }
        if let Some(parent) = fs::canonicalize(root).map_err(failed("look at", root))?.parent() {
            flush_directory(parent)?;
        }
        let store = Self::locked(root)?;
        if store.version()?.is_some() {
            return Err(StoreError::Exists(root.to_owned()).into());
        }
        fill(&store)?;
        store.write(Folder::Top, VERSION_FILE, format!("{VERSION}\n").as_bytes())?;
        Ok(store)
    }

    /// Opens a folder that [`create`](Self::create) made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        if !root.join(VERSION_FILE).is_file() {
            return Err(StoreError::NoState(root.to_owned()));
        }
        let store = Self::locked(root)?;
        let found = store.version()?.unwrap_or_default();
        if found != VERSION {
            return Err(StoreError::Version { path: root.to_owned(), found });
        }
        for folder in Folder::ALL {
            store.remove_temporary(&folder.path(root))?;
        }
        Ok(store)
    }

    /// The content of a file, or `None`.
    pub fn read(&self, folder: Folder, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = folder.path(&self.root).join(checked(name)?);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let size = file.metadata().map_err(failed("read", &path))?.len();
        if size > MAX_FILE_BYTES {
            return Err(StoreError::TooLong(path));
        }
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default()));
        file.take(MAX_FILE_BYTES).read_to_end(&mut content).map_err(failed("read", &path))?;
        Ok(Some(content))
    }

    /// Replaces or makes a file. When this returns, it survives a crash.
    pub fn write(&self, folder: Folder, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let directory = folder.path(&self.root);
        let path = directory.join(checked(name)?);
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(StoreError::TooLong(path));
        }
        let temporary = directory.join(format!("{TEMPORARY}{}", random_name(&path)?));
        let written = write_flushed(&temporary, content).and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            // What is left of it is ignored in any case.
            let _ = fs::remove_file(&temporary);
            return Err(failed("write", &path)(error));
        }
        flush_directory(&directory)
    }

    /// Removes a file; says whether there was one.
    pub fn remove(&self, folder: Folder, name: &str) -> Result<bool, StoreError> {
        let directory = folder.path(&self.root);
        let path = directory.join(checked(name)?);
        match fs::remove_file(&path) {
            Ok(()) => flush_directory(&directory).map(|()| true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    /// The names of a folder's files, sorted.
    pub fn list(&self, folder: Folder) -> Result<Vec<String>, StoreError> {
        let names = names(&folder.path(&self.root))?;
        let mut names: Vec<String> = names.into_iter().filter(|name| checked(name).is_ok()).collect();
        names.sort();
        Ok(names)
    }

    fn locked(root: &Path) -> Result<Self, StoreError> {
        let mode = fs::metadata(root).map_err(failed("look at", root))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(StoreError::Mode(root.to_owned()));
        }
        let path = root.join(LOCK_FILE);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(root.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    fn version(&self) -> Result<Option<String>, StoreError> {
        let content = self.read(Folder::Top, VERSION_FILE)?;
        Ok(content.map(|content| String::from_utf8_lossy(&content).trim().to_owned()))
    }

    fn remove_temporary(&self, directory: &Path) -> Result<(), StoreError> {
        for name in names(directory)?.into_iter().filter(|name| name.starts_with(TEMPORARY)) {
            let path = directory.join(name);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}

/// Names that are one plain component, and none of a temporary file.
pub(crate) fn checked(name: &str) -> Result<&str, StoreError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._,-".contains(&byte);
    let is_valid = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain);
    if is_valid { Ok(name) } else { Err(StoreError::Name(name.chars().take(80).collect())) }
}

fn random_name(path: &Path) -> Result<String, StoreError> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| failed("name a temporary file for", path)(io::Error::other("no random bytes")))?;
    Ok(hex::encode(random))
}

fn write_flushed(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn flush_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("flush", path))
}

fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(directory).map_err(failed("list", directory))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap_or_default()));
    names.collect::<io::Result<_>>().map_err(failed("list", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("state");
        (directory, root)
    }

    fn create(root: &Path) -> Store {
        Store::create(root, |_| Ok::<_, StoreError>(())).unwrap()
    }

    #[test]
    fn files_survive_and_have_their_modes() {
        let (_directory, root) = folder();
        let store = create(&root);
        store.write(Folder::Resources, "default,key,1", b"old").unwrap();
        store.write(Folder::Resources, "default,key,1", b"new").unwrap();
        drop(store);
        let store = Store::open(&root).unwrap();
        assert_eq!(store.read(Folder::Resources, "default,key,1").unwrap().unwrap().as_slice(), b"new");
        assert_eq!(store.list(Folder::Resources).unwrap(), ["default,key,1"]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(root.join("resources")), mode(root.join("resources/default,key,1"))), (0o700, 0o600));
        assert!(store.remove(Folder::Resources, "default,key,1").unwrap());
        assert!(!store.remove(Folder::Resources, "default,key,1").unwrap());
        assert!(store.read(Folder::Resources, "default,key,1").unwrap().is_none());
    }

    #[test]
    fn what_a_crash_left_is_ignored_and_removed() {
        let (_directory, root) = folder();
        let store = create(&root);
        store.write(Folder::Resources, "default,key,1", b"whole").unwrap();
        // As a process leaves it that dies between writing and renaming.
        let left = root.join("resources/.tmp-0123456789abcdef");
        fs::write(&left, b"hal").unwrap();
        assert_eq!(store.list(Folder::Resources).unwrap(), ["default,key,1"]);
        assert!(store.read(Folder::Resources, ".tmp-0123456789abcdef").is_err());
        drop(store);
        let store = Store::open(&root).unwrap();
        assert!(!left.exists());
        assert_eq!(store.read(Folder::Resources, "default,key,1").unwrap().unwrap().as_slice(), b"whole");
    }

    #[test]
    fn creation_that_died_is_repeated() {
        let (_directory, root) = folder();
        let died = Store::create(&root, |store| {
            store.write(Folder::Top, "token-key.pem", b"first")?;
            Err(StoreError::Name("died here".to_owned()))
        });
        assert!(died.is_err());
        assert!(matches!(Store::open(&root), Err(StoreError::NoState(_))));
        drop(create(&root));
        assert!(matches!(Store::create(&root, |_| Ok::<_, StoreError>(())), Err(StoreError::Exists(_))));
    }

    #[test]
    fn folders_that_are_not_ours_are_refused() {
        let (directory, root) = folder();
        assert!(matches!(Store::open(directory.path()), Err(StoreError::NoState(_))));
        let store = create(&root);
        assert!(matches!(Store::open(&root), Err(StoreError::InUse(_))));
        drop(store);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(Store::open(&root), Err(StoreError::Mode(_))));
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(root.join("version"), "2\n").unwrap();
        assert!(matches!(Store::open(&root), Err(StoreError::Version { found, .. }) if found == "2"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let (_directory, root) = folder();
        let store = create(&root);
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "\u{e4}", &"a".repeat(251)] {
            assert!(matches!(store.read(Folder::Resources, name), Err(StoreError::Name(_))), "{name:?}");
            assert!(store.write(Folder::Resources, name, b"").is_err());
            assert!(store.remove(Folder::Resources, name).is_err());
        }
    }
}
