//! The scratch disk: image layers and container files of this machine's one life.
//!
//! The disk comes empty, with whatever the host left on it, and dies with the machine, so it is formatted at every boot without a look
//! at its content. No journal: after a crash there is nobody to read it.

mod ext4;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

/// The disk in a machine of the local provider.
const DISK: &str = "/dev/vda";
/// Where it is mounted. A sandbox finds a folder there.
pub(crate) const FOLDER: &str = "/run/peerpods/scratch";
/// How long the disk may take to appear after its driver was loaded; it is there at once but for slow emulation.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Preparing the scratch disk did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct ScratchError {
    /// The step.
    pub(crate) what: &'static str,
    /// What the kernel said.
    pub(crate) source: std::io::Error,
}

/// Formats and mounts the disk.
pub(crate) fn prepare() -> Result<(), ScratchError> {
    let step = |what| move |source| ScratchError { what, source };
    let mut disk = open().map_err(step("open"))?;
    let size = disk.seek(SeekFrom::End(0)).map_err(step("size"))?;
    let mut random = [0; 32];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).map_err(step("random"))?;
    let filesystem = ext4::Filesystem::plan(size, random).ok_or_else(|| step("plan")(std::io::ErrorKind::InvalidInput.into()))?;
    filesystem.write(&mut disk).map_err(step("format"))?;
    drop(disk);
    std::fs::create_dir_all(FOLDER).map_err(step("folder"))?;
    // noinit_itable: a background thread would write empty inode tables to a disk that lives for one pod.
    let flags = MountFlags::NODEV | MountFlags::NOATIME;
    mount(DISK, FOLDER, "ext4", flags, c"noinit_itable").map_err(|e| step("mount")(e.into()))
}

fn open() -> std::io::Result<File> {
    let mut left = APPEARS_WITHIN.as_millis() / LOOK_AGAIN_AFTER.as_millis();
    loop {
        match OpenOptions::new().read(true).write(true).open(DISK) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && left > 0 => {}
            other => return other,
        }
        left -= 1;
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK_AGAIN_AFTER.subsec_nanos()) };
        rustix::event::poll(&mut [], Some(&pause))?;
    }
}
