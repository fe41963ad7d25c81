//! The kernel's device mapper, by the ioctls of linux/dm-ioctl.h.
//!
//! Written by hand because the few requests that the scratch space needs are a header and one line of text each: libdevmapper wants
//! udev, and crates over the same ioctls bring bindings made by clang at build time. Devices go with the machine; nothing here takes
//! one away.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use zeroize::Zeroizing;

const CONTROL: &str = "/dev/mapper/control";

/// `struct dm_ioctl`, and where its fields are.
const HEADER: usize = 312;
const VERSION_AT: usize = 0;
const SIZE_AT: usize = 12;
const DATA_AT: usize = 16;
const TARGETS_AT: usize = 20;
const FLAGS_AT: usize = 28;
const DEVICE_AT: usize = 40;
const NAME_AT: usize = 48;
const NAME_BYTES: usize = 128;

/// `struct dm_target_spec`: start, length, status, next, kind; parameters follow.
const TARGET: usize = 40;
const NEXT_AT: usize = 20;
const KIND_AT: usize = 24;
const KIND_BYTES: usize = 16;

/// The interface's version, which the kernel compares by its first number.
const VERSION: u32 = 4;

/// For the answer to a question about status: more than one target's line.
const ANSWER_BYTES: usize = 4096;

/// Ask about the table that was loaded last and not the one in use.
const QUERY_LOADED_TABLE: u32 = 1 << 12;
/// The kernel overwrites its copies of the request.
const SECURE_DATA: u32 = 1 << 15;

/// Requests that this module makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Create = 3,
    Resume = 6,
    Load = 9,
    Clear = 10,
    Status = 12,
}

/// What a device does with requests to a part of it: a line of its table.
pub(super) struct Target {
    /// The kernel's name of it.
    pub(super) kind: &'static str,
    /// The part's size in units of 512 bytes. It begins where the one before it ends.
    pub(super) sectors: u64,
    /// In the kind's own grammar. Overwritten in memory after use, since it may hold a key.
    pub(super) parameters: Zeroizing<String>,
}

/// The way to the device mapper.
pub(super) struct Mapper {
    control: File,
}

/// A device of the device mapper.
pub(super) struct Device<'a> {
    mapper: &'a Mapper,
    name: &'static str,
    minor: u32,
}

impl Mapper {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { control: File::options().read(true).write(true).open(CONTROL)? })
    }

    /// A new device, which does nothing yet.
    pub(super) fn create(&self, name: &'static str) -> io::Result<Device<'_>> {
        let mut request = Request::new(name, 0, 0)?;
        self.call(Command::Create, &mut request)?;
        Ok(Device { mapper: self, name, minor: minor(request.device()) })
    }

    #[allow(unsafe_code, reason = "the device mapper has no safe interface")]
    fn call(&self, command: Command, request: &mut Request) -> io::Result<()> {
        let number = nix::request_code_readwrite!(0xfd, command as u8, HEADER);
        // SAFETY: the kernel reads and writes no more than the size that the request's header says, which is the buffer's own, and the
        // buffer lives until the call returns.
        let result = unsafe { libc::ioctl(self.control.as_raw_fd(), number, request.0.as_mut_ptr()) };
        Errno::result(result)?;
        Ok(())
    }
}

impl Device<'_> {
    /// Its node.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev").join(format!("dm-{}", self.minor))
    }

    /// Gives it a table, which waits for [`Self::resume`].
    pub(super) fn load(&self, table: &[Target]) -> io::Result<()> {
        self.mapper.call(Command::Load, &mut Request::load(self.name, table)?)
    }

    /// Drops a table that waits.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.mapper.call(Command::Clear, &mut Request::new(self.name, 0, 0)?)
    }

    /// What the target of a table that waits says of itself.
    pub(super) fn loaded_status(&self) -> io::Result<String> {
        let mut request = Request::new(self.name, QUERY_LOADED_TABLE, ANSWER_BYTES)?;
        self.mapper.call(Command::Status, &mut request)?;
        request.status().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Puts the table that waits into use.
    pub(super) fn resume(&self) -> io::Result<()> {
        self.mapper.call(Command::Resume, &mut Request::new(self.name, 0, 0)?)
    }
}

/// A header and what belongs to it.
struct Request(Zeroizing<Vec<u8>>);

impl Request {
    /// With room for an answer.
    fn new(name: &str, flags: u32, answer: usize) -> io::Result<Self> {
        // The last byte of a name is zero.
        if name.len() >= NAME_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut request = Self(Zeroizing::new(vec![0; HEADER + answer]));
        request.put32(VERSION_AT, VERSION)?;
        request.put32(SIZE_AT, HEADER + answer)?;
        request.put32(DATA_AT, HEADER)?;
        request.put32(FLAGS_AT, flags)?;
        request.0[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    /// With a table.
    fn load(name: &str, table: &[Target]) -> io::Result<Self> {
        // Parameters end with a zero, and the next target begins at a multiple of 8.
        let size_of = |target: &Target| (TARGET + target.parameters.len() + 1).next_multiple_of(8);
        let mut request = Self::new(name, SECURE_DATA, table.iter().map(size_of).sum())?;
        request.put32(TARGETS_AT, table.len())?;
        let (mut at, mut start) = (HEADER, 0_u64);
        for target in table {
            // The last byte of a kind is zero, too.
            if target.kind.len() >= KIND_BYTES {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            request.put32(at + NEXT_AT, size_of(target))?;
            let spec = &mut request.0[at..];
            spec[..8].copy_from_slice(&start.to_ne_bytes());
            spec[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
            spec[KIND_AT..KIND_AT + target.kind.len()].copy_from_slice(target.kind.as_bytes());
            spec[TARGET..TARGET + target.parameters.len()].copy_from_slice(target.parameters.as_bytes());
            at += size_of(target);
            start += target.sectors;
        }
        Ok(request)
    }

    fn put32(&mut self, at: usize, value: impl TryInto<u32>) -> io::Result<()> {
        let value: u32 = value.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }

    /// The answer's device number.
    fn device(&self) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[DEVICE_AT..DEVICE_AT + 8]);
        u64::from_ne_bytes(number)
    }

    /// The answer's text about its first target.
    fn status(&self) -> Option<String> {
        let start = u32::from_ne_bytes(self.0.get(DATA_AT..DATA_AT + 4)?.try_into().ok()?);
        let text = self.0.get(usize::try_from(start).ok()? + TARGET..)?;
        let text = text.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    }
}

/// Of a device number as the kernel packs it in 64 bits.
fn minor(device: u64) -> u32 {
    u32::try_from((device & 0xff) | (device >> 12 & 0xf_ff00)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_laid_out_as_the_kernel_reads_it() {
        let target = |kind, parameters: &str| Target { kind, sectors: 0x0102, parameters: Zeroizing::new(parameters.to_owned()) };
        let Request(bytes) = Request::load("peerpods", &[target("crypt", "cipher key"), target("zero", "")]).expect("fits");
        assert_eq!(bytes.len(), 312 + 56 + 48);
        assert_eq!(bytes[..24], [&[4, 0, 0, 0][..], &[0; 8], &[0xa0, 1, 0, 0], &[0x38, 1, 0, 0], &[2, 0, 0, 0]].concat());
        assert_eq!(bytes[28..32], [0, 0x80, 0, 0]);
        assert_eq!(&bytes[48..57], b"peerpods\0");
        assert_eq!(bytes[312..328], [0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[336..342], b"crypt\0");
        assert_eq!((bytes[332], &bytes[352..363]), (56, &b"cipher key\0"[..]));
        assert_eq!(bytes[368..384], [2, 1, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0], "begins where the first ends");
        assert_eq!((bytes[388], &bytes[392..397]), (48, &b"zero\0"[..]));
    }

    #[test]
    fn answers_are_read() {
        let mut request = Request::new("peerpods", 0, 100).expect("fits");
        request.0[40..48].copy_from_slice(&0x0010_fd07_u64.to_ne_bytes());
        request.0[312 + 40..312 + 40 + 7].copy_from_slice(b"0 131 -");
        assert_eq!((minor(request.device()), request.status().as_deref()), (0x107, Some("0 131 -")));
        request.0[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(request.status(), None);
    }

    #[test]
    fn name_that_does_not_fit_is_refused() {
        assert!(Request::new(&"n".repeat(128), 0, 0).is_err());
    }
}
