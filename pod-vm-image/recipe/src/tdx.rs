//! The registers of a trust domain of QEMU's, told without launching it.
//!
//! All are SHA-384. The host's Linux is 6.16 or later; firmware is edk2's with support for TDX (`OvmfPkg/IntelTdx`, `OvmfPkgX64`), given to
//! `-bios`, and for RTMR 1 of 202411 or later: before, a separator went to RTMR 0 instead. It boots the image's disk. There is no TPM: the
//! kernel would measure into that one alone.
//!
//! | register | extended by | with |
//! |---|---|---|
//! | MRTD | the TDX module, before the first instruction | each page that firmware's metadata ask for, and its content if they say so |
//! | RTMR 0 | firmware | memory, ACPI tables, variables: size, devices and QEMU's version decide, so it is not told |
//! | RTMR 1 | firmware | `Calling EFI Application from Boot Option`; the separator; the disk's partition table |
//! | RTMR 1 | firmware | the UKI, then the kernel in it: their Authenticode hashes |
//! | RTMR 1 | firmware | `Exit Boot Services Invocation`; `Exit Boot Services Returned with Success` |
//! | RTMR 2 | stub, then kernel | what PCR 11 and then PCR 9 of a TPM are extended with ([`crate::measure`]) |
//! | RTMR 3 | the guest | its initdata |
//!
//! Sources: the TDX module's base architecture specification, "TDH.MEM.PAGE.ADD" and "TDH.MR.EXTEND". Linux extends a page's content right
//! after the page (`tdx_gmem_post_populate` in `arch/x86/kvm/vmx/tdx.c`; kernels from outside its tree added all pages of a section first),
//! QEMU goes by the order of sections (`tdx_finalize_vm` in `target/i386/kvm/tdx.c`). UEFI specification 2.10, 38.4.1, for which PCR is
//! which register; edk2's `OvmfPkg/Tcg/TdTcg2Dxe` for the order in RTMR 1, and its `IncompatiblePciDeviceSupportDxe` for that no device's
//! option ROM is run. The same image's events were seen in this order in a TPM's log (OVMF 2022.11, stub 257.13, kernel 7.3.4). A machine
//! booted with `-kernel` has other values: QEMU rewrites the kernel's header as its version and the machine's memory ask.

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha384};
use uuid::{Uuid, uuid};

use crate::firmware::{Firmware, MOST_MEMORY, MOST_SECTIONS, PAGE, word};
use crate::measure::{ACTION, Boot, SEPARATOR, hash, replay};

/// The value of a register.
pub type Register = [u8; 48];

/// The registers that an image alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Partition table, UKI and kernel.
    pub rtmr1: Register,
    /// The UKI's sections, command line and initrd.
    pub rtmr2: Register,
}

/// How much of the disk [`registers`] wants at least: what lies before the first partition.
pub const DISK_BEGIN: usize = 1 << 20;

/// What firmware says when the kernel takes over (TCG PC Client Platform Firmware Profile, `EV_EFI_ACTION`).
const EXITS: [&[u8]; 2] = [b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success"];

/// Register 0 of a domain with this firmware, which is all of the file that QEMU's `-bios` is given.
pub fn mrtd(firmware: &[u8]) -> Result<Register> {
    let firmware = Firmware::parse(firmware)?;
    let mut hash = Sha384::new();
    for section in sections(&firmware)? {
        for offset in (0..section.size).step_by(PAGE) {
            let address = section.address + offset as u64;
            hash.update(operation(b"MEM.PAGE.ADD", address));
            let Some(content) = section.measured else { continue };
            for (chunk, at) in content[offset..offset + PAGE].chunks(CHUNK).zip((address..).step_by(CHUNK)) {
                hash.update(operation(b"MR.EXTEND", at));
                hash.update(chunk);
            }
        }
    }
    Ok(hash.finalize().into())
}

/// Registers that tell of the image: its UKI, and its disk or the first [`DISK_BEGIN`] bytes of that.
pub fn registers(uki: &[u8], disk: &[u8]) -> Result<Registers> {
    let boot = Boot::parse(uki)?;
    let [uki, kernel] = boot.programs::<Sha384>()?;
    let [invocation, success] = EXITS.map(hash::<Sha384>);
    let table = hash::<Sha384>(&partition_table(disk).context("the disk's partition table")?);
    let rtmr1 = [hash::<Sha384>(ACTION), hash::<Sha384>(SEPARATOR), table, uki, kernel, invocation, success];
    let rtmr2 = boot.sections::<Sha384>().into_iter().chain(boot.kernel::<Sha384>());
    Ok(Registers { rtmr1: replay::<Sha384>(rtmr1).into(), rtmr2: replay::<Sha384>(rtmr2).into() })
}

// ---------------------------------------------------------------------------------------------------------------------------------------

/// Bytes that one extension covers.
const CHUNK: usize = 256;

/// What the module hashes of an operation on memory.
fn operation(name: &[u8], address: u64) -> [u8; 128] {
    let mut buffer = [0; 128];
    buffer[..name.len()].copy_from_slice(name);
    buffer[16..24].copy_from_slice(&address.to_le_bytes());
    buffer
}

/// A range of memory that the firmware wants to find, of whole pages.
struct Section<'a> {
    address: u64,
    size: usize,
    /// Its content, if the module measures it: as long as the section.
    measured: Option<&'a [u8]>,
}

pub(crate) const METADATA: Uuid = uuid!("e47a6535-984a-4798-865e-4685a7bf8ec2");

/// Bytes of an entry for a section.
const ENTRY: usize = 32;

/// Kinds of sections, as the TDVF design guide numbers them. QEMU refuses others.
const FILE: std::ops::RangeInclusive<u32> = 0..=1;
const MEMORY: std::ops::RangeInclusive<u32> = 2..=3;

fn sections<'a>(firmware: &Firmware<'a>) -> Result<Vec<Section<'a>>> {
    let metadata = firmware.metadata(METADATA, "TDX")?;
    ensure!(metadata.starts_with(b"TDVF") && word(metadata, 8)? == 1, "metadata of another format than TDVF 1");
    let count = word(metadata, 12)?;
    ensure!(count <= MOST_SECTIONS, "metadata with {count} sections");
    let mut memory = 0;
    let mut found = Vec::new();
    for index in 0..usize::try_from(count)? {
        let at = 16 + index * ENTRY;
        let section = section(metadata.get(at..at + ENTRY).context("metadata are cut off")?, firmware.bytes())?;
        memory += section.size as u64;
        ensure!(memory <= MOST_MEMORY, "the firmware asks for more than {MOST_MEMORY} bytes of memory");
        found.push(section);
    }
    ensure!(found.iter().any(|section| section.measured.is_some()), "the firmware's metadata have none of it measured");
    Ok(found)
}

/// Held to what QEMU demands, and to what all known firmware does where QEMU demands less.
fn section<'a>(entry: &[u8], file: &'a [u8]) -> Result<Section<'a>> {
    let long = |at: usize| -> Result<u64> { Ok(u64::from(word(entry, at + 4)?) << 32 | u64::from(word(entry, at)?)) };
    let (offset, in_file) = (usize::try_from(word(entry, 0)?)?, usize::try_from(word(entry, 4)?)?);
    let (address, size) = (long(8)?, long(16)?);
    let (kind, attributes) = (word(entry, 24)?, word(entry, 28)?);
    let page = PAGE as u64;
    ensure!(address.is_multiple_of(page) && size.is_multiple_of(page), "a section is not of whole pages");
    ensure!(size > 0 && size <= MOST_MEMORY && address.checked_add(size).is_some(), "a section of {size} bytes at {address:#x}");
    let size = usize::try_from(size)?;
    let content = match kind {
        kind if FILE.contains(&kind) => {
            ensure!(in_file == size, "a section has {in_file} bytes in the file and {size} in memory");
            Some(offset.checked_add(size).and_then(|end| file.get(offset..end)).context("a section lies outside the file")?)
        }
        kind if MEMORY.contains(&kind) => None,
        kind => bail!("the firmware has a section of unknown kind {kind}"),
    };
    match (attributes, content) {
        (0, _) => Ok(Section { address, size, measured: None }),
        (1, Some(_)) => Ok(Section { address, size, measured: content }),
        _ => bail!("a section of kind {kind} has attributes {attributes:#x}, whose effect is not known"),
    }
}

const SECTOR: usize = 512;

/// Bytes of the table's header, and of an entry.
const HEADER: usize = 92;
const PARTITION: usize = 128;

/// `EFI_GPT_DATA`: the header, how many entries are used, and these (`Tcg2MeasureGptTable` in edk2's DxeTpm2MeasureBootLib).
fn partition_table(disk: &[u8]) -> Result<Vec<u8>> {
    let header = disk.get(SECTOR..SECTOR + HEADER).context("the disk is too short")?;
    ensure!(header.starts_with(b"EFI PART"), "the disk has no GPT");
    let at = u64::from(word(header, 76)?) << 32 | u64::from(word(header, 72)?);
    let (count, size) = (usize::try_from(word(header, 80)?)?, usize::try_from(word(header, 84)?)?);
    ensure!(size == PARTITION, "its entries have {size} bytes");
    let begin = usize::try_from(at)?.checked_mul(SECTOR).context("it lies nowhere")?;
    let end = count.checked_mul(size).and_then(|length| begin.checked_add(length)).context("it ends nowhere")?;
    let entries = disk.get(begin..end).context("it is longer than what was read of the disk")?;
    let used: Vec<&[u8]> = entries.chunks(size).filter(|entry| entry[..16] != [0; 16]).collect();
    Ok([header, &(used.len() as u64).to_le_bytes(), &used.concat()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::firmware::{CODE, HAND_OFF, STACK, TdxSection, VARIABLES, tdx as firmware, with_table};
    use crate::{disk, fixture, uki};

    fn refusal(sections: &[TdxSection]) -> String {
        format!("{:#}", mrtd(&firmware(sections)).expect_err("refused"))
    }

    fn fixture_uki(initrd: &[u8]) -> Vec<u8> {
        let (stub, linux) = (fixture::stub(0), fixture::bzimage(b"\x7fELF"));
        uki::build(&uki::Parts { stub: &stub, linux: &linux, initrd, cmdline: "quiet", release: "7.3.4", os_release: "ID=peerpods\n" })
            .expect("a UKI")
    }

    /// What a second program says of this file, written from Intel's specification alone. They agree on Debian's OVMF 2022.11, too.
    #[test]
    fn mrtd_is_that_of_another_program() {
        let expected = "2cf01b99bca2279518f521cbc748d7c5ea3e0b4c5a0ad3d66ffd97806acabb66c730039242184f7b2af175c372c8945e";
        assert_eq!(hex::encode(mrtd(&firmware(&[CODE, VARIABLES, STACK, HAND_OFF])).expect("MRTD")), expected);
    }

    #[test]
    fn mrtd_tells_of_measured_content_and_of_all_addresses() {
        let whole = firmware(&[CODE, VARIABLES, STACK, HAND_OFF]);
        let value = mrtd(&whole).expect("MRTD");
        let changed = |at: usize| {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            mrtd(&changed).expect("MRTD")
        };
        assert_eq!(changed(0), value, "variables are not measured");
        assert_ne!(changed(0x1000), value);
        assert_ne!(mrtd(&firmware(&[VARIABLES, CODE, STACK, HAND_OFF])).expect("MRTD"), value, "the order counts");
        let mut moved = STACK;
        moved[2] += 0x1000;
        assert_ne!(mrtd(&firmware(&[CODE, VARIABLES, moved, HAND_OFF])).expect("MRTD"), value);
    }

    #[test]
    fn sections_that_hypervisors_may_read_otherwise_are_refused() {
        let with = |section: TdxSection, at: usize, value: u32| {
            let mut section = section;
            section[at] = value;
            refusal(&[CODE, section])
        };
        assert!(with(VARIABLES, 4, 4).contains("unknown kind 4"));
        assert!(with(VARIABLES, 5, 2).contains("attributes 0x2"));
        assert!(with(STACK, 5, 1).contains("attributes 0x1"));
        assert!(with(VARIABLES, 1, 0x800).contains("2048 bytes in the file and 4096 in memory"));
        assert!(with(VARIABLES, 0, 0x1001).contains("outside the file"));
        assert!(with(VARIABLES, 0, u32::MAX).contains("outside the file"));
        assert!(with(STACK, 2, 1).contains("whole pages") && with(STACK, 3, 1).contains("whole pages"));
        assert!(with(STACK, 3, 0).contains("a section of 0 bytes") && with(STACK, 3, 0xffff_f000).contains("4294963200 bytes"));
        assert!(refusal(&[VARIABLES]).contains("none of it measured"));
        assert!(refusal(&vec![[0, 0, 0, 0x40_0000, 3, 0]; 17]).contains("more than 67108864 bytes"));
        assert!(format!("{:#}", mrtd(&with_table(&[], b"")).expect_err("refused")).contains("not built for TDX"));
    }

    #[test]
    fn no_damage_to_firmware_makes_it_panic() {
        let whole = firmware(&[CODE, VARIABLES, STACK, HAND_OFF]);
        for length in (0..whole.len()).step_by(7) {
            let _ = mrtd(&whole[whole.len() - length..]);
        }
        for at in whole.len() - 0x400..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            let _ = mrtd(&damaged);
        }
    }

    /// Digests of a trust domain's event log: edk2, direct boot, in the test data of Trustee's verifier.
    #[test]
    fn words_of_firmware_have_the_recorded_digests() {
        let recorded = [
            (ACTION, "77a0dab2312b4e1e57a84d865a21e5b2ee8d677a21012ada819d0a98988078d3d740f6346bfe0abaa938ca20439a8d71"),
            (SEPARATOR, "394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0"),
            (EXITS[0], "214b0bef1379756011344877743fdc2a5382bac6e70362d624ccf3f654407c1b4badf7d8f9295dd3dabdef65b27677e0"),
            (EXITS[1], "0a2e01c85deae718a530ad8c6d20a84009babe6c8989269e950d8cf440c6e997695e64d455c4174a652cd080f6230b74"),
        ];
        for (words, digest) in recorded {
            assert_eq!(hex::encode(hash::<Sha384>(words)), digest);
        }
    }

    #[test]
    fn each_register_follows_what_it_measures() {
        let uki = fixture_uki(b"initrd");
        let mut disk = disk::build(&uki).expect("a disk");
        let first = registers(&uki, &disk).expect("registers");
        assert_eq!(registers(&uki, &disk[..DISK_BEGIN]).expect("registers"), first, "the beginning is enough");

        let other = registers(&fixture_uki(b"other!"), &disk).expect("registers");
        assert!(other.rtmr1 != first.rtmr1 && other.rtmr2 != first.rtmr2);

        // The disk's name in the header.
        disk[SECTOR + 56] ^= 1;
        let renamed = registers(&uki, &disk).expect("registers");
        assert!(renamed.rtmr1 != first.rtmr1 && renamed.rtmr2 == first.rtmr2);
    }

    #[test]
    fn registers_are_chains_of_the_events_in_order() {
        let uki = fixture_uki(b"initrd");
        let disk = disk::build(&uki).expect("a disk");
        let told = registers(&uki, &disk).expect("registers");
        let boot = Boot::parse(&uki).expect("parse");
        let chain = |digests: &[Vec<u8>]| -> Vec<u8> {
            digests.iter().fold(vec![0; 48], |register, digest| Sha384::digest([register, digest.clone()].concat()).to_vec())
        };
        let of = |bytes: &[u8]| Sha384::digest(bytes).to_vec();
        let [program, kernel] = boot.programs::<Sha384>().expect("programs").map(|digest| digest.to_vec());
        let table = of(&partition_table(&disk).expect("a table"));
        let expected = [of(ACTION), of(SEPARATOR), table, program, kernel, of(EXITS[0]), of(EXITS[1])];
        assert_eq!(chain(&expected), told.rtmr1);

        let sections = boot.sections::<Sha384>().into_iter().map(|digest| digest.to_vec());
        let kernel = boot.kernel::<Sha384>().map(|digest| digest.to_vec());
        assert_eq!(chain(&sections.chain(kernel).collect::<Vec<_>>()), told.rtmr2);
    }

    #[test]
    fn partition_table_is_the_header_and_the_used_entries() {
        let disk = disk::build(&fixture_uki(b"initrd")).expect("a disk");
        let table = partition_table(&disk).expect("a table");
        assert_eq!(table.len(), HEADER + 8 + 2 * PARTITION);
        assert_eq!(table[..HEADER], disk[SECTOR..SECTOR + HEADER]);
        assert_eq!(table[HEADER..HEADER + 8], 2_u64.to_le_bytes());
        assert_eq!(table[HEADER + 8..], disk[2 * SECTOR..2 * SECTOR + 2 * PARTITION]);
        assert!(partition_table(&disk[..3 * SECTOR]).is_err() && partition_table(&[0; 4096]).is_err());
        for at in 72..88 {
            let mut damaged = disk[..DISK_BEGIN].to_vec();
            damaged[SECTOR + at] = 0xff;
            let _ = partition_table(&damaged);
        }
    }
}
