//! What is below a path, in the order in which it is sent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The largest file that is copied.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// The most that is copied for one mount.
pub const MAX_TOTAL_BYTES: u64 = 64 << 20;
/// The most files, folders and links of one mount.
pub const MAX_ENTRIES: usize = 10_000;

/// Something to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the mount's source; empty for the source itself.
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Folder,
    File(Vec<u8>),
    Link(OsString),
}

/// Why something cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// What.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// It is too large.
    #[error("{path} is too large to be copied into a pod VM: {limit}; next: put it into the image or into a volume of its own")]
    TooLarge {
        /// What.
        path: PathBuf,
        /// The limit in words.
        limit: &'static str,
    },
    /// It is a socket, a pipe or a device.
    #[error("{path} is a socket, a pipe or a device, which a pod VM cannot share with its node")]
    Special {
        /// What.
        path: PathBuf,
    },
}

/// Reads everything, in the order of sending: folders and files, the link `..data`, other links. What vanishes meanwhile is left out:
/// whoever changes the folder causes another look.
pub(super) fn read(root: &Path) -> Result<Vec<Entry>, TreeError> {
    let mut found = Found { entries: Vec::new(), bytes: 0 };
    // A mount of a link is one of what it points to.
    let metadata = std::fs::metadata(root).map_err(|source| TreeError::Read { path: root.to_owned(), source })?;
    found.add(root, Path::new(""), &metadata)?;
    let mut entries = found.entries;
    entries.sort_by_key(rank);
    Ok(entries)
}

fn rank(entry: &Entry) -> u8 {
    match entry.what {
        What::Folder | What::File(_) => 0,
        What::Link(_) if entry.path.file_name().is_some_and(|name| name == "..data") => 1,
        What::Link(_) => 2,
    }
}

struct Found {
    entries: Vec<Entry>,
    bytes: u64,
}

impl Found {
    fn add(&mut self, root: &Path, path: &Path, metadata: &std::fs::Metadata) -> Result<(), TreeError> {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
        if self.entries.len() >= MAX_ENTRIES {
            return Err(TreeError::TooLarge { path: root.to_owned(), limit: "it has more than 10,000 files" });
        }
        let kind = metadata.file_type();
        let what = if kind.is_dir() {
            What::Folder
        } else if kind.is_symlink() {
            What::Link(std::fs::read_link(&full).map_err(|source| TreeError::Read { path: full.clone(), source })?.into_os_string())
        } else if kind.is_file() {
            What::File(self.content(root, &full, metadata)?)
        } else {
            return Err(TreeError::Special { path: full });
        };
        let is_folder = what == What::Folder;
        let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
        self.entries.push(Entry { path: path.to_owned(), mode, uid, gid, what });
        if is_folder { self.list(root, path, &full) } else { Ok(()) }
    }

    fn list(&mut self, root: &Path, path: &Path, full: &Path) -> Result<(), TreeError> {
        let failed = |source| TreeError::Read { path: full.to_owned(), source };
        let mut names: Vec<OsString> =
            std::fs::read_dir(full).map_err(failed)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>().map_err(failed)?;
        names.sort();
        for name in names {
            match std::fs::symlink_metadata(full.join(&name)) {
                Ok(metadata) => match self.add(root, &path.join(&name), &metadata) {
                    Err(TreeError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                    other => other?,
                },
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn content(&mut self, root: &Path, full: &Path, metadata: &std::fs::Metadata) -> Result<Vec<u8>, TreeError> {
        if metadata.len() > MAX_FILE_BYTES {
            return Err(TreeError::TooLarge { path: full.to_owned(), limit: "files of up to 16 MiB are copied" });
        }
        let content = std::fs::read(full).map_err(|source| TreeError::Read { path: full.to_owned(), source })?;
        self.bytes += content.len() as u64;
        // It may have grown since.
        if content.len() as u64 > MAX_FILE_BYTES || self.bytes > MAX_TOTAL_BYTES {
            return Err(TreeError::TooLarge { path: root.to_owned(), limit: "up to 64 MiB are copied for one mount" });
        }
        Ok(content)
    }
}

impl What {
    /// What `CopyFile` carries.
    pub(super) fn into_data(self) -> Vec<u8> {
        match self {
            What::Folder => Vec::new(),
            What::File(content) => content,
            What::Link(target) => target.into_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_comes_after_what_it_switches_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("..2026")).unwrap();
        std::fs::write(root.join("..2026/key"), "value").unwrap();
        std::os::unix::fs::symlink("..2026", root.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/key", root.join("key")).unwrap();
        let entries = read(root).unwrap();
        let order: Vec<&str> = entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(order, ["", "..2026", "..2026/key", "..data", "key"]);
        assert_eq!(entries[2].what, What::File(b"value".to_vec()));
    }

    #[test]
    fn too_large_files_and_special_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(read(&large).unwrap_err().to_string().contains("16 MiB"));
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(read(&socket), Err(TreeError::Special { .. })));
    }
}
