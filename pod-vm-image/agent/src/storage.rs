//! Storages: what must be in place before a container's mounts make sense.
//!
//! `ephemeral` (a tmpfs) and `local` (a folder) are the pod's volumes: they are shared by its containers, outlive each of them and
//! go with the sandbox. `bind` and the root filesystem belong to one container. Mount points are below the share; nothing else
//! is mounted, and an unknown driver is refused by name.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use peerpods_protos::agent::Storage;
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// A storage cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// No such driver here.
    #[error("no storage handler for driver {0:?}")]
    Driver(String),
    /// The mount point, or the source of a bind, is not where it may be.
    #[error("storage path {path} is not below {}", base.display())]
    Outside {
        /// As requested.
        path: String,
        /// Where it may be.
        base: PathBuf,
    },
    /// An option has no meaning here.
    #[error("storage option {0:?} is not understood")]
    Option(String),
    /// What the kernel said.
    #[error("storage {path}")]
    Io {
        /// The mount point.
        path: String,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// The pod's volumes and their mounts.
#[derive(Debug)]
pub(crate) struct Volumes {
    share: PathBuf,
    mounted: Mutex<BTreeSet<PathBuf>>,
}

/// Options of a storage, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    flags: u32,
    data: Vec<String>,
    mode: Option<u32>,
    group: Option<u32>,
}

impl Volumes {
    /// Volumes below the share.
    pub(crate) fn new(share: &Path) -> Self {
        Self { share: share.to_owned(), mounted: Mutex::default() }
    }

    /// Puts a storage in place; one that is there already is left as it is. Gives the mount point when it is the container's own.
    pub(crate) fn ensure(&self, storage: &Storage) -> Result<Option<PathBuf>, StorageError> {
        match storage.driver.as_str() {
            "ephemeral" => self.ensure_ephemeral(storage).map(|()| None),
            "local" => self.ensure_local(storage).map(|()| None),
            "bind" => self.bind(storage).map(Some),
            other => Err(StorageError::Driver(other.to_owned())),
        }
    }

    /// Takes away all volumes.
    pub(crate) fn remove_all(&self) {
        for mount_point in std::mem::take(&mut *self.lock()) {
            unmount(&mount_point);
        }
    }

    /// The path of a bind mount's source, if no link leads out of the share. `/dev` and `/sys` of the guest may be shown too.
    pub(crate) fn check_source(&self, source: &Path) -> Result<(), StorageError> {
        let is_device = ["/dev/", "/sys/"].iter().any(|root| source.starts_with(root)) && is_plain(source);
        if is_device || source == Path::new("/dev") || source == Path::new("/sys") {
            return Ok(());
        }
        let relative = self.below(&source.display().to_string(), &self.share)?;
        let outside = || StorageError::Outside { path: source.display().to_string(), base: self.share.clone() };
        let io = |error: rustix::io::Errno| StorageError::Io { path: source.display().to_string(), source: error.into() };
        let base = rustix::fs::open(&self.share, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&base, &relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => Err(outside()),
            Err(error) => Err(io(error)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn below(&self, path: &str, base: &Path) -> Result<PathBuf, StorageError> {
        let relative = Path::new(path).strip_prefix(base).ok().filter(|relative| !relative.as_os_str().is_empty() && is_plain(relative));
        relative.map(Path::to_owned).ok_or_else(|| StorageError::Outside { path: path.to_owned(), base: base.to_owned() })
    }

    fn ensure_ephemeral(&self, storage: &Storage) -> Result<(), StorageError> {
        let sandbox = self.share.join("sandbox");
        self.below(&storage.mount_point, &sandbox)?;
        if storage.fstype != "tmpfs" {
            return Err(StorageError::Driver(format!("ephemeral with file system {}", storage.fstype)));
        }
        let options = options(storage)?;
        let target = PathBuf::from(&storage.mount_point);
        let mut mounted = self.lock();
        if mounted.contains(&target) {
            return Ok(());
        }
        let io = |source: io::Error| StorageError::Io { path: storage.mount_point.clone(), source };
        std::fs::create_dir_all(&target).map_err(io)?;
        // A volume anyone in the pod may write to, unless the options say otherwise.
        let mut data = options.data.clone();
        data.insert(0, format!("mode={:o}", options.mode.unwrap_or(0o777)));
        let flags = MountFlags::from_bits_retain(options.flags);
        mount("tmpfs", &target, "tmpfs", flags, &data.join(",")).map_err(io)?;
        mounted.insert(target.clone());
        set_group(&target, options.group).map_err(io)
    }

    fn ensure_local(&self, storage: &Storage) -> Result<(), StorageError> {
        let base = self.share.join("shared/containers");
        let relative = self.below(&storage.mount_point, &base)?;
        let options = options(storage)?;
        let io = |source: io::Error| StorageError::Io { path: storage.mount_point.clone(), source };
        let is_new = !Path::new(&storage.mount_point).exists();
        make_folders(&base, &relative).map_err(io)?;
        if is_new {
            let target = Path::new(&storage.mount_point);
            set_group(target, options.group).map_err(io)?;
            let set_gid = if options.group.is_some() { 0o2000 } else { 0 };
            let mode = Mode::from_raw_mode(options.mode.unwrap_or(0o777) | set_gid);
            rustix::fs::chmod(target, mode).map_err(|error| io(error.into()))?;
        }
        Ok(())
    }

    fn bind(&self, storage: &Storage) -> Result<PathBuf, StorageError> {
        self.check_source(Path::new(&storage.source))?;
        self.below(&storage.mount_point, &self.share)?;
        let options = options(storage)?;
        let target = PathBuf::from(&storage.mount_point);
        let io = |source: io::Error| StorageError::Io { path: storage.mount_point.clone(), source };
        if Path::new(&storage.source).is_dir() {
            std::fs::create_dir_all(&target).map_err(io)?;
        } else {
            std::fs::create_dir_all(target.parent().unwrap_or(&self.share)).map_err(io)?;
            std::fs::File::options().create(true).append(true).open(&target).map_err(io)?;
        }
        rustix::mount::mount_bind_recursive(&storage.source, &target).map_err(|error| io(error.into()))?;
        if options.flags != 0 {
            let flags = MountFlags::BIND | MountFlags::from_bits_retain(options.flags);
            rustix::mount::mount_remount(&target, flags, c"").inspect_err(|_| unmount(&target)).map_err(|error| io(error.into()))?;
        }
        Ok(target)
    }
}

/// Unmounts, if need be lazily; what is not mounted is fine.
pub(crate) fn unmount(target: &Path) {
    if rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).is_err() {
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

fn is_plain(path: &Path) -> bool {
    path.components().all(|component| matches!(component, Component::Normal(_) | Component::RootDir))
}

fn mount(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str())?;
    // Kept to this mount namespace and copies of it.
    let _ = rustix::mount::mount_change(target, MountPropagationFlags::PRIVATE);
    Ok(())
}

fn set_group(target: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(group) = group {
        rustix::fs::chownat(CWD, target, None, Some(Gid::from_raw(group)), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = rustix::fs::stat(target)?.st_mode;
        rustix::fs::chmod(target, Mode::from_raw_mode(mode) | Mode::SGID | Mode::RWXG)?;
    }
    Ok(())
}

/// Makes folders one by one, through no link.
fn make_folders(base: &Path, relative: &Path) -> io::Result<()> {
    let mut folder = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for name in relative {
        match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        folder = rustix::fs::openat2(&folder, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    }
    Ok(())
}

fn options(storage: &Storage) -> Result<Options, StorageError> {
    let mut options = Options { group: storage.fs_group.as_ref().map(|group| group.group_id), ..Options::default() };
    for option in &storage.options {
        let flag = match option.as_str() {
            "noexec" => MountFlags::NOEXEC,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "ro" => MountFlags::RDONLY,
            "relatime" => MountFlags::RELATIME,
            "noatime" => MountFlags::NOATIME,
            "rw" | "rprivate" | "private" | "defaults" => MountFlags::empty(),
            // The driver says what is mounted; nothing else is a bind by an option.
            "bind" | "rbind" if storage.driver == "bind" => MountFlags::empty(),
            other => {
                let unknown = || StorageError::Option(other.to_owned());
                let (name, value) = other.split_once('=').ok_or_else(unknown)?;
                match name {
                    "mode" => options.mode = Some(u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(unknown)?),
                    "fsgid" => options.group = Some(value.parse().map_err(|_| unknown())?),
                    "size" | "nr_inodes" if is_size(value) => options.data.push(other.to_owned()),
                    _ => return Err(unknown()),
                }
                continue;
            }
        };
        options.flags |= flag.bits();
    }
    Ok(options)
}

/// Digits with one unit at most, so that no further option can hide in it.
fn is_size(value: &str) -> bool {
    let digits = value.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', '%']);
    value.len() - digits.len() <= 1 && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(driver: &str, mount_point: &Path, words: &[&str]) -> Storage {
        let mut storage = Storage::new();
        storage.driver = driver.to_owned();
        storage.fstype = "tmpfs".to_owned();
        storage.mount_point = mount_point.display().to_string();
        storage.options = words.iter().map(|word| (*word).to_owned()).collect();
        storage
    }

    #[test]
    fn options_are_taken_apart() {
        let shm = storage("ephemeral", Path::new("/x"), &["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"]);
        let parsed = options(&shm).unwrap();
        assert_eq!(parsed.mode, Some(0o1777));
        assert_eq!(parsed.data, ["size=67108864"]);
        assert_eq!(parsed.flags, (MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV).bits());
        let local = options(&storage("local", Path::new("/x"), &["mode=0777", "fsgid=2000"])).unwrap();
        assert_eq!((local.mode, local.group), (Some(0o777), Some(2000)));
    }

    #[test]
    fn bad_options_are_named() {
        for word in ["bind", "rbind", "suid", "mode=9", "mode=77777", "fsgid=x", "size=1,exec", "size=", "context=x"] {
            let error = options(&storage("local", Path::new("/x"), &[word])).unwrap_err();
            assert_eq!(error.to_string(), format!("storage option {word:?} is not understood"));
        }
    }

    #[test]
    fn drivers_and_paths_are_checked() {
        let share = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(share.path().join("shared/containers")).unwrap();
        let volumes = Volumes::new(share.path());
        assert!(matches!(volumes.ensure(&storage("blk", share.path(), &[])), Err(StorageError::Driver(_))));
        for path in ["/etc", "/", "", "shared/x"] {
            assert!(matches!(volumes.ensure(&storage("local", Path::new(path), &[])), Err(StorageError::Outside { .. })), "{path}");
        }
        let up = share.path().join("shared/containers/../../x");
        assert!(matches!(volumes.ensure(&storage("local", &up, &[])), Err(StorageError::Outside { .. })));
        let tmpfs_elsewhere = share.path().join("shared/containers/x");
        assert!(matches!(volumes.ensure(&storage("ephemeral", &tmpfs_elsewhere, &[])), Err(StorageError::Outside { .. })));
    }

    #[test]
    fn local_volume_is_made_once_and_keeps_its_content() {
        let share = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(share.path().join("shared/containers")).unwrap();
        let volumes = Volumes::new(share.path());
        let target = share.path().join("shared/containers/passthrough/s/rootfs/local/cache");
        volumes.ensure(&storage("local", &target, &["mode=0777"])).unwrap();
        std::fs::write(target.join("f"), "x").unwrap();
        volumes.ensure(&storage("local", &target, &["mode=0777"])).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("f")).unwrap(), "x");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&target).unwrap());
        assert_eq!(mode & 0o7777, 0o777);
    }

    #[test]
    fn sources_behind_links_are_refused() {
        let share = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(share.path());
        std::fs::create_dir(share.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/etc", share.path().join("evil")).unwrap();
        volumes.check_source(&share.path().join("real")).unwrap();
        assert!(volumes.check_source(&share.path().join("evil/passwd")).is_err());
        assert!(volumes.check_source(&share.path().join("evil")).is_err());
        assert!(volumes.check_source(Path::new("/etc/passwd")).is_err());
        assert!(volumes.check_source(Path::new("/dev/../etc/passwd")).is_err());
        volumes.check_source(Path::new("/dev/fuse")).unwrap();
    }
}
