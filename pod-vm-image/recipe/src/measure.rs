//! Which measurements an image gives, told without booting it.
//!
//! Firmware with a TPM (OVMF, and the clouds' that derive from edk2) starts `uki.efi` as `EFI/BOOT/BOOTX64.EFI`; systemd's stub in it
//! starts the kernel in it. Of the SHA-256 bank these registers tell what was booted, each a chain of `SHA-256(register | digest)` from
//! 32 zero bytes:
//!
//! | PCR | extended by | with the SHA-256 of |
//! |---|---|---|
//! | 4 | firmware | `Calling EFI Application from Boot Option`; four zero bytes (the separator) |
//! | 4 | firmware | the UKI, then the kernel in it, which the stub starts through firmware: their Authenticode hashes |
//! | 8 | the guest | its initdata: the digest itself, not a hash of it |
//! | 9 | the kernel's EFI stub | its load options: the command line in UTF-16 with a NUL |
//! | 9 | the kernel's EFI stub | the initrd that it gets from the stub: see [`initrd`] |
//! | 11 | systemd's stub | name with NUL, then content, of each section of [`MEASURED`] that is there |
//!
//! Seen so with stub 257.13, kernel 7.3.4 and OVMF 2022.11 (tests below hold the recorded digests); a stub that measures otherwise must
//! change this file, which is why a UKI with a section of unknown effect is refused. What is not told: PCRs 0 to 3, 5 and 7, which are
//! firmware's, its variables' and the partition table's.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::digest::Output;
use sha2::{Digest, Sha256};

use crate::cpio;
use crate::pe::Program;

/// The sections that systemd's stub measures into PCR 11, in its order (`unified_sections` in systemd's `uki.c`).
pub const MEASURED: [&str; 9] = [".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".uname", ".sbat", ".pcrpkey"];

/// Sections that change what is booted or measured in ways that nobody here has seen.
const UNKNOWN: [&str; 5] = [".dtb", ".profile", ".dtbauto", ".hwids", ".efifw"];

/// Sections that the stub hands on in initrds of their own, in its order, and the names that they get there.
const HANDED_ON: [(&str, &str); 3] =
    [(".pcrsig", "tpm2-pcr-signature.json"), (".pcrpkey", "tpm2-pcr-public-key.pem"), (".osrel", "os-release")];

/// What firmware says before it starts the first program (TCG PC Client Platform Firmware Profile, `EV_EFI_ACTION`).
pub(crate) const ACTION: &[u8] = b"Calling EFI Application from Boot Option";

/// What it measures between its own start and that of the first program (the same, `EV_SEPARATOR`).
pub(crate) const SEPARATOR: &[u8] = &[0; 4];

/// The values of the registers that an image alone decides, SHA-256 bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurements {
    /// UKI and kernel.
    pub pcr04: [u8; 32],
    /// Command line and initrd.
    pub pcr09: [u8; 32],
    /// The UKI's sections.
    pub pcr11: [u8; 32],
}

/// Values to compare evidence with, as Trustee's reference value provider service takes them: a name and the values that are good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReferenceValues(BTreeMap<String, Vec<String>>);

impl ReferenceValues {
    /// Adds a value to those that are good for this name.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        self.0.entry(name.to_owned()).or_default().push(hex::encode(value));
    }

    /// Names and values, the latter in lower-case hexadecimal.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }
}

impl Measurements {
    /// The values by the names `pcr04`, `pcr09` and `pcr11`.
    pub fn reference_values(&self) -> ReferenceValues {
        let mut values = ReferenceValues::default();
        for (name, value) in [("pcr04", self.pcr04), ("pcr09", self.pcr09), ("pcr11", self.pcr11)] {
            values.add(name, &value);
        }
        values
    }
}

/// What a boot of a UKI measures, whichever registers take it.
pub(crate) struct Boot<'a> {
    uki: Program<'a>,
    kernel: Program<'a>,
    load_options: Vec<u8>,
    initrd: Vec<u8>,
    sections: Vec<(&'static str, &'a [u8])>,
}

impl<'a> Boot<'a> {
    pub(crate) fn parse(uki: &'a [u8]) -> Result<Self> {
        let uki = Program::parse(uki).context("UKI")?;
        for name in UNKNOWN {
            ensure!(uki.section(name)?.is_none(), "the UKI has a section {name}, whose effect on measurements is not known");
        }
        let kernel = Program::parse(uki.section(".linux")?.context("the UKI has no kernel")?).context("kernel of the UKI")?;
        let load_options = load_options(uki.section(".cmdline")?.context("the UKI has no command line")?)?;
        let mut sections = Vec::new();
        for name in MEASURED {
            if let Some(content) = uki.section(name)? {
                sections.push((name, content));
            }
        }
        Ok(Self { initrd: initrd(&uki)?, uki, kernel, load_options, sections })
    }

    /// By firmware: UKI, then kernel.
    pub(crate) fn programs<D: Digest>(&self) -> Result<[Output<D>; 2]> {
        Ok([self.uki.authenticode::<D>().context("UKI")?, self.kernel.authenticode::<D>().context("kernel of the UKI")?])
    }

    /// By the stub: names and contents.
    pub(crate) fn sections<D: Digest>(&self) -> Vec<Output<D>> {
        self.sections.iter().flat_map(|(name, content)| [hash::<D>(&[name.as_bytes(), b"\0"].concat()), hash::<D>(content)]).collect()
    }

    /// By the kernel: load options, then initrd.
    pub(crate) fn kernel<D: Digest>(&self) -> [Output<D>; 2] {
        [hash::<D>(&self.load_options), hash::<D>(&self.initrd)]
    }
}

/// The measurements of a UKI.
pub fn predict(uki: &[u8]) -> Result<Measurements> {
    let boot = Boot::parse(uki)?;
    let [uki, kernel] = boot.programs::<Sha256>()?;
    Ok(Measurements {
        pcr04: replay::<Sha256>([hash::<Sha256>(ACTION), hash::<Sha256>(SEPARATOR), uki, kernel]).into(),
        pcr09: replay::<Sha256>(boot.kernel::<Sha256>()).into(),
        pcr11: replay::<Sha256>(boot.sections::<Sha256>()).into(),
    })
}

/// What the kernel gets as its initrd: microcode, the UKI's initrd, then an archive for each section that is handed on; each padded to
/// four bytes (`combine_initrds` and `generate_embedded_initrds` in systemd's `stub.c`).
pub fn initrd(uki: &Program<'_>) -> Result<Vec<u8>> {
    let mut combined = Vec::new();
    for name in [".ucode", ".initrd"] {
        combined.extend_from_slice(uki.section(name)?.unwrap_or_default());
        combined.resize(combined.len().next_multiple_of(4), 0);
    }
    for (section, file) in HANDED_ON {
        if let Some(content) = uki.section(section)? {
            combined.extend_from_slice(&cpio::as_systemd_stub_packs(".extra", file, content));
        }
    }
    Ok(combined)
}

/// The command line as the stub hands it to the kernel.
fn load_options(cmdline: &[u8]) -> Result<Vec<u8>> {
    let is_kept = cmdline.iter().all(|byte| (b' '..=b'~').contains(byte)) && cmdline.trim_ascii() == cmdline && !cmdline.is_empty();
    ensure!(is_kept, "the stub changes command lines that begin or end with spaces or have other than printable ASCII characters");
    Ok(cmdline.iter().chain(b"\0").flat_map(|byte| [*byte, 0]).collect())
}

/// A register after these were extended into it, from zeros.
pub(crate) fn replay<D: Digest>(digests: impl IntoIterator<Item = Output<D>>) -> Output<D> {
    let extended = |register: Output<D>, digest: Output<D>| D::new().chain_update(register).chain_update(digest).finalize();
    digests.into_iter().fold(Output::<D>::default(), extended)
}

pub(crate) fn hash<D: Digest>(bytes: &[u8]) -> Output<D> {
    D::digest(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, uki};

    fn digest(text: &str) -> [u8; 32] {
        hex::decode(text).expect("hex").try_into().expect("32 bytes")
    }

    fn sha256(bytes: &[u8]) -> [u8; 32] {
        hash::<Sha256>(bytes).into()
    }

    fn replay(digests: impl IntoIterator<Item = [u8; 32]>) -> [u8; 32] {
        super::replay::<Sha256>(digests.into_iter().map(Into::into)).into()
    }

    fn fixture_uki(initrd: &[u8], cmdline: &str) -> Vec<u8> {
        let (stub, linux) = (fixture::stub(0), fixture::bzimage(b"\x7fELF"));
        let parts = uki::Parts { stub: &stub, linux: &linux, initrd, cmdline, release: "7.3.4", os_release: "ID=peerpods\n" };
        uki::build(&parts).expect("a UKI")
    }

    /// Digests of the event log, and the registers as the kernel read them, of a UKI made of this recipe's stub and kernel with an initrd
    /// that prints them: QEMU 7.2 (q35, tpm-crb), OVMF 2022.11-6+deb12u2, swtpm 0.7.1.
    #[test]
    fn recorded_event_log_gives_the_recorded_registers() {
        let uki = digest("bc287e9bc3289fbf2dd583d2a87b48dcd44711587da24c08e7a842c136e9de68");
        let kernel = digest("2ea1c663e0ab1238a63716c2e783a66757a0449b0c1d3a6a79293b6719b1870c");
        let pcr04 = digest("f8ae94a0fb369b974e23e858d9d08e921d7f2430b5b7933e3217a4e310ef0ce3");
        assert_eq!(replay([sha256(ACTION), sha256(&[0; 4]), uki, kernel]), pcr04);

        let options = sha256(&load_options(b"console=ttyS0 quiet panic=-1 reboot=t").expect("ASCII"));
        assert_eq!(options, digest("5cf55ad269240776ce738968e256ea75e65baa7130fd2be87010c1845cada132"));
        let initrd = digest("8373ac8d87252028fa4dd89c9e01274fd8d9c942c496cda32839dabd634a2374");
        let pcr09 = digest("895c2a42bea0f3ac9d61ee2c75a4204d0316bdb2dcf9eed63ada93419e57b51a");
        assert_eq!(replay([options, initrd]), pcr09);

        let contents = [
            (".linux", "7435b9178e91998f4f70774510c4ffad6764a08c64b17f7ef9c4252ea5948932"),
            (".osrel", "074f52807e918868883cd67fed1d19a4f2c5fbcdd55a485422413f2a16c6ae8e"),
            (".cmdline", "456259f62b430a013bc3a4fbbd9adeb166172fb872e896fcea161c244a44318d"),
            (".initrd", "271eb49dcb7c6ef7ef1e9e4c6c6602a0465ff2fb496f889a6a2c4f98449a5fea"),
            (".uname", "a1bd56599719de9c6f594a35ffba3cb4d3673f40a8032519cda4abb3c824f286"),
            (".sbat", "e34e16fc3b661f29d138dd017ec14683617b3bdec85d175f57731529f6a7a343"),
        ];
        let events = contents.iter().flat_map(|(name, content)| [sha256(format!("{name}\0").as_bytes()), digest(content)]);
        assert_eq!(replay(events), digest("6b6a666fd19f8b42cc85a57ea1b9a385533099c14f06eb4de7132318244c75f1"));
    }

    #[test]
    fn each_register_follows_what_it_measures() {
        let first = predict(&fixture_uki(b"initrd", "quiet")).expect("predict");
        assert_eq!(predict(&fixture_uki(b"initrd", "quiet")).expect("predict"), first);
        for (initrd, cmdline) in [(&b"other!"[..], "quiet"), (b"initrd", "noisy")] {
            let other = predict(&fixture_uki(initrd, cmdline)).expect("predict");
            assert!(other.pcr04 != first.pcr04 && other.pcr09 != first.pcr09 && other.pcr11 != first.pcr11);
        }
        let expected = ["linux", "osrel", "cmdline", "initrd", "uname"].map(|name| (format!(".{name}\0"), name));
        let uki = fixture_uki(b"initrd", "quiet");
        let program = Program::parse(&uki).expect("parse");
        let events = expected.iter().flat_map(|(measured, name)| {
            let content = program.section(&format!(".{name}")).expect("read").expect("there");
            [sha256(measured.as_bytes()), sha256(content)]
        });
        assert_eq!(replay(events), first.pcr11);
    }

    #[test]
    fn kernel_gets_the_initrd_padded_and_an_archive_with_the_os_release() {
        let uki = fixture_uki(b"initrd", "quiet");
        let combined = initrd(&Program::parse(&uki).expect("parse")).expect("combine");
        assert_eq!(&combined[..14], b"initrd\0\x00070701");
        let text = String::from_utf8_lossy(&combined);
        assert!(text.contains(".extra/os-release\0") && text.contains("ID=peerpods\n") && text.ends_with("TRAILER!!!\0\0\0\0"), "{text}");
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        assert!(predict(b"").is_err() && predict(&fixture::stub(0)).is_err());
        for cmdline in [" quiet", "quiet\n", "tab\there", "\u{e4}", ""] {
            assert!(predict(&fixture_uki(b"initrd", cmdline)).is_err(), "{cmdline:?}");
        }
        let mut uki = fixture_uki(b"initrd", "quiet");
        let at = uki.windows(8).position(|name| name == b".uname\0\0").expect("section");
        uki[at..at + 8].copy_from_slice(b".profile");
        let said = format!("{:#}", predict(&uki).expect_err("refused"));
        assert!(said.contains(".profile"), "{said}");
    }

    #[test]
    fn reference_values_are_lists_of_hexadecimal_by_name() {
        let measurements = Measurements { pcr04: [4; 32], pcr09: [9; 32], pcr11: [0x11; 32] };
        let text = serde_json::to_string(&measurements.reference_values()).expect("JSON");
        let of = |byte: &str| byte.repeat(32);
        assert_eq!(text, format!(r#"{{"pcr04":["{}"],"pcr09":["{}"],"pcr11":["{}"]}}"#, of("04"), of("09"), of("11")));
    }
}
