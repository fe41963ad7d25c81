//! Filling a volume that the image declares with what the image has there.
//!
//! containerd fills such a volume (`VOLUME`) from the image's layers, which the node does not have, so our own shim asks for it here. What
//! is copied is as the image has it: owners, permissions, links; what is neither file, folder nor link is left out, as by containerd. The
//! image's own links never lead outside of its root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use peerpods_protos::agent::Storage;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::path::Arg;

/// The driver option that asks for it; its value is the path in the container.
const OPTION: &str = "peerpods.copy-up=";
/// Deeper folders are no data of an image.
const MAX_DEPTH: usize = 128;

/// Where in the container the content of a storage is, if it is to be filled.
pub(crate) fn source(storage: &Storage) -> Option<&str> {
    storage.driver_options.iter().find_map(|option| option.strip_prefix(OPTION))
}

/// Copies what `path` is in the root into the folder `target`. A root without it leaves the folder empty.
pub(crate) fn fill(root: &Path, path: &str, target: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let from = match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
        // Not a folder: the container's mount would fail for containerd too; the volume is empty.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        opened => opened?,
    };
    let to = rustix::fs::open(target, flags | OFlags::NOFOLLOW, Mode::empty())?;
    let stat = rustix::fs::fstat(&from)?;
    copy_folder(&from, &to, 0)?;
    own(&to, &stat)
}

/// Copies what is in a folder into another one.
pub(crate) fn copy_folder(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("more than 128 folders in each other"));
    }
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let inner = rustix::fs::openat(to, name, flags | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
                let outer = rustix::fs::openat(from, name, flags | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
                copy_folder(&outer, &inner, depth + 1)?;
                own(&inner, &stat)?;
            }
            FileType::RegularFile => {
                let input = rustix::fs::openat(from, name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
                copy_file(input, to, name, &stat)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&link, to, name)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Copies an open file to a new one in a folder.
pub(crate) fn copy_file(from: OwnedFd, to: &OwnedFd, name: impl Arg, stat: &Stat) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut output = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut File::from(from), &mut output)?;
    own(&output, stat)
}

/// Permissions last: changing the owner clears the set-id bits.
pub(crate) fn own(file: impl AsFd, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn files_links_and_permissions_are_as_the_image_has_them() {
        let (root, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("var/data/deep")).unwrap();
        fs::write(root.path().join("var/data/seed"), "content").unwrap();
        fs::set_permissions(root.path().join("var/data/seed"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(root.path().join("var/data"), fs::Permissions::from_mode(0o1771)).unwrap();
        fs::write(root.path().join("var/data/deep/x"), "").unwrap();
        symlink("/etc/passwd", root.path().join("var/data/link")).unwrap();
        // The image's own link leads to a place in its root.
        symlink("/var/data", root.path().join("data")).unwrap();
        fill(root.path(), "/data", target.path()).unwrap();
        assert_eq!(fs::read_to_string(target.path().join("seed")).unwrap(), "content");
        assert_eq!(fs::metadata(target.path().join("seed")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(target.path()).unwrap().mode() & 0o7777, 0o1771);
        assert_eq!(fs::read_link(target.path().join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(target.path().join("deep/x").exists());
    }

    #[test]
    fn a_root_without_it_leaves_the_volume_empty() {
        let (root, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("file"), "x").unwrap();
        for path in ["/nothing", "/file", "/file/below"] {
            fill(root.path(), path, target.path()).unwrap();
        }
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    }
}
