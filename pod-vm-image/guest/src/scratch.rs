//! The scratch space: image layers and container files of this machine's one life.
//!
//! On a cloud it is the last partition of the disk that the machine booted from, which has the image's size at first and here grows to
//! the disk's end; the partition table is left as it is. On a local machine it is a disk of its own. Either comes with whatever the host
//! left on it and dies with the machine, so it is formatted at every boot without a look at its content. No journal: after a crash there
//! is nobody to read it.
//!
//! The host can read and write that disk, so it gets ciphertext, and what it changes is an error here: LUKS2 with integrity under a key
//! that is made for this boot and kept by the kernel alone ([`luks`], [`volume`]). A machine without a disk uses memory, which its TEE
//! protects, up to half of it.

mod ext4;
mod luks;
mod mapper;
mod partition;
mod volume;

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use partition::Partition;
use volume::Encrypted;

/// The disk in a machine of the local provider.
const DISK: &str = "vda";
/// Where it is mounted. A sandbox finds a folder there.
pub(crate) const FOLDER: &str = "/run/peerpods/scratch";
/// How long a disk that must be there may take to appear. It is there at once but for slow emulation, and for NVMe, which is looked
/// for in the background.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);
/// The same where nothing says that there is one.
const MAY_APPEAR_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Preparing the scratch space did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct ScratchError {
    /// The step.
    pub(crate) what: &'static str,
    /// What the kernel said.
    pub(crate) source: std::io::Error,
}

impl ScratchError {
    /// For `map_err`.
    fn at(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self { what, source }
    }
}

/// What became the scratch space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scratch {
    /// A disk or a partition, encrypted and authenticated.
    Encrypted {
        /// Its size, of which tags and header take about a hundredth.
        device_bytes: u64,
    },
    /// Memory: there is no disk.
    Memory,
}

/// Encrypts, formats and mounts the scratch space.
pub(crate) fn prepare() -> Result<Scratch, ScratchError> {
    let step = ScratchError::at;
    let device = match find(patience()).map_err(step("find"))? {
        None => {
            mount_folder("tmpfs", "tmpfs", c"mode=0755,size=50%")?;
            return Ok(Scratch::Memory);
        }
        Some(Found::Disk(device)) => device,
        Some(Found::Partition(partition)) => {
            partition.grow().map_err(step("grow"))?;
            partition.device()
        }
    };
    let size = OpenOptions::new().read(true).open(&device).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let device_bytes = size.map_err(step("size"))?;
    let encrypted = Encrypted::create(&device)?;
    let mut random = [0; 32];
    random.copy_from_slice(&luks::random(32).map_err(step("random"))?);
    let filesystem = ext4::Filesystem::plan(encrypted.bytes(), random);
    let filesystem = filesystem.ok_or_else(|| step("plan")(std::io::ErrorKind::InvalidInput.into()))?;
    let volume = encrypted.with_blank(filesystem.metadata_bytes())?;
    // Open until it is mounted: the last one to close a device waits for what is written to reach it, and nobody needs that.
    let mut disk = OpenOptions::new().read(true).write(true).open(&volume).map_err(step("open"))?;
    filesystem.write(&mut disk).map_err(step("format"))?;
    // noinit_itable: a background thread would write empty inode tables to a disk that lives for one pod.
    mount_folder(&volume, "ext4", c"noinit_itable")?;
    Ok(Scratch::Encrypted { device_bytes })
}

fn mount_folder(source: impl AsRef<Path>, kind: &str, options: &std::ffi::CStr) -> Result<(), ScratchError> {
    std::fs::create_dir_all(FOLDER).map_err(ScratchError::at("folder"))?;
    let flags = MountFlags::NODEV | MountFlags::NOATIME;
    mount(source.as_ref(), FOLDER, kind, flags, options).map_err(|e| ScratchError::at("mount")(e.into()))
}

/// How long to wait for a disk. Firmware boots from one, which has our partition; the local provider always gives one.
fn patience() -> Duration {
    let has_firmware = Path::new("/sys/firmware/efi").exists();
    if has_firmware || crate::boot::is_local() { APPEARS_WITHIN } else { MAY_APPEAR_WITHIN }
}

/// What there is to format.
enum Found {
    /// All of a disk.
    Disk(PathBuf),
    /// The last part of the image's own disk.
    Partition(Partition),
}

fn find(patience: Duration) -> std::io::Result<Option<Found>> {
    let classes = Path::new("/sys/class/block");
    let mut left = patience.as_millis() / LOOK_AGAIN_AFTER.as_millis();
    loop {
        if let Some(partition) = Partition::find(classes)? {
            return Ok(Some(Found::Partition(partition)));
        }
        // A disk appears with its partitions: one that has none is not the image's.
        if classes.join(DISK).exists() && !Partition::has_any(&classes.join(DISK))? {
            return Ok(Some(Found::Disk(Path::new("/dev").join(DISK))));
        }
        if left == 0 {
            return Ok(None);
        }
        left -= 1;
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK_AGAIN_AFTER.subsec_nanos()) };
        rustix::event::poll(&mut [], Some(&pause))?;
    }
}
