//! TPMS_ATTEST of a quote: what the TPM signed.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};
use tpm2_protocol::TpmUnmarshal as _;
use tpm2_protocol::data::{TpmAlgId, TpmSt, TpmsAttest, TpmtSignature, TpmuAttest, TpmuSignature};

use super::{RsaKey, TpmError};
use crate::bytes::Malformed;
use crate::register::INITDATA_PCR;

/// Registers of a bank.
const COUNT: usize = 24;

/// Registers that a verifier of pod VMs looks at: boot application, initdata, initrd, parts of the UKI.
const NEEDED: [usize; 4] = [4, INITDATA_PCR, 9, 11];

/// The SHA-256 bank of a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pcrs(Box<[[u8; 32]; COUNT]>);

impl Pcrs {
    /// From the registers in order.
    pub fn new(values: [[u8; 32]; COUNT]) -> Self {
        Self(Box::new(values))
    }

    /// A register.
    pub fn get(&self, index: usize) -> Option<&[u8; 32]> {
        self.0.get(index)
    }

    /// Reads 24 lower-case numbers. Upper case is refused: evidence has one spelling.
    pub fn from_hex(texts: &[String]) -> Result<Self, TpmError> {
        let bad = |what: &str| TpmError::Json(format!("pcrs: {what}"));
        let mut values = [[0; 32]; COUNT];
        if texts.len() != COUNT {
            return Err(bad("not 24 registers"));
        }
        for (value, text) in values.iter_mut().zip(texts) {
            if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return Err(bad("upper-case digits"));
            }
            hex::decode_to_slice(text, value).map_err(|error| bad(&error.to_string()))?;
        }
        Ok(Self::new(values))
    }

    /// 64 lower-case digits each.
    pub fn to_hex(&self) -> Vec<String> {
        self.0.iter().map(hex::encode).collect()
    }
}

/// What a quote tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// What the requester asked to be bound into it.
    pub extra_data: Vec<u8>,
}

impl Quote {
    /// Verifies that `key` signed `message` (RSASSA with SHA-256, the signature bare) and that it quotes these PCRs.
    pub fn verify(message: &[u8], signature: &[u8], key: &RsaKey, pcrs: &Pcrs) -> Result<Self, TpmError> {
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.to_pkcs1());
        public.verify(message, signature).map_err(|_| TpmError::Signature)?;
        let (attest, rest) = TpmsAttest::unmarshal(message).map_err(|error| Malformed::new(error.to_string()))?;
        if !rest.is_empty() || attest.attest_type != TpmSt::AttestQuote {
            return Err(Malformed::new("the signed structure is not a quote").into());
        }
        let TpmuAttest::Quote(quoted) = attest.attested else {
            return Err(Malformed::new("the signed structure is not a quote").into());
        };
        let [selection] = &quoted.pcr_select[..] else { return Err(Malformed::new("not one selection of PCRs").into()) };
        if selection.hash != TpmAlgId::Sha256 {
            return Err(Malformed::new("the selection is not of the SHA-256 bank").into());
        }
        let is_selected = |index: usize| selection.pcr_select.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0);
        if let Some(index) = NEEDED.into_iter().find(|index| !is_selected(*index)) {
            return Err(TpmError::NotQuoted(index));
        }
        let mut digest = Sha256::new();
        for (index, value) in pcrs.0.iter().enumerate() {
            if is_selected(index) {
                digest.update(value);
            } else if *value != [0; 32] {
                // It would become a claim that nobody vouches for.
                return Err(TpmError::NotQuoted(index));
            }
        }
        if digest.finalize()[..] != quoted.pcr_digest[..] {
            return Err(TpmError::Pcrs);
        }
        Ok(Self { extra_data: attest.extra_data.to_vec() })
    }
}

/// The bare signature in a TPMT_SIGNATURE of RSASSA with SHA-256.
pub(super) fn rsassa_signature(marshalled: &[u8]) -> Result<Vec<u8>, TpmError> {
    let (signature, rest) = TpmtSignature::unmarshal(marshalled).map_err(|error| Malformed::new(error.to_string()))?;
    match signature.signature {
        TpmuSignature::Rsassa(rsa) if rsa.hash == TpmAlgId::Sha256 && rest.is_empty() => Ok(rsa.sig.to_vec()),
        _ => Err(Malformed::new("the signature is not RSASSA with SHA-256").into()),
    }
}
