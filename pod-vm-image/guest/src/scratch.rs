//! The scratch space: image layers and container files of this machine's one life.
//!
//! On a cloud it is the last partition of the disk that the machine booted from, which has the image's size at first and here grows to
//! the disk's end; the partition table is left as it is. On a local machine it is a disk of its own. Either comes with whatever the host
//! left on it and dies with the machine, so it is formatted at every boot without a look at its content. No journal: after a crash there
//! is nobody to read it.

mod ext4;
mod partition;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use partition::Partition;

/// The disk in a machine of the local provider.
const DISK: &str = "vda";
/// Where it is mounted. A sandbox finds a folder there.
pub(crate) const FOLDER: &str = "/run/peerpods/scratch";
/// How long the disk may take to appear. It is there at once but for slow emulation, and for NVMe, which is looked for in the background.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);
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

/// Formats and mounts the scratch space; gives its size in bytes.
pub(crate) fn prepare() -> Result<u64, ScratchError> {
    let step = |what| move |source| ScratchError { what, source };
    let device = match find().map_err(step("find"))? {
        Found::Disk(device) => device,
        Found::Partition(partition) => {
            partition.grow().map_err(step("grow"))?;
            partition.device()
        }
    };
    let mut disk = OpenOptions::new().read(true).write(true).open(&device).map_err(step("open"))?;
    let size = disk.seek(SeekFrom::End(0)).map_err(step("size"))?;
    let mut random = [0; 32];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).map_err(step("random"))?;
    let filesystem = ext4::Filesystem::plan(size, random).ok_or_else(|| step("plan")(std::io::ErrorKind::InvalidInput.into()))?;
    filesystem.write(&mut disk).map_err(step("format"))?;
    drop(disk);
    std::fs::create_dir_all(FOLDER).map_err(step("folder"))?;
    // noinit_itable: a background thread would write empty inode tables to a disk that lives for one pod.
    let flags = MountFlags::NODEV | MountFlags::NOATIME;
    mount(&device, FOLDER, "ext4", flags, c"noinit_itable").map_err(|e| step("mount")(e.into()))?;
    Ok(size)
}

/// What there is to format.
enum Found {
    /// All of a disk.
    Disk(PathBuf),
    /// The last part of the image's own disk.
    Partition(Partition),
}

fn find() -> std::io::Result<Found> {
    let classes = Path::new("/sys/class/block");
    let mut left = APPEARS_WITHIN.as_millis() / LOOK_AGAIN_AFTER.as_millis();
    loop {
        if let Some(partition) = Partition::find(classes)? {
            return Ok(Found::Partition(partition));
        }
        // A disk appears with its partitions: one that has none is not the image's.
        if classes.join(DISK).exists() && !Partition::has_any(&classes.join(DISK))? {
            return Ok(Found::Disk(Path::new("/dev").join(DISK)));
        }
        if left == 0 {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        left -= 1;
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK_AGAIN_AFTER.subsec_nanos()) };
        rustix::event::poll(&mut [], Some(&pause))?;
    }
}
