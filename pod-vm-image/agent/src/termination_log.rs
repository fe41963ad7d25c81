//! The file in which a container leaves a message for the kubelet.
//!
//! The kubelet makes it on the node and has it mounted into the container; the shim copies it here before the container is created and
//! asks for what became of it. The container may have put anything there: only its end is read, of a plain file, through no link. The
//! request says which file it is, so only the container's own copy counts: other files of the pod are not the node's to read.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::copy_file;

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

/// The last bytes of a file that was copied for the container; copies are right below `base`.
pub(crate) fn read(base: &Path, container_id: &str, file: &Path) -> io::Result<Vec<u8>> {
    let name = file.strip_prefix(base).ok().and_then(Path::to_str).filter(|name| !name.contains('/'));
    let name = name.filter(|name| copy_file::is_copy(name, Some(container_id))).ok_or_else(|| {
        let text = format!("{} is no file that was copied for this container: it is not read", file.display());
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    })?;
    let base = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&base, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty(), resolve)?;
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
    fn only_the_end_of_the_containers_own_plain_file_is_read() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("c1-0123456789abcdef-log");
        std::fs::write(&file, [vec![b'a'; 100], vec![b'b'; 4096]].concat()).unwrap();
        assert_eq!(read(base.path(), "c1", &file).unwrap(), vec![b'b'; 4096]);
        std::fs::write(&file, "short").unwrap();
        assert_eq!(read(base.path(), "c1", &file).unwrap(), b"short");
        let link = base.path().join("c1-0123456789abcdef-link");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        let folder = base.path().join("c1-0123456789abcdef-folder");
        std::fs::create_dir(&folder).unwrap();
        for path in [&link, &folder, base.path(), Path::new("/etc/hostname")] {
            assert!(read(base.path(), "c1", path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn files_of_volumes_and_of_other_containers_are_not_read() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("passthrough/s/rootfs/local/cache")).unwrap();
        std::fs::create_dir(base.path().join("c1-0123456789abcdef-secret")).unwrap();
        for name in [
            "passthrough/s/rootfs/local/cache/key",
            "c1-0123456789abcdef-secret/key",
            "c2-0123456789abcdef-log",
            "c1-x-0123456789abcdef-log",
            "c1-log",
        ] {
            let path = base.path().join(name);
            std::fs::write(&path, "not the node's").unwrap();
            let error = read(base.path(), "c1", &path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
        }
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
