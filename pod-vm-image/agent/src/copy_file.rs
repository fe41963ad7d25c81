//! CopyFile: files of the node appear below `<share>/shared/containers`.
//!
//! Every step is taken relative to a folder opened with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`, so neither the request
//! nor a symbolic link that a container made in a shared volume leads outside. Links are made as asked, replaced as a whole and
//! never followed; pipes, sockets and block devices are refused. A character device is a whiteout, as in an overlay: the protocol has no
//! call that removes a file, and our own shim takes away what the node took out of a volume. A file is collected under a name of its own beside the shared tree and
//! renamed when its last byte is there, so containers see the old file or the new one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use peerpods_protos::agent::CopyFileRequest;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// A file cannot be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyFileError {
    /// The path is not below the shared folder.
    #[error("path {path} is not below {}", base.display())]
    Outside {
        /// As requested.
        path: String,
        /// Where files may be.
        base: PathBuf,
    },
    /// Neither a file nor a folder nor a link.
    #[error("{path} is of a type that cannot be copied")]
    Type {
        /// As requested.
        path: String,
    },
    /// Offsets and sizes do not fit together.
    #[error("{path}: {reason}")]
    Chunk {
        /// As requested.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// What the kernel said.
    #[error("copying {path}")]
    Io {
        /// As requested.
        path: String,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// The files being copied.
#[derive(Debug)]
pub(crate) struct FileCopier {
    base: PathBuf,
    staging: PathBuf,
    partial: Mutex<Partials>,
}

#[derive(Debug, Default)]
struct Partials {
    files: HashMap<PathBuf, Partial>,
    counter: u64,
}

#[derive(Debug)]
struct Partial {
    file: File,
    staged: PathBuf,
    received: u64,
}

/// Larger files do not belong into a tmpfs; Kata's shims copy at most a few MiB.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Files begun and not finished.
const MAX_PARTIAL: usize = 64;
const MAX_LINK_BYTES: usize = 4096;
const MAX_DEPTH: usize = 64;
/// For folders that the request names only on the way.
const DEFAULT_DIR_MODE: u32 = 0o750;

/// Whether a name below the base is that of a copy made for this container, or without one for any container of the pod: shims name them
/// `<container id>-<16 hexadecimal digits>-<name>`. Volumes have other names.
pub(crate) fn is_copy(name: &str, container_id: Option<&str>) -> bool {
    let is_rest = |rest: &str| {
        let Some((number, name)) = rest.split_once('-') else { return false };
        number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit()) && !name.is_empty()
    };
    match container_id {
        Some(id) => name.strip_prefix(id).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_rest),
        None => name.match_indices('-').any(|(at, _)| at > 0 && is_rest(&name[at + 1..])),
    }
}

impl FileCopier {
    /// Copies below `<share>/shared/containers`.
    pub(crate) fn new(share: &Path) -> Self {
        Self { base: share.join("shared/containers"), staging: share.join("shared/.partial"), partial: Mutex::default() }
    }

    /// Makes the folders, after the share was emptied.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        *self.lock() = Partials::default();
        std::fs::create_dir_all(&self.base)?;
        std::fs::create_dir_all(&self.staging)
    }

    /// Carries out one request.
    pub(crate) fn copy(&self, request: &CopyFileRequest) -> Result<(), CopyFileError> {
        let names = self.names(&request.path)?;
        let io = |source: io::Error| CopyFileError::Io { path: request.path.clone(), source };
        let Some((name, parents)) = names.split_last() else { return Err(self.outside(&request.path)) };
        match FileType::from_raw_mode(request.file_mode) {
            FileType::Directory => {
                let parent = self.open_parents(parents, request.dir_mode).map_err(io)?;
                make_folder(&parent, name, request).map_err(io)
            }
            FileType::Symlink => {
                let target = link_target(request)?;
                let parent = self.open_parents(parents, request.dir_mode).map_err(io)?;
                self.make_link(&parent, name, target, request).map_err(io)
            }
            // Kata's Go shim sends chunks without a type.
            FileType::RegularFile | FileType::Unknown => self.add_chunk(&names.iter().collect::<PathBuf>(), parents, name, request),
            FileType::CharacterDevice if request.data.is_empty() => self.remove(parents, name).map_err(io),
            _ => Err(CopyFileError::Type { path: request.path.clone() }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Partials> {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(&self, path: &str) -> CopyFileError {
        CopyFileError::Outside { path: path.to_owned(), base: self.base.clone() }
    }

    /// The names below the base; at least one, none of them special.
    fn names(&self, path: &str) -> Result<Vec<String>, CopyFileError> {
        let relative = Path::new(path).strip_prefix(&self.base).map_err(|_| self.outside(path))?;
        let names: Option<Vec<String>> = relative
            .components()
            .map(|component| match component {
                Component::Normal(name) => name.to_str().filter(|name| !name.contains('\0')).map(str::to_owned),
                _ => None,
            })
            .collect();
        names.filter(|names| !names.is_empty() && names.len() <= MAX_DEPTH).ok_or_else(|| self.outside(path))
    }

    fn open_parents(&self, names: &[String], dir_mode: u32) -> io::Result<OwnedFd> {
        let mut folder = rustix::fs::open(&self.base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mode = if dir_mode & 0o777 == 0 { DEFAULT_DIR_MODE } else { dir_mode & 0o7777 };
        for name in names {
            folder = match open_folder(&folder, name) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&folder, name.as_str(), Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    open_folder(&folder, name)?
                }
                result => result?,
            };
        }
        Ok(folder)
    }

    fn staged_name(&self) -> PathBuf {
        let mut partials = self.lock();
        partials.counter += 1;
        self.staging.join(partials.counter.to_string())
    }

    fn make_link(&self, parent: &OwnedFd, name: &str, target: &str, request: &CopyFileRequest) -> io::Result<()> {
        let staged = self.staged_name();
        rustix::fs::symlinkat(target, CWD, &staged)?;
        let (uid, gid) = owner(request);
        rustix::fs::chownat(CWD, &staged, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::renameat(CWD, &staged, parent, name).inspect_err(|_| discard(&staged))?;
        Ok(())
    }

    /// Takes a file, a link or an empty folder away; what is not there is gone already.
    fn remove(&self, parents: &[String], name: &str) -> io::Result<()> {
        let mut folder = rustix::fs::open(&self.base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for parent in parents {
            folder = match open_folder(&folder, parent) {
                Err(Errno::NOENT) => return Ok(()),
                result => result?,
            };
        }
        let removed = match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR),
            result => result,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn add_chunk(&self, key: &Path, parents: &[String], name: &str, request: &CopyFileRequest) -> Result<(), CopyFileError> {
        let wrong = |reason| CopyFileError::Chunk { path: request.path.clone(), reason };
        let io = |source: io::Error| CopyFileError::Io { path: request.path.clone(), source };
        let size = u64::try_from(request.file_size).map_err(|_| wrong("negative size"))?;
        let offset = u64::try_from(request.offset).map_err(|_| wrong("negative offset"))?;
        let length = u64::try_from(request.data.len()).map_err(|_| wrong("too much data"))?;
        if size > MAX_FILE_BYTES {
            return Err(wrong("the file is larger than 1 GiB"));
        }
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(wrong("data beyond the file's size"));
        }
        let earlier = self.lock().files.remove(key);
        let mut partial = match earlier {
            Some(partial) if offset != 0 && offset == partial.received => partial,
            Some(partial) => {
                discard(&partial.staged);
                if offset != 0 {
                    return Err(wrong("chunks out of order"));
                }
                self.begin(parents, request).map_err(io)?
            }
            None if offset == 0 => self.begin(parents, request).map_err(io)?,
            None => return Err(wrong("the first chunk is missing")),
        };
        if let Err(error) = partial.file.write_all(&request.data) {
            discard(&partial.staged);
            return Err(io(error));
        }
        partial.received += length;
        if partial.received < size {
            let mut partials = self.lock();
            if partials.files.len() >= MAX_PARTIAL {
                discard(&partial.staged);
                return Err(wrong("too many unfinished files"));
            }
            partials.files.insert(key.to_owned(), partial);
            return Ok(());
        }
        self.finish(&partial, parents, name, request).inspect_err(|_| discard(&partial.staged)).map_err(io)
    }

    /// Makes the parents too, so that a first chunk fails where the last one would.
    fn begin(&self, parents: &[String], request: &CopyFileRequest) -> io::Result<Partial> {
        self.open_parents(parents, request.dir_mode)?;
        let staged = self.staged_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&staged, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Partial { file: File::from(file), staged, received: 0 })
    }

    fn finish(&self, partial: &Partial, parents: &[String], name: &str, request: &CopyFileRequest) -> io::Result<()> {
        let (uid, gid) = owner(request);
        rustix::fs::fchown(&partial.file, uid, gid)?;
        rustix::fs::fchmod(&partial.file, Mode::from_raw_mode(request.file_mode & 0o7777))?;
        let parent = self.open_parents(parents, request.dir_mode)?;
        rustix::fs::renameat(CWD, &partial.staged, &parent, name)?;
        Ok(())
    }
}

/// Opens a folder by one name, not through a link.
fn open_folder(parent: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
}

fn make_folder(parent: &OwnedFd, name: &str, request: &CopyFileRequest) -> io::Result<()> {
    let mode = Mode::from_raw_mode(request.file_mode & 0o7777);
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let folder = rustix::fs::openat2(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let (uid, gid) = owner(request);
    rustix::fs::fchown(folder.as_fd(), uid, gid)?;
    rustix::fs::fchmod(folder.as_fd(), mode)?;
    Ok(())
}

fn link_target(request: &CopyFileRequest) -> Result<&str, CopyFileError> {
    let wrong = |reason| CopyFileError::Chunk { path: request.path.clone(), reason };
    let target = std::str::from_utf8(&request.data).map_err(|_| wrong("the link's target is not UTF-8"))?;
    if target.is_empty() || target.len() > MAX_LINK_BYTES || target.contains('\0') {
        return Err(wrong("the link's target is empty, too long or contains a zero byte"));
    }
    Ok(target)
}

/// Negative ids do not occur; they would mean "leave as it is".
fn owner(request: &CopyFileRequest) -> (Option<Uid>, Option<Gid>) {
    (u32::try_from(request.uid).ok().map(Uid::from_raw), u32::try_from(request.gid).ok().map(Gid::from_raw))
}

fn discard(staged: &Path) {
    let _ = std::fs::remove_file(staged);
}

#[cfg(test)]
mod tests;
