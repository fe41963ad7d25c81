//! What the sources of bind mounts are, from the file system and the mount table.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::plan::{Kind, Source, Sources};

/// Why the node's files cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The mount table cannot be read.
    #[error("cannot read the mount table")]
    Mounts(#[source] std::io::Error),
    /// A source cannot be looked at.
    #[error("cannot look at {path}")]
    Stat {
        /// The source.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
}

/// Looks at every source of the specification's bind mounts.
pub fn look(spec: &Spec, kubelet_dir: &Path) -> Result<Sources, LookError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(LookError::Mounts)?;
    let table = parse(&table);
    let mut sources = Sources { kubelet_dir: kubelet_dir.canonicalize().unwrap_or_else(|_| kubelet_dir.to_owned()), ..Sources::default() };
    let binds = spec.mounts().iter().flatten().filter(|mount| mount.typ().as_deref() == Some("bind"));
    for path in binds.filter_map(|mount| mount.source().as_ref()) {
        let source = match std::fs::metadata(path) {
            Ok(metadata) => source(path, &metadata, &table, &sources.kubelet_dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Source::missing(),
            Err(source) => return Err(LookError::Stat { path: path.clone(), source }),
        };
        sources.by_path.insert(path.clone(), source);
    }
    Ok(sources)
}

fn source(path: &Path, metadata: &std::fs::Metadata, table: &[Mount], kubelet_dir: &Path) -> Source {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_dir() => Kind::Folder,
        () if kind.is_file() => Kind::File,
        () if kind.is_socket() => Kind::Socket,
        () if kind.is_fifo() => Kind::Pipe,
        () if kind.is_char_device() => Kind::CharDevice,
        () => Kind::BlockDevice,
    };
    // Later mounts cover earlier ones.
    let covering = table.iter().enumerate().filter(|(_, mount)| path.starts_with(&mount.at));
    let mount = covering.max_by_key(|(number, mount)| (mount.at.components().count(), *number)).map(|(_, mount)| mount);
    Source {
        kind,
        gid: metadata.gid(),
        mode: metadata.mode() & 0o7777,
        filesystem: mount.map(|mount| mount.filesystem.clone()).unwrap_or_default(),
        size_limit: mount.and_then(|mount| mount.size_limit),
        origin: mount.filter(|mount| mount.at == path).and_then(|mount| origin(mount, table, kubelet_dir)),
    }
}

/// Where else, below the kubelet's folder, the mounted part of a file system can be seen.
fn origin(part: &Mount, table: &[Mount], kubelet_dir: &Path) -> Option<PathBuf> {
    let wholes = table.iter().filter(|mount| mount.device == part.device && mount.at != part.at);
    let seen = wholes.filter_map(|whole| Some(whole.at.join(part.root.strip_prefix(&whole.root).ok()?)));
    // A path ends without a slash even when nothing was left to join.
    let seen = seen.map(|path| path.components().collect::<PathBuf>());
    seen.filter(|path| path.starts_with(kubelet_dir) && *path != part.at)
        .find(|path| path.components().any(|part| part.as_os_str() == "volumes"))
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    root: PathBuf,
    at: PathBuf,
    filesystem: String,
    size_limit: Option<u64>,
}

fn parse(table: &str) -> Vec<Mount> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (device, root, at) = (mount.next()?.to_owned(), unescape(mount.next()?), unescape(mount.next()?));
    let mut filesystem = filesystem.split(' ');
    let (kind, _device, options) = (filesystem.next()?.to_owned(), filesystem.next()?, filesystem.next().unwrap_or_default());
    let size = options.split(',').find_map(|option| option.strip_prefix("size="));
    Some(Mount { device, root, at, filesystem: kind, size_limit: size.and_then(bytes) })
}

/// The kernel writes spaces, tabs, line ends and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (code, sign) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, sign);
    }
    PathBuf::from(plain)
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:50 / /k/pods/u/volumes/kubernetes.io~empty-dir/mem rw - tmpfs tmpfs rw,size=1024k
31 22 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/disk/a\\040b /k/pods/u/volume-subpaths/disk/c/0 rw - ext4 /dev/sda1 rw
";

    #[test]
    fn the_mount_table_tells_kind_limit_and_origin() {
        let table = parse(TABLE);
        assert_eq!((table[1].filesystem.as_str(), table[1].size_limit), ("tmpfs", Some(1 << 20)));
        let found = origin(&table[2], &table, Path::new("/k"));
        assert_eq!(found.as_deref(), Some(Path::new("/k/pods/u/volumes/kubernetes.io~empty-dir/disk/a b")));
        assert_eq!(origin(&table[1], &table, Path::new("/k")), None);
    }
}
