//! AMD SEV-SNP: an attestation report and the certificate of the key that signed it.
//!
//! The signing key is a VCEK (of one chip) or a VLEK (of one cloud); AMD's roots for both are part of this crate, so no verifier needs the
//! network. The certificate names the chip and the firmware versions that the key was derived from, and both must be the report's.
//! Source: "SEV Secure Nested Paging Firmware ABI Specification", 56860 rev. 1.58, and "VCEK certificate and KDS interface", 57230.

mod chain;
mod json;
mod report;

use std::time::SystemTime;

use serde_json::{Value, json};

pub use chain::Product;
pub use report::{MAX_VERSION, MIN_VERSION, REPORT_BYTES, Report, TcbVersion};

use crate::bytes::Malformed;
use crate::x509::CertificateError;
use chain::Endorsed;

/// The name of this format.
pub const TEE: &str = "snp";

/// Why SNP evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum SnpError {
    /// Not a report of a known version.
    #[error("malformed SNP report: {0}")]
    Report(#[from] Malformed),
    /// Not Trustee's JSON around it.
    #[error("malformed SNP evidence: {0}")]
    Json(String),
    /// A certificate in the chain.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// No certificate for the signing key.
    #[error("no VCEK or VLEK certificate: the evidence carries none, and none was given for chip {0}")]
    NoCertificate(String),
    /// The certificate is of another chip or firmware.
    #[error("{0} of the report is not the certificate's")]
    NotEndorsed(&'static str),
    /// The key did not sign the report.
    #[error("the report's signature is wrong")]
    Signature,
    /// Made for a less privileged level of the VM.
    #[error("the report is of VMPL {0}; a workload's evidence is of VMPL 0")]
    Vmpl(u32),
    /// A floor or a forbidden bit.
    #[error("the VM's policy or platform is refused: {0}")]
    Policy(String),
}

/// What a verifier asks of an SNP VM beyond that it is one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnpPolicy {
    /// The lowest firmware versions that are accepted; the default accepts all.
    pub tcb_floor: TcbVersion,
    /// Accept VMs whose memory the host may read for debugging.
    pub is_debug_allowed: bool,
    /// Accept VMs that a migration agent may take elsewhere.
    pub is_migration_allowed: bool,
}

/// A report that AMD's keys stand behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReport {
    /// The report.
    pub report: Report,
    /// The line of processors.
    pub product: Product,
}

/// Trustee's JSON: the report's bytes and the certificates that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpEvidence {
    /// The report, [`REPORT_BYTES`] long.
    pub report: Vec<u8>,
    /// DER of VCEK or VLEK certificates that the host handed over.
    pub certificates: Vec<Vec<u8>>,
}

/// Verifies a report. One of `certificates` (DER, in any order) must be that of its signing key; `now` is for their validity.
pub fn verify_report(report: &[u8], certificates: &[&[u8]], now: SystemTime) -> Result<VerifiedReport, SnpError> {
    let report = Report::parse(report)?;
    let mut refusal = SnpError::NoCertificate(hex::encode(report.chip_id));
    for der in certificates {
        match Endorsed::verify(der, now).and_then(|endorsed| endorsed.check(&report)) {
            Ok(product) => {
                if report.vmpl != 0 {
                    return Err(SnpError::Vmpl(report.vmpl));
                }
                return Ok(VerifiedReport { report, product });
            }
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

impl VerifiedReport {
    /// Applies a verifier's policy.
    pub fn check(&self, policy: &SnpPolicy) -> Result<(), SnpError> {
        let report = &self.report;
        if report.policy.is_debug_allowed() && !policy.is_debug_allowed {
            return Err(SnpError::Policy("it may be debugged".to_owned()));
        }
        if report.policy.is_migration_allowed() && !policy.is_migration_allowed {
            return Err(SnpError::Policy("it may be migrated".to_owned()));
        }
        match report.reported_tcb.below(&policy.tcb_floor) {
            Some((part, found, floor)) => Err(SnpError::Policy(format!("its {part} has version {found}, the floor is {floor}"))),
            None => Ok(()),
        }
    }

    /// The claims, named and typed as Trustee's (`deps/verifier/src/snp`).
    pub fn claims(&self) -> Value {
        let Report { policy, reported_tcb: tcb, platform, .. } = &self.report;
        let mut claims = json!({
            "policy_abi_major": policy.abi_major(),
            "policy_abi_minor": policy.abi_minor(),
            "policy_smt_allowed": policy.is_smt_allowed(),
            "policy_migrate_ma": policy.is_migration_allowed(),
            "policy_debug_allowed": policy.is_debug_allowed(),
            "policy_single_socket": policy.is_single_socket(),
            "reported_tcb_bootloader": tcb.bootloader,
            "reported_tcb_tee": tcb.tee,
            "reported_tcb_snp": tcb.snp,
            "reported_tcb_microcode": tcb.microcode,
            "platform_smt_enabled": platform.is_smt_enabled(),
            "platform_tsme_enabled": platform.is_tsme_enabled(),
            "measurement": hex::encode(self.report.measurement),
            "report_data": hex::encode(self.report.report_data),
            "init_data": hex::encode(self.report.host_data),
        });
        if let Some(fmc) = tcb.fmc {
            claims["reported_tcb_fmc"] = fmc.into();
        }
        claims
    }
}
