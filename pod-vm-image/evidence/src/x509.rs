//! Certificates of hardware makers: fixed roots, short chains, no names to match.
//!
//! A chain is checked link by link: the issuer's signature with the algorithm that *we* expect of that maker, the validity period at the
//! caller's time, and that the outer algorithm is the signed one. Revocation is the verifier's own affair, see [`crate::tdx`].

use std::time::SystemTime;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer as _;

use crate::der;

/// A certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not one certificate in DER, or a member that must be there is not.
    #[error("{which} certificate is malformed: {what}")]
    Malformed {
        /// Whose.
        which: &'static str,
        /// What.
        what: String,
    },
    /// The issuer did not sign it.
    #[error("{which} certificate is not signed by {issuer}")]
    Signature {
        /// Whose.
        which: &'static str,
        /// Who should have.
        issuer: &'static str,
    },
    /// Outside of its validity period.
    #[error("{which} certificate is valid from {from} to {to}, which does not include the verifier's time")]
    Validity {
        /// Whose.
        which: &'static str,
        /// Not before.
        from: String,
        /// Not after.
        to: String,
    },
}

/// How a maker signs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scheme {
    /// AMD: RSASSA-PSS with SHA-384 and a salt of 48 bytes.
    RsaPssSha384,
    /// Intel: ECDSA on P-256 with SHA-256.
    EcdsaP256,
}

/// A parsed certificate that remembers whose it is.
pub(crate) struct Certificate<'a> {
    which: &'static str,
    inner: X509Certificate<'a>,
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(which: &'static str, der: &'a [u8]) -> Result<Self, CertificateError> {
        let malformed = |what: String| CertificateError::Malformed { which, what };
        let (rest, inner) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow it", rest.len())));
        }
        let certificate = Self { which, inner };
        if certificate.is_canonical(der) { Ok(certificate) } else { Err(malformed("what is not signed in it is not plain DER".to_owned())) }
    }

    /// Whether the parts that the signature does not cover are the only possible ones: the outer algorithm is, byte for byte, one that is
    /// signed, and the structure around it is what an encoder writes.
    fn is_canonical(&self, der: &[u8]) -> bool {
        let (signed, signature) = (self.inner.tbs_certificate.as_ref(), &self.inner.signature_value);
        let bits = der::tagged(der::BIT_STRING, &[&[0], &signature.data[..]].concat());
        let Some(begin) = der.windows(signed.len()).position(|window| window == signed) else { return false };
        let Some(algorithm) = der.len().checked_sub(bits.len()).and_then(|end| der.get(begin + signed.len()..end)) else { return false };
        let is_signed = !algorithm.is_empty() && signed.windows(algorithm.len()).any(|window| window == algorithm);
        signature.unused_bits == 0 && is_signed && der == der::tagged(der::SEQUENCE, &[signed, algorithm, &bits].concat())
    }

    pub(crate) fn is_valid_at(&self, now: SystemTime) -> Result<(), CertificateError> {
        let validity = self.inner.validity();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        if validity.not_before.timestamp() <= seconds && seconds <= validity.not_after.timestamp() {
            return Ok(());
        }
        Err(CertificateError::Validity { which: self.which, from: validity.not_before.to_string(), to: validity.not_after.to_string() })
    }

    pub(crate) fn is_signed_by(&self, issuer: &Certificate<'_>, scheme: Scheme) -> Result<(), CertificateError> {
        let refused = || CertificateError::Signature { which: self.which, issuer: issuer.which };
        if self.inner.issuer().as_raw() != issuer.inner.subject().as_raw() {
            return Err(refused());
        }
        let key = &issuer.inner.public_key().subject_public_key;
        if key.unused_bits != 0 {
            return Err(refused());
        }
        let algorithm: &'static dyn VerificationAlgorithm = match scheme {
            Scheme::RsaPssSha384 => &signature::RSA_PSS_2048_8192_SHA384,
            Scheme::EcdsaP256 => &signature::ECDSA_P256_SHA256_ASN1,
        };
        let key = UnparsedPublicKey::new(algorithm, &key.data);
        key.verify(self.inner.tbs_certificate.as_ref(), &self.inner.signature_value.data).map_err(|_| refused())
    }

    /// The public key's bits: an uncompressed point, or PKCS#1.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.inner.public_key().subject_public_key.data
    }

    pub(crate) fn common_name(&self) -> Option<&str> {
        self.inner.subject().iter_common_name().next().and_then(|name| name.as_str().ok())
    }

    pub(crate) fn serial(&self) -> &[u8] {
        self.inner.raw_serial()
    }

    /// The content of the one extension with this identifier.
    pub(crate) fn extension(&self, oid: &Oid<'_>) -> Result<&[u8], CertificateError> {
        let malformed = |what: String| CertificateError::Malformed { which: self.which, what };
        let found = self.inner.tbs_certificate.get_extension_unique(oid).map_err(|error| malformed(error.to_string()))?;
        found.map(|extension| extension.value).ok_or_else(|| malformed(format!("it has no extension {oid}")))
    }
}
