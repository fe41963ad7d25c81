//! A key pair that names a node (or, as the pod VM's own key, the VM).

use std::fmt;
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use super::CredentialError;

/// SubjectPublicKeyInfo of a P-256 key up to the point: SEQUENCE, id-ecPublicKey, prime256v1, BIT STRING.
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];

/// An ECDSA P-256 key pair. Clones share it; `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct NodeKey {
    pair: Arc<KeyPair>,
    spki_der: Arc<[u8]>,
}

impl NodeKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Result<Self, CredentialError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| CredentialError::Make { what: "an ECDSA P-256 key", cause: error.to_string() })?;
        Self::from_pair(pair)
    }

    /// Reads what [`NodeKey::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, CredentialError> {
        Self::from_pair(KeyPair::from_pem(pem).map_err(|error| CredentialError::Pem(error.to_string()))?)
    }

    /// The key as PKCS #8 PEM, for a file with mode 0600.
    pub fn to_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// The public key as SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// SHA-256 of [`NodeKey::spki_der`].
    pub fn spki_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.spki_der).into()
    }

    /// SHA-256 of [`NodeKey::spki_der`] in lower-case hex, as in [`crate::BindRequest::agent_keys`].
    pub fn spki_sha256_hex(&self) -> String {
        hex::encode(self.spki_sha256())
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(crate) fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }

    /// A certificate that says nothing but the public key; peers pin the key.
    pub(crate) fn self_signed(&self) -> Result<Vec<u8>, CredentialError> {
        let certificate = rcgen::CertificateParams::default()
            .self_signed(self.pair())
            .map_err(|error| CredentialError::Make { what: "a self-signed certificate", cause: error.to_string() })?;
        Ok(certificate.der().to_vec())
    }

    fn from_pair(pair: KeyPair) -> Result<Self, CredentialError> {
        let spki_der = pair.subject_public_key_info();
        P256Public::parse(&spki_der)?;
        Ok(Self { pair: Arc::new(pair), spki_der: spki_der.into() })
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.spki_sha256_hex())
    }
}

/// The public half alone, as found in a request for a certificate.
pub(super) struct P256Public<'a> {
    point: &'a [u8],
}

impl<'a> P256Public<'a> {
    /// Accepts exactly the encoding of an uncompressed P-256 point. Whether it lies on the curve shows when it is used.
    pub(super) fn parse(spki_der: &'a [u8]) -> Result<Self, CredentialError> {
        match spki_der.strip_prefix(&P256_SPKI_PREFIX) {
            Some(point) if point.len() == 65 && point[0] == 4 => Ok(Self { point }),
            _ => Err(CredentialError::NotP256),
        }
    }
}

impl PublicKeyData for P256Public<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
