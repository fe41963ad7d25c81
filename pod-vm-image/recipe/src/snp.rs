//! The launch digest of an SEV-SNP machine, told without launching it.
//!
//! The secure processor chains what QEMU gives it before the first instruction (SEV Secure Nested Paging Firmware ABI, `SNP_LAUNCH_UPDATE`):
//! the firmware's pages, then the pages that the firmware's metadata asks for, then the registers of each virtual processor. With
//! `-object sev-snp-guest,kernel-hashes=on` one of the pages holds the digests of kernel, initrd and command line; firmware built for it
//! (edk2's `OvmfPkg/AmdSev`) starts nothing else. So the digest covers all that a machine booted directly is made of.
//!
//! QEMU's machines only: clouds have other firmware and other processor state.

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256, Sha384};
use uuid::{Uuid, uuid};

use crate::firmware::{Firmware, MOST_MEMORY, MOST_SECTIONS, PAGE, word};
use crate::pe::Program;

/// The SEV feature that makes a machine an SNP guest.
pub const ACTIVE: u64 = 1;

/// A launch digest.
pub type LaunchDigest = [u8; 48];

/// What a machine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The firmware file given to QEMU's `-bios`.
    pub firmware: &'a [u8],
    /// What it boots.
    pub boot: Boot<'a>,
    /// How many virtual processors it has.
    pub vcpus: u32,
    /// Which ones.
    pub cpu: Cpu,
    /// The SEV features of each: [`ACTIVE`], and bit 5 where QEMU was asked for debug swap.
    pub features: u64,
}

/// What a machine boots directly.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// The file of `-kernel`.
    pub kernel: &'a [u8],
    /// The file of `-initrd`.
    pub initrd: &'a [u8],
    /// The text of `-append`.
    pub cmdline: &'a str,
}

impl<'a> Boot<'a> {
    /// The parts of a UKI, which QEMU takes one by one.
    pub fn of_uki(uki: &'a [u8]) -> Result<Self> {
        let program = Program::parse(uki)?;
        let part = |name: &str| program.section(name)?.with_context(|| format!("the UKI has no section {name}"));
        Ok(Self { kernel: part(".linux")?, initrd: part(".initrd")?, cmdline: std::str::from_utf8(part(".cmdline")?)? })
    }
}

/// A virtual processor as CPUID tells it: its state at reset has that in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    family: u32,
    model: u32,
    stepping: u32,
}

/// QEMU's models that can be SNP guests, whatever version follows in the name.
const CPUS: [(&str, Cpu); 5] = [
    ("EPYC", Cpu { family: 23, model: 1, stepping: 2 }),
    ("EPYC-Rome", Cpu { family: 23, model: 49, stepping: 0 }),
    ("EPYC-Milan", Cpu { family: 25, model: 1, stepping: 1 }),
    ("EPYC-Genoa", Cpu { family: 25, model: 17, stepping: 0 }),
    ("EPYC-Turin", Cpu { family: 26, model: 0, stepping: 0 }),
];

impl std::str::FromStr for Cpu {
    type Err = anyhow::Error;

    /// By QEMU's name, with or without a version: `EPYC-Milan`, `EPYC-Milan-v2`.
    fn from_str(text: &str) -> Result<Self> {
        let is_version = |end: &str| end.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let model = text.rsplit_once('-').filter(|(_, end)| is_version(end)).map_or(text, |(model, _)| model);
        match CPUS.iter().find(|(name, _)| *name == model) {
            Some((_, cpu)) => Ok(*cpu),
            None => bail!("processor {text:?}: {} are known", CPUS.map(|(name, _)| name).join(", ")),
        }
    }
}

impl Cpu {
    /// EAX of CPUID leaf 1, of families above 15.
    fn signature(self) -> u32 {
        (self.family - 15) << 20 | (self.model >> 4) << 16 | 15 << 8 | (self.model & 15) << 4 | self.stepping
    }
}

/// Kinds of pages, as the digest counts them.
const NORMAL: u8 = 1;
const VMSA: u8 = 2;
const ZERO: u8 = 3;
const SECRETS: u8 = 5;
const CPUID: u8 = 6;

/// Where the secure processor says that processors' registers are.
const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;

/// The digest of this machine.
pub fn launch_digest(machine: &Machine<'_>) -> Result<LaunchDigest> {
    let firmware = Firmware::parse(machine.firmware).context("firmware")?;
    let mut digest = Chain([0; 48]);
    digest.add_pages(firmware.address()?, machine.firmware)?;
    let mut has_hashes = false;
    for section in sections(&firmware)? {
        let address = u64::from(section.address);
        match section.kind {
            1 | 4 => digest.add_zeros(address, section.size)?,
            2 => digest.add(SECRETS, address, &[0; 48]),
            3 => digest.add(CPUID, address, &[0; 48]),
            0x10 => {
                let offset = usize::try_from(firmware.number(HASHES, PURPOSE)?)? % PAGE;
                let page = hashes_page(&machine.boot, offset)?;
                ensure!(usize::try_from(section.size)? == PAGE, "the firmware's page of hashes has {} bytes", section.size);
                digest.add_pages(address, &page)?;
                has_hashes = true;
            }
            kind => bail!("the firmware asks for a page of unknown kind {kind}"),
        }
    }
    ensure!(has_hashes, "the firmware does not check kernel hashes; it must be edk2's OvmfPkg/AmdSev");
    let begin = [0xffff_fff0, firmware.number(RESET_BLOCK, PURPOSE)?];
    for processor in 0..machine.vcpus {
        let page = registers(begin[usize::from(processor > 0)], machine.cpu, machine.features);
        digest.add(VMSA, VMSA_ADDRESS, &Sha384::digest(page).into());
    }
    Ok(digest.0)
}

/// The digest so far.
struct Chain(LaunchDigest);

impl Chain {
    /// `PAGE_INFO` of the ABI: no page is a migration agent's, no other privilege level may do anything with one.
    fn add(&mut self, kind: u8, address: u64, content: &[u8; 48]) {
        let mut hash = Sha384::new();
        hash.update(self.0);
        hash.update(content);
        hash.update(0x70_u16.to_le_bytes());
        hash.update([kind, 0, 0, 0, 0, 0]);
        hash.update(address.to_le_bytes());
        self.0 = hash.finalize().into();
    }

    fn add_pages(&mut self, mut address: u64, content: &[u8]) -> Result<()> {
        ensure!(content.len().is_multiple_of(PAGE), "{} bytes are not whole pages", content.len());
        for page in content.chunks(PAGE) {
            self.add(NORMAL, address, &Sha384::digest(page).into());
            address += PAGE as u64;
        }
        Ok(())
    }

    fn add_zeros(&mut self, address: u64, size: u32) -> Result<()> {
        ensure!(usize::try_from(size)? % PAGE == 0, "{size} bytes are not whole pages");
        for offset in (0..u64::from(size)).step_by(PAGE) {
            self.add(ZERO, address + offset, &[0; 48]);
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------------

/// A range of memory that the firmware wants to find prepared.
struct Section {
    address: u32,
    size: u32,
    kind: u32,
}

pub(crate) const HASHES: Uuid = uuid!("7255371f-3a3b-4b04-927b-1da6efa8d454");
pub(crate) const RESET_BLOCK: Uuid = uuid!("00f771de-1a7e-4fcb-890e-68c77e2fb44e");
pub(crate) const METADATA: Uuid = uuid!("dc886566-984a-4798-a75e-5585a7bf67cc");

/// What firmware without these is not built for.
const PURPOSE: &str = "SEV";

fn sections(firmware: &Firmware<'_>) -> Result<Vec<Section>> {
    let metadata = firmware.metadata(METADATA, PURPOSE)?;
    ensure!(metadata.starts_with(b"ASEV") && word(metadata, 8)? == 1, "metadata of another format than ASEV 1");
    let count = word(metadata, 12)?;
    ensure!(count <= MOST_SECTIONS, "metadata with {count} sections");
    let mut memory = 0;
    let section = |index: u32| -> Result<Section> {
        let at = 16 + usize::try_from(index)? * 12;
        let section = Section { address: word(metadata, at)?, size: word(metadata, at + 4)?, kind: word(metadata, at + 8)? };
        memory += u64::from(section.size);
        ensure!(memory <= MOST_MEMORY, "the firmware asks for more than {MOST_MEMORY} bytes of memory");
        Ok(section)
    };
    (0..count).map(section).collect()
}

/// The page in which firmware finds the digests of what it may boot (QEMU, `sev_hashes` in `target/i386/sev.c`).
fn hashes_page(boot: &Boot<'_>, offset: usize) -> Result<Vec<u8>> {
    const TABLE: Uuid = uuid!("9438d606-4f22-4cc9-b479-a793d411fd21");
    const CMDLINE: Uuid = uuid!("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
    const INITRD: Uuid = uuid!("44baf731-3a2f-4bd7-9af1-41e29169781d");
    const KERNEL: Uuid = uuid!("4de79437-abd2-427f-b835-d5b172d2045b");

    let mut table = TABLE.to_bytes_le().to_vec();
    table.extend_from_slice(&168_u16.to_le_bytes());
    let cmdline = [boot.cmdline.as_bytes(), b"\0"].concat();
    for (name, content) in [(CMDLINE, cmdline.as_slice()), (INITRD, boot.initrd), (KERNEL, boot.kernel)] {
        table.extend_from_slice(&name.to_bytes_le());
        table.extend_from_slice(&50_u16.to_le_bytes());
        table.extend_from_slice(&Sha256::digest(content));
    }
    let mut page = vec![0; PAGE];
    page.get_mut(offset..offset + table.len()).context("the firmware's table of hashes crosses a page")?.copy_from_slice(&table);
    Ok(page)
}

/// A processor's save area (AMD64 Architecture Programmer's Manual, volume 2, table B-4) as KVM and QEMU leave it at reset.
fn registers(begin: u32, cpu: Cpu, features: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut put = |offset: usize, value: &[u8]| page[offset..offset + value.len()].copy_from_slice(value);
    // Selector, attributes, base; all limits are 64 KiB. The order is es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr.
    let segments: [(u16, u16, u32); 10] = [
        (0, 0x93, 0),
        (0xf000, 0x9b, begin & 0xffff_0000),
        (0, 0x93, 0),
        (0, 0x93, 0),
        (0, 0x93, 0),
        (0, 0x93, 0),
        (0, 0, 0),
        (0, 0x82, 0),
        (0, 0, 0),
        (0, 0x8b, 0),
    ];
    for (index, (selector, attributes, base)) in segments.into_iter().enumerate() {
        let at = index * 16;
        put(at, &selector.to_le_bytes());
        put(at + 2, &attributes.to_le_bytes());
        put(at + 4, &0xffff_u32.to_le_bytes());
        put(at + 8, &u64::from(base).to_le_bytes());
    }
    let words: [(usize, u64); 11] = [
        // EFER with SVME, CR4 with MCE, CR0 with ET, DR7, DR6, RFLAGS, RIP.
        (0xd0, 0x1000),
        (0x148, 0x40),
        (0x158, 0x10),
        (0x160, 0x400),
        (0x168, 0xffff_0ff0),
        (0x170, 2),
        (0x178, u64::from(begin & 0xffff)),
        // Page attributes, RDX, SEV features, XCR0.
        (0x268, 0x0007_0406_0007_0406),
        (0x310, u64::from(cpu.signature())),
        (0x3b0, features),
        (0x3e8, 1),
    ];
    for (offset, value) in words {
        put(offset, &value.to_le_bytes());
    }
    // MXCSR and the x87 control word.
    put(0x408, &0x1f80_u32.to_le_bytes());
    put(0x410, &0x37f_u16.to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::firmware::snp as firmware;

    fn digest(firmware: &[u8], vcpus: u32, cpu: &str, features: u64) -> Result<String> {
        let boot = Boot { kernel: b"kernel", initrd: b"initrd", cmdline: "quiet" };
        launch_digest(&Machine { firmware, boot, vcpus, cpu: cpu.parse()?, features }).map(hex::encode)
    }

    /// What sev-snp-measure 0.0.13 (the measuring tool of the VirTEE project) says of the same machines.
    #[test]
    fn digests_are_those_of_another_program() {
        let expected = [
            (1, "EPYC-v4", 1, "1d12ca7d8c65efe9ceb93f123accd5d25d029351fd345b335e3730b1e222967fa5c0514cc64972c369b59817f725295a"),
            (2, "EPYC-Milan-v2", 1, "e65ea1267cb8da68a769e88b36c62f89bcef8309a1130fff94a08ef74ad0205c7979d06c1659abe0adff98cd1ee04c4b"),
            (4, "EPYC-Genoa", 0x21, "09de82616f032506ec33f4d27be55601886a458923b8c259b554a9471866c3fac5f835bc7256ca91b2a0af85d6a6cb25"),
            (1, "EPYC-Turin", 1, "68c90e3b2c01a61b3af04f0a874a147d0df6e42c50fcbabed26b7e73082b942f677d36d72849035464343cd513729a3c"),
        ];
        for (vcpus, cpu, features, expected) in expected {
            assert_eq!(digest(&firmware(), vcpus, cpu, features).expect("digest"), expected, "{vcpus} {cpu}");
        }
    }

    #[test]
    fn firmware_that_does_not_check_hashes_is_refused() {
        let mut unchecked = firmware();
        let at = unchecked.windows(4).position(|word| word == 0x10_u32.to_le_bytes()).expect("kind");
        unchecked[at] = 1;
        let said = digest(&unchecked, 1, "EPYC", 1).expect_err("refused").to_string();
        assert!(said.contains("does not check kernel hashes"), "{said}");
        let said = format!("{:#}", digest(&[0; 2 * PAGE], 1, "EPYC", 1).expect_err("refused"));
        assert!(said.contains("no table"), "{said}");
        assert!(digest(&firmware(), 1, "Skylake-Server", 1).is_err() && digest(&firmware(), 1, "EPYC-Rome-v", 1).is_err());
    }

    #[test]
    fn no_damage_to_firmware_makes_it_panic() {
        let whole = firmware();
        for length in (0..whole.len()).step_by(7) {
            let _ = digest(&whole[whole.len() - length..], 1, "EPYC", 1);
        }
        for at in whole.len() - 0x400..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            let _ = digest(&damaged, 1, "EPYC", 1);
        }
    }
}
