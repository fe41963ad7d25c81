//! The folder that holds layers and the upper folders of mounts.
//!
//! ```text
//! version          "2"
//! lock             held with flock(2) by the process that has the store open
//! tmp/<number>     layers that are being unpacked
//! layers/<name>    a finished layer, by its [`LayerName`]; overlayfs form (whiteouts are devices 0/0)
//! mounts/<hex>     upper/, work/ and layers (names, one a line) of a mount, by the SHA-256 of its target's path
//! ```
//!
//! Version 1 kept decrypted layers by their chain ids; it is not read, as such a layer would be anybody's.
//!
//! Nothing is synced to the disk: the scratch disk does not outlive the pod VM, and a process that dies loses no page cache.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::FlockOperation;
use tokio::sync::{RwLock, Semaphore};

use crate::unpack::{self, Space};
use crate::{Digest, LayerName, Limits, OpenError};

/// Where a store is and what it may cost.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store's folder, made if it does not exist; its file system needs `trusted.*` attributes, as overlayfs does.
    pub path: PathBuf,
    /// Bounds on each pull.
    pub limits: Limits,
    /// PEM bundle of the roots that registries are verified with; if there is no such file only a policy's own count.
    pub root_certificates: PathBuf,
}

/// A store that this process has open. Cheap to clone; the lock is given up with the last clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    _lock: File,
    /// Held while a layer is made, by its name.
    flights: Mutex<HashMap<LayerName, Weak<tokio::sync::Mutex<()>>>>,
    /// Layers that may be downloaded at once, over all pulls.
    pub(crate) downloads: Semaphore,
    /// Shared by pulls and mounts, exclusive for removing layers.
    pub(crate) layers_in_use: RwLock<()>,
    next_temporary: AtomicU64,
}

/// A folder in `tmp/` that is removed unless it is kept.
pub(crate) struct Temporary {
    path: Option<PathBuf>,
}

const VERSION: &str = "2\n";

impl StoreConfig {
    /// The default limits and Debian's bundle of roots.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let root_certificates = PathBuf::from("/etc/ssl/certs/ca-certificates.crt");
        Self { path: path.into(), limits: Limits::default(), root_certificates }
    }
}

impl Store {
    /// Takes the folder, making it if need be, and throws away what an earlier process left half done. Layers and mounts stay.
    /// Blocks while it does so.
    pub fn open(config: StoreConfig) -> Result<Self, OpenError> {
        let path = config.path.clone();
        let prepare = |action| {
            let path = path.clone();
            move |source| OpenError::Prepare { action, path, source }
        };
        make_folder(&path).map_err(prepare("make"))?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(prepare("lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse { path }),
            Err(errno) => return Err(prepare("lock")(errno.into())),
        }
        check_version(&path)
            .map_err(prepare("read the version of"))?
            .map_or(Ok(()), |found| Err(OpenError::Version { path: path.clone(), found }))?;
        match std::fs::remove_dir_all(path.join("tmp")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(prepare("clean")(error)),
            _ => {}
        }
        for folder in ["tmp", "layers", "mounts"] {
            make_folder(&path.join(folder)).map_err(prepare("make"))?;
        }
        let inner = Inner {
            _lock: lock,
            flights: Mutex::default(),
            downloads: Semaphore::new(config.limits.concurrent_layers.max(1)),
            layers_in_use: RwLock::new(()),
            next_temporary: AtomicU64::new(0),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    pub(crate) fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Where a finished layer is.
    pub(crate) fn layer(&self, name: &LayerName) -> PathBuf {
        self.config.path.join("layers").join(name.file_name())
    }

    pub(crate) fn has_layer(&self, name: &LayerName) -> bool {
        self.layer(name).is_dir()
    }

    /// Where a mount's own folders are.
    pub(crate) fn mount(&self, target: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        self.config.path.join("mounts").join(Digest::of(target.as_os_str().as_bytes()).hex())
    }

    pub(crate) fn mounts(&self) -> PathBuf {
        self.config.path.join("mounts")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.config.path.join("layers")
    }

    pub(crate) fn space(&self) -> Space {
        Space::new(self.config.path.clone(), self.config.limits.reserve_bytes)
    }

    /// What all pulls that need the same layer lock.
    pub(crate) fn flight(&self, name: &LayerName) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(name).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(name.clone(), Arc::downgrade(&flight));
        flight
    }

    /// A new empty folder in `tmp/`.
    pub(crate) fn temporary(&self) -> io::Result<Temporary> {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.config.path.join("tmp").join(number.to_string());
        std::fs::DirBuilder::new().mode(0o755).create(&path)?;
        Ok(Temporary { path: Some(path) })
    }
}

impl Temporary {
    /// Leaves the folder alone from now on.
    pub(crate) fn keep(mut self) {
        self.path = None;
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone().unwrap_or_default()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        // Removing a large layer takes a while; a runtime's worker has better things to do.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || unpack::discard(&path))),
            Err(_) => unpack::discard(&path),
        }
    }
}

/// 0700: set-id files of images are not for other users of the VM.
fn make_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The version found where it is another one. A store without one is new.
fn check_version(path: &Path) -> io::Result<Option<String>> {
    let file = path.join("version");
    match std::fs::read_to_string(&file) {
        Ok(found) if found == VERSION => Ok(None),
        // Killed between making the file and writing it.
        Ok(found) if found.is_empty() => std::fs::write(&file, VERSION).map(|()| None),
        Ok(found) => Ok(Some(found.trim_end().chars().take(40).collect())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::write(&file, VERSION).map(|()| None),
        Err(error) => Err(error),
    }
}
