//! TPM 2.0 quotes: `tpm`, the evidence of a VM whose TPM is its root of trust.
//!
//! A quote says that a TPM holds these PCRs now; whether it is a TPM at all depends on its attestation key (AK). Trustee knows the AK from
//! policy alone (`ak_public in query_reference_value("trusted_aks")`); a verifier that can ask back proves by [`credential`] that
//! the AK lives in the TPM whose endorsement key it knows. The event log, when sent, must replay to the quoted PCRs.
//!
//! JSON as guest-components' attester writes it, with members of ours that others ignore:
//! ```json
//! {"tpm_quote": {"signature": "<base64 TPMT_SIGNATURE>", "message": "<base64 TPMS_ATTEST>", "pcrs": ["<64 hex digits>", 24 of them]},
//!  "ak_public": "<base64 DER SubjectPublicKeyInfo>", "event_log": "<base64, TCG2>", "ak": "<base64 TPMT_PUBLIC>", "ek": "<base64 TPMT_PUBLIC>",
//!  "ek_certificate": "<base64 DER>"}
//! ```
//! Source: "Trusted Platform Module Library" 1.59, parts 1 to 3.

pub mod credential;
mod key;
mod quote;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bytes::Malformed;
use crate::eventlog::{self, EventLog};
use crate::register::{INITDATA_PCR, Register};

pub use key::{RsaKey, rsa_of};
pub use quote::{Pcrs, Quote};

/// The name of this format.
pub const TEE: &str = "tpm";

/// Length of the report data in a quote: the 48 bytes and zeros, as Trustee's verifier expects.
pub const REPORT_DATA_BYTES: usize = 64;

/// Why TPM evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// Not the JSON above, or a member of it.
    #[error("malformed TPM evidence: {0}")]
    Json(String),
    /// A TPM structure.
    #[error("malformed TPM quote: {0}")]
    Structure(#[from] Malformed),
    /// The attestation key did not sign it.
    #[error("the attestation key did not sign the quote")]
    Signature,
    /// The PCRs are not the quoted ones.
    #[error("the PCRs are not those that the TPM quoted")]
    Pcrs,
    /// A PCR that matters is not quoted.
    #[error("the quote does not cover PCR {0}")]
    NotQuoted(usize),
    /// The log is not a log.
    #[error("malformed event log: {0}")]
    Log(#[from] eventlog::LogError),
    /// The log does not tell of these PCRs.
    #[error("the event log does not lead to the quoted PCR {0}")]
    Replay(usize),
    /// A certificate or key of the endorsement.
    #[error("the TPM's endorsement key is refused: {0}")]
    Endorsement(String),
}

/// Evidence, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmEvidence {
    /// Marshalled TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// Marshalled TPMS_ATTEST.
    pub message: Vec<u8>,
    /// The SHA-256 bank.
    pub pcrs: Pcrs,
    /// SubjectPublicKeyInfo of the AK, DER.
    pub ak_public: Vec<u8>,
    /// The firmware's log.
    pub event_log: Option<Vec<u8>>,
    /// The AK as the TPM knows it, marshalled TPMT_PUBLIC; its name is bound by credential activation.
    pub ak: Option<Vec<u8>>,
    /// The endorsement key, marshalled TPMT_PUBLIC.
    pub ek: Option<Vec<u8>>,
    /// The endorsement key's certificate.
    pub ek_certificate: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    tpm_quote: WireQuote,
    ak_public: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_log: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ak: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ek: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ek_certificate: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireQuote {
    signature: String,
    message: String,
    pcrs: Vec<String>,
}

/// A quote that its key stands behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTpm {
    /// What the requester asked to be bound into the quote.
    pub report_data: Vec<u8>,
    /// The quoted PCRs.
    pub pcrs: Pcrs,
    /// SubjectPublicKeyInfo of the AK, DER.
    pub ak_public: Vec<u8>,
    /// The log, when one was sent.
    pub event_log: Option<EventLog>,
}

impl TpmEvidence {
    /// Reads the JSON. The caller has limited its size.
    pub fn decode(json: &[u8]) -> Result<Self, TpmError> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| TpmError::Json(error.to_string()))?;
        let bytes = |name: &str, text: &str| STANDARD.decode(text).map_err(|error| TpmError::Json(format!("{name}: {error}")));
        let maybe = |name: &str, text: Option<String>| text.map(|text| bytes(name, &text)).transpose();
        Ok(Self {
            signature: bytes("signature", &wire.tpm_quote.signature)?,
            message: bytes("message", &wire.tpm_quote.message)?,
            pcrs: Pcrs::from_hex(&wire.tpm_quote.pcrs)?,
            ak_public: bytes("ak_public", &wire.ak_public)?,
            event_log: maybe("event_log", wire.event_log)?,
            ak: maybe("ak", wire.ak)?,
            ek: maybe("ek", wire.ek)?,
            ek_certificate: maybe("ek_certificate", wire.ek_certificate)?,
        })
    }

    /// Writes the JSON.
    pub fn encode(&self) -> Vec<u8> {
        let maybe = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| STANDARD.encode(bytes));
        let wire = Wire {
            tpm_quote: WireQuote {
                signature: STANDARD.encode(&self.signature),
                message: STANDARD.encode(&self.message),
                pcrs: self.pcrs.to_hex(),
            },
            ak_public: STANDARD.encode(&self.ak_public),
            event_log: maybe(&self.event_log),
            ak: maybe(&self.ak),
            ek: maybe(&self.ek),
            ek_certificate: maybe(&self.ek_certificate),
        };
        serde_json::to_vec(&wire).expect("a struct of strings always serializes")
    }

    /// Verifies signature, PCRs and log; not who the TPM is.
    pub fn verify(&self) -> Result<VerifiedTpm, TpmError> {
        let key = RsaKey::from_spki(&self.ak_public)?;
        let signature = quote::rsassa_signature(&self.signature)?;
        let quote = Quote::verify(&self.message, &signature, &key, &self.pcrs)?;
        let event_log = self.event_log.as_deref().map(EventLog::parse).transpose()?;
        if let Some(log) = &event_log {
            check_replay(log, &self.pcrs)?;
        }
        if let Some(ak) = &self.ak
            && rsa_of(ak)?.to_spki() != self.ak_public
        {
            return Err(TpmError::Json("ak is not the key of ak_public".to_owned()));
        }
        Ok(VerifiedTpm { report_data: quote.extra_data, pcrs: self.pcrs.clone(), ak_public: self.ak_public.clone(), event_log })
    }
}

/// Every PCR that the firmware's log tells of must be what the log leads to.
fn check_replay(log: &EventLog, pcrs: &Pcrs) -> Result<(), TpmError> {
    for (register, value) in log.replay(eventlog::Algorithm::Sha256)? {
        let index = usize::try_from(register).unwrap_or(usize::MAX);
        if is_compared(register) && pcrs.get(index).is_none_or(|pcr| pcr[..] != value[..]) {
            return Err(TpmError::Replay(index));
        }
    }
    Ok(())
}

/// The guest extends initdata's register, after the firmware has closed its log.
fn is_compared(register: u32) -> bool {
    usize::try_from(register) != Ok(INITDATA_PCR)
}

impl VerifiedTpm {
    /// The initdata register.
    pub fn register(&self) -> Register {
        Register::Pcr(self.pcrs.initdata())
    }

    /// The claims, named as Trustee's (`deps/verifier/src/tpm`); `ak_public` is as in the evidence.
    pub fn claims(&self) -> Value {
        let mut claims = self.pcrs.claims();
        claims.insert("init_data".to_owned(), hex::encode(self.pcrs.initdata()).into());
        claims.insert("report_data".to_owned(), hex::encode(&self.report_data).into());
        claims.insert("ak_public".to_owned(), STANDARD.encode(&self.ak_public).into());
        if let Some(log) = &self.event_log {
            claims.insert("uefi_event_logs".to_owned(), log.claims(eventlog::Algorithm::Sha256, is_compared));
        }
        Value::Object(claims)
    }
}

impl Pcrs {
    /// `pcr00` to `pcr23`.
    pub(crate) fn claims(&self) -> Map<String, Value> {
        (0..).zip(self.to_hex()).map(|(index, hex): (usize, String)| (format!("pcr{index:02}"), hex.into())).collect()
    }

    /// The initdata register.
    pub(crate) fn initdata(&self) -> [u8; 32] {
        *self.get(INITDATA_PCR).expect("a bank has 24 registers")
    }
}

/// Whether a quote's extra data is this report data: bare, as Azure's attesters send it, or filled up with zeros.
pub(crate) fn is_report_data(found: &[u8], expected: &[u8]) -> bool {
    found.starts_with(expected) && found.len() <= REPORT_DATA_BYTES && found[expected.len()..].iter().all(|byte| *byte == 0)
}
