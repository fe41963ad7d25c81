//! Overlays of an image's layers, each with an upper folder of its own on the scratch disk.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::store::Inner;
use crate::unpack::{Attribution, own_path};
use crate::{LayerName, MountError, PulledImage, Store};

/// Redirects and metadata-only copies are neither made nor believed: images are not to steer the overlay.
const OPTIONS: &str = "redirect_dir=nofollow,metacopy=off,index=off";

impl Store {
    /// Mounts an image, writable, at a folder that exists. What is written there is gone after [`Store::unmount`].
    pub async fn mount(&self, image: &PulledImage, target: &Path) -> Result<(), MountError> {
        let _layers_stay = self.inner.layers_in_use.read().await;
        let (inner, image, target) = (self.inner.clone(), image.clone(), target.to_owned());
        blocking("mount the image at", target.clone(), move || inner.mount_image(&image, &target)).await
    }

    /// Takes away what [`Store::mount`] made, also if a process that has since died made it. Files still open stay readable until closed.
    pub async fn unmount(&self, target: &Path) -> Result<(), MountError> {
        let (inner, target) = (self.inner.clone(), target.to_owned());
        blocking("unmount", target.clone(), move || inner.unmount_image(&target)).await
    }

    /// Removes layers that no mount uses, waiting for pulls and mounts under way. Gives how many it removed.
    ///
    /// An image that is pulled but not mounted loses its layers and has to be pulled again.
    pub async fn remove_unused_layers(&self) -> Result<usize, MountError> {
        let _nobody_else = self.inner.layers_in_use.write().await;
        let inner = self.inner.clone();
        blocking("remove layers of", inner.layers(), move || {
            let layers = inner.layers();
            inner.remove_unused().map_err(|source| MountError::Kernel { action: "remove layers of", target: layers, source })
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    target: PathBuf,
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(MountError::Kernel { action, target, source: io::Error::other(error) }),
    }
}

impl Inner {
    fn mount_image(&self, image: &PulledImage, target: &Path) -> Result<(), MountError> {
        let kernel = |action| move |source: io::Error| MountError::Kernel { action, target: target.to_owned(), source };
        let own = self.mount(target);
        if own.exists() {
            if is_mount_point(target).map_err(kernel("look at"))? {
                return Err(MountError::Busy { target: target.to_owned() });
            }
            // A process died between making the folders and mounting, or something else unmounted it.
            std::fs::remove_dir_all(&own).map_err(kernel("clean up for"))?;
        }
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in image.layers.iter().rev() {
            match open_folder(&self.layer(layer)) {
                Ok(folder) => layers.push(folder),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(MountError::MissingLayer { reference: image.reference.clone(), layer: layer.clone() });
                }
                Err(error) => return Err(kernel("open the layers of")(error)),
            }
        }
        self.prepare(&own, image, layers.first()).map_err(kernel("prepare"))?;
        let mounted = mount_overlay(&own, layers, target);
        if mounted.is_err() {
            // Best effort: the next mount at this target removes it otherwise.
            let _ = std::fs::remove_dir_all(&own);
        }
        mounted.map_err(kernel("mount the image at"))
    }

    /// The mount's record and its folders; the upper one shows the root folder's owner and mode.
    fn prepare(&self, own: &Path, image: &PulledImage, top: Option<&OwnedFd>) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(own)?;
        let layers: String = image.layers.iter().map(|layer| format!("{layer}\n")).collect();
        std::fs::write(own.join("layers"), layers)?;
        builder.create(own.join("work"))?;
        // What an image without layers gets as its only lower folder.
        builder.create(own.join("empty"))?;
        let upper = own.join("upper");
        builder.mode(0o755).create(&upper)?;
        match top {
            Some(top) => {
                Attribution::of(top)?.apply(&fs::open(&upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
            }
            None => Ok(()),
        }
    }

    fn unmount_image(&self, target: &Path) -> Result<(), MountError> {
        let kernel = |action| move |source: io::Error| MountError::Kernel { action, target: target.to_owned(), source };
        let own = self.mount(target);
        if !own.exists() {
            return Err(MountError::NotMounted { target: target.to_owned() });
        }
        let flags = UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(target, flags) {
            // Not a mount point, or the folder has gone: only the record is left.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => {
                tracing::warn!(target = %target.display(), "the image is still in use, detaching it");
                rustix::mount::unmount(target, flags | UnmountFlags::DETACH).map_err(|errno| kernel("unmount")(errno.into()))?;
            }
            Err(errno) => return Err(kernel("unmount")(errno.into())),
        }
        std::fs::remove_dir_all(&own).map_err(kernel("remove the files of"))
    }

    fn remove_unused(&self) -> io::Result<usize> {
        let mut used = HashSet::new();
        for own in std::fs::read_dir(self.mounts())? {
            match std::fs::read_to_string(own?.path().join("layers")) {
                Ok(layers) => used.extend(layers.lines().map(|line| self.layer(&LayerName::from_record(line)))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let mut removed = 0;
        for layer in std::fs::read_dir(self.layers())? {
            let path = layer?.path();
            if used.contains(&path) {
                continue;
            }
            // Out of the way in one step: a half-removed layer must not look like one.
            let temporary = self.temporary()?;
            std::fs::rename(&path, temporary.path())?;
            removed += 1;
        }
        Ok(removed)
    }
}

/// Names folders by open descriptors: short enough for the options' one page with any number of layers, and without characters that
/// overlayfs gives a meaning to.
fn mount_overlay(own: &Path, mut layers: Vec<OwnedFd>, target: &Path) -> io::Result<()> {
    if layers.is_empty() {
        layers.push(open_folder(&own.join("empty"))?);
    }
    let (upper, work) = (open_folder(&own.join("upper"))?, open_folder(&own.join("work"))?);
    let lower = layers.iter().map(own_path).collect::<Vec<_>>().join(":");
    let options = format!("{OPTIONS},lowerdir={lower},upperdir={},workdir={}", own_path(&upper), own_path(&work));
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?)
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn is_mount_point(target: &Path) -> io::Result<bool> {
    let stat = match fs::statx(fs::CWD, target, fs::AtFlags::SYMLINK_NOFOLLOW, fs::StatxFlags::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        other => other?,
    };
    Ok(stat.stx_attributes.contains(fs::StatxAttributes::MOUNT_ROOT))
}
