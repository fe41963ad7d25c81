//! Intel TDX: a quote, which Intel's quoting enclave signed for a trust domain.
//!
//! ```text
//! Intel's root --> PCK certificate --> report of the quoting enclave --> attestation key --> header and body of the quote
//! ```
//!
//! The chain shows a genuine processor and a genuine quoting enclave. How good their firmware is, Intel says in [`Collateral`]: signed files
//! that an operator fetches once and gives to the verifier; without them the TCB status is unknown and a claim says so.
//! Source: "Intel TDX DCAP Quoting Library API" 0.9, appendix A; "Intel SGX PCK Certificate and CRL Profile" 1.5.

mod collateral;
mod pck;
mod quote;
mod tcb;

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bytes::Malformed;
use crate::eventlog::{Algorithm, EventLog, LogError};
use crate::register::Register;
use crate::x509::CertificateError;

pub use collateral::Collateral;
pub use quote::{TdBody, TdQuote};
pub use tcb::TcbStatus;

/// The name of this format.
pub const TEE: &str = "tdx";

/// Why TDX evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum TdxError {
    /// Not Trustee's JSON.
    #[error("malformed TDX evidence: {0}")]
    Json(String),
    /// Not a quote of a known version.
    #[error("malformed TDX quote: {0}")]
    Quote(#[from] Malformed),
    /// A certificate in the chain.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A link of the chain.
    #[error("{0}")]
    Signature(&'static str),
    /// Intel's files.
    #[error("collateral: {0}")]
    Collateral(String),
    /// The log is not a log.
    #[error("malformed event log: {0}")]
    Log(#[from] LogError),
    /// The log does not tell of these registers.
    #[error("the event log does not lead to RTMR {0} of the quote")]
    Replay(usize),
    /// A forbidden attribute or status.
    #[error("the trust domain or its platform is refused: {0}")]
    Policy(String),
}

/// What a verifier asks of a trust domain beyond that it is one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TdxPolicy {
    /// Accept domains whose memory the host may read for debugging.
    pub is_debug_allowed: bool,
    /// Accept domains that another domain of the host's choice may export.
    pub is_migration_allowed: bool,
    /// The statuses that are accepted; where this is set, a verifier without collateral refuses. `None` accepts any, and none known.
    pub statuses: Option<Vec<TcbStatus>>,
}

/// Trustee's JSON: `{"quote": "<base64>", "cc_eventlog": "<base64>", "aa_eventlog": null}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxEvidence {
    /// The quote.
    pub quote: Vec<u8>,
    /// The firmware's log with what the guest added.
    pub cc_eventlog: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aa_eventlog: Option<String>,
}

/// A quote that Intel's keys stand behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedQuote {
    /// The quote.
    pub quote: TdQuote,
    /// What Intel's files say of the platform, when they were given.
    pub tcb: Option<tcb::Assessment>,
    /// CPUSVN of the platform, as its quoting enclave reports it.
    pub(crate) cpu_svn: [u8; 16],
    platform_instance_id: Option<[u8; 16]>,
}

impl TdxEvidence {
    /// Reads Trustee's JSON. The caller has limited its size.
    pub fn decode(json: &[u8]) -> Result<Self, TdxError> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| TdxError::Json(error.to_string()))?;
        let bytes = |name: &str, text: &str| STANDARD.decode(text).map_err(|error| TdxError::Json(format!("{name}: {error}")));
        let cc_eventlog = wire.cc_eventlog.map(|text| bytes("cc_eventlog", &text)).transpose()?;
        Ok(Self { quote: bytes("quote", &wire.quote)?, cc_eventlog })
    }

    /// Writes Trustee's JSON.
    pub fn encode(&self) -> Vec<u8> {
        let cc_eventlog = self.cc_eventlog.as_ref().map(|log| STANDARD.encode(log));
        let wire = Wire { quote: STANDARD.encode(&self.quote), cc_eventlog, aa_eventlog: None };
        serde_json::to_vec(&wire).expect("a struct of strings always serializes")
    }
}

/// Verifies the chain from Intel's root to the quote's body; `now` is for certificates and collateral.
pub fn verify_quote(bytes: &[u8], collateral: Option<&Collateral>, now: SystemTime) -> Result<VerifiedQuote, TdxError> {
    let (quote, signed) = TdQuote::parse(bytes)?;
    let pck = signed.verify(now)?;
    let tcb = collateral.map(|collateral| collateral.assess(&quote, &signed.enclave_report, &pck, now)).transpose()?;
    Ok(VerifiedQuote { quote, tcb, cpu_svn: signed.enclave_report.cpu_svn, platform_instance_id: pck.platform_instance_id })
}

/// Every RTMR that the log tells of must be what the log leads to; RTMRs that it does not tell of may have been extended by the guest.
pub fn check_log(log: &EventLog, body: &TdBody) -> Result<(), TdxError> {
    for (register, value) in log.replay(Algorithm::Sha384)? {
        // 0 is MRTD, which is not extended by events that a guest could check.
        let Some(index) = usize::try_from(register).ok().and_then(|register| register.checked_sub(1)) else { continue };
        if body.rtmrs.get(index).is_none_or(|rtmr| rtmr[..] != value[..]) {
            return Err(TdxError::Replay(index));
        }
    }
    Ok(())
}

impl VerifiedQuote {
    /// Applies a verifier's policy.
    pub fn check(&self, policy: &TdxPolicy) -> Result<(), TdxError> {
        if self.quote.is_debug() && !policy.is_debug_allowed {
            return Err(TdxError::Policy("it may be debugged".to_owned()));
        }
        if self.quote.is_migratable() && !policy.is_migration_allowed {
            return Err(TdxError::Policy("it may be migrated".to_owned()));
        }
        if self.quote.body.mrsigner_seam != [0; 48] || self.quote.body.seam_attributes != [0; 8] {
            return Err(TdxError::Policy("its TDX module is none of Intel's for production".to_owned()));
        }
        let Some(accepted) = &policy.statuses else { return Ok(()) };
        match &self.tcb {
            Some(tcb) if accepted.contains(&tcb.status) => Ok(()),
            Some(tcb) => Err(TdxError::Policy(format!("its TCB status is {}", tcb.status))),
            None => Err(TdxError::Policy("its TCB status is unknown: give the verifier Intel's collateral".to_owned())),
        }
    }

    /// The initdata register.
    pub fn register(&self) -> Register {
        Register::Rtmr(self.quote.body.rtmrs[3])
    }

    /// The claims, named as Trustee's (`deps/verifier/src/tdx`).
    pub fn claims(&self, log: Option<&EventLog>) -> Value {
        let mut claims = self.quote.claims();
        if let Some(log) = log {
            claims["uefi_event_logs"] = log.claims(Algorithm::Sha384, |register| register != 0);
        }
        if let Some(id) = self.platform_instance_id {
            // Trustee prints it from its other end.
            claims["platform_instance_id"] = hex::encode(id.into_iter().rev().collect::<Vec<u8>>()).into();
        }
        match &self.tcb {
            Some(tcb) => {
                claims["tcb_status"] = tcb.status.to_string().into();
                claims["advisory_ids"] = json!(tcb.advisories);
                claims["tcb_date"] = tcb.date.clone().into();
                claims["collateral_expiration_status"] = "0".into();
            }
            None => claims["tcb_status"] = "Unknown".into(),
        }
        claims
    }
}
