//! TEE keys: made for one attestation, named in its token, and what resources are encrypted to.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::agreement;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::der;
use crate::jwe::{ECDH_ES_A256KW, JweError, RSA_OAEP_256};
use crate::wire::TeePubKey;

/// Kinds of TEE keys, spelled as in the Attestation Agent's `tee_key_algorithm`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TeeKeyAlgorithm {
    /// `ECDH-ES+A256KW-P256`.
    #[default]
    EcdhEsP256,
    /// `ECDH-ES+A256KW-P521`.
    EcdhEsP521,
    /// `RSA-OAEP-256`, with 2048 bits.
    RsaOaep256,
}

/// A TEE key pair. It is not printed; AWS-LC zeroizes it.
pub struct TeeKey(Pair);

enum Pair {
    Ec { curve: Curve, key: agreement::PrivateKey },
    Rsa { key: PrivateDecryptingKey, oaep: OaepPrivateDecryptingKey },
}

/// What a TEE key decrypts with.
pub(crate) enum Decryption<'a> {
    Agreement(Curve, &'a agreement::PrivateKey),
    Rsa(&'a OaepPrivateDecryptingKey),
}

/// Curves of TEE keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P521,
}

impl TeeKey {
    /// Makes a key. RSA takes some tenths of a second.
    pub fn generate(algorithm: TeeKeyAlgorithm) -> Result<Self, JweError> {
        let failed = |_| JweError::Crypto("make a TEE key");
        let curve = match algorithm {
            TeeKeyAlgorithm::EcdhEsP256 => Curve::P256,
            TeeKeyAlgorithm::EcdhEsP521 => Curve::P521,
            TeeKeyAlgorithm::RsaOaep256 => return Self::rsa(PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(failed)?),
        };
        Ok(Self(Pair::Ec { curve, key: agreement::PrivateKey::generate(curve.agreement()).map_err(failed)? }))
    }

    /// Reads what [`to_pem`](Self::to_pem) writes; RSA keys may also be PKCS#8.
    pub fn from_pem(pem: &str) -> Result<Self, JweError> {
        let malformed = JweError::Malformed("the TEE key");
        let rsa = |pkcs8: &[u8]| Self::rsa(PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| JweError::Malformed("the TEE key"))?);
        match PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| malformed.clone())? {
            PrivateKeyDer::Pkcs1(pkcs1) => rsa(&der::pkcs8_of_pkcs1(pkcs1.secret_pkcs1_der())),
            PrivateKeyDer::Pkcs8(pkcs8) if der::pkcs1_of_pkcs8(pkcs8.secret_pkcs8_der()).is_some() => rsa(pkcs8.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs8(pkcs8) => [Curve::P256, Curve::P521]
                .into_iter()
                .find_map(|curve| {
                    let key = agreement::PrivateKey::from_private_key_der(curve.agreement(), pkcs8.secret_pkcs8_der()).ok()?;
                    Some(Self(Pair::Ec { curve, key }))
                })
                .ok_or(malformed),
            _ => Err(malformed),
        }
    }

    /// The key pair as PEM: PKCS#8 for curves, PKCS#1 for RSA, as the Attestation Agent hands it on.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, JweError> {
        let failed = |_| JweError::Crypto("export the TEE key");
        match &self.0 {
            Pair::Ec { key, .. } => {
                let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
                Ok(pem("PRIVATE KEY", pkcs8.as_ref()))
            }
            Pair::Rsa { key, .. } => Ok(pem("RSA PRIVATE KEY", &pkcs1(key)?)),
        }
    }

    /// The public key, as evidence is bound to it.
    pub fn public(&self) -> Result<TeePubKey, JweError> {
        let failed = JweError::Crypto("export the TEE key");
        match &self.0 {
            Pair::Ec { curve, key } => {
                let public = key.compute_public_key().map_err(|_| failed.clone())?;
                let (x, y) = curve.coordinates(public.as_ref()).ok_or(failed)?;
                Ok(TeePubKey::Ec { crv: curve.name().to_owned(), alg: ECDH_ES_A256KW.to_owned(), x, y })
            }
            Pair::Rsa { key, .. } => {
                let pkcs1 = pkcs1(key)?;
                let (modulus, exponent) = der::public_numbers(&pkcs1).ok_or(failed)?;
                let (n, e) = (URL_SAFE_NO_PAD.encode(modulus), URL_SAFE_NO_PAD.encode(exponent));
                Ok(TeePubKey::Rsa { alg: RSA_OAEP_256.to_owned(), n, e })
            }
        }
    }

    pub(crate) fn decryption(&self) -> Decryption<'_> {
        match &self.0 {
            Pair::Ec { curve, key } => Decryption::Agreement(*curve, key),
            Pair::Rsa { oaep, .. } => Decryption::Rsa(oaep),
        }
    }

    fn rsa(key: PrivateDecryptingKey) -> Result<Self, JweError> {
        let oaep = OaepPrivateDecryptingKey::new(key.clone()).map_err(|_| JweError::Malformed("the TEE key"))?;
        Ok(Self(Pair::Rsa { key, oaep }))
    }
}

impl fmt::Debug for TeeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TeeKey(..)")
    }
}

impl FromStr for TeeKeyAlgorithm {
    type Err = JweError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ECDH-ES+A256KW-P256" => Ok(Self::EcdhEsP256),
            "ECDH-ES+A256KW-P521" => Ok(Self::EcdhEsP521),
            RSA_OAEP_256 => Ok(Self::RsaOaep256),
            other => Err(JweError::unsupported("TEE key algorithm", other)),
        }
    }
}

impl Curve {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        [Self::P256, Self::P521].into_iter().find(|curve| curve.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P521 => "P-521",
        }
    }

    pub(crate) fn agreement(self) -> &'static agreement::Algorithm {
        match self {
            Self::P256 => &agreement::ECDH_P256,
            Self::P521 => &agreement::ECDH_P521,
        }
    }

    pub(crate) fn coordinate_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P521 => 66,
        }
    }

    /// Base64url of both coordinates of an uncompressed point.
    pub(crate) fn coordinates(self, point: &[u8]) -> Option<(String, String)> {
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(self.coordinate_bytes())?;
        (y.len() == self.coordinate_bytes()).then(|| (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y)))
    }
}

fn pkcs1(key: &PrivateDecryptingKey) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let failed = JweError::Crypto("export the TEE key");
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(|_| failed.clone())?;
    der::pkcs1_of_pkcs8(pkcs8.as_ref()).ok_or(failed)
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    // In one piece, so that no copy is left behind by a growing buffer.
    let mut pem = Zeroizing::new(String::with_capacity(base64.len() + base64.len() / 64 + 2 * label.len() + 40));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwe::{decrypt, encrypt};

    #[test]
    fn exported_key_is_the_same_key() {
        for (name, label) in
            [("ECDH-ES+A256KW-P256", "PRIVATE KEY"), ("ECDH-ES+A256KW-P521", "PRIVATE KEY"), ("RSA-OAEP-256", "RSA PRIVATE KEY")]
        {
            let key = TeeKey::generate(name.parse().unwrap()).unwrap();
            let pem = key.to_pem().unwrap();
            assert!(pem.starts_with(&format!("-----BEGIN {label}-----\n")) && pem.ends_with(&format!("-----END {label}-----\n")), "{name}");
            assert!(pem.lines().all(|line| line.len() <= 64));
            let read = TeeKey::from_pem(&pem).unwrap();
            assert_eq!(read.public().unwrap(), key.public().unwrap(), "{name}");
            let response = encrypt(&key.public().unwrap(), b"a resource").unwrap();
            assert_eq!(decrypt(&read, &response).unwrap().as_slice(), b"a resource", "{name}");
        }
    }

    #[test]
    fn anything_else_is_no_key() {
        for text in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "secret"] {
            assert!(TeeKey::from_pem(text).is_err());
        }
        assert!("RSA1_5".parse::<TeeKeyAlgorithm>().is_err());
    }

    #[test]
    fn key_is_not_printed() {
        assert_eq!(format!("{:?}", TeeKey::generate(TeeKeyAlgorithm::default()).unwrap()), "TeeKey(..)");
    }
}
