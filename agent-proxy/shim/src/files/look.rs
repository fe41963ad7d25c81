//! What the node's file system and mount table say about the sources of bind mounts.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::plan::{Kind, Source, Sources};

/// The node cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The mount table.
    #[error("reading the mount table {path}", path = MOUNT_TABLE)]
    MountTable(#[source] io::Error),
    /// One source.
    #[error("looking at {path}, the source of a mount")]
    Source {
        /// On the node.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct MountPoint {
    /// `major:minor`, equal for all mounts of one file system.
    device: String,
    /// The folder of the file system that is mounted.
    root: PathBuf,
    path: PathBuf,
    filesystem: String,
    options: String,
}

const MOUNT_TABLE: &str = "/proc/self/mountinfo";
/// What the kernel appends to a mounted folder that was removed.
const DELETED: &str = "//deleted";

/// Looks at the source of each bind mount. What is not there is [`Kind::Missing`], not an error.
pub fn look(spec: &Spec, kubelet_dir: &Path) -> Result<Sources, LookError> {
    let is_bind = |options: &Option<Vec<String>>| options.iter().flatten().any(|option| option == "bind" || option == "rbind");
    let mounts = spec.mounts().iter().flatten();
    let paths: Vec<PathBuf> = mounts
        .filter(|mount| mount.typ().as_deref() == Some("bind") || is_bind(mount.options()))
        .filter_map(|mount| mount.source().clone())
        .collect();
    look_at(paths, kubelet_dir)
}

fn look_at(paths: Vec<PathBuf>, kubelet_dir: &Path) -> Result<Sources, LookError> {
    // Without a kubelet nothing is below its folder.
    let kubelet_dir = std::fs::canonicalize(kubelet_dir).unwrap_or_else(|_| kubelet_dir.to_owned());
    let table = std::fs::read(MOUNT_TABLE).map_err(LookError::MountTable)?;
    let table = parse(&table);
    let mut sources = Sources { kubelet_dir, ..Sources::default() };
    for path in paths {
        let source = source(&path, &table, &sources.kubelet_dir).map_err(|source| LookError::Source { path: path.clone(), source })?;
        sources.by_path.insert(path, source);
    }
    Ok(sources)
}

fn source(path: &Path, table: &[MountPoint], kubelet_dir: &Path) -> io::Result<Source> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Source::missing()),
        Err(error) => return Err(error),
    };
    let kind = match found.file_type() {
        kind if kind.is_dir() => Kind::Folder,
        kind if kind.is_file() => Kind::File,
        kind if kind.is_socket() => Kind::Socket,
        kind if kind.is_fifo() => Kind::Pipe,
        kind if kind.is_block_device() => Kind::BlockDevice,
        _ => Kind::CharDevice,
    };
    // The last of several mounts on one place is the one that is seen.
    let mount = table.iter().enumerate().filter(|(_, mount)| path.starts_with(&mount.path));
    let mount = mount.max_by_key(|(index, mount)| (mount.path.as_os_str().len(), *index)).map(|(_, mount)| mount);
    Ok(Source {
        kind,
        gid: found.gid(),
        mode: found.mode() & 0o7777,
        filesystem: mount.map(|mount| mount.filesystem.clone()).unwrap_or_default(),
        size_limit: mount.filter(|mount| mount.filesystem == "tmpfs").and_then(|mount| size_limit(&mount.options)),
        origin: mount.filter(|mount| mount.path == path).and_then(|mount| origin(mount, table, kubelet_dir)),
    })
}

/// The path below the kubelet's pods that a bind mount shows part of.
fn origin(mount: &MountPoint, table: &[MountPoint], kubelet_dir: &Path) -> Option<PathBuf> {
    let pods = kubelet_dir.join("pods");
    let candidates = table.iter().filter(|other| other.device == mount.device && other.path != mount.path);
    let paths = candidates.filter_map(|other| {
        let below = mount.root.strip_prefix(&other.root).ok()?;
        // Joining nothing would append a slash.
        Some(if below.as_os_str().is_empty() { other.path.clone() } else { other.path.join(below) })
    });
    paths.filter(|path| path.strip_prefix(&pods).is_ok_and(|below| below.iter().nth(1).is_some_and(|part| part == "volumes"))).max()
}

fn parse(table: &[u8]) -> Vec<MountPoint> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `id parent device root path options tags… - type source options`.
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let root = unescape(fields.get(3)?);
    let root = root.strip_suffix(DELETED.as_bytes()).unwrap_or(&root).to_vec();
    Some(MountPoint {
        device: text(fields.get(2)?),
        root: OsString::from_vec(root).into(),
        path: OsString::from_vec(unescape(fields.get(4)?)).into(),
        filesystem: text(fields.get(separator + 1)?),
        options: text(fields.get(separator + 3)?),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Such as `rw,size=65536k,inode64`.
fn size_limit(options: &str) -> Option<u64> {
    let size = options.split(',').find_map(|option| option.strip_prefix("size="))?;
    let digits = size.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G']);
    let shift = match size.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:50 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/mem rw,relatime - tmpfs tmpfs rw,size=65536k,inode64
41 22 0:50 /sub /var/lib/kubelet/pods/u/volume-subpaths/mem/app/0 rw,relatime - tmpfs tmpfs rw,size=65536k,inode64
42 22 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/disk/a/b /var/lib/kubelet/pods/u/volume-subpaths/disk/app/1 rw - ext4 /dev/sda1 rw
43 22 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/c/..1/key//deleted /var/lib/kubelet/pods/u/volume-subpaths/c/app/2 rw shared:7 - ext4 /dev/sda1 rw
44 22 8:1 /srv /var/lib/kubelet/pods/u/volume-subpaths/x/app/3 rw - ext4 /dev/sda1 rw
45 22 0:60 / /mnt/with\\040space rw - tmpfs tmpfs rw
";

    fn origin_of(path: &str) -> Option<PathBuf> {
        let table = parse(TABLE.as_bytes());
        let mount = table.iter().find(|mount| mount.path == Path::new(path)).unwrap();
        origin(mount, &table, Path::new("/var/lib/kubelet"))
    }

    #[test]
    fn sub_paths_lead_to_their_volumes() {
        let pod = "/var/lib/kubelet/pods/u";
        let volume = |rest: &str| Some(PathBuf::from(format!("{pod}/volumes/kubernetes.io~{rest}")));
        assert_eq!(origin_of(&format!("{pod}/volume-subpaths/mem/app/0")), volume("empty-dir/mem/sub"));
        assert_eq!(origin_of(&format!("{pod}/volume-subpaths/disk/app/1")), volume("empty-dir/disk/a/b"));
        assert_eq!(origin_of(&format!("{pod}/volume-subpaths/c/app/2")), volume("configmap/c/..1/key"), "removed since");
        assert_eq!(origin_of(&format!("{pod}/volume-subpaths/x/app/3")), None, "not a volume of the kubelet");
    }

    #[test]
    fn sub_paths_are_found_when_the_kubelet_has_a_disk_of_its_own() {
        let table = parse(
            b"30 22 8:17 / /data rw - ext4 /dev/sdb1 rw\n\
              31 22 8:17 /kubelet/pods/u/volumes/kubernetes.io~empty-dir/v/s /data/kubelet/pods/u/volume-subpaths/v/app/0 rw - ext4 /dev/sdb1 rw\n",
        );
        let found = origin(&table[1], &table, Path::new("/data/kubelet"));
        assert_eq!(found, Some("/data/kubelet/pods/u/volumes/kubernetes.io~empty-dir/v/s".into()));
    }

    #[test]
    fn table_is_taken_apart() {
        let table = parse(TABLE.as_bytes());
        assert_eq!(table.len(), 7);
        assert_eq!(table[6].path, Path::new("/mnt/with space"));
        assert_eq!(table[1].filesystem, "tmpfs");
        assert_eq!(parse(b"nonsense\n\n1 2 3 - x"), []);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size_limit("rw,size=65536k,inode64"), Some(64 << 20));
        assert_eq!(size_limit("rw,size=3m"), Some(3 << 20));
        assert_eq!(size_limit("rw,size=12"), Some(12));
        assert_eq!(size_limit("rw"), None);
        assert_eq!(size_limit("rw,size=50%"), None);
    }

    #[test]
    fn kinds_of_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink("folder", path("link")).unwrap();
        let names = ["file", "folder", "socket", "link", "nothing", "file/below"];
        let sources = look_at(names.iter().map(|name| path(name)).chain(["/dev/null".into()]).collect(), dir.path()).unwrap();
        let kinds: Vec<Kind> = names.iter().map(|name| sources.by_path[&path(name)].kind).collect();
        assert_eq!(kinds, [Kind::File, Kind::Folder, Kind::Socket, Kind::Folder, Kind::Missing, Kind::Missing]);
        assert_eq!(sources.by_path[Path::new("/dev/null")].kind, Kind::CharDevice);
    }
}
