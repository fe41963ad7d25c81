//! An encrypted and authenticated device over another one.
//!
//! Two layers of the device mapper, as `cryptsetup` stacks them for LUKS2 with integrity: dm-integrity finds room for a tag beside each
//! sector, dm-crypt fills sectors with ciphertext and tags with HMAC-SHA-256 over position and ciphertext. What the host changes is an
//! I/O error.
//!
//! So is what was never written, since its tag cannot be right. A file system may live with that in its data, but not where it keeps
//! its tables, and writing them all would take seconds. Therefore the beginning of a volume ([`Encrypted::with_blank`]) reads as zeros
//! until it is written: it is a snapshot (dm-snapshot) of nothing (dm-zero), which puts what is written on the encrypted device and
//! remembers in memory what that was, 4 KiB by 4 KiB.
//!
//! What this does not show is age: a host that keeps a sector together with its tag can put it back later. Only a tree of hashes
//! would tell, for which Linux has nothing that can be written to.
//!
//! dm-integrity writes without its journal (mode `D`), which would keep sector and tag consistent over a crash at the price of writing
//! everything twice: after a crash there is nobody to read it.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::ScratchError;
use super::luks::{self, DATA_OFFSET, Passphrase, SECTOR, TAG, VolumeKey};
use super::mapper::{Device, Mapper, Target};

/// What holds the file system, and the layers below it.
const NAME: &str = "peerpods-scratch";
const NAME_OF_TAGS: &str = "peerpods-scratch-tags";
const NAME_OF_ENCRYPTED: &str = "peerpods-scratch-encrypted";
const NAME_OF_NOTHING: &str = "peerpods-scratch-nothing";
const NAME_OF_WRITTEN: &str = "peerpods-scratch-written";

/// What the device mapper counts in.
const UNIT: u64 = 512;
/// The table's size while the real one is not known: one sector of ours.
const FIRST_UNITS: u64 = SECTOR as u64 / UNIT;

/// Longer than the table of either layer.
const LONGEST_TABLE: usize = 512;

/// An encrypted device of which nothing can be read before it is written.
pub(super) struct Encrypted {
    mapper: Mapper,
    path: PathBuf,
    units: u64,
}

impl Encrypted {
    /// Makes one that fills a device and has a key of its own. Everything on the device is lost.
    pub(super) fn create(device: &Path) -> Result<Self, ScratchError> {
        let key = VolumeKey::generate().map_err(ScratchError::at("key"))?;
        write_header(device, &key).map_err(ScratchError::at("header"))?;
        let mapper = Mapper::open().map_err(ScratchError::at("device mapper"))?;
        let (tags, units) = add_tags(&mapper, device).map_err(ScratchError::at("integrity"))?;
        let path = encrypt(&mapper, &tags.path(), units, &key).map_err(ScratchError::at("cipher"))?.path();
        Ok(Self { mapper, path, units })
    }

    /// Its size in bytes, a multiple of [`SECTOR`].
    pub(super) fn bytes(&self) -> u64 {
        self.units * UNIT
    }

    /// A device of the same size whose first bytes, whole sectors of ours, are zeros as long as they are not written. Gives its node.
    pub(super) fn with_blank(self, bytes: u64) -> Result<PathBuf, ScratchError> {
        self.add_blank(bytes / UNIT).map_err(ScratchError::at("blank"))
    }

    fn add_blank(&self, units: u64) -> io::Result<PathBuf> {
        let device = |name, table: &[Target]| {
            let device = self.mapper.create(name)?;
            device.load(table)?;
            device.resume()?;
            io::Result::Ok(device.path())
        };
        let below = self.path.display();
        let nothing = device(NAME_OF_NOTHING, &[Target { kind: "zero", sectors: units, parameters: Zeroizing::default() }])?;
        let written = device(NAME_OF_WRITTEN, &[target("linear", units, format!("{below} 0"))])?;
        // N: what was written is remembered in memory.
        let blank = format!("{} {} N {FIRST_UNITS}", nothing.display(), written.display());
        let rest = self.units.checked_sub(units).filter(|rest| *rest > 0).ok_or(io::ErrorKind::InvalidInput)?;
        device(NAME, &[target("snapshot", units, blank), target("linear", rest, format!("{below} {units}"))])
    }
}

fn target(kind: &'static str, sectors: u64, parameters: String) -> Target {
    Target { kind, sectors, parameters: Zeroizing::new(parameters) }
}

/// The passphrase lives no longer than this function.
fn write_header(device: &Path, key: &VolumeKey) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(device)?;
    luks::format(&mut file, key, &Passphrase::generate()?)?;
    // dm-integrity reads beside the page cache.
    file.sync_data()
}

/// The lower layer, and its size in units.
fn add_tags<'a>(mapper: &'a Mapper, below: &Path) -> io::Result<(Device<'a>, u64)> {
    let tags = mapper.create(NAME_OF_TAGS)?;
    // The first load makes dm-integrity write its superblock and find out how much room there is.
    tags.load(&[tags_target(below, FIRST_UNITS)])?;
    let units = provided_units(&tags.loaded_status()?).ok_or(io::ErrorKind::InvalidData)?;
    tags.clear()?;
    tags.load(&[tags_target(below, units)])?;
    tags.resume()?;
    Ok((tags, units))
}

/// dm-integrity says: mismatches, units provided, more. Whole sectors of ours.
fn provided_units(status: &str) -> Option<u64> {
    let units: u64 = status.split(' ').nth(1)?.parse().ok()?;
    Some(units / FIRST_UNITS * FIRST_UNITS).filter(|units| *units > 0)
}

fn tags_target(below: &Path, sectors: u64) -> Target {
    // The journal, though not used, is held in memory: so the smallest that there is.
    let offset = DATA_OFFSET / UNIT;
    let parameters = format!("{} {offset} {TAG} D 3 journal_sectors:1 block_size:{SECTOR} fix_padding", below.display());
    target("integrity", sectors, parameters)
}

/// The upper layer.
fn encrypt<'a>(mapper: &'a Mapper, below: &Path, sectors: u64, key: &VolumeKey) -> io::Result<Device<'a>> {
    let encrypted = mapper.create(NAME_OF_ENCRYPTED)?;
    let parameters = cipher_parameters(below, key).map_err(io::Error::other)?;
    encrypted.load(&[Target { kind: "crypt", sectors, parameters }])?;
    encrypted.resume()?;
    Ok(encrypted)
}

fn cipher_parameters(below: &Path, key: &VolumeKey) -> Result<Zeroizing<String>, std::fmt::Error> {
    let mut text = Zeroizing::new(String::with_capacity(LONGEST_TABLE));
    write!(text, "capi:authenc(hmac(sha256),xts(aes))-plain64 {} 0 ", key.to_hex().as_str())?;
    write!(text, "{} 0 2 integrity:{TAG}:aead sector_size:{SECTOR}", below.display())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_cryptsetup() {
        let target = tags_target(Path::new("/dev/vda"), 8);
        let expected = "/dev/vda 2048 32 D 3 journal_sectors:1 block_size:4096 fix_padding";
        assert_eq!((target.kind, target.sectors, target.parameters.as_str()), ("integrity", 8, expected));
        let key = VolumeKey::generate().expect("key");
        let text = cipher_parameters(Path::new("/dev/dm-0"), &key).expect("text");
        let hex = key.to_hex();
        let expected =
            format!("capi:authenc(hmac(sha256),xts(aes))-plain64 {} 0 /dev/dm-0 0 2 integrity:32:aead sector_size:4096", hex.as_str());
        assert_eq!(*text, expected);
        assert_eq!(text.capacity(), LONGEST_TABLE, "a string that grew left a copy of the key behind");
    }

    #[test]
    fn size_is_whole_sectors() {
        assert_eq!(provided_units("0 131077 -"), Some(131_072));
        for nonsense in ["", "0", "0 x -", "0 7 -"] {
            assert_eq!(provided_units(nonsense), None, "{nonsense}");
        }
    }
}
