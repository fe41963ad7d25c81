//! SNP on clouds whose own firmware starts the VM (AWS, GCP): the launch digest covers that firmware and not the image, so what booted is
//! told by the cloud's TPM, which the cloud must be trusted for.
//!
//! ```json
//! {"snp": <as in `snp`>, "tpm": <as in `tpm`>}
//! ```
//! The TPM quote carries the request's report data. The SNP report's is `SHA-384("peerpods-snp-tpm/1" | 0 | report data | AK)`, with the AK
//! as DER SubjectPublicKeyInfo: so both are of this request, and the quote's key is the one that this VM sees. Nobody else's verifier
//! knows the format, which therefore fails closed there.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha384};

use crate::snp::{self, SnpError, SnpEvidence, SnpPolicy, VerifiedReport};
use crate::tpm::{TpmError, TpmEvidence, VerifiedTpm};

/// The name of this format.
pub const TEE: &str = "snp-tpm";

/// Why the evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum SnpTpmError {
    /// Not the JSON above.
    #[error("malformed evidence of SNP and TPM: {0}")]
    Json(String),
    /// The SNP part.
    #[error("the SNP part")]
    Snp(#[from] SnpError),
    /// The TPM part.
    #[error("the TPM part")]
    Tpm(#[from] TpmError),
    /// The VM vouches for another TPM or request.
    #[error("the SNP report is of another request or another TPM's key")]
    NotBound,
}

/// Both parts, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpTpmEvidence {
    /// The VM's.
    pub snp: SnpEvidence,
    /// The cloud's.
    pub tpm: TpmEvidence,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    snp: Box<RawValue>,
    tpm: Box<RawValue>,
}

/// Evidence whose parts hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSnpTpm {
    /// The VM's.
    pub snp: VerifiedReport,
    /// The cloud's.
    pub tpm: VerifiedTpm,
}

/// The SNP report data for a request and the TPM's key.
pub fn report_data(request: &[u8; 48], ak_spki: &[u8]) -> [u8; 48] {
    Sha384::new().chain_update(b"peerpods-snp-tpm/1\0").chain_update(request).chain_update(ak_spki).finalize().into()
}

impl SnpTpmEvidence {
    /// Reads the JSON. The caller has limited its size.
    pub fn decode(json: &[u8]) -> Result<Self, SnpTpmError> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| SnpTpmError::Json(error.to_string()))?;
        Ok(Self { snp: SnpEvidence::decode(wire.snp.get().as_bytes())?, tpm: TpmEvidence::decode(wire.tpm.get().as_bytes())? })
    }

    /// Writes the JSON.
    pub fn encode(&self) -> Result<Vec<u8>, SnpTpmError> {
        let raw = |bytes: Vec<u8>| {
            String::from_utf8(bytes).ok().and_then(|text| RawValue::from_string(text).ok()).ok_or(SnpTpmError::Json("not JSON".to_owned()))
        };
        let wire = Wire { snp: raw(self.snp.encode()?)?, tpm: raw(self.tpm.encode())? };
        serde_json::to_vec(&wire).map_err(|error| SnpTpmError::Json(error.to_string()))
    }

    /// Verifies both parts and their bond, for a request.
    pub fn verify(
        &self,
        request: &[u8; 48],
        certificates: &[&[u8]],
        policy: &SnpPolicy,
        now: SystemTime,
    ) -> Result<VerifiedSnpTpm, SnpTpmError> {
        let own = self.snp.certificates.iter().map(Vec::as_slice);
        let certificates: Vec<&[u8]> = own.chain(certificates.iter().copied()).collect();
        let snp = snp::verify_report(&self.snp.report, &certificates, now)?;
        snp.check(policy)?;
        let tpm = self.tpm.verify()?;
        let found = &snp.report.report_data;
        if found[..48] != report_data(request, &tpm.ak_public) || found[48..] != [0; 16] {
            return Err(SnpTpmError::NotBound);
        }
        Ok(VerifiedSnpTpm { snp, tpm })
    }
}

impl VerifiedSnpTpm {
    /// The SNP report's claims with the TPM's below `tpm`.
    pub fn claims(&self) -> Value {
        let mut claims = self.snp.claims();
        let tpm = self.tpm.claims();
        claims["report_data"] = tpm["report_data"].clone();
        claims["init_data"] = tpm["init_data"].clone();
        claims["tpm"] = tpm;
        claims
    }
}
