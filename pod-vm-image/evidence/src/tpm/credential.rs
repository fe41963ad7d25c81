//! Credential activation: a secret that only the TPM with this endorsement key can open, and only if this attestation key is its own.
//!
//! The verifier encrypts to the EK and binds the AK's name into it; the TPM's ActivateCredential opens it (part 1, "Credential
//! protection"; the outer wrap is RSAES-OAEP with SHA-256 and the label `IDENTITY`, the inner AES-128-CFB and an HMAC).

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use tpm2_protocol::data::TpmaObject;

use super::key::{name, parse};
use super::{TpmError, rsa_of};
use crate::bytes::Malformed;

/// Bytes of the secret.
pub const SECRET_BYTES: usize = 32;

/// What is sent to the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// TPM2B_ID_OBJECT without its size.
    pub credential: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET without its size.
    pub encrypted_secret: Vec<u8>,
}

impl Challenge {
    /// TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, each with its size.
    pub fn encode(&self) -> Vec<u8> {
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()[..], bytes].concat();
        [sized(&self.credential), sized(&self.encrypted_secret)].concat()
    }

    /// Reads that.
    pub fn decode(bytes: &[u8]) -> Result<Self, TpmError> {
        let sized = |bytes: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
            let (size, rest) = bytes.split_first_chunk()?;
            let (field, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
            Some((field.to_vec(), rest.to_vec()))
        };
        let fields = sized(bytes).and_then(|(credential, rest)| Some((credential, sized(&rest)?)));
        match fields {
            Some((credential, (encrypted_secret, rest))) if rest.is_empty() => Ok(Self { credential, encrypted_secret }),
            _ => Err(Malformed::new("it is no credential with its secret").into()),
        }
    }
}

/// A challenge for the TPM with this EK, and the answer that only it can give. Both keys are marshalled TPMT_PUBLIC.
pub fn challenge(ek: &[u8], ak: &[u8]) -> Result<(Challenge, [u8; SECRET_BYTES]), TpmError> {
    check_ak(ak)?;
    let (mut seed, mut secret) = ([0; 32], [0; SECRET_BYTES]);
    let refused = |what: &str| TpmError::Endorsement(what.to_owned());
    rand::fill(&mut seed).and_then(|()| rand::fill(&mut secret)).map_err(|_| refused("no randomness"))?;

    let key = PublicEncryptingKey::from_der(&rsa_of(ek)?.to_spki()).map_err(|_| refused("it is not a usable RSA key"))?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| refused("it is not a usable RSA key"))?;
    let mut encrypted_secret = vec![0; key.ciphertext_size()];
    let written = key
        .encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut encrypted_secret, Some(b"IDENTITY\0"))
        .map_err(|_| refused("it cannot encrypt"))?
        .len();
    encrypted_secret.truncate(written);

    let name = name(ak)?;
    // TPM2B_DIGEST of the secret.
    let mut inner = [&[0, 32][..], &secret].concat();
    let storage: [u8; 16] = kdf(&seed, b"STORAGE\0", &name, 128);
    let storage = UnboundCipherKey::new(&AES_128, &storage).and_then(EncryptingKey::cfb128).map_err(|_| refused("no AES"))?;
    let zeros = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    storage.less_safe_encrypt(&mut inner, zeros).map_err(|_| refused("no AES"))?;
    let integrity: [u8; 32] = kdf(&seed, b"INTEGRITY\0", &[], 256);
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &integrity), &[&inner[..], &name].concat());
    let credential = [&[0, 32][..], mac.as_ref(), &inner].concat();
    Ok((Challenge { credential, encrypted_secret }, secret))
}

/// An AK signs only what its TPM made and never leaves it; any other key could sign a made-up quote.
fn check_ak(ak: &[u8]) -> Result<(), TpmError> {
    let needed = TpmaObject::RESTRICTED | TpmaObject::SIGN_ENCRYPT | TpmaObject::FIXED_TPM | TpmaObject::FIXED_PARENT;
    let attributes = parse(ak)?.object_attributes;
    if attributes.contains(needed) && !attributes.contains(TpmaObject::DECRYPT) {
        Ok(())
    } else {
        Err(TpmError::Endorsement("the attestation key is not a restricted signing key that stays in its TPM".to_owned()))
    }
}

/// KDFa with SHA-256 (part 1, "Key derivation function"), one round: at most 256 bits.
fn kdf<const N: usize>(seed: &[u8; 32], label: &[u8], context: &[u8], bits: u32) -> [u8; N] {
    let input = [&1u32.to_be_bytes()[..], label, context, &bits.to_be_bytes()].concat();
    let block = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, seed), &input);
    let mut key = [0; N];
    key.copy_from_slice(&block.as_ref()[..N]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_is_written_with_its_sizes_and_read_back() {
        let challenge = Challenge { credential: vec![1, 2], encrypted_secret: vec![3] };
        let bytes = challenge.encode();
        assert_eq!(bytes, [0, 2, 1, 2, 0, 1, 3]);
        assert_eq!(Challenge::decode(&bytes).unwrap(), challenge);
        for cut in 0..bytes.len() {
            assert!(Challenge::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Challenge::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}
