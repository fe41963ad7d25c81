//! Collects evidence inside the pod VM; guest only.
//!
//! One [`Attester`] lives in the agent role for the VM's whole life. It owns the initdata register: extended exactly once, when
//! the VM is bound, and never reset. It verifies nothing; that is for the node and the key broker.
//! Only the `sample` kind exists so far: its register is in this process, and its evidence protects nothing.

use peerpods_evidence::sample::{self, SampleEvidence};

/// Longest digest: SHA-512.
const MAX_DIGEST_BYTES: usize = 64;

/// Makes evidence of one kind.
#[derive(Debug)]
pub struct Attester {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Sample { initdata: Option<Vec<u8>> },
}

/// Why there is no evidence, or no measurement.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AttesterError {
    /// This image has no attester of that kind.
    #[error("no attester for {0:?}; this image has: sample")]
    UnsupportedTee(String),
    /// The initdata register was extended before, with another digest.
    #[error("the initdata register was extended before, with another digest; a pod VM serves one pod")]
    AlreadyExtended,
    /// Not the length of a digest.
    #[error("an initdata digest has 32 to 64 bytes, not {0}")]
    BadDigest(usize),
}

impl Attester {
    /// The attester for the kind that user data names.
    pub fn for_tee(tee: &str) -> Result<Self, AttesterError> {
        match tee {
            sample::TEE => Ok(Self { kind: Kind::Sample { initdata: None } }),
            other => Err(AttesterError::UnsupportedTee(other.to_owned())),
        }
    }

    /// The kind, as in the Evidence message.
    pub fn tee(&self) -> &'static str {
        match self.kind {
            Kind::Sample { .. } => sample::TEE,
        }
    }

    /// Evidence of the VM's current state with this report data in it.
    pub fn evidence(&self, report_data: &[u8]) -> Result<Vec<u8>, AttesterError> {
        match &self.kind {
            Kind::Sample { initdata } => {
                Ok(SampleEvidence { svn: "1".to_owned(), report_data: report_data.to_vec(), initdata: initdata.clone() }.encode())
            }
        }
    }

    /// Extends the initdata register, once in the VM's life; the same digest again changes nothing.
    /// After an error the caller must treat the VM as spent.
    pub fn extend_initdata(&mut self, digest: &[u8]) -> Result<(), AttesterError> {
        if !(32..=MAX_DIGEST_BYTES).contains(&digest.len()) {
            return Err(AttesterError::BadDigest(digest.len()));
        }
        match &mut self.kind {
            Kind::Sample { initdata: Some(before) } if before == digest => Ok(()),
            Kind::Sample { initdata: Some(_) } => Err(AttesterError::AlreadyExtended),
            Kind::Sample { initdata } => {
                *initdata = Some(digest.to_vec());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_evidence::{Expected, InitdataState, initdata, verify};
    use std::time::SystemTime;

    #[test]
    fn evidence_shows_reset_until_extended_and_then_the_digest() {
        let mut attester = Attester::for_tee("sample").unwrap();
        let show = |attester: &Attester, initdata| {
            let expected = Expected { report_data: [3; 48], initdata };
            verify(attester.tee(), &attester.evidence(&[3; 48]).unwrap(), &expected, SystemTime::UNIX_EPOCH)
        };
        assert!(show(&attester, InitdataState::Reset).is_ok());
        let digest = initdata::digest(None).unwrap();
        attester.extend_initdata(&digest).unwrap();
        assert!(show(&attester, InitdataState::Reset).is_err());
        assert!(show(&attester, InitdataState::Extended(digest)).is_ok());
    }

    #[test]
    fn second_extension_is_refused_unless_it_is_the_same() {
        let mut attester = Attester::for_tee("sample").unwrap();
        attester.extend_initdata(&[1; 48]).unwrap();
        assert_eq!(attester.extend_initdata(&[2; 48]), Err(AttesterError::AlreadyExtended));
        let after = attester.evidence(&[0; 48]).unwrap();
        assert_eq!(attester.extend_initdata(&[1; 48]), Ok(()));
        assert_eq!(attester.evidence(&[0; 48]).unwrap(), after);
    }

    #[test]
    fn unknown_tee_and_short_digest_are_refused_by_name() {
        assert_eq!(Attester::for_tee("tdx").unwrap_err(), AttesterError::UnsupportedTee("tdx".to_owned()));
        assert_eq!(Attester::for_tee("sample").unwrap().extend_initdata(&[0; 20]), Err(AttesterError::BadDigest(20)));
    }
}
