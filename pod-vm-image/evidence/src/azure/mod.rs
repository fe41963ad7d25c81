//! Azure's confidential VMs: the paravisor's vTPM signs, and the hardware report vouches for the vTPM's key.
//!
//! ```text
//! SNP report or TDX quote --report data--> SHA-256 of the HCL's variable data --HCLAkPub--> TPM quote --extra data--> the request
//! ```
//!
//! JSON of Trustee's formats, version 1 and 2 (`deps/verifier/src/az_snp_vtpm`): in version 2 the variable data, which the guest can write
//! to before the report is made, must carry the request's report data too.

mod hcl;

use std::time::SystemTime;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::Value;

use crate::bytes::Malformed;
use crate::register::Register;
use crate::snp::{self, SnpError, SnpPolicy, VerifiedReport};
use crate::tdx::{self, Collateral, TdxError, TdxPolicy, VerifiedQuote};
use crate::tpm::{Pcrs, Quote, TpmError, is_report_data};
use hcl::{HardwareReport, HclReport};

/// The name of the SNP format.
pub const SNP_TEE: &str = "az-snp-vtpm";
/// The name of the TDX format.
pub const TDX_TEE: &str = "az-tdx-vtpm";

/// Why Azure evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum AzureError {
    /// Not Trustee's JSON.
    #[error("malformed Azure evidence: {0}")]
    Json(String),
    /// The HCL report.
    #[error("malformed HCL report: {0}")]
    Hcl(#[from] Malformed),
    /// The hardware vouches for other variable data.
    #[error("the hardware report is of another vTPM key")]
    NotBound,
    /// The variable data was written for another request.
    #[error("user data of the HCL report is of another request")]
    UserData,
    /// The vTPM's quote.
    #[error("the vTPM's quote")]
    Tpm(#[from] TpmError),
    /// The SNP report.
    #[error("the SNP report")]
    Snp(#[from] SnpError),
    /// The TDX quote.
    #[error("the TDX quote")]
    Tdx(#[from] TdxError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    tpm_quote: WireQuote,
    hcl_report: String,
    vcek: Option<String>,
    td_quote: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireQuote {
    signature: String,
    message: String,
    pcrs: Vec<String>,
}

/// The vTPM's side of the evidence, whichever hardware is below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedVtpm {
    /// The quote's extra data.
    pub report_data: Vec<u8>,
    /// The quoted PCRs.
    pub pcrs: Pcrs,
}

/// SNP evidence that hardware stands behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedAzureSnp {
    /// The vTPM.
    pub vtpm: VerifiedVtpm,
    /// The hardware's report.
    pub report: VerifiedReport,
}

/// TDX evidence that hardware stands behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedAzureTdx {
    /// The vTPM.
    pub vtpm: VerifiedVtpm,
    /// The hardware's quote.
    pub quote: VerifiedQuote,
}

/// Verifies `az-snp-vtpm` evidence. `report_data` is that of the request, which version 2 binds into the variable data too.
pub fn verify_snp(json: &[u8], report_data: &[u8], policy: &SnpPolicy, now: SystemTime) -> Result<VerifiedAzureSnp, AzureError> {
    let wire = decode(json)?;
    let (Some(vcek), None) = (&wire.vcek, &wire.td_quote) else { return Err(AzureError::Json("vcek, and no td_quote".to_owned())) };
    let hcl_bytes = base64("hcl_report", &wire.hcl_report)?;
    let hcl = HclReport::parse(&hcl_bytes)?;
    let HardwareReport::Snp(report) = hcl.hardware else { return Err(Malformed::new("it holds no SNP report").into()) };
    let vcek = base64("vcek", vcek)?;
    let report = snp::verify_report(report, &[&vcek], now)?;
    report.check(policy)?;
    if report.report.report_data[..32] != hcl.variable_data_sha256() || report.report.report_data[32..] != [0; 32] {
        return Err(AzureError::NotBound);
    }
    Ok(VerifiedAzureSnp { vtpm: verify_vtpm(&wire, &hcl, report_data)?, report })
}

/// Verifies `az-tdx-vtpm` evidence.
pub fn verify_tdx(
    json: &[u8],
    report_data: &[u8],
    policy: &TdxPolicy,
    collateral: Option<&Collateral>,
    now: SystemTime,
) -> Result<VerifiedAzureTdx, AzureError> {
    let wire = decode(json)?;
    let (Some(quote), None) = (&wire.td_quote, &wire.vcek) else { return Err(AzureError::Json("td_quote, and no vcek".to_owned())) };
    let hcl_bytes = base64("hcl_report", &wire.hcl_report)?;
    let hcl = HclReport::parse(&hcl_bytes)?;
    let HardwareReport::Tdx(report) = hcl.hardware else { return Err(Malformed::new("it holds no TDX report").into()) };
    let quote = tdx::verify_quote(&base64("td_quote", quote)?, collateral, now)?;
    quote.check(policy)?;
    hcl::check_td_report(report, &quote)?;
    if quote.quote.body.report_data[..32] != hcl.variable_data_sha256() || quote.quote.body.report_data[32..] != [0; 32] {
        return Err(AzureError::NotBound);
    }
    Ok(VerifiedAzureTdx { vtpm: verify_vtpm(&wire, &hcl, report_data)?, quote })
}

fn verify_vtpm(wire: &Wire, hcl: &HclReport<'_>, report_data: &[u8]) -> Result<VerifiedVtpm, AzureError> {
    let unhex = |name: &str, text: &str| {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(AzureError::Json(format!("{name}: upper-case digits")));
        }
        hex::decode(text).map_err(|error| AzureError::Json(format!("{name}: {error}")))
    };
    let pcrs = Pcrs::from_hex(&wire.tpm_quote.pcrs)?;
    let (signature, message) = (unhex("signature", &wire.tpm_quote.signature)?, unhex("message", &wire.tpm_quote.message)?);
    let quote = Quote::verify(&message, &signature, &hcl.attestation_key()?, &pcrs)?;
    if wire.version >= 2 && !is_report_data(&hcl.user_data()?, report_data) {
        return Err(AzureError::UserData);
    }
    Ok(VerifiedVtpm { report_data: quote.extra_data, pcrs })
}

fn decode(json: &[u8]) -> Result<Wire, AzureError> {
    let wire: Wire = serde_json::from_slice(json).map_err(|error| AzureError::Json(error.to_string()))?;
    match wire.version {
        1 | 2 => Ok(wire),
        other => Err(AzureError::Json(format!("version {other}; 1 and 2 are known"))),
    }
}

/// URL-safe; attesters write padding, and not all readers do.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

fn base64(name: &str, text: &str) -> Result<Vec<u8>, AzureError> {
    BASE64.decode(text).map_err(|error| AzureError::Json(format!("{name}: {error}")))
}

impl VerifiedVtpm {
    /// The initdata register.
    pub fn register(&self) -> Register {
        Register::Pcr(self.pcrs.initdata())
    }

    fn extend(&self, mut claims: Value) -> Value {
        claims["tpm"] = Value::Object(self.pcrs.claims());
        claims["report_data"] = hex::encode(&self.report_data).into();
        claims["init_data"] = hex::encode(self.pcrs.initdata()).into();
        claims
    }
}

impl VerifiedAzureSnp {
    /// The claims, named as Trustee's.
    pub fn claims(&self) -> Value {
        self.vtpm.extend(self.report.claims())
    }
}

impl VerifiedAzureTdx {
    /// The claims, named as Trustee's.
    pub fn claims(&self) -> Value {
        self.vtpm.extend(self.quote.claims(None))
    }
}
