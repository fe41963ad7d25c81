//! A file or folder of the node as a list of what is in it, and the content of its files.
//!
//! Links are listed as links and never followed below the top. What is neither file, folder nor link is left out with a warning.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// How much of the node one mount may bring into a pod VM.
///
/// ConfigMaps and Secrets are below 1 MiB by Kubernetes' own rule, so these limits only meet copies of hostPaths and CSI volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one file.
    pub file_bytes: u64,
    /// Of all files of a mount together.
    pub total_bytes: u64,
    /// Files, folders and links of a mount.
    pub entries: usize,
    /// Folders below one another.
    pub depth: usize,
}

/// Something cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// One file too large.
    #[error(
        "{path} is larger than {max_mib} MiB, the most that is copied of one file into a pod VM: bring it with the image, or fetch it into an emptyDir"
    )]
    File {
        /// On the node.
        path: PathBuf,
        /// The limit.
        max_mib: u64,
    },
    /// All together too large.
    #[error(
        "the files in {path} are together larger than {max_mib} MiB, the most that is copied into a pod VM for one mount: mount a smaller folder"
    )]
    Total {
        /// The mount's source.
        path: PathBuf,
        /// The limit.
        max_mib: u64,
    },
    /// Too many.
    #[error(
        "{path} holds more than {max} files, folders and links, the most that is copied into a pod VM for one mount: mount a smaller folder"
    )]
    Entries {
        /// The mount's source.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// Too deep.
    #[error("{path} is more than {max} folders deep in its mount, the most that is copied into a pod VM: mount a folder nearer to it")]
    Depth {
        /// On the node.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// A name that the protocol cannot carry.
    #[error(
        "the name or link target of {path:?} is not UTF-8, which the agent protocol cannot carry: rename it or mount a folder without it"
    )]
    Name {
        /// On the node.
        path: PathBuf,
    },
    /// An owner that the protocol cannot carry.
    #[error("{path} belongs to user {uid} and group {gid}, and the agent protocol carries ids below 2^31 only: give it to others")]
    Owner {
        /// On the node.
        path: PathBuf,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// What the kernel said.
    #[error("reading {path} to copy it into the pod VM")]
    Io {
        /// On the node.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// One file, folder or link. Equal entries have equal content as far as the node's times tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the mount's source; empty for the source itself.
    pub(super) path: String,
    pub(super) content: Content,
    pub(super) permissions: u32,
    pub(super) uid: i32,
    pub(super) gid: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Folder,
    File(Stamp),
    Link(String),
}

/// Changes when a file's content may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// How often a file that changes while it is read is read again before it is taken as it is.
const READS: usize = 3;

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 16 << 20, total_bytes: 64 << 20, entries: 10_000, depth: 32 }
    }
}

impl TreeError {
    /// Something was there a moment ago: a volume that is being switched.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound || source.kind() == io::ErrorKind::NotADirectory)
    }
}

impl Content {
    /// Whether the agent must take the old one away before it can make the new one.
    pub(super) fn is_folder(&self) -> bool {
        matches!(self, Self::Folder)
    }
}

/// Lists the source and everything below it in the order of sending: folders, files, `..data` links, other links; parents first.
pub(super) fn list(source: &Path, limits: &Limits) -> Result<Vec<Entry>, TreeError> {
    let io = |path: &Path, source| TreeError::Io { path: path.to_owned(), source };
    let top = std::fs::metadata(source).map_err(|error| io(source, error))?;
    let mut entries = Vec::new();
    entries.extend(entry(source, String::new(), &top)?);
    let mut folders = if top.is_dir() { vec![(source.to_owned(), String::new(), 1)] } else { Vec::new() };
    while let Some((folder, below, depth)) = folders.pop() {
        if depth > limits.depth {
            return Err(TreeError::Depth { path: folder, max: limits.depth });
        }
        for found in std::fs::read_dir(&folder).map_err(|error| io(&folder, error))? {
            let found = found.map_err(|error| io(&folder, error))?;
            let path = found.path();
            let name = found.file_name().into_string().map_err(|_| TreeError::Name { path: path.clone() })?;
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            let metadata = match std::fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // Removed since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io(&path, error)),
            };
            if metadata.is_dir() {
                folders.push((path.clone(), name.clone(), depth + 1));
            }
            entries.extend(entry(&path, name, &metadata)?);
            if entries.len() > limits.entries {
                return Err(TreeError::Entries { path: source.to_owned(), max: limits.entries });
            }
        }
    }
    check_sizes(source, &entries, limits)?;
    entries.sort_by(|one, other| (rank(one), &one.path).cmp(&(rank(other), &other.path)));
    Ok(entries)
}

/// Reads a file whole, so that its size and its content fit together.
pub(super) fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>, TreeError> {
    let io = |source| TreeError::Io { path: path.to_owned(), source };
    let too_large = || TreeError::File { path: path.to_owned(), max_mib: limits.file_bytes >> 20 };
    // Nothing is followed or waited for that took the file's place.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut content = Vec::new();
    for _ in 0..READS {
        content.clear();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
        let before = file.metadata().map_err(io)?;
        if !before.is_file() {
            return Err(io(io::Error::other("it is no longer a regular file")));
        }
        (&file).take(limits.file_bytes + 1).read_to_end(&mut content).map_err(io)?;
        if content.len() as u64 > limits.file_bytes {
            return Err(too_large());
        }
        if Stamp::of(&before) == Stamp::of(&file.metadata().map_err(io)?) {
            break;
        }
    }
    Ok(content)
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), size: metadata.size(), changed: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// `None` for what cannot be copied.
fn entry(path: &Path, name: String, metadata: &Metadata) -> Result<Option<Entry>, TreeError> {
    let kind = metadata.file_type();
    let content = if kind.is_dir() {
        Content::Folder
    } else if kind.is_file() {
        Content::File(Stamp::of(metadata))
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(|source| TreeError::Io { path: path.to_owned(), source })?;
        Content::Link(target.into_os_string().into_string().map_err(|_| TreeError::Name { path: path.to_owned() })?)
    } else {
        let kind = if kind.is_socket() {
            "socket"
        } else if kind.is_fifo() {
            "named pipe"
        } else {
            "device"
        };
        tracing::warn!(path = %path.display(), kind, "left out of a copy into the pod VM");
        return Ok(None);
    };
    let id = |id: u32| i32::try_from(id).map_err(|_| TreeError::Owner { path: path.to_owned(), uid: metadata.uid(), gid: metadata.gid() });
    Ok(Some(Entry { path: name, content, permissions: metadata.mode() & 0o7777, uid: id(metadata.uid())?, gid: id(metadata.gid())? }))
}

fn check_sizes(source: &Path, entries: &[Entry], limits: &Limits) -> Result<(), TreeError> {
    let mut total = 0_u64;
    for entry in entries {
        let Content::File(stamp) = &entry.content else { continue };
        if stamp.size > limits.file_bytes {
            return Err(TreeError::File { path: below(source, &entry.path), max_mib: limits.file_bytes >> 20 });
        }
        total = total.saturating_add(stamp.size);
    }
    if total > limits.total_bytes {
        return Err(TreeError::Total { path: source.to_owned(), max_mib: limits.total_bytes >> 20 });
    }
    Ok(())
}

/// The path of an entry; joining nothing would append a slash.
pub(super) fn below(source: &Path, path: &str) -> PathBuf {
    if path.is_empty() { source.to_owned() } else { source.join(path) }
}

fn rank(entry: &Entry) -> u8 {
    match &entry.content {
        Content::Folder => 0,
        Content::File(_) => 1,
        Content::Link(_) if entry.path.rsplit('/').next() == Some("..data") => 2,
        Content::Link(_) => 3,
    }
}
