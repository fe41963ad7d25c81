//! The verifier: is this evidence of the right format, for this request, from a VM in the right state?

use std::time::SystemTime;

use crate::sample::{self, SampleError, SampleEvidence};

/// Longest evidence that is read. An SNP report with its certificates has 6 KiB, a TDX quote with its event log some 100 KiB.
pub const MAX_EVIDENCE_BYTES: usize = 1 << 20;

/// What evidence must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The report data of this very request.
    pub report_data: [u8; 48],
    /// The initdata register.
    pub initdata: InitdataState,
}

/// What the initdata register must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitdataState {
    /// The value after boot: no workload ever ran.
    Reset,
    /// Extended once, with this digest.
    Extended(Vec<u8>),
    /// Either. For a Bind that may have been sent before without its answer having arrived: the VM may be bound by this very
    /// request already. A VM bound by another one can look the same, but being the measured image it refuses the Bind.
    ResetOrExtended(Vec<u8>),
}

/// Evidence that showed what it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The format.
    pub tee: String,
    /// Whether anything but the peer's word stands behind it.
    pub is_insecure: bool,
    /// When it was verified, by the caller's clock.
    pub at: SystemTime,
}

/// Why evidence was refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No verifier for this format.
    #[error("no verifier for evidence of {0:?}; supported: sample")]
    UnsupportedTee(String),
    /// More than [`MAX_EVIDENCE_BYTES`].
    #[error("evidence has {0} bytes; at most {MAX_EVIDENCE_BYTES} are read")]
    TooLong(usize),
    /// Sample evidence that is not what the attester writes.
    #[error("cannot read evidence")]
    Sample(#[from] SampleError),
    /// The evidence was made for another request or connection.
    #[error("report data of the evidence is of another request")]
    ReportData,
    /// The register does not hold what it must.
    #[error("initdata register is {found}; expected {expected}")]
    Initdata {
        /// What must be.
        expected: String,
        /// What is.
        found: String,
    },
}

/// Verifies evidence of the format that the *caller* expects, never the one that the peer claims. `now` is for the validity of
/// certificates; the sample format has none.
pub fn verify(tee: &str, evidence: &[u8], expected: &Expected, now: SystemTime) -> Result<Verified, VerifyError> {
    if evidence.len() > MAX_EVIDENCE_BYTES {
        return Err(VerifyError::TooLong(evidence.len()));
    }
    match tee {
        sample::TEE => {
            let found = SampleEvidence::decode(evidence)?;
            if found.report_data != expected.report_data {
                return Err(VerifyError::ReportData);
            }
            expected.initdata.check(found.initdata.as_deref())?;
            Ok(Verified { tee: tee.to_owned(), is_insecure: true, at: now })
        }
        other => Err(VerifyError::UnsupportedTee(other.to_owned())),
    }
}

impl InitdataState {
    fn check(&self, found: Option<&[u8]>) -> Result<(), VerifyError> {
        let holds = match (self, found) {
            (Self::Reset | Self::ResetOrExtended(_), None) => true,
            (Self::Extended(digest) | Self::ResetOrExtended(digest), Some(found)) => found == digest,
            (Self::Reset, Some(_)) | (Self::Extended(_), None) => false,
        };
        let show =
            |state: Option<&[u8]>| state.map_or_else(|| "reset".to_owned(), |digest| format!("extended with {}", hex::encode(digest)));
        let expected = || match self {
            Self::Reset => show(None),
            Self::Extended(digest) => show(Some(digest)),
            Self::ResetOrExtended(digest) => format!("reset or {}", show(Some(digest))),
        };
        if holds { Ok(()) } else { Err(VerifyError::Initdata { expected: expected(), found: show(found) }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXPECTED: Expected = Expected { report_data: [7; 48], initdata: InitdataState::Reset };

    fn evidence(report_data: [u8; 48], initdata: Option<Vec<u8>>) -> Vec<u8> {
        SampleEvidence { svn: "1".to_owned(), report_data: report_data.to_vec(), initdata }.encode()
    }

    fn verify_now(tee: &str, bytes: &[u8], expected: &Expected) -> Result<Verified, VerifyError> {
        verify(tee, bytes, expected, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn matching_evidence_is_verified_and_named_insecure() {
        assert!(verify_now("sample", &evidence([7; 48], None), &EXPECTED).unwrap().is_insecure);
    }

    #[test]
    fn evidence_of_another_request_is_refused() {
        assert!(matches!(verify_now("sample", &evidence([8; 48], None), &EXPECTED), Err(VerifyError::ReportData)));
    }

    #[test]
    fn vm_that_ran_a_workload_is_refused_where_reset_is_expected() {
        let error = verify_now("sample", &evidence([7; 48], Some(vec![1, 2])), &EXPECTED).unwrap_err();
        assert_eq!(error.to_string(), "initdata register is extended with 0102; expected reset");
        let extended = Expected { initdata: InitdataState::Extended(vec![1, 2]), ..EXPECTED };
        assert!(verify_now("sample", &evidence([7; 48], Some(vec![1, 2])), &extended).is_ok());
        assert!(verify_now("sample", &evidence([7; 48], None), &extended).is_err());
    }

    #[test]
    fn either_state_is_accepted_where_the_bind_may_have_arrived() {
        let either = Expected { initdata: InitdataState::ResetOrExtended(vec![1, 2]), ..EXPECTED };
        assert!(verify_now("sample", &evidence([7; 48], None), &either).is_ok());
        assert!(verify_now("sample", &evidence([7; 48], Some(vec![1, 2])), &either).is_ok());
        assert!(verify_now("sample", &evidence([7; 48], Some(vec![3])), &either).is_err());
    }

    #[test]
    fn unsupported_tee_is_refused_by_name() {
        assert!(matches!(verify_now("snp", b"", &EXPECTED), Err(VerifyError::UnsupportedTee(name)) if name == "snp"));
    }

    #[test]
    fn oversize_evidence_is_refused_unread() {
        assert!(matches!(verify_now("sample", &vec![b' '; MAX_EVIDENCE_BYTES + 1], &EXPECTED), Err(VerifyError::TooLong(_))));
    }

    #[test]
    fn sample_evidence_has_the_documented_form() {
        let json = br#"{"svn":"1","report_data":"AQI=","initdata":null}"#;
        let decoded = SampleEvidence::decode(json).unwrap();
        assert_eq!(decoded, SampleEvidence { svn: "1".to_owned(), report_data: vec![1, 2], initdata: None });
        assert_eq!(decoded.encode(), json);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(verify_now("sample", &bytes, &EXPECTED).is_err());
        }
    }
}
