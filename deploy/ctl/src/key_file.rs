//! Keys that wrap the keys of layers, as files of 32 bytes.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// The name of a key: `kbs://[host]/repository/type/tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyId(String);

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    /// It is not there.
    #[error("there is no key {}; next: put it there, or give --create to make one", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is no key.
    #[error("{} is not a key of {KEY_BYTES} bytes; `head -c {KEY_BYTES} /dev/urandom` makes one", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// A new one cannot be made.
    #[error("cannot make key {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The system has no random numbers.
    #[error("no random numbers")]
    Random,
}

impl KeyId {
    /// Reads a name; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("kbs://").ok_or_else(|| format!("{text:?} does not begin with kbs://"))?;
        let (_host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let parts: Vec<&str> = path.split('/').collect();
        let is_part = |part: &&str| {
            !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if parts.len() != 3 || !parts.iter().all(is_part) {
            return Err(format!("{text:?} is not kbs:///REPOSITORY/TYPE/TAG, for example kbs:///default/key/1"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The whole name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// `repository/type/tag`, which is also a path of plain names.
    pub(crate) fn resource_path(&self) -> &str {
        self.0.trim_start_matches("kbs://").split_once('/').map_or("", |(_, path)| path)
    }
}

/// Reads a key.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing { path: path.to_owned() },
        _ => KeyFileError::Read { path: path.to_owned(), source },
    };
    // With room for one byte more, so that it never grows and leaves a copy behind.
    let mut key = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    let file = File::open(path).map_err(failed)?;
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut key).map_err(failed)?;
    if key.len() == KEY_BYTES { Ok(key) } else { Err(KeyFileError::NotAKey { path: path.to_owned() }) }
}

/// Makes a random key that only its owner reads, whole or not at all. Fails if the file is there.
pub(crate) fn create(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let failed = |source| KeyFileError::Create { path: path.to_owned(), source };
    let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
    aws_lc_rs::rand::fill(&mut key).map_err(|_| KeyFileError::Random)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    for folder in made {
        sync_folder_of(folder).map_err(failed)?;
    }
    let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(&key).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| failed(error.error))?;
    // What is encrypted with it must not outlive it.
    sync_folder_of(path).map_err(failed)?;
    Ok(key)
}

/// Has the disk keep the name of something that was made.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Reads a key, or makes it if it is not there and may be made. The second value tells whether it is new.
pub(crate) fn read_or_create(path: &Path, may_create: bool) -> Result<(Zeroizing<Vec<u8>>, bool), KeyFileError> {
    match read(path) {
        Err(KeyFileError::Missing { .. }) if may_create => {}
        other => return Ok((other?, false)),
    }
    match create(path) {
        // skopeo encrypts layers side by side, and asks for each by a process of its own.
        Err(KeyFileError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok((read(path)?, false)),
        created => Ok((created?, true)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn new_keys_are_random_and_their_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default/key/1");
        assert!(matches!(read_or_create(&path, false), Err(KeyFileError::Missing { .. })));
        let (key, is_new) = read_or_create(&path, true).unwrap();
        assert!(is_new);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_create(&path, true).unwrap(), (key.clone(), false));
        assert!(matches!(create(&path), Err(KeyFileError::Create { .. })));
        assert_ne!(*key, *create(&folder.path().join("other")).unwrap());
        for bytes in [0, 31, 33] {
            std::fs::write(&path, vec![0; bytes]).unwrap();
            assert!(matches!(read(&path), Err(KeyFileError::NotAKey { .. })), "{bytes}");
        }
    }

    #[test]
    fn many_who_make_a_key_at_once_have_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| read_or_create(&path, true).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(made.iter().filter(|(_, is_new)| *is_new).count(), 1);
        assert!(made.iter().all(|(key, _)| *key == made[0].0));
    }

    #[test]
    fn key_ids_are_resources_and_never_leave_their_folder() {
        let id = KeyId::parse("kbs:///default/key/1").unwrap();
        assert_eq!((id.as_str(), id.resource_path()), ("kbs:///default/key/1", "default/key/1"));
        assert_eq!(KeyId::parse("kbs://kbs.example.org:8080/a/b/c").unwrap().resource_path(), "a/b/c");
        for odd in
            ["default/key/1", "kbs:///default/key", "kbs:///a/b/c/d", "kbs:///../../etc", "kbs:///a//c", "kbs://a/b/c", "kbs:///a/b/.c"]
        {
            assert!(KeyId::parse(odd).is_err(), "{odd}");
        }
    }
}
