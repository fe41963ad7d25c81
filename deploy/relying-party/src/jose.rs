//! As much JOSE as is needed: compact JWS with `EdDSA` (Ed25519) and `ES256`, keys as PEM.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// A key that signs.
pub(crate) enum SigningKey {
    Ed25519(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
}

/// A key that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VerifyingKey {
    /// 32 bytes.
    Ed25519(Vec<u8>),
    /// The uncompressed point.
    Es256(Vec<u8>),
}

/// SubjectPublicKeyInfo up to the key's own bytes (RFC 8410, RFC 5480). DER leaves no other way to write them.
const ED25519_SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];
const P256_POINT_BYTES: usize = 65;
/// Longest JWT that is read, in characters.
pub(crate) const MAX_JWT: usize = 128 << 10;

impl SigningKey {
    pub(crate) fn generate_ed25519() -> Result<Self, &'static str> {
        Ed25519KeyPair::generate().map(Self::Ed25519).map_err(|_| "cannot make a key")
    }

    pub(crate) fn generate_es256() -> Result<Self, &'static str> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Self::Es256).map_err(|_| "cannot make a key")
    }

    /// Reads PKCS#8 of either kind.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| "it is no PKCS#8 key in PEM")?;
        let der = pkcs8.secret_pkcs8_der();
        let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Self::Ed25519);
        ed25519
            .or_else(|_| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Self::Es256))
            .map_err(|_| "it is neither an Ed25519 nor a P-256 key")
    }

    pub(crate) fn to_pem(&self) -> Result<Zeroizing<String>, &'static str> {
        let pkcs8 = match self {
            Self::Ed25519(key) => key.to_pkcs8v1(),
            Self::Es256(key) => key.to_pkcs8v1(),
        };
        pkcs8.map(|pkcs8| pem("PRIVATE KEY", pkcs8.as_ref())).map_err(|_| "cannot export a key")
    }

    pub(crate) fn verifying(&self) -> VerifyingKey {
        match self {
            Self::Ed25519(key) => VerifyingKey::Ed25519(key.public_key().as_ref().to_vec()),
            Self::Es256(key) => VerifyingKey::Es256(key.public_key().as_ref().to_vec()),
        }
    }

    /// A compact JWS; `jwk` goes into its header.
    pub(crate) fn sign(&self, payload: &Value, jwk: Option<Value>) -> Result<String, &'static str> {
        let mut header = json!({ "alg": self.verifying().alg(), "typ": "JWT" });
        if let Some(jwk) = jwk {
            header["jwk"] = jwk;
        }
        let mut jwt = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload.to_string()));
        let signature = match self {
            Self::Ed25519(key) => key.sign(jwt.as_bytes()).as_ref().to_vec(),
            Self::Es256(key) => key.sign(&SystemRandom::new(), jwt.as_bytes()).map_err(|_| "cannot sign")?.as_ref().to_vec(),
        };
        jwt.push('.');
        jwt.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(jwt)
    }
}

impl VerifyingKey {
    /// Reads SubjectPublicKeyInfo.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "it is no public key in PEM")?;
        match (spki.strip_prefix(ED25519_SPKI), spki.strip_prefix(P256_SPKI)) {
            (Some(key), _) if key.len() == 32 => Ok(Self::Ed25519(key.to_vec())),
            (_, Some(point)) if point.len() == P256_POINT_BYTES => Ok(Self::Es256(point.to_vec())),
            _ => Err("it is neither an Ed25519 nor a P-256 key"),
        }
    }

    pub(crate) fn to_pem(&self) -> String {
        let spki = match self {
            Self::Ed25519(key) => [ED25519_SPKI, key].concat(),
            Self::Es256(point) => [P256_SPKI, point].concat(),
        };
        pem("PUBLIC KEY", &spki).as_str().to_owned()
    }

    /// As a JWK; only P-256 keys have one here.
    pub(crate) fn jwk(&self) -> Option<Value> {
        let Self::Es256(point) = self else { return None };
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
        Some(json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) }))
    }

    fn alg(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::Es256(_) => "ES256",
        }
    }

    /// The payload of a compact JWS that this key signed. The key decides on the algorithm, and a key in the header means nothing.
    pub(crate) fn verify(&self, jwt: &str) -> Result<Value, &'static str> {
        if jwt.len() > MAX_JWT {
            return Err("it is too long");
        }
        let malformed = "it is no JWT";
        let (signed, signature) = jwt.rsplit_once('.').ok_or(malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(malformed)?;
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed);
        let json = |text: &str| serde_json::from_slice::<Value>(&part(text)?).map_err(|_| malformed);
        let header = json(header)?;
        if header["alg"] != self.alg() || header.get("crit").is_some() {
            return Err("its algorithm is another one");
        }
        let signature = part(signature)?;
        let verified = match self {
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature),
            Self::Es256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &signature),
        };
        verified.map_err(|_| "its signature is of another key")?;
        json(payload)
    }
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    let mut rest = base64.as_str();
    let mut pem = Zeroizing::new(String::with_capacity(base64.len() + 256));
    pem.push_str(&format!("-----BEGIN {label}-----\n"));
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_verified_by_the_key_that_made_it() {
        for (key, other) in [
            (SigningKey::generate_ed25519().unwrap(), SigningKey::generate_ed25519().unwrap()),
            (SigningKey::generate_es256().unwrap(), SigningKey::generate_es256().unwrap()),
        ] {
            let read = SigningKey::from_pem(key.to_pem().unwrap().as_bytes()).unwrap();
            let verifying = VerifyingKey::from_pem(read.verifying().to_pem().as_bytes()).unwrap();
            assert_eq!(verifying, key.verifying());
            let jwt = read.sign(&json!({ "a": 1 }), None).unwrap();
            assert_eq!(verifying.verify(&jwt).unwrap(), json!({ "a": 1 }));
            assert!(other.verifying().verify(&jwt).is_err());
            let (signed, signature) = jwt.rsplit_once('.').unwrap();
            let (header, _) = signed.split_once('.').unwrap();
            let changed = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"a":2}"#));
            assert!(verifying.verify(&changed).is_err());
        }
    }

    #[test]
    fn header_does_not_choose_algorithm_or_key() {
        let key = SigningKey::generate_es256().unwrap();
        let attacker = SigningKey::generate_es256().unwrap();
        let jwt = attacker.sign(&json!({}), attacker.verifying().jwk()).unwrap();
        assert!(key.verifying().verify(&jwt).is_err());
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode("{}"));
        assert!(key.verifying().verify(&none).is_err());
        assert!(SigningKey::generate_ed25519().unwrap().verifying().verify(&key.sign(&json!({}), None).unwrap()).is_err());
        for text in ["", ".", "..", "a.b.c", &"a".repeat(MAX_JWT + 1)] {
            assert!(key.verifying().verify(text).is_err());
        }
    }

    #[test]
    fn known_signature_verifies() {
        // RFC 8037 appendix A.4: Ed25519 over a text that is no JSON, so only the signature is looked at.
        let x = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        let jws = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        assert_eq!(VerifyingKey::Ed25519(x).verify(jws), Err("it is no JWT"), "past the signature");
    }
}
