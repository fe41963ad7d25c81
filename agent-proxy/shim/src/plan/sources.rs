//! What is known of the node's side of bind mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What something in the file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A unix socket.
    Socket,
    /// A named pipe.
    Pipe,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// Nothing is there.
    Missing,
}

/// The source of one bind mount, looked at on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is.
    pub kind: Kind,
    /// The owning group.
    pub gid: u32,
    /// Permissions, including set-id bits.
    pub mode: u32,
    /// The file system's type, such as `tmpfs`; empty when the mount table does not tell.
    pub filesystem: String,
    /// The size limit in bytes of a tmpfs that has one.
    pub size_limit: Option<u64>,
    /// When the source is itself a bind mount of something below the kubelet's volumes: that path.
    pub origin: Option<PathBuf>,
}

/// All sources of a specification's bind mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The kubelet's root folder without symbolic links: containerd resolves those in a mount's source.
    pub kubelet_dir: PathBuf,
    /// By the mount's source.
    pub by_path: BTreeMap<PathBuf, Source>,
}

impl Source {
    /// Something that is not there.
    pub fn missing() -> Self {
        Self { kind: Kind::Missing, gid: 0, mode: 0, filesystem: String::new(), size_limit: None, origin: None }
    }

    pub(super) fn is_tmpfs(&self) -> bool {
        self.filesystem == "tmpfs"
    }
}

impl Sources {
    pub(super) fn get(&self, path: &Path) -> Source {
        self.by_path.get(path).cloned().unwrap_or_else(Source::missing)
    }
}
