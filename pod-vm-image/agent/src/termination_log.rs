//! The file in which a container leaves a message for the kubelet.
//!
//! The kubelet makes it on the node and has it mounted into the container; the shim copies it here before the container is created and
//! asks for what became of it. The container may have put anything there: only its end is read, of a plain file, through no link.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Where the container sees it.
const PATH_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
const DEFAULT_PATH: &str = "/dev/termination-log";
/// The kubelet reads the last 4 KiB.
const MAX_BYTES: u64 = 4096;

/// The file in the guest, if the container has one mounted.
pub(crate) fn find(spec: &Spec) -> Option<PathBuf> {
    let path = spec.annotations().as_ref().and_then(|annotations| annotations.get(PATH_ANNOTATION)).map_or(DEFAULT_PATH, String::as_str);
    let mut mounts = spec.mounts().iter().flatten().rev();
    mounts.find(|mount| mount.destination() == Path::new(path))?.source().clone()
}

/// The last bytes of a file below `base`.
pub(crate) fn read(base: &Path, file: &Path) -> io::Result<Vec<u8>> {
    let relative = file.strip_prefix(base).map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))?;
    let base = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&base, relative, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let stat = rustix::fs::fstat(&opened)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut file = File::from(opened);
    file.seek(SeekFrom::Start(u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(MAX_BYTES)))?;
    let mut data = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use oci_spec::runtime::MountBuilder;

    use super::*;

    #[test]
    fn only_the_end_of_a_plain_file_is_read() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("c1-log");
        std::fs::write(&file, [vec![b'a'; 100], vec![b'b'; 4096]].concat()).unwrap();
        assert_eq!(read(base.path(), &file).unwrap(), vec![b'b'; 4096]);
        std::fs::write(&file, "short").unwrap();
        assert_eq!(read(base.path(), &file).unwrap(), b"short");
        std::os::unix::fs::symlink("/etc/hostname", base.path().join("link")).unwrap();
        assert!(read(base.path(), &base.path().join("link")).is_err());
        assert!(read(base.path(), base.path()).is_err());
        assert!(read(base.path(), Path::new("/etc/hostname")).is_err());
    }

    #[test]
    fn the_annotation_names_the_mount() {
        let mount = |to: &str, from: &str| MountBuilder::default().destination(to).source(from).build().unwrap();
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount("/dev/termination-log", "/s/usual"), mount("/own", "/s/own")]));
        assert_eq!(find(&spec), Some("/s/usual".into()));
        spec.set_annotations(Some(HashMap::from([(PATH_ANNOTATION.to_owned(), "/own".to_owned())])));
        assert_eq!(find(&spec), Some("/s/own".into()));
        spec.set_mounts(None);
        assert_eq!(find(&spec), None);
    }
}
