//! The front door: is this evidence of the right format, for this request, from a VM in the right state and of the right image?

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::azure::{self, AzureError};
use crate::eventlog::EventLog;
use crate::register::{InitdataState, Register, WrongRegister};
use crate::sample::{self, SampleError, SampleEvidence};
use crate::snp::{self, SnpError, SnpEvidence, SnpPolicy};
use crate::snp_tpm::{self, SnpTpmError, SnpTpmEvidence};
use crate::tdx::{self, Collateral, TdxError, TdxEvidence, TdxPolicy};
use crate::tpm::{self, TpmError, TpmEvidence, is_report_data};

/// Longest evidence that is read. An SNP report with its certificates has 6 KiB, a TDX quote with its event log some 100 KiB, a CCEL table
/// as the firmware leaves it, in base64, up to 1.4 MiB.
pub const MAX_EVIDENCE_BYTES: usize = 3 << 19;

/// The formats that are verified.
pub const TEES: [&str; 7] = [snp::TEE, tdx::TEE, azure::SNP_TEE, azure::TDX_TEE, snp_tpm::TEE, tpm::TEE, sample::TEE];

/// What evidence must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The report data of this very request.
    pub report_data: [u8; 48],
    /// The initdata register.
    pub initdata: InitdataState,
    /// The least that must stand behind it.
    pub root_of_trust: RootOfTrust,
    /// What the image must be.
    pub reference_values: ReferenceValues,
}

/// Who vouches for a VM, from the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootOfTrust {
    /// The processor.
    #[default]
    Hardware,
    /// The cloud, by a TPM whose key the verifier knows; the processor vouches for the VM's encryption only.
    CloudTpm,
    /// Nobody who is not the host as well.
    Insecure,
}

/// The values that claims must have: the claim's path below the format's name (`pcr04`, `quote.body.mr_td`) and the values that are accepted.
/// All paths must match. A path that the evidence lacks does not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReferenceValues(pub BTreeMap<String, Vec<String>>);

/// What a verifier trusts and demands beside a request's own expectations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// For SNP.
    pub snp: SnpPolicy,
    /// For TDX.
    pub tdx: TdxPolicy,
    /// VCEK and VLEK certificates (DER) for hosts that hand over none.
    pub snp_certificates: Vec<Vec<u8>>,
    /// Intel's files.
    pub tdx_collateral: Option<Collateral>,
    /// Attestation keys (DER SubjectPublicKeyInfo) of TPMs that their cloud vouches for: any program can quote with a key of its own.
    /// Endorsement keys count only for a verifier that asks the machine back ([`crate::Endorsement`]).
    pub tpm_keys: Vec<Vec<u8>>,
}

/// Evidence that is genuine and of this request.
#[derive(Debug, Clone, PartialEq)]
pub struct Appraisal {
    /// The format.
    pub tee: &'static str,
    /// Who vouches for it.
    pub root_of_trust: RootOfTrust,
    /// What it says, as Trustee's verifier would, without the format's name around it.
    pub claims: Value,
    /// The initdata register.
    pub register: Register,
    /// When it was verified, by the caller's clock.
    pub at: SystemTime,
}

/// Why evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No verifier for this format.
    #[error("no verifier for evidence of {0:?}; supported: {list}", list = TEES.join(", "))]
    UnsupportedTee(String),
    /// More than [`MAX_EVIDENCE_BYTES`].
    #[error("evidence has {0} bytes; at most {MAX_EVIDENCE_BYTES} are read")]
    TooLong(usize),
    /// Of the sample format.
    #[error("cannot read evidence")]
    Sample(#[from] SampleError),
    /// Of SNP.
    #[error("cannot verify evidence")]
    Snp(#[from] SnpError),
    /// Of TDX.
    #[error("cannot verify evidence")]
    Tdx(#[from] TdxError),
    /// Of Azure.
    #[error("cannot verify evidence")]
    Azure(#[from] AzureError),
    /// Of a TPM.
    #[error("cannot verify evidence")]
    Tpm(#[from] TpmError),
    /// Of SNP with a cloud's TPM.
    #[error("cannot verify evidence")]
    SnpTpm(#[from] SnpTpmError),
    /// The evidence was made for another request or connection.
    #[error("report data of the evidence is of another request")]
    ReportData,
    /// The register does not hold what it must.
    #[error(transparent)]
    Initdata(#[from] WrongRegister),
    /// Less stands behind it than must.
    #[error("the root of trust of {tee:?} evidence is {found}; the class demands {expected}")]
    RootOfTrust {
        /// The format.
        tee: &'static str,
        /// What stands behind it.
        found: RootOfTrust,
        /// What must.
        expected: RootOfTrust,
    },
    /// What measures the image is not pinned.
    #[error("the reference values lack {0}: whoever starts the VM could start firmware that lies about the rest; next: add it to them")]
    FirmwareNotPinned(&'static str),
    /// Another image or platform.
    #[error("claim {claim} is {found}, which is none of the {accepted} reference value(s)")]
    ReferenceValue {
        /// The path.
        claim: String,
        /// What the evidence says, or that it says nothing.
        found: String,
        /// How many values would be accepted.
        accepted: usize,
    },
}

/// Verifies evidence of the format that the *caller* expects, never the one that the peer claims: genuine, and made for this report data.
/// What it must say is for [`verify`] or a policy.
pub fn appraise(tee: &str, evidence: &[u8], report_data: &[u8; 48], trust: &Trust, now: SystemTime) -> Result<Appraisal, VerifyError> {
    if evidence.len() > MAX_EVIDENCE_BYTES {
        return Err(VerifyError::TooLong(evidence.len()));
    }
    let tee = TEES.into_iter().find(|known| *known == tee).ok_or_else(|| VerifyError::UnsupportedTee(tee.to_owned()))?;
    let certificates: Vec<&[u8]> = trust.snp_certificates.iter().map(Vec::as_slice).collect();
    let (found, root_of_trust, claims, register) = match tee {
        snp::TEE => {
            let evidence = SnpEvidence::decode(evidence)?;
            let all: Vec<&[u8]> = evidence.certificates.iter().map(Vec::as_slice).chain(certificates).collect();
            let verified = snp::verify_report(&evidence.report, &all, now)?;
            verified.check(&trust.snp)?;
            let register = Register::HostField(verified.report.host_data.to_vec());
            (verified.report.report_data.to_vec(), RootOfTrust::Hardware, verified.claims(), register)
        }
        tdx::TEE => {
            let evidence = TdxEvidence::decode(evidence)?;
            let verified = tdx::verify_quote(&evidence.quote, trust.tdx_collateral.as_ref(), now)?;
            verified.check(&trust.tdx)?;
            let log = evidence.cc_eventlog.as_deref().map(EventLog::parse).transpose().map_err(TdxError::from)?;
            if let Some(log) = &log {
                tdx::check_log(log, &verified.quote.body)?;
            }
            let claims = verified.claims(log.as_ref());
            (verified.quote.body.report_data.to_vec(), RootOfTrust::Hardware, claims, verified.register())
        }
        azure::SNP_TEE => {
            let verified = azure::verify_snp(evidence, report_data, &trust.snp, now)?;
            (verified.vtpm.report_data.clone(), RootOfTrust::Hardware, verified.claims(), verified.vtpm.register())
        }
        azure::TDX_TEE => {
            let verified = azure::verify_tdx(evidence, report_data, &trust.tdx, trust.tdx_collateral.as_ref(), now)?;
            (verified.vtpm.report_data.clone(), RootOfTrust::Hardware, verified.claims(), verified.vtpm.register())
        }
        snp_tpm::TEE => {
            let verified = SnpTpmEvidence::decode(evidence)?.verify(report_data, &certificates, &trust.snp, now)?;
            let is_clouds = trust.tpm_keys.contains(&verified.tpm.ak_public);
            let root_of_trust = if is_clouds { RootOfTrust::CloudTpm } else { RootOfTrust::Insecure };
            (verified.tpm.report_data.clone(), root_of_trust, verified.claims(), verified.tpm.register())
        }
        tpm::TEE => {
            let verified = TpmEvidence::decode(evidence)?.verify()?;
            (verified.report_data.clone(), RootOfTrust::Insecure, verified.claims(), verified.register())
        }
        _ => {
            let evidence = SampleEvidence::decode(evidence)?;
            let (claims, register) = (evidence.claims(), Register::Sample(evidence.initdata.clone()));
            (evidence.report_data, RootOfTrust::Insecure, claims, register)
        }
    };
    if !is_report_data(&found, report_data) {
        return Err(VerifyError::ReportData);
    }
    Ok(Appraisal { tee, root_of_trust, claims, register, at: now })
}

/// [`appraise`], and compares with what must be.
pub fn verify(tee: &str, evidence: &[u8], expected: &Expected, trust: &Trust, now: SystemTime) -> Result<Appraisal, VerifyError> {
    let appraisal = appraise(tee, evidence, &expected.report_data, trust, now)?;
    if appraisal.root_of_trust > expected.root_of_trust {
        let (found, expected) = (appraisal.root_of_trust, expected.root_of_trust);
        return Err(VerifyError::RootOfTrust { tee: appraisal.tee, found, expected });
    }
    appraisal.register.check(&expected.initdata)?;
    expected.reference_values.check_firmware(appraisal.tee)?;
    expected.reference_values.check(&appraisal.claims)?;
    Ok(appraisal)
}

impl ReferenceValues {
    /// Whether they pin the firmware, where firmware that the host chooses makes the other measurements.
    pub fn check_firmware(&self, tee: &str) -> Result<(), VerifyError> {
        let claim = match tee {
            azure::SNP_TEE => "measurement",
            azure::TDX_TEE | tdx::TEE => "quote.body.mr_td",
            _ => return Ok(()),
        };
        if self.0.is_empty() || self.0.contains_key(claim) { Ok(()) } else { Err(VerifyError::FirmwareNotPinned(claim)) }
    }

    /// Compares claims with the values.
    pub fn check(&self, claims: &Value) -> Result<(), VerifyError> {
        for (claim, accepted) in &self.0 {
            let found = claim.split('.').try_fold(claims, |value, member| value.get(member));
            let found = match found {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => format!("absent, beside {}", names(claims)),
            };
            if !accepted.contains(&found) {
                return Err(VerifyError::ReferenceValue { claim: claim.clone(), found, accepted: accepted.len() });
            }
        }
        Ok(())
    }
}

impl Appraisal {
    /// The claims under the format's name, as Trustee has them: `{"az-snp-vtpm": {...}}`.
    pub fn named_claims(&self) -> Value {
        json!({ self.tee: self.claims })
    }
}

fn names(claims: &Value) -> String {
    claims.as_object().map_or_else(String::new, |claims| claims.keys().cloned().collect::<Vec<_>>().join(", "))
}

impl fmt::Display for RootOfTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::CloudTpm => "cloud-tpm",
            Self::Insecure => "insecure",
        })
    }
}

impl FromStr for RootOfTrust {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Hardware, Self::CloudTpm, Self::Insecure];
        all.into_iter().find(|root| root.to_string() == text).ok_or_else(|| format!("no root of trust is called {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected() -> Expected {
        Expected {
            report_data: [7; 48],
            initdata: InitdataState::Reset,
            root_of_trust: RootOfTrust::Insecure,
            reference_values: ReferenceValues::default(),
        }
    }

    fn evidence(report_data: [u8; 48], initdata: Option<Vec<u8>>) -> Vec<u8> {
        SampleEvidence { svn: "1".to_owned(), report_data: report_data.to_vec(), initdata }.encode()
    }

    fn verify_now(tee: &str, bytes: &[u8], expected: &Expected) -> Result<Appraisal, VerifyError> {
        verify(tee, bytes, expected, &Trust::default(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn matching_evidence_is_verified_and_named_insecure() {
        let appraisal = verify_now("sample", &evidence([7; 48], None), &expected()).unwrap();
        assert_eq!(appraisal.root_of_trust, RootOfTrust::Insecure);
        assert_eq!(appraisal.named_claims()["sample"]["svn"], "1");
    }

    #[test]
    fn evidence_of_another_request_is_refused() {
        assert!(matches!(verify_now("sample", &evidence([8; 48], None), &expected()), Err(VerifyError::ReportData)));
    }

    #[test]
    fn vm_that_ran_a_workload_is_refused_where_reset_is_expected() {
        let error = verify_now("sample", &evidence([7; 48], Some(vec![1, 2])), &expected()).unwrap_err();
        assert_eq!(error.to_string(), "initdata register is extended with 0102; expected reset");
        let extended = Expected { initdata: InitdataState::Extended(vec![1, 2]), ..expected() };
        assert!(verify_now("sample", &evidence([7; 48], Some(vec![1, 2])), &extended).is_ok());
        assert!(verify_now("sample", &evidence([7; 48], None), &extended).is_err());
    }

    #[test]
    fn either_state_is_accepted_where_the_bind_may_have_arrived() {
        let either = Expected { initdata: InitdataState::ResetOrExtended(vec![1, 2]), ..expected() };
        assert!(verify_now("sample", &evidence([7; 48], None), &either).is_ok());
        assert!(verify_now("sample", &evidence([7; 48], Some(vec![1, 2])), &either).is_ok());
        assert!(verify_now("sample", &evidence([7; 48], Some(vec![3])), &either).is_err());
    }

    #[test]
    fn root_of_trust_is_the_least_that_must_stand_behind_it() {
        let hardware = Expected { root_of_trust: RootOfTrust::Hardware, ..expected() };
        let error = verify_now("sample", &evidence([7; 48], None), &hardware).unwrap_err();
        assert_eq!(error.to_string(), "the root of trust of \"sample\" evidence is insecure; the class demands hardware");
    }

    #[test]
    fn reference_values_must_all_match() {
        let of = |claim: &str, value: &str| ReferenceValues([(claim.to_owned(), vec!["x".to_owned(), value.to_owned()])].into());
        for (reference_values, is_accepted) in [
            (of("launch_digest", "abcde"), true),
            (of("platform_version.major", "1"), true),
            (of("launch_digest", "abcdef"), false),
            (of("pcr04", "00"), false),
        ] {
            let expected = Expected { reference_values, ..expected() };
            assert_eq!(verify_now("sample", &evidence([7; 48], None), &expected).is_ok(), is_accepted, "{expected:?}");
        }
    }

    #[test]
    fn measurements_of_firmware_that_nobody_pinned_are_worth_nothing() {
        let of = |claims: &[&str]| ReferenceValues(claims.iter().map(|claim| ((*claim).to_owned(), vec!["aa".to_owned()])).collect());
        for (tee, claims, is_pinned) in [
            (azure::SNP_TEE, &["tpm.pcr11"][..], false),
            (azure::SNP_TEE, &["tpm.pcr11", "measurement"], true),
            (azure::TDX_TEE, &["tpm.pcr11"], false),
            (tdx::TEE, &["quote.body.rtmr_1"], false),
            (tdx::TEE, &["quote.body.rtmr_1", "quote.body.mr_td"], true),
            (tdx::TEE, &[], true),
            (tpm::TEE, &["pcr11"], true),
        ] {
            assert_eq!(of(claims).check_firmware(tee).is_ok(), is_pinned, "{tee} {claims:?}");
        }
    }

    #[test]
    fn unsupported_tee_is_refused_by_name() {
        assert!(matches!(verify_now("sgx", b"", &expected()), Err(VerifyError::UnsupportedTee(name)) if name == "sgx"));
    }

    #[test]
    fn oversize_evidence_is_refused_unread() {
        assert!(matches!(verify_now("sample", &vec![b' '; MAX_EVIDENCE_BYTES + 1], &expected()), Err(VerifyError::TooLong(_))));
    }

    #[test]
    fn sample_evidence_has_the_documented_form() {
        let json = br#"{"svn":"1","report_data":"AQI=","initdata":null}"#;
        let decoded = SampleEvidence::decode(json).unwrap();
        assert_eq!(decoded, SampleEvidence { svn: "1".to_owned(), report_data: vec![1, 2], initdata: None });
        assert_eq!(decoded.encode(), json);
        assert_eq!(SampleEvidence::decode(br#"{"svn":"1","report_data":"AQI="}"#).unwrap(), decoded);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), tee in 0..TEES.len()) {
            prop_assert!(verify_now(TEES[tee], &bytes, &expected()).is_err());
        }
    }
}
