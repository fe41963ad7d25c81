//! The paravisor's report: a hardware report and the JSON that its report data is the hash of.
//!
//! ```text
//! "HCLA" | version | size | request type 2 | status 0 | 12 zeros | hardware report in 1184 bytes
//!        | size | version 1 | report type | hash type | size of the variable data | variable data | zeros
//! ```
//! Source: Azure/cvm-attestation-tools, "HCL report"; Microsoft Learn, "Azure confidential VMs guest attestation design detail".

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha384};

use crate::bytes::{Malformed, Reader, zeros};
use crate::snp::REPORT_BYTES;
use crate::tdx::VerifiedQuote;
use crate::tpm::RsaKey;

/// Longest report that is read; real ones have 2600 bytes.
const MAX_BYTES: usize = 16 << 10;
/// Length of the header of the variable data.
const DATA_HEADER: usize = 20;
/// SHA-256, the only hash.
const HASH_SHA256: u32 = 1;
const TYPE_SNP: u32 = 2;
const TYPE_TDX: u32 = 4;
/// The name of the vTPM's attestation key.
const ATTESTATION_KEY: &str = "HCLAkPub";

/// The hardware's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HardwareReport<'a> {
    /// An attestation report.
    Snp(&'a [u8]),
    /// A TDREPORT, of which the quote is the signed form, in the space of an SNP report.
    Tdx(&'a [u8]),
}

pub(super) struct HclReport<'a> {
    pub(super) hardware: HardwareReport<'a>,
    variable_data: &'a [u8],
}

#[derive(Deserialize)]
struct VariableData {
    keys: Vec<Key>,
    #[serde(rename = "user-data", default)]
    user_data: String,
}

#[derive(Deserialize)]
struct Key {
    kid: String,
    kty: String,
    n: String,
    e: String,
}

impl<'a> HclReport<'a> {
    /// Reads the layout; every byte that the hardware's hash does not cover has one value.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_BYTES {
            return Err(Malformed::new(format!("it has {} bytes; at most {MAX_BYTES} are read", bytes.len())));
        }
        let mut reader = Reader::new(bytes);
        let known = |found: u32, known: &[u32], what: &str| {
            if known.contains(&found) { Ok(found) } else { Err(Malformed::new(format!("{what} {found} is unknown"))) }
        };
        if reader.array::<4>("signature")? != *b"HCLA" {
            return Err(Malformed::new("it does not begin with HCLA"));
        }
        let version = known(reader.u32("version")?, &[1, 2], "version")?;
        let size = reader.u32("size")?;
        known(reader.u32("request type")?, &[2], "request type")?;
        known(reader.u32("status")?, &[0], "status")?;
        reader.zeros(12, "reserved part of the header")?;
        let hardware = reader.take(REPORT_BYTES, "hardware report")?;
        let data_size = reader.u32("data size")?;
        known(reader.u32("data version")?, &[1], "data version")?;
        let kind = known(reader.u32("report type")?, if version == 1 { &[TYPE_SNP] } else { &[TYPE_SNP, TYPE_TDX] }, "report type")?;
        known(reader.u32("hash type")?, &[HASH_SHA256], "hash type")?;
        let variable_data = reader.sized("variable data")?;
        let expected = variable_data.len() + DATA_HEADER;
        if usize::try_from(data_size) != Ok(expected)
            || usize::try_from(size) != Ok(32 + REPORT_BYTES + expected) && !is_older(size, expected)
        {
            return Err(Malformed::new("its sizes contradict each other"));
        }
        zeros(reader.rest(), "what follows the variable data")?;
        let hardware = if kind == TYPE_SNP { HardwareReport::Snp(hardware) } else { HardwareReport::Tdx(hardware) };
        Ok(Self { hardware, variable_data })
    }

    pub(super) fn variable_data_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.variable_data).into()
    }

    /// The vTPM's attestation key.
    pub(super) fn attestation_key(&self) -> Result<RsaKey, Malformed> {
        let data = self.data()?;
        let key = data.keys.iter().find(|key| key.kid == ATTESTATION_KEY && key.kty == "RSA");
        let key = key.ok_or_else(|| Malformed::new(format!("it has no RSA key {ATTESTATION_KEY}")))?;
        let number = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|error| Malformed::new(format!("{ATTESTATION_KEY}: {error}")));
        Ok(RsaKey::new(&number(&key.n)?, &number(&key.e)?))
    }

    /// What the guest had written for this report.
    pub(super) fn user_data(&self) -> Result<Vec<u8>, Malformed> {
        hex::decode(self.data()?.user_data).map_err(|error| Malformed::new(format!("user-data: {error}")))
    }

    fn data(&self) -> Result<VariableData, Malformed> {
        serde_json::from_slice(self.variable_data).map_err(|error| Malformed::new(format!("variable data: {error}")))
    }
}

/// Some versions of the paravisor do not count the header of 32 bytes.
fn is_older(size: u32, expected: usize) -> bool {
    usize::try_from(size) == Ok(REPORT_BYTES + expected)
}

/// The TDREPORT in the HCL report has no signature of its own: all that the quote repeats must be the quote's, and its hashes right.
/// What is left is the MAC, 32 bytes that only the same machine could check and that become no claim.
pub(super) fn check_td_report(report: &[u8], quote: &VerifiedQuote) -> Result<(), Malformed> {
    let body = &quote.quote.body;
    let mut reader = Reader::new(report);
    let same = |equal: bool, what: &str| if equal { Ok(()) } else { Err(Malformed::new(format!("TDREPORT: {what} is not the quote's"))) };
    let kind = reader.array::<4>("type")?;
    same(matches!(kind, [0x81, 0, 0 | 1, 0]), "type")?;
    reader.zeros(12, "TDREPORT: reserved")?;
    same(reader.array("CPUSVN")? == quote.cpu_svn, "CPUSVN")?;
    let (tcb_hash, info_hash) = (reader.take(48, "TEE_TCB_INFO_HASH")?, reader.take(48, "TEE_INFO_HASH")?);
    same(reader.take(64, "REPORTDATA")? == body.report_data, "REPORTDATA")?;
    reader.zeros(32, "TDREPORT: reserved")?;
    reader.take(32, "MAC")?;
    let tcb = reader.take(239, "TEE_TCB_INFO")?;
    same(Sha384::digest(tcb)[..] == *tcb_hash, "TEE_TCB_INFO")?;
    reader.zeros(17, "TDREPORT: reserved")?;
    let info = reader.take(512, "TDINFO")?;
    same(Sha384::digest(info)[..] == *info_hash, "TDINFO")?;
    // VALID (8), TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, SEAM attributes.
    let parts = [(8, &body.tcb_svn[..]), (24, &body.mr_seam), (72, &body.mrsigner_seam), (120, &body.seam_attributes)];
    for (at, value) in parts {
        same(tcb.get(at..at + value.len()) == Some(value), "TEE_TCB_INFO")?;
    }
    let parts = [&body.td_attributes[..], &body.xfam, &body.mr_td, &body.mr_config_id, &body.mr_owner, &body.mr_owner_config];
    let start = [&parts.concat()[..], &body.rtmrs.concat()].concat();
    same(info.starts_with(&start), "TDINFO")?;
    zeros(reader.rest(), "what follows the TDREPORT")
}
