//! The quote's layout, versions 4 and 5.

use std::time::SystemTime;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::TdxError;
use super::pck::{Pck, PckChain};
use crate::bytes::{Malformed, Reader, zeros};

/// Longest quote that is read; the specification bounds certification data at some 20 KiB.
const MAX_BYTES: usize = 64 << 10;
/// ECDSA-256 with P-256.
const KEY_TYPE: u16 = 2;
/// TDX.
const TEE_TYPE: u32 = 0x81;
/// Intel's quoting enclave.
const VENDOR: [u8; 16] = [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// Kinds of certification data: the enclave's report, and in it the PEM chain of the PCK certificate.
const ENCLAVE_REPORT: u16 = 6;
const PCK_CHAIN: u16 = 5;
/// Kinds of body in version 5.
const TD_1_0: u16 = 2;
const TD_1_5: u16 = 3;
const TD_1_0_BYTES: u32 = 584;
const TD_1_5_BYTES: u32 = 648;
/// TDATTRIBUTES. All of the first byte are ways to debug a domain.
const DEBUG: u64 = 1;
const DEBUG_GROUP: u64 = 0xff;
const MIGRATABLE: u64 = 1 << 29;
const SEPT_VE_DISABLE: u64 = 1 << 28;
const PROTECTION_KEYS: u64 = 1 << 30;
const KEY_LOCKER: u64 = 1 << 31;
const PERFMON: u64 = 1 << 63;
/// MRSIGNER and product of Intel's TD quoting enclave: any other enclave of a genuine processor could sign for itself.
const ENCLAVE_SIGNER: &str = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5";
const ENCLAVE_PRODUCT: u16 = 2;

/// A parsed quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdQuote {
    /// 4 or 5.
    pub version: u16,
    /// The domain's measurements.
    pub body: TdBody,
    header: [u8; 48],
    kind: Option<(u16, u32)>,
}

/// TD report body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdBody {
    /// TEE_TCB_SVN.
    pub tcb_svn: [u8; 16],
    /// MRSEAM: the TDX module.
    pub mr_seam: [u8; 48],
    /// MRSIGNERSEAM; zeros for Intel's module.
    pub mrsigner_seam: [u8; 48],
    /// SEAMATTRIBUTES.
    pub seam_attributes: [u8; 8],
    /// TDATTRIBUTES.
    pub td_attributes: [u8; 8],
    /// XFAM.
    pub xfam: [u8; 8],
    /// MRTD: the initial memory.
    pub mr_td: [u8; 48],
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
    /// RTMR 0 to 3.
    pub rtmrs: [[u8; 48]; 4],
    /// REPORTDATA.
    pub report_data: [u8; 64],
    /// TEE_TCB_SVN_2 and MRSERVICETD, of TDX 1.5.
    pub service: Option<([u8; 16], [u8; 48])>,
}

/// What the signature is over and what vouches for it.
pub(super) struct Signed<'a> {
    signed: &'a [u8],
    signature: &'a [u8],
    key: &'a [u8],
    pub(super) enclave_report: EnclaveReport<'a>,
    enclave_signature: &'a [u8],
    authentication: &'a [u8],
    chain: &'a [u8],
}

/// SGX report body of the quoting enclave.
pub(super) struct EnclaveReport<'a> {
    raw: &'a [u8],
    pub(super) cpu_svn: [u8; 16],
    pub(super) misc_select: [u8; 4],
    pub(super) attributes: [u8; 16],
    pub(super) mr_signer: [u8; 32],
    pub(super) product: u16,
    pub(super) svn: u16,
    report_data: &'a [u8],
}

impl TdQuote {
    /// Reads a quote and finds what it is signed with. Says nothing of the signature.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, Signed<'_>), Malformed> {
        if bytes.len() > MAX_BYTES {
            return Err(Malformed::new(format!("it has {} bytes; at most {MAX_BYTES} are read", bytes.len())));
        }
        let mut reader = Reader::new(bytes);
        let header = reader.array::<48>("header")?;
        let version = check_header(&header)?;
        let kind = if version == 5 { Some((reader.u16("body type")?, reader.u32("body size")?)) } else { None };
        let has_service = match kind {
            None | Some((TD_1_0, TD_1_0_BYTES)) => false,
            Some((TD_1_5, TD_1_5_BYTES)) => true,
            Some((kind, size)) => return Err(Malformed::new(format!("body of type {kind} with {size} bytes"))),
        };
        let body = TdBody::read(&mut reader, has_service)?;
        let signed = &bytes[..bytes.len() - reader.left()];
        let mut data = Reader::new(reader.sized("signature data")?);
        zeros(reader.rest(), "what follows the signature data")?;

        let (signature, key) = (data.take(64, "signature")?, data.take(64, "attestation key")?);
        let mut data = nested(data, ENCLAVE_REPORT)?;
        let enclave_report = EnclaveReport::read(data.take(384, "enclave report")?)?;
        let enclave_signature = data.take(64, "enclave signature")?;
        let length = data.u16("authentication data")?;
        let authentication = data.take(length.into(), "authentication data")?;
        let chain = nested(data, PCK_CHAIN)?.rest();
        let signed = Signed { signed, signature, key, enclave_report, enclave_signature, authentication, chain };
        Ok((Self { version, body, header, kind }, signed))
    }

    pub(super) fn is_debug(&self) -> bool {
        self.attributes() & DEBUG_GROUP != 0
    }

    pub(super) fn is_migratable(&self) -> bool {
        self.attributes() & MIGRATABLE != 0
    }

    fn attributes(&self) -> u64 {
        u64::from_le_bytes(self.body.td_attributes)
    }

    pub(super) fn claims(&self) -> Value {
        let body = &self.body;
        let mut quote = json!({
            "header": {
                "version": hex::encode(&self.header[..2]),
                "att_key_type": hex::encode(&self.header[2..4]),
                "tee_type": hex::encode(&self.header[4..8]),
                "reserved": hex::encode(&self.header[8..12]),
                "vendor_id": hex::encode(&self.header[12..28]),
                "user_data": hex::encode(&self.header[28..]),
            },
            "body": {
                "tcb_svn": hex::encode(body.tcb_svn),
                "mr_seam": hex::encode(body.mr_seam),
                "mrsigner_seam": hex::encode(body.mrsigner_seam),
                "seam_attributes": hex::encode(body.seam_attributes),
                "td_attributes": hex::encode(body.td_attributes),
                "xfam": hex::encode(body.xfam),
                "mr_td": hex::encode(body.mr_td),
                "mr_config_id": hex::encode(body.mr_config_id),
                "mr_owner": hex::encode(body.mr_owner),
                "mr_owner_config": hex::encode(body.mr_owner_config),
                "rtmr_0": hex::encode(body.rtmrs[0]),
                "rtmr_1": hex::encode(body.rtmrs[1]),
                "rtmr_2": hex::encode(body.rtmrs[2]),
                "rtmr_3": hex::encode(body.rtmrs[3]),
                "report_data": hex::encode(body.report_data),
            },
        });
        if let Some((kind, size)) = self.kind {
            quote["type"] = hex::encode(kind.to_le_bytes()).into();
            quote["size"] = hex::encode(size.to_le_bytes()).into();
        }
        if let Some((tcb_svn, service)) = &body.service {
            quote["body"]["tee_tcb_svn2"] = hex::encode(tcb_svn).into();
            quote["body"]["mr_servicetd"] = hex::encode(service).into();
        }
        let is_set = |bit: u64| self.attributes() & bit != 0;
        json!({
            "quote": quote,
            "td_attributes": {
                "debug": is_set(DEBUG),
                "septve_disable": is_set(SEPT_VE_DISABLE),
                "protection_keys": is_set(PROTECTION_KEYS),
                "key_locker": is_set(KEY_LOCKER),
                "perfmon": is_set(PERFMON),
            },
            "report_data": hex::encode(body.report_data),
            "init_data": hex::encode(body.mr_config_id),
        })
    }
}

/// The quote's version.
fn check_header(header: &[u8; 48]) -> Result<u16, Malformed> {
    let mut reader = Reader::new(header);
    let version = reader.u16("version")?;
    if !(4..=5).contains(&version) {
        return Err(Malformed::new(format!("version {version}; 4 and 5 are known")));
    }
    let (key, tee) = (reader.u16("key type")?, reader.u32("TEE type")?);
    reader.take(4, "reserved")?;
    if key != KEY_TYPE || tee != TEE_TYPE || reader.array::<16>("vendor")? != VENDOR {
        return Err(Malformed::new(format!("key type {key}, TEE type {tee:#x}, or another vendor's quoting enclave")));
    }
    Ok(version)
}

/// Certification data that must be of this kind and fill the rest.
fn nested(mut reader: Reader<'_>, expected: u16) -> Result<Reader<'_>, Malformed> {
    let kind = reader.u16("certification data")?;
    if kind != expected {
        return Err(Malformed::new(format!("certification data of type {kind}, not {expected}")));
    }
    let content = reader.sized("certification data")?;
    if reader.left() != 0 {
        return Err(Malformed::new(format!("{} bytes follow certification data", reader.left())));
    }
    Ok(Reader::new(content))
}

impl TdBody {
    fn read(reader: &mut Reader<'_>, has_service: bool) -> Result<Self, Malformed> {
        Ok(Self {
            tcb_svn: reader.array("TEE_TCB_SVN")?,
            mr_seam: reader.array("MRSEAM")?,
            mrsigner_seam: reader.array("MRSIGNERSEAM")?,
            seam_attributes: reader.array("SEAMATTRIBUTES")?,
            td_attributes: reader.array("TDATTRIBUTES")?,
            xfam: reader.array("XFAM")?,
            mr_td: reader.array("MRTD")?,
            mr_config_id: reader.array("MRCONFIGID")?,
            mr_owner: reader.array("MROWNER")?,
            mr_owner_config: reader.array("MROWNERCONFIG")?,
            rtmrs: [reader.array("RTMR0")?, reader.array("RTMR1")?, reader.array("RTMR2")?, reader.array("RTMR3")?],
            report_data: reader.array("REPORTDATA")?,
            service: if has_service { Some((reader.array("TEE_TCB_SVN_2")?, reader.array("MRSERVICETD")?)) } else { None },
        })
    }
}

impl<'a> EnclaveReport<'a> {
    fn read(raw: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(raw);
        let cpu_svn = reader.array("CPUSVN")?;
        let misc_select = reader.array("MISCSELECT")?;
        reader.take(28, "reserved")?;
        let attributes = reader.array("ATTRIBUTES")?;
        reader.take(32 + 32, "MRENCLAVE")?;
        let mr_signer = reader.array("MRSIGNER")?;
        reader.take(32 + 64, "reserved")?;
        let (product, svn) = (reader.u16("ISVPRODID")?, reader.u16("ISVSVN")?);
        reader.take(2 + 42 + 16, "reserved")?;
        Ok(Self { raw, cpu_svn, misc_select, attributes, mr_signer, product, svn, report_data: reader.take(64, "REPORTDATA")? })
    }
}

impl Signed<'_> {
    /// Verifies every link; the PCK certificate tells what the platform is.
    pub(super) fn verify(&self, now: SystemTime) -> Result<Pck, TdxError> {
        let chain = PckChain::parse(self.chain)?;
        let pck = chain.verify(now)?;
        verify(&pck.point, self.enclave_report.raw, self.enclave_signature, "the PCK key did not sign the quoting enclave's report")?;
        let expected = Sha256::new().chain_update(self.key).chain_update(self.authentication).finalize();
        if self.enclave_report.report_data[..32] != expected[..] || self.enclave_report.report_data[32..] != [0; 32] {
            return Err(TdxError::Signature("the quoting enclave vouches for another attestation key"));
        }
        let is_debug = self.enclave_report.attributes[0] & 2 != 0;
        if hex::encode(self.enclave_report.mr_signer) != ENCLAVE_SIGNER || self.enclave_report.product != ENCLAVE_PRODUCT || is_debug {
            return Err(TdxError::Signature("the enclave that signed is not Intel's quoting enclave for trust domains"));
        }
        let point = [&[4], self.key].concat();
        verify(&point, self.signed, self.signature, "the attestation key did not sign the quote")?;
        Ok(pck)
    }
}

fn verify(point: &[u8], signed: &[u8], signature: &[u8], refusal: &'static str) -> Result<(), TdxError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature).map_err(|_| TdxError::Signature(refusal))
}
