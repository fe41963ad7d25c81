//! A layer's tree on disk. Every name is looked up by the kernel inside the tree (`openat2` with `RESOLVE_IN_ROOT`), so `..`, absolute
//! links and links made by earlier entries lead nowhere else, and nothing that exists is ever written through: it is replaced.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::pending::{Deferred, Pending};
use super::printable;
use crate::{LayerError, Limits};

/// The components of an entry's path, without empty ones and `.`.
pub(crate) type Names<'a> = [&'a [u8]];

/// Marks a folder that overlayfs does not merge with those below.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Marks a folder that no entry of the layer described, until the layer is finished.
pub(crate) const IMPLIED: &str = "trusted.peerpods.implied";

/// The tree while entries are written.
pub(crate) struct Tree<'a> {
    root: OwnedFd,
    limits: &'a Limits,
    pub(crate) pending: Pending,
    /// The last folder that was looked up.
    cached: Option<(Vec<u8>, OwnedFd)>,
    /// Entries and folders made.
    made: u64,
    /// Length of the root's own path.
    root_path: usize,
}

/// Owner, mode and time of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: Mode,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// Of a folder that neither this layer nor one below describes.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
pub(crate) const READ_FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

impl<'a> Tree<'a> {
    /// Starts at an empty folder.
    pub(crate) fn new(root: &Path, limits: &'a Limits, pending: Pending) -> io::Result<Self> {
        let root = fs::open(root, READ_FOLDER, Mode::empty())?;
        let root_path = fs::readlink(own_path(&root), Vec::new())?.as_bytes().len();
        fs::fchmod(&root, IMPLIED_MODE)?;
        let mut tree = Self { root, limits, pending, cached: None, made: 0, root_path };
        fs::fsetxattr(&tree.root, IMPLIED, b"", XattrFlags::empty())?;
        tree.pending.push(b"", &Deferred::Inherit)?;
        Ok(tree)
    }

    /// The folder that holds the last name, made where it does not exist, and that name. `None` for the root itself.
    pub(crate) fn place<'n>(&mut self, names: &Names<'n>) -> Result<Option<(OwnedFd, &'n [u8])>, LayerError> {
        let Some((last, parents)) = names.split_last() else { return Ok(None) };
        Ok(Some((self.folder(parents)?, last)))
    }

    /// Counts an entry or an implied folder.
    pub(crate) fn count(&mut self) -> Result<(), LayerError> {
        self.made += 1;
        if self.made > self.limits.layer_entries {
            return Err(LayerError::Limit { what: "entries in the layer", limit: self.limits.layer_entries });
        }
        Ok(())
    }

    fn folder(&mut self, names: &Names<'_>) -> Result<OwnedFd, LayerError> {
        let path = names.join(&b'/');
        if let Some((cached, folder)) = &self.cached
            && *cached == path
        {
            return folder.try_clone().map_err(|source| LayerError::Write { action: "open the folder", path: printable(&path), source });
        }
        let folder = match self.look_up(&path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_folders(names)?,
            Err(errno) => return Err(refuse("open the folder", &path, errno)),
        };
        let copy = folder.try_clone().map_err(|source| LayerError::Write { action: "open the folder", path: printable(&path), source })?;
        self.cached = Some((path, copy));
        Ok(folder)
    }

    fn look_up(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        fs::openat2(&self.root, path, FOLDER, Mode::empty(), IN_ROOT)
    }

    fn make_folders(&mut self, names: &Names<'_>) -> Result<OwnedFd, LayerError> {
        let mut above = self.look_up(b"").map_err(|errno| refuse("open the folder", b"", errno))?;
        for (index, name) in names.iter().enumerate() {
            let path = names[..=index].join(&b'/');
            above = match self.look_up(&path) {
                Ok(folder) => folder,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    self.count()?;
                    self.make_folder(&above, name, &path, true)?;
                    self.pending.push(&path, &Deferred::Inherit).map_err(|source| LayerError::Write {
                        action: "note the folder",
                        path: printable(&path),
                        source,
                    })?;
                    self.look_up(&path).map_err(|errno| refuse("open the folder", &path, errno))?
                }
                Err(errno) => return Err(refuse("open the folder", &path, errno)),
            };
        }
        Ok(above)
    }

    /// Makes a folder where nothing or a whiteout is. In place of a whiteout it hides what the whiteout hid.
    fn make_folder(&mut self, above: &OwnedFd, name: &[u8], path: &[u8], implied: bool) -> Result<(), LayerError> {
        self.check_depth(above, path)?;
        let replaced = match fs::mkdirat(above, name, IMPLIED_MODE) {
            Err(Errno::EXIST) if is_whiteout(above, name).unwrap_or(false) => {
                fs::unlinkat(above, name, AtFlags::empty())
                    .and_then(|()| fs::mkdirat(above, name, IMPLIED_MODE))
                    .map_err(|errno| refuse("make the folder", path, errno))?;
                true
            }
            Err(Errno::EXIST) => {
                return Err(LayerError::Path { path: printable(path), reason: "a part of its path is a file or a link to nothing" });
            }
            other => other.map(|()| false).map_err(|errno| refuse("make the folder", path, errno))?,
        };
        let folder = fs::openat(above, name, READ_FOLDER, Mode::empty()).map_err(|errno| refuse("open the folder", path, errno))?;
        // The process's umask has a say in mkdir only.
        fs::fchmod(&folder, IMPLIED_MODE).map_err(|errno| refuse("set the mode of", path, errno))?;
        let marks = [(OPAQUE, &b"y"[..], replaced), (IMPLIED, b"", implied)];
        for (mark, value, _) in marks.into_iter().filter(|(_, _, wanted)| *wanted) {
            fs::fsetxattr(&folder, mark, value, XattrFlags::empty()).map_err(|errno| refuse("mark the folder", path, errno))?;
        }
        Ok(())
    }

    /// Where links are followed a path says nothing of how deep it leads; the kernel's name for the folder does.
    fn check_depth(&self, above: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
        let too_deep = || LayerError::Path { path: printable(path), reason: "too many folders deep" };
        let own = fs::readlink(own_path(above), Vec::new()).map_err(|_| too_deep())?;
        let depth = own.as_bytes().iter().skip(self.root_path).filter(|byte| **byte == b'/').count();
        if depth < self.limits.path_depth { Ok(()) } else { Err(too_deep()) }
    }

    /// Describes a folder, making it if it is new. A file of that name is replaced.
    pub(crate) fn put_folder(&mut self, names: &Names<'_>, path: &[u8]) -> Result<OwnedFd, LayerError> {
        let open = |at: &OwnedFd, name: &[u8]| {
            fs::openat(at, name, READ_FOLDER, Mode::empty()).map_err(|errno| refuse("open the folder", path, errno))
        };
        let folder = match self.place(names)? {
            None => open(&self.root, b".")?,
            Some((above, name)) => {
                match fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {}
                    Ok(_) if !is_whiteout(&above, name).unwrap_or(false) => {
                        self.clear(&above, name, path)?;
                        self.make_folder(&above, name, path, false)?;
                    }
                    Ok(_) | Err(Errno::NOENT) => self.make_folder(&above, name, path, false)?,
                    Err(errno) => return Err(refuse("look at", path, errno)),
                }
                open(&above, name)?
            }
        };
        match fs::fremovexattr(&folder, IMPLIED) {
            Ok(()) | Err(Errno::NODATA) => Ok(folder),
            Err(errno) => Err(refuse("describe", path, errno)),
        }
    }

    /// Makes something that is not a folder with `make`, after removing what has its name.
    pub(crate) fn replace<T>(
        &mut self,
        above: &OwnedFd,
        name: &[u8],
        path: &[u8],
        action: &'static str,
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, LayerError> {
        match make(above, name) {
            Err(Errno::EXIST) => {
                self.clear(above, name, path)?;
                make(above, name).map_err(|errno| refuse(action, path, errno))
            }
            other => other.map_err(|errno| refuse(action, path, errno)),
        }
    }

    /// Removes whatever has this name, links not followed.
    fn clear(&mut self, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), LayerError> {
        self.cached = None;
        match fs::unlinkat(above, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                use std::os::unix::ffi::OsStrExt as _;
                let own = Path::new(&own_path(above)).join(std::ffi::OsStr::from_bytes(name));
                std::fs::remove_dir_all(own).map_err(|source| LayerError::Write {
                    action: "replace the folder",
                    path: printable(path),
                    source,
                })
            }
            Err(errno) => Err(refuse("replace", path, errno)),
        }
    }

    /// Hides what the layers below have under this name. What this layer has there stays.
    pub(crate) fn put_whiteout(&mut self, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), LayerError> {
        match fs::mknodat(above, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match fs::openat(above, name, READ_FOLDER, Mode::empty()) {
                Ok(folder) => set_opaque(&folder, path),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(refuse("look at", path, errno)),
            },
            Err(errno) => Err(refuse("make the whiteout", path, errno)),
        }
    }

    /// Hides everything that the layers below have in the folder that holds this entry.
    pub(crate) fn put_opaque(&mut self, above: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
        let folder = fs::openat(above, ".", READ_FOLDER, Mode::empty()).map_err(|errno| refuse("open the folder of", path, errno))?;
        set_opaque(&folder, path)
    }

    /// Links a name to a file of this layer.
    pub(crate) fn put_hard_link(&mut self, above: &OwnedFd, name: &[u8], path: &[u8], target: &Names<'_>) -> Result<(), LayerError> {
        let nowhere = || LayerError::HardLink { path: printable(path), target: printable(&target.join(&b'/')) };
        let (last, parents) = target.split_last().ok_or_else(nowhere)?;
        let holder = self.look_up(&parents.join(&b'/')).map_err(|_| nowhere())?;
        let file = fs::openat(&holder, *last, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(|_| nowhere())?;
        let stat = fs::fstat(&file).map_err(|errno| refuse("look at", path, errno))?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink | FileType::Fifo) {
            return Err(nowhere());
        }
        if fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|old| (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        match self.replace(above, name, path, "link", |at, name| fs::linkat(&holder, *last, at, name, AtFlags::empty())) {
            Err(LayerError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(nowhere()),
            other => other,
        }
    }
}

fn set_opaque(folder: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
    fs::fsetxattr(folder, OPAQUE, b"y", XattrFlags::empty()).map_err(|errno| refuse("mark the folder of", path, errno))
}

/// A character device 0/0, which overlayfs takes for a removed name.
fn is_whiteout(above: &OwnedFd, name: &[u8]) -> rustix::io::Result<bool> {
    let stat = fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0)
}

/// A path by which calls that take none of ours reach an open file.
pub(crate) fn own_path(fd: &impl AsFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Errors that a path causes are the path's; others are the disk's.
pub(crate) fn refuse(action: &'static str, path: &[u8], errno: Errno) -> LayerError {
    let reason = match errno {
        Errno::NAMETOOLONG => "a part of its path is too long",
        Errno::LOOP => "its path goes through too many symbolic links",
        Errno::XDEV => "its path leaves the image",
        _ => return LayerError::Write { action, path: printable(path), source: errno.into() },
    };
    LayerError::Path { path: printable(path), reason }
}
