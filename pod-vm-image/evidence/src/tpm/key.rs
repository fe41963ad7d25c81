//! RSA keys of TPMs: as X.509 has them, and as the TPM itself does.

use sha2::{Digest as _, Sha256};
use tpm2_protocol::TpmUnmarshal as _;
use tpm2_protocol::data::{TpmAlgId, TpmtPublic, TpmuPublicId, TpmuPublicParms};

use super::TpmError;
use crate::bytes::Malformed;
use crate::der;

/// DER of `AlgorithmIdentifier { rsaEncryption, NULL }` (RFC 3279 section 2.3.1).
const RSA_ENCRYPTION: [u8; 15] = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];

/// What an exponent of zero in a TPM's structure stands for.
const DEFAULT_EXPONENT: u32 = 65537;

/// An RSA public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsaKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaKey {
    /// From big-endian numbers.
    pub fn new(modulus: &[u8], exponent: &[u8]) -> Self {
        let trim = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect();
        Self { modulus: trim(modulus), exponent: trim(exponent) }
    }

    /// From a SubjectPublicKeyInfo, which must be written as [`RsaKey::to_spki`] would.
    pub fn from_spki(der: &[u8]) -> Result<Self, TpmError> {
        use x509_parser::prelude::FromDer as _;
        use x509_parser::public_key::PublicKey;
        use x509_parser::x509::SubjectPublicKeyInfo;
        let malformed = || TpmError::Json("ak_public is not the SubjectPublicKeyInfo of an RSA key".to_owned());
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| malformed())?;
        let PublicKey::RSA(rsa) = info.parsed().map_err(|_| malformed())? else { return Err(malformed()) };
        let key = Self::new(rsa.modulus, rsa.exponent);
        if key.to_spki() == der { Ok(key) } else { Err(malformed()) }
    }

    /// DER of SubjectPublicKeyInfo.
    pub fn to_spki(&self) -> Vec<u8> {
        let bits = [&[0], &self.to_pkcs1()[..]].concat();
        der::tagged(der::SEQUENCE, &[&RSA_ENCRYPTION[..], &der::tagged(der::BIT_STRING, &bits)].concat())
    }

    /// DER of RSAPublicKey (RFC 8017 appendix A.1.1).
    pub fn to_pkcs1(&self) -> Vec<u8> {
        der::tagged(der::SEQUENCE, &[der::integer(&self.modulus), der::integer(&self.exponent)].concat())
    }

    /// The modulus, big-endian without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }
}

/// The key in a marshalled TPMT_PUBLIC.
pub fn rsa_of(public: &[u8]) -> Result<RsaKey, TpmError> {
    let public = parse(public)?;
    match (&public.parameters, &public.unique) {
        (TpmuPublicParms::Rsa(parameters), TpmuPublicId::Rsa(modulus)) => {
            let exponent = match parameters.exponent.value() {
                0 => DEFAULT_EXPONENT,
                other => other,
            };
            Ok(RsaKey::new(modulus, &exponent.to_be_bytes()))
        }
        _ => Err(Malformed::new("the key is not an RSA key").into()),
    }
}

/// The name of an object: its name algorithm and the digest of its public area (part 1, "Object names").
pub(super) fn name(public: &[u8]) -> Result<Vec<u8>, TpmError> {
    if parse(public)?.name_alg != TpmAlgId::Sha256 {
        return Err(Malformed::new("the key's name algorithm is not SHA-256").into());
    }
    Ok([&TpmAlgId::Sha256.value().to_be_bytes()[..], &Sha256::digest(public)].concat())
}

pub(super) fn parse(public: &[u8]) -> Result<TpmtPublic, TpmError> {
    let (parsed, rest) = TpmtPublic::unmarshal(public).map_err(|error| Malformed::new(error.to_string()))?;
    if rest.is_empty() { Ok(parsed) } else { Err(Malformed::new("bytes follow the public area").into()) }
}
