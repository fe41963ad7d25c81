//! Public keys in the form that `cosign generate-key-pair` writes.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;

/// A key that signatures are verified with.
#[derive(Clone)]
pub(crate) struct PublicKey {
    spki: Vec<u8>,
    /// Of which a signature needs to satisfy one.
    algorithms: &'static [&'static dyn VerificationAlgorithm],
}

/// Kinds of keys, and how each signs.
static KINDS: [&[&dyn VerificationAlgorithm]; 3] =
    [&[&ECDSA_P256_SHA256_ASN1], &[&ED25519], &[&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256]];

impl PublicKey {
    /// One `PUBLIC KEY` of PEM.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let keys: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(pem).collect();
        let keys = keys.map_err(|_| "it is not PEM")?;
        let [key] = keys.as_slice() else { return Err(format!("it holds {} PEM public keys, not one", keys.len())) };
        let fits = |kind: &&&'static [&'static dyn VerificationAlgorithm]| ParsedPublicKey::new(kind[0], key.as_ref()).is_ok();
        let algorithms = KINDS.iter().find(fits).ok_or("it is neither ECDSA P-256 nor Ed25519 nor RSA of 2048 to 8192 bits")?;
        Ok(Self { spki: key.as_ref().to_vec(), algorithms })
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.iter().any(|algorithm| UnparsedPublicKey::new(*algorithm, &self.spki).verify(message, signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&crate::Digest::of(&self.spki)).finish()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const P256: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEa2HKrc5PlNUvbe88kJTCGNQneNVH\nk1XJSz4FQVpBsWJsa3KPlVOqA0shXAER9u32+gL0OQ4BP8l1nvlUdh/dTw==\n-----END PUBLIC KEY-----\n";
    const P256_SIGNATURE: &str = "MEYCIQC8WZfCoTuVaGKd8QvypTMqxuLnkQJTYeIwln7kpyJ+MQIhALVHzG6H0ZBtBkPKFGlUST6p+5NL/n8wiCc/LVCTE3J+";
    const ED25519_KEY: &str =
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAt54gYy4BnesEVKKLZl/SMYa2MjwlyA4uC5BWe3y+dTU=\n-----END PUBLIC KEY-----\n";
    const ED25519_SIGNATURE: &str = "YYUwhzO7MNGrmr7EmuiY1V/A5faZtu6H04nvNeT/128B9SFR10CaBu5fbgxuANbTdZnwc/8Dg0KoCKDEbx8cBA==";
    const RSA: &str = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA142hCALUzwgh6fbg2DWC\nzg7NM1WP8dOOCW/nf0CHQL7kkNF2yiW8tpyOtnL4wuyQPa/FudIfwaoa6LkD1NoU\nCeTEnqK6AXmSzLYkKLnJxICwx8fSt3o9dtBL7037HKn6+XiGPP7sOgQGWZjIB0gb\n+BE/ZWs3zFUkZozRIzoHyU306w9ZmpoaOLOLiNfASyS3gLFOvzoKOF/e7qxynu48\nRikZYWJDB81kHBMDd1pEc+RnT8Yb+ELooyB7OfhNM8SsnXcw6GbvdiwxV5iOku89\njbiF2dzxkaK9ATDE3OteKBWnOprNTM/28d6dXe4KX730TzAcTp7GTy0g31HfeDfS\nSwIDAQAB\n-----END PUBLIC KEY-----\n";
    const RSA_SIGNATURE: &str = "Zjidjf25SxJaDRYh3l0zZh0UebQetb6iPG2dalxwO/DM8fxBKmXFwn83KZf0P43fkeW/CurbIN8zdGkQjHiCGW87Mota/2+zOsPzr4r4X975QSXlfA9Pu87lxxFhT8zlBnux74NY6bWFP3qAi5+Mv2fM6+8vj004JUqBrAKSUXdM3KJwHNbUIz5TRhN0m3Ggr5hGecy6Ec2ejAfT06rDVqn26CtYzlgXPEg60Yrkcnn/PNHfTkj7Isz7PF4R+Qxlw3+H8zZlFzNKRCbwOwkYASDFEtMwVdm1O63nklVYdMk63ypZXoInQOqUdFnUrmdGhjOauIWo/daYbvhCNq1Nnw==";
    const RSA_PSS_SIGNATURE: &str = "mDmYiCyiJEK+vikp+psr8WjrYY3ABWbaDYD/5iIxR3KfHWLBtdasssQKI2i6okvBCadUD/9kPtoZ5ARgUgVPmN1IGvMgofUVg7zHhix74ACjdXQIDZq6t90UP5uZChrAt9T182iN5DZDy0H6v08GN70rQYK1/KAn67Y/UNAuzIgS8aOyV632f7nJXgHpijkfQnRei6bjqBYewmarDtuvqgv4+3/5GRUCKSbIE5VZcnbxped8tDoe1RwxrqHlV0xsXfrH1w0G3sQH76GHcdebln8lrZdcYjZ1ZSXueLg0MDUs5mcnFsCZQ06M565MDgtMyfv4owUFGfYjVyIAbaoQLQ==";
    const P384: &str = "-----BEGIN PUBLIC KEY-----\nMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAELL/k+19IB4/LSTyPF6DiRd3ugUho+Wa1\nuPN8o3MBTmK+ktXmty3H52H8xNW33/lhCSsgxGfQDwvXKPT23rTm4rJFxu7unnPO\n4lAujKE5ZGX2BLr3xink5qSR5YFqJIMs\n-----END PUBLIC KEY-----\n";

    #[test]
    fn signatures_of_openssl_verify() {
        for (pem, signature) in [(P256, P256_SIGNATURE), (ED25519_KEY, ED25519_SIGNATURE), (RSA, RSA_SIGNATURE), (RSA, RSA_PSS_SIGNATURE)] {
            let key = PublicKey::from_pem(pem.as_bytes()).unwrap();
            let signature = STANDARD.decode(signature).unwrap();
            assert!(key.verifies(b"hello", &signature), "{pem}");
            assert!(!key.verifies(b"hellO", &signature), "{pem}");
            assert!(!key.verifies(b"hello", &signature[1..]), "{pem}");
            assert!(!key.verifies(b"hello", b""), "{pem}");
        }
    }

    #[test]
    fn other_keys_are_refused() {
        assert!(PublicKey::from_pem(b"").unwrap_err().contains("0 PEM public keys"));
        assert!(PublicKey::from_pem(format!("{P256}{P256}").as_bytes()).unwrap_err().contains("2 PEM public keys"));
        assert!(PublicKey::from_pem(P384.as_bytes()).unwrap_err().contains("neither ECDSA P-256"));
    }
}
