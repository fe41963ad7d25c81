//! The image's last partition, as the kernel sees it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Its name in the partition table, which the recipe gives it.
const NAME: &str = "peerpods-scratch";

/// What sysfs counts in, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// File systems like whole mebibytes.
const ALIGNMENT: u64 = 1 << 20;

/// A partition that is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Partition {
    name: String,
    disk: String,
    number: i32,
    /// Where it begins, in bytes.
    start: u64,
    /// From its beginning to the disk's end, in bytes.
    room: u64,
}

impl Partition {
    /// The one of our name below `/sys/class/block`, the first in the order of their names.
    pub(super) fn find(classes: &Path) -> io::Result<Option<Self>> {
        let mut names: Vec<_> = std::fs::read_dir(classes)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        for name in names {
            let folder = classes.join(&name);
            let event = std::fs::read_to_string(folder.join("uevent")).unwrap_or_default();
            if event.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(NAME)) {
                return Self::read(name, &folder).map(Some);
            }
        }
        Ok(None)
    }

    /// Whether a disk has partitions at all.
    pub(super) fn has_any(disk: &Path) -> io::Result<bool> {
        Ok(std::fs::read_dir(disk)?.filter_map(Result::ok).any(|entry| entry.path().join("partition").exists()))
    }

    fn read(name: String, folder: &Path) -> io::Result<Self> {
        let number = |file: PathBuf| -> io::Result<u64> {
            std::fs::read_to_string(file)?.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        };
        // The link leads to a folder inside of the disk's.
        let real = std::fs::canonicalize(folder)?;
        let disk = real.parent().ok_or(io::ErrorKind::NotFound)?;
        let start = number(folder.join("start"))? * SECTOR;
        let end = number(disk.join("size"))? * SECTOR;
        Ok(Self {
            name,
            disk: disk.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::NotFound)?.to_owned(),
            number: i32::try_from(number(folder.join("partition"))?).map_err(|_| io::ErrorKind::InvalidData)?,
            start,
            room: end.saturating_sub(start) / ALIGNMENT * ALIGNMENT,
        })
    }

    /// Its device.
    pub(super) fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Lets the kernel see it as large as the disk has room for it. The disk's table keeps what it says: this machine boots once.
    pub(super) fn grow(&self) -> io::Result<()> {
        let disk = File::open(Path::new("/dev").join(&self.disk))?;
        let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        resize(&disk, self.number, signed(self.start)?, signed(self.room)?)
    }
}

/// `struct blkpg_ioctl_arg` and `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct Argument {
    operation: i32,
    flags: i32,
    length: i32,
    data: *const Area,
}

#[repr(C)]
struct Area {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

const BLKPG: u64 = 0x1269;
const RESIZE_PARTITION: i32 = 3;

nix::ioctl_write_ptr_bad!(
    /// Changes what the kernel thinks of a disk's partitions.
    blkpg,
    BLKPG,
    Argument
);

#[allow(unsafe_code, reason = "block devices' partitions have no safe interface")]
fn resize(disk: &File, number: i32, start: i64, length: i64) -> io::Result<()> {
    let area = Area { start, length, number, names: [0; 128] };
    let size = i32::try_from(size_of::<Area>()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let argument = Argument { operation: RESIZE_PARTITION, flags: 0, length: size, data: &raw const area };
    // SAFETY: the kernel reads both structures, which live until the call returns, and keeps neither.
    unsafe { blkpg(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys/class/block` with a disk of two partitions.
    fn disk(folder: &Path) {
        let write = |path: &str, text: &str| {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
            std::fs::write(path, text).expect("write");
        };
        write("devices/nvme0n1/size", "62914560\n");
        write("devices/nvme0n1/uevent", "DEVNAME=nvme0n1\nDEVTYPE=disk\n");
        for (number, name, start) in [(1, "EFI system", 2048), (2, NAME, 206_848)] {
            let part = format!("devices/nvme0n1/nvme0n1p{number}");
            write(&format!("{part}/uevent"), &format!("DEVTYPE=partition\nPARTN={number}\nPARTNAME={name}\n"));
            write(&format!("{part}/partition"), &format!("{number}\n"));
            write(&format!("{part}/start"), &format!("{start}\n"));
        }
        std::fs::create_dir(folder.join("block")).expect("folder");
        for (name, target) in [("nvme0n1", "nvme0n1"), ("nvme0n1p1", "nvme0n1/nvme0n1p1"), ("nvme0n1p2", "nvme0n1/nvme0n1p2")] {
            std::os::unix::fs::symlink(folder.join("devices").join(target), folder.join("block").join(name)).expect("link");
        }
    }

    #[test]
    fn the_images_last_partition_has_room_to_the_disks_end() {
        let folder = tempfile::tempdir().expect("folder");
        disk(folder.path());
        let found = Partition::find(&folder.path().join("block")).expect("readable").expect("there");
        let start = 206_848 * SECTOR;
        let room = (30 << 30) - start;
        assert_eq!(found, Partition { name: "nvme0n1p2".to_owned(), disk: "nvme0n1".to_owned(), number: 2, start, room });
        assert_eq!(found.device(), Path::new("/dev/nvme0n1p2"));
        assert!(Partition::has_any(&folder.path().join("block/nvme0n1")).expect("readable"));
    }

    #[test]
    fn a_disk_without_it_is_passed_by() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir_all(folder.path().join("vda")).expect("folder");
        assert_eq!(Partition::find(folder.path()).expect("readable"), None);
        assert!(!Partition::has_any(&folder.path().join("vda")).expect("readable"));
    }
}
