//! Completes an unpacked layer once the layers below it are in the store.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{self, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Unpacked;
use super::pending::Deferred;
use super::tree::{IMPLIED, READ_FOLDER};

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// Gives implied folders the owner, mode and time that they have in the layers below (given top first), and all folders their time.
///
/// Without this, a layer that holds just `tmp/file` would make `/tmp` belong to root with mode 0755 in the overlay.
pub(crate) fn finish(unpacked: Unpacked, below: &[PathBuf]) -> io::Result<PathBuf> {
    let Unpacked { root, pending } = unpacked;
    let top = fs::open(&root, READ_FOLDER, Mode::empty())?;
    let below: Vec<OwnedFd> = below
        .iter()
        .map(|layer| fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
        .collect::<Result<_, _>>()?;
    pending.replay(|path, deferred| {
        let path = if path.is_empty() { b"." } else { path };
        // A later entry may have replaced the folder.
        let Ok(folder) = fs::openat2(&top, path, READ_FOLDER, Mode::empty(), CONFINED) else { return Ok(()) };
        match deferred {
            Deferred::Time { seconds, nanos } => set_time(&folder, *seconds, (*nanos).into()),
            Deferred::Inherit => match fs::fremovexattr(&folder, IMPLIED) {
                Ok(()) => inherited(&below, path).map_or(Ok(()), |attribution| attribution.apply(&folder)),
                Err(Errno::NODATA) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
        }
    })?;
    Ok(root)
}

/// Owner, mode and time of a folder.
pub(crate) struct Attribution(Stat);

impl Attribution {
    /// Reads it from an open folder.
    pub(crate) fn of(folder: &OwnedFd) -> io::Result<Self> {
        Ok(Self(fs::fstat(folder)?))
    }

    /// Sets it on a folder opened for reading.
    pub(crate) fn apply(&self, folder: &OwnedFd) -> io::Result<()> {
        fs::fchown(folder, Some(Uid::from_raw(self.0.st_uid)), Some(Gid::from_raw(self.0.st_gid)))?;
        fs::fchmod(folder, Mode::from_raw_mode(self.0.st_mode & 0o7777))?;
        set_time(folder, self.0.st_mtime, self.0.st_mtime_nsec.try_into().unwrap_or(0))
    }
}

/// The folder as the uppermost layer that knows of the path has it, unless that hides it.
fn inherited(below: &[OwnedFd], path: &[u8]) -> Option<Attribution> {
    for layer in below {
        match fs::openat2(layer, path, READ_FOLDER, Mode::empty(), CONFINED | ResolveFlags::NO_SYMLINKS) {
            Ok(folder) => return Attribution::of(&folder).ok(),
            Err(Errno::NOENT) => {}
            // A whiteout, a file or a link: nothing of the folders below it shows.
            Err(_) => return None,
        }
    }
    None
}

fn set_time(folder: &OwnedFd, tv_sec: i64, tv_nsec: i64) -> io::Result<()> {
    let time = Timespec { tv_sec, tv_nsec };
    Ok(fs::futimens(folder, &Timestamps { last_access: time, last_modification: time })?)
}
