//! The attestation report's layout (ABI specification, table "ATTESTATION_REPORT Structure").

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

use crate::bytes::{Malformed, Reader, zeros};

/// Length of a report.
pub const REPORT_BYTES: usize = 1184;
/// The oldest version that is read.
pub const MIN_VERSION: u32 = 2;
/// The newest version that is read.
pub const MAX_VERSION: u32 = 5;

/// Length of what is signed.
const SIGNED_BYTES: usize = 0x2a0;
/// ECDSA on P-384 with SHA-384, the only algorithm.
const SIGNATURE_ALGORITHM: u32 = 1;
/// Each number of the signature is little-endian in this many bytes, of which 48 are used.
const NUMBER_BYTES: usize = 72;
/// Turin, whose firmware versions are laid out in another way.
const FAMILY_TURIN: u8 = 0x1a;

/// A parsed report; says nothing of its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Version of the layout.
    pub version: u32,
    /// The guest's own security version number.
    pub guest_svn: u32,
    /// What the host may do with the VM.
    pub policy: GuestPolicy,
    /// Privilege level that asked for the report.
    pub vmpl: u32,
    /// State of the platform.
    pub platform: PlatformInfo,
    /// What the guest asked to be bound into the report.
    pub report_data: [u8; 64],
    /// SHA-384 over the VM's initial memory and state.
    pub measurement: [u8; 48],
    /// What the host set at launch.
    pub host_data: [u8; 32],
    /// Firmware versions that the signing key was derived from.
    pub reported_tcb: TcbVersion,
    /// Combined family and model of the processor; none before version 3.
    pub family_model: Option<(u8, u8)>,
    /// The chip; zeros when the host hides it.
    pub chip_id: [u8; 64],
    bytes: Box<[u8; REPORT_BYTES]>,
}

/// Firmware versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcbVersion {
    /// Of the FMC firmware; Turin and later have it.
    pub fmc: Option<u8>,
    /// Of the bootloader.
    pub bootloader: u8,
    /// Of the PSP operating system.
    pub tee: u8,
    /// Of the SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

/// The POLICY field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPolicy(u64);

/// The PLATFORM_INFO field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformInfo(u64);

impl Report {
    /// Reads a report. Reserved fields outside of the signed part must be zero, so that no byte goes unchecked.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let whole: [u8; REPORT_BYTES] =
            bytes.try_into().map_err(|_| Malformed::new(format!("it has {} bytes, not {REPORT_BYTES}", bytes.len())))?;
        let mut reader = Reader::new(bytes);
        let version = reader.u32("VERSION")?;
        if !(MIN_VERSION..=MAX_VERSION).contains(&version) {
            return Err(Malformed::new(format!("version {version}; {MIN_VERSION} to {MAX_VERSION} are known")));
        }
        let guest_svn = reader.u32("GUEST_SVN")?;
        let policy = GuestPolicy(reader.u64("POLICY")?);
        reader.take(32, "FAMILY_ID, IMAGE_ID")?;
        let vmpl = reader.u32("VMPL")?;
        let algorithm = reader.u32("SIGNATURE_ALGO")?;
        if algorithm != SIGNATURE_ALGORITHM {
            return Err(Malformed::new(format!("signature algorithm {algorithm}")));
        }
        reader.take(8, "CURRENT_TCB")?;
        let platform = PlatformInfo(reader.u64("PLATFORM_INFO")?);
        reader.take(8, "key information")?;
        let report_data = reader.array("REPORT_DATA")?;
        let measurement = reader.array("MEASUREMENT")?;
        let host_data = reader.array("HOST_DATA")?;
        reader.take(48 + 48 + 32 + 32, "key digests and report ids")?;
        let reported_tcb = reader.array("REPORTED_TCB")?;
        let [family, model, _stepping] = reader.array("CPUID")?;
        reader.take(21, "reserved")?;
        let chip_id = reader.array("CHIP_ID")?;
        let family_model = (version >= 3).then_some((family, model));
        Ok(Self {
            version,
            guest_svn,
            policy,
            vmpl,
            platform,
            report_data,
            measurement,
            host_data,
            reported_tcb: TcbVersion::read(reported_tcb, family_model.is_some_and(|(family, _)| family >= FAMILY_TURIN)),
            family_model,
            chip_id,
            bytes: Box::new(whole),
        })
    }

    /// The report as it came.
    pub fn as_bytes(&self) -> &[u8; REPORT_BYTES] {
        &self.bytes
    }

    /// Whether this key (an uncompressed point on P-384) signed it.
    pub(super) fn is_signed_by(&self, point: &[u8]) -> Result<bool, Malformed> {
        let (signed, signature) = self.bytes.split_at(SIGNED_BYTES);
        let mut reader = Reader::new(signature);
        let mut fixed = [0; 96];
        for half in fixed.chunks_exact_mut(48) {
            let number = reader.take(NUMBER_BYTES, "signature")?;
            zeros(&number[48..], "upper part of the signature")?;
            half.copy_from_slice(&number[..48]);
            half.reverse();
        }
        zeros(reader.rest(), "what follows the signature")?;
        Ok(UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(signed, &fixed).is_ok())
    }
}

impl TcbVersion {
    fn read(bytes: [u8; 8], has_fmc: bool) -> Self {
        let [a, b, c, d, _, _, g, h] = bytes;
        if has_fmc {
            Self { fmc: Some(a), bootloader: b, tee: c, snp: d, microcode: h }
        } else {
            Self { fmc: None, bootloader: a, tee: b, snp: g, microcode: h }
        }
    }

    /// The first part that is older than the floor's: its name, its version, the floor.
    pub(super) fn below(&self, floor: &Self) -> Option<(&'static str, u8, u8)> {
        let parts = [
            ("FMC", self.fmc.unwrap_or(0), floor.fmc.unwrap_or(0)),
            ("bootloader", self.bootloader, floor.bootloader),
            ("TEE", self.tee, floor.tee),
            ("SNP firmware", self.snp, floor.snp),
            ("microcode", self.microcode, floor.microcode),
        ];
        parts.into_iter().find(|(_, found, floor)| found < floor)
    }
}

impl GuestPolicy {
    /// Lowest minor version of the firmware's interface.
    pub fn abi_minor(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Lowest major version of the firmware's interface.
    pub fn abi_major(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// Hyper-threading may be on.
    pub fn is_smt_allowed(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    /// A migration agent may be attached.
    pub fn is_migration_allowed(self) -> bool {
        self.0 & (1 << 18) != 0
    }

    /// The host may read the VM's memory.
    pub fn is_debug_allowed(self) -> bool {
        self.0 & (1 << 19) != 0
    }

    /// The VM runs on one socket only.
    pub fn is_single_socket(self) -> bool {
        self.0 & (1 << 20) != 0
    }
}

impl PlatformInfo {
    /// Hyper-threading is on.
    pub fn is_smt_enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// Transparent memory encryption is on.
    pub fn is_tsme_enabled(self) -> bool {
        self.0 & 2 != 0
    }
}
