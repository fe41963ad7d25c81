//! Files that are there completely or not at all, and locks that die with their holder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{MachineError, accelerator, tpm};

/// How long a lock may be held by somebody else: longer than the longest steps that are taken under one, making the authority of software
/// TPMs and trying KVM, and shorter than the provider's deadline. A machine's own lock is held for all of its start, whose steps at their
/// slowest take longer together; whoever meets that gets [`MachineError::Lock`] and tries again.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(45);

const _: () = assert!(LOCK_LIMIT.as_secs() > tpm::SETUP_LIMIT.as_secs() && LOCK_LIMIT.as_secs() > accelerator::CANARY_LIMIT.as_secs());

/// `flock` has no time limit of its own, so it is tried this often.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Takes a lock on a file, which is made if it is not there.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>, MachineError> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let mut file = open.map_err(MachineError::file("open", path))?;
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if begin.elapsed() > LOCK_LIMIT => return Err(MachineError::Lock { path: path.to_owned() }),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(MachineError::file("lock", path)(errno.into())),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// A folder for root alone, with those above it.
pub(crate) fn create_folder(path: &Path) -> Result<(), MachineError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(MachineError::file("create", path))
}

/// Writes a file so that, whatever happens, it is the old one or the new one.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<(), MachineError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(folder)
    };
    write().map_err(MachineError::file("write", path))
}

/// Makes renames in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes the files of a folder that holds files alone last, and their names.
pub(crate) fn sync_files(folder: &Path) -> Result<(), MachineError> {
    let sync = || -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_folder(folder)
    };
    sync().map_err(MachineError::file("sync", folder))
}

/// A file's content; `None` when there is none.
pub(crate) fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    none_if_missing(fs::read(path))
}

/// `None` instead of "not found".
pub(crate) fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_waits_for_its_holder_and_file_is_replaced_whole() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("lock");
        let held = lock(&path).expect("lock");
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || lock(&path).map(drop)
        });
        drop(held);
        waiting.join().expect("thread").expect("lock");
        let file = folder.path().join("a.json");
        write_durably(&file, b"one").expect("write");
        write_durably(&file, b"two").expect("write");
        assert_eq!(read_if_there(&file).expect("read").as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 2);
        assert_eq!(read_if_there(&folder.path().join("b")).expect("read"), None);
    }
}
