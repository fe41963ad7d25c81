//! Trust in a TPM by its endorsement key, for a verifier that can ask the machine back.
//!
//! A TPM's attestation key is its own matter: whoever runs the TPM knows the endorsement key, which its maker or cloud certifies. When
//! [`Trust::tpm_keys`] lists that one, [`Endorsement::of`] makes a challenge that only the TPM with that key can open, and only if the key
//! that signed the evidence lives in it; the right answer makes that key trusted for this evidence.

use aws_lc_rs::constant_time::verify_slices_are_equal;

use crate::snp_tpm::{self, SnpTpmEvidence};
use crate::tpm::credential::{self, SECRET_BYTES};
use crate::tpm::{TpmError, rsa_of};
use crate::verify::Trust;

/// A challenge that was made for a piece of evidence, and its answer.
pub struct Endorsement {
    challenge: Vec<u8>,
    secret: [u8; SECRET_BYTES],
    ak_public: Vec<u8>,
}

impl Endorsement {
    /// For evidence whose attestation key is not trusted and whose endorsement key is. The evidence may be anything: what is not verified
    /// here is for [`crate::verify`] to find.
    pub fn of(tee: &str, evidence: &[u8], trust: &Trust) -> Result<Option<Self>, TpmError> {
        if tee != snp_tpm::TEE || trust.tpm_keys.is_empty() || evidence.len() > crate::MAX_EVIDENCE_BYTES {
            return Ok(None);
        }
        let Ok(SnpTpmEvidence { tpm, .. }) = SnpTpmEvidence::decode(evidence) else { return Ok(None) };
        let (Some(ek), Some(ak)) = (tpm.ek, tpm.ak) else { return Ok(None) };
        if trust.tpm_keys.contains(&tpm.ak_public) || !trust.tpm_keys.contains(&rsa_of(&ek)?.to_spki()) {
            return Ok(None);
        }
        if rsa_of(&ak)?.to_spki() != tpm.ak_public {
            return Err(TpmError::Json("ak is not the key of ak_public".to_owned()));
        }
        let (challenge, secret) = credential::challenge(&ek, &ak)?;
        Ok(Some(Self { challenge: challenge.encode(), secret, ak_public: tpm.ak_public }))
    }

    /// For the machine, to be read with [`credential::Challenge::decode`].
    pub fn challenge(&self) -> Vec<u8> {
        self.challenge.clone()
    }

    /// The trust under which the evidence is to be verified, if the answer is right.
    pub fn trust(self, answer: &[u8], trust: &Trust) -> Result<Trust, TpmError> {
        verify_slices_are_equal(&self.secret, answer)
            .map_err(|_| TpmError::Endorsement("the attestation key is not of the TPM with this key".to_owned()))?;
        let mut trust = trust.clone();
        trust.tpm_keys.push(self.ak_public);
        Ok(trust)
    }
}
