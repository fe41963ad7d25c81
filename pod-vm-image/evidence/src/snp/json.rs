//! Trustee's JSON for SNP: the report as the `sev` crate serializes it, member by member, and a list of certificates.
//!
//! The signature is over the binary form, which is put together again here; a member that was changed changes those bytes.

use serde::{Deserialize, Serialize};

use super::report::REPORT_BYTES;
use super::{SnpError, SnpEvidence};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evidence {
    attestation_report: Wire,
    cert_chain: Option<Vec<Entry>>,
}

/// An entry of the certificate table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    cert_type: Kind,
    data: Vec<u8>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    #[serde(rename = "Empty")]
    Empty,
    Ark,
    Ask,
    Vcek,
    Vlek,
    Crl,
    Other(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    guest_svn: u32,
    policy: u64,
    family_id: Vec<u8>,
    image_id: Vec<u8>,
    vmpl: u32,
    sig_algo: u32,
    current_tcb: Tcb,
    plat_info: u64,
    key_info: u32,
    report_data: Vec<u8>,
    measurement: Vec<u8>,
    host_data: Vec<u8>,
    id_key_digest: Vec<u8>,
    author_key_digest: Vec<u8>,
    report_id: Vec<u8>,
    report_id_ma: Vec<u8>,
    reported_tcb: Tcb,
    cpuid_fam_id: Option<u8>,
    cpuid_mod_id: Option<u8>,
    cpuid_step: Option<u8>,
    chip_id: Vec<u8>,
    committed_tcb: Tcb,
    current: Build,
    committed: Build,
    launch_tcb: Tcb,
    #[serde(default)]
    launch_mit_vector: Option<u64>,
    #[serde(default)]
    current_mit_vector: Option<u64>,
    signature: Signature,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tcb {
    #[serde(default)]
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    major: u8,
    minor: u8,
    build: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    r: Vec<u8>,
    s: Vec<u8>,
}

/// Where members are in the binary form.
mod at {
    pub(super) const FAMILY_ID: usize = 0x10;
    pub(super) const IMAGE_ID: usize = 0x20;
    pub(super) const VMPL: usize = 0x30;
    pub(super) const SIGNATURE_ALGO: usize = 0x34;
    pub(super) const CURRENT_TCB: usize = 0x38;
    pub(super) const PLATFORM: usize = 0x40;
    pub(super) const KEY_INFO: usize = 0x48;
    pub(super) const REPORT_DATA: usize = 0x50;
    pub(super) const MEASUREMENT: usize = 0x90;
    pub(super) const HOST_DATA: usize = 0xc0;
    pub(super) const ID_KEY: usize = 0xe0;
    pub(super) const AUTHOR_KEY: usize = 0x110;
    pub(super) const REPORT_ID: usize = 0x140;
    pub(super) const REPORT_ID_MA: usize = 0x160;
    pub(super) const REPORTED_TCB: usize = 0x180;
    pub(super) const CPUID: usize = 0x188;
    pub(super) const CHIP_ID: usize = 0x1a0;
    pub(super) const COMMITTED_TCB: usize = 0x1e0;
    pub(super) const CURRENT: usize = 0x1e8;
    pub(super) const COMMITTED: usize = 0x1ec;
    pub(super) const LAUNCH_TCB: usize = 0x1f0;
    pub(super) const LAUNCH_MITIGATION: usize = 0x1f8;
    pub(super) const CURRENT_MITIGATION: usize = 0x200;
    pub(super) const R: usize = 0x2a0;
    pub(super) const S: usize = 0x2a0 + 72;
}

impl SnpEvidence {
    /// Reads Trustee's JSON. The caller has limited its size.
    pub fn decode(json: &[u8]) -> Result<Self, SnpError> {
        let Evidence { attestation_report, cert_chain } =
            serde_json::from_slice(json).map_err(|error| SnpError::Json(error.to_string()))?;
        let certificates = cert_chain.unwrap_or_default().into_iter();
        let certificates = certificates.filter(|entry| matches!(entry.cert_type, Kind::Vcek | Kind::Vlek)).map(|entry| entry.data);
        Ok(Self { report: attestation_report.assemble()?, certificates: certificates.collect() })
    }

    /// Writes Trustee's JSON.
    pub fn encode(&self) -> Result<Vec<u8>, SnpError> {
        let report = super::Report::parse(&self.report)?;
        let entries = self.certificates.iter().map(|der| Entry { cert_type: kind_of(der), data: der.clone() });
        let wire = Evidence { attestation_report: Wire::take_apart(&report), cert_chain: Some(entries.collect()) };
        serde_json::to_vec(&wire).map_err(|error| SnpError::Json(error.to_string()))
    }
}

fn kind_of(der: &[u8]) -> Kind {
    let is_vlek = der.windows(8).any(|window| window == b"SEV-VLEK");
    if is_vlek { Kind::Vlek } else { Kind::Vcek }
}

impl Tcb {
    fn write(&self) -> [u8; 8] {
        match self.fmc {
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
        }
    }

    fn read(bytes: &[u8], has_fmc: bool) -> Self {
        if has_fmc {
            Self { fmc: Some(bytes[0]), bootloader: bytes[1], tee: bytes[2], snp: bytes[3], microcode: bytes[7] }
        } else {
            Self { fmc: None, bootloader: bytes[0], tee: bytes[1], snp: bytes[6], microcode: bytes[7] }
        }
    }
}

impl Wire {
    fn assemble(&self) -> Result<Vec<u8>, SnpError> {
        let mut bytes = vec![0; REPORT_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.version.to_le_bytes());
        put(4, &self.guest_svn.to_le_bytes());
        put(8, &self.policy.to_le_bytes());
        put(at::VMPL, &self.vmpl.to_le_bytes());
        put(at::SIGNATURE_ALGO, &self.sig_algo.to_le_bytes());
        put(at::PLATFORM, &self.plat_info.to_le_bytes());
        put(at::KEY_INFO, &self.key_info.to_le_bytes());
        for (at, tcb) in [
            (at::CURRENT_TCB, &self.current_tcb),
            (at::REPORTED_TCB, &self.reported_tcb),
            (at::COMMITTED_TCB, &self.committed_tcb),
            (at::LAUNCH_TCB, &self.launch_tcb),
        ] {
            put(at, &tcb.write());
        }
        for (at, version) in [(at::CURRENT, &self.current), (at::COMMITTED, &self.committed)] {
            put(at, &[version.build, version.minor, version.major]);
        }
        put(at::CPUID, &[self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step].map(Option::unwrap_or_default));
        put(at::LAUNCH_MITIGATION, &self.launch_mit_vector.unwrap_or_default().to_le_bytes());
        put(at::CURRENT_MITIGATION, &self.current_mit_vector.unwrap_or_default().to_le_bytes());
        for (name, at, value, length) in [
            ("family_id", at::FAMILY_ID, &self.family_id, 16),
            ("image_id", at::IMAGE_ID, &self.image_id, 16),
            ("report_data", at::REPORT_DATA, &self.report_data, 64),
            ("measurement", at::MEASUREMENT, &self.measurement, 48),
            ("host_data", at::HOST_DATA, &self.host_data, 32),
            ("id_key_digest", at::ID_KEY, &self.id_key_digest, 48),
            ("author_key_digest", at::AUTHOR_KEY, &self.author_key_digest, 48),
            ("report_id", at::REPORT_ID, &self.report_id, 32),
            ("report_id_ma", at::REPORT_ID_MA, &self.report_id_ma, 32),
            ("chip_id", at::CHIP_ID, &self.chip_id, 64),
            ("signature.r", at::R, &self.signature.r, 72),
            ("signature.s", at::S, &self.signature.s, 72),
        ] {
            if value.len() != length {
                return Err(SnpError::Json(format!("{name} has {} bytes, not {length}", value.len())));
            }
            put(at, value);
        }
        Ok(bytes)
    }

    fn take_apart(report: &super::Report) -> Self {
        let bytes = report.as_bytes();
        let has_fmc = report.reported_tcb.fmc.is_some();
        let vec = |at: usize, length: usize| bytes[at..at + length].to_vec();
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let tcb = |at: usize| Tcb::read(&bytes[at..at + 8], has_fmc);
        let build = |at: usize| Build { build: bytes[at], minor: bytes[at + 1], major: bytes[at + 2] };
        let cpuid = |index: usize| (report.version >= 3).then_some(bytes[at::CPUID + index]);
        let mitigation = |at: usize| (report.version >= 5).then(|| u64_at(at));
        Self {
            version: u32_at(0),
            guest_svn: u32_at(4),
            policy: u64_at(8),
            family_id: vec(at::FAMILY_ID, 16),
            image_id: vec(at::IMAGE_ID, 16),
            vmpl: u32_at(at::VMPL),
            sig_algo: u32_at(at::SIGNATURE_ALGO),
            current_tcb: tcb(at::CURRENT_TCB),
            plat_info: u64_at(at::PLATFORM),
            key_info: u32_at(at::KEY_INFO),
            report_data: vec(at::REPORT_DATA, 64),
            measurement: vec(at::MEASUREMENT, 48),
            host_data: vec(at::HOST_DATA, 32),
            id_key_digest: vec(at::ID_KEY, 48),
            author_key_digest: vec(at::AUTHOR_KEY, 48),
            report_id: vec(at::REPORT_ID, 32),
            report_id_ma: vec(at::REPORT_ID_MA, 32),
            reported_tcb: tcb(at::REPORTED_TCB),
            cpuid_fam_id: cpuid(0),
            cpuid_mod_id: cpuid(1),
            cpuid_step: cpuid(2),
            chip_id: vec(at::CHIP_ID, 64),
            committed_tcb: tcb(at::COMMITTED_TCB),
            current: build(at::CURRENT),
            committed: build(at::COMMITTED),
            launch_tcb: tcb(at::LAUNCH_TCB),
            launch_mit_vector: mitigation(at::LAUNCH_MITIGATION),
            current_mit_vector: mitigation(at::CURRENT_MITIGATION),
            signature: Signature { r: vec(at::R, 72), s: vec(at::S, 72) },
        }
    }
}
