//! Network namespaces by path: opened, made, and entered for as long as it takes to open a netlink socket.
//!
//! A thread's namespace is never changed and changed back: whatever must happen inside happens on a thread of its own,
//! which ends there. Sockets stay in the namespace in which they were opened, so nothing else needs to be inside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use nix::unistd::gettid;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::NetworkError;
use crate::netlink::Netlink;

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace pinned at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, NetworkError> {
        let path = path.to_owned();
        match File::open(&path) {
            Ok(file) if is_namespace(&file) => Ok(Self { path, file }),
            // Unmounting leaves the empty file behind that was the mount point.
            Ok(_) => Err(NetworkError::NetnsMissing { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NetworkError::NetnsMissing { path }),
            Err(source) => Err(NetworkError::EnterNetns { path, source }),
        }
    }

    /// Opens the namespace pinned at `path`, making it first if there is none.
    pub(crate) async fn ensure(path: &Path) -> Result<Self, NetworkError> {
        match Self::open(path) {
            Err(NetworkError::NetnsMissing { .. }) => {}
            opened => return opened,
        }
        let target = path.to_owned();
        let created = on_thread(move || create(&target)).await.and_then(|created| created);
        created.map_err(|source| NetworkError::CreateNetns { path: path.to_owned(), source })?;
        Self::open(path)
    }

    /// A netlink socket inside.
    pub(crate) async fn netlink(&self) -> Result<Netlink, NetworkError> {
        let runtime = Handle::current();
        let opened = self.run(move || {
            let _context = runtime.enter();
            Netlink::here()
        });
        opened.await.map_err(|source| NetworkError::EnterNetns { path: self.path.clone(), source })
    }

    /// Runs `work` inside, on a thread of its own.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let file = self.file.try_clone()?;
        on_thread(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
        .await
        .and_then(|done| done)
    }

    /// For netlink attributes that name a namespace by descriptor; valid while `self` is.
    pub(crate) fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Runs `work` on a thread of its own, which inherits this thread's namespaces and takes its own to the grave.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("netns".to_owned()).spawn(move || drop(sender.send(work())))?;
    receiver.await.map_err(|_| io::Error::other("the thread inside the network namespace died"))
}

/// As `ip netns add` does it, less the shared mount: the VM has one mount namespace that matters.
fn create(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let own = format!("/proc/self/task/{}/ns/net", gettid());
    Ok(mount(Some(own.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn is_namespace(file: &File) -> bool {
    fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}
