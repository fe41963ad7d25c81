//! Resources in transit: JWE with `A256GCM`, its key encrypted by `ECDH-ES+A256KW` or `RSA-OAEP-256` (RFC 7516, RFC 7518).
//!
//! `RSA1_5` and post-quantum keys, which Trustee also knows, are left out: the first is deprecated, the second experimental.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey};
use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::der;
use crate::tee_key::{Curve, TeeKey};
use crate::wire::{ProtectedHeader, Response, TeePubKey};

/// Ephemeral Diffie-Hellman, whose result wraps the content key.
pub const ECDH_ES_A256KW: &str = "ECDH-ES+A256KW";
/// RSA with OAEP over SHA-256.
pub const RSA_OAEP_256: &str = "RSA-OAEP-256";
/// AES-256 in Galois/counter mode.
pub const A256GCM: &str = "A256GCM";

/// Bytes of a content key and of a key encryption key.
const KEY_BYTES: usize = 32;
/// Bytes that AES key wrap adds.
const WRAP_BYTES: usize = 8;
/// Bytes of an authentication tag.
const TAG_BYTES: usize = 16;
/// Longest header that is read, in characters. One with an ephemeral key has some 300.
const MAX_HEADER: usize = 8 << 10;
/// RSA keys that are encrypted to, in bytes of their modulus: 2048 to 8192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// Why a resource could not be encrypted or decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// A header, key or number that is not what it should be.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// An algorithm, curve or header that is not known here, or not the one of the key.
    #[error("{what} {found:?} is not supported")]
    Unsupported {
        /// For example `algorithm`.
        what: &'static str,
        /// As received, cut to 60 characters.
        found: String,
    },
    /// The cryptography says no: another key, or bytes that were changed.
    #[error("cannot {0}")]
    Crypto(&'static str),
}

impl JweError {
    pub(crate) fn unsupported(what: &'static str, found: &str) -> Self {
        Self::Unsupported { what, found: found.chars().take(60).collect() }
    }
}

/// Encrypts to a TEE key, as a broker does.
pub fn encrypt(key: &TeePubKey, plaintext: &[u8]) -> Result<Response, JweError> {
    let content_key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(random()?);
    let (alg, other, encrypted_key) = match key {
        TeePubKey::Ec { crv, alg, x, y } if alg == ECDH_ES_A256KW => {
            let curve = Curve::by_name(crv).ok_or_else(|| JweError::unsupported("curve", crv))?;
            let (epk, encrypted_key) = wrap_by_agreement(curve, &point(curve, x, y)?, &content_key)?;
            (ECDH_ES_A256KW, Map::from_iter([("epk".to_owned(), epk)]), encrypted_key)
        }
        TeePubKey::Rsa { alg, n, e } if alg == RSA_OAEP_256 => (RSA_OAEP_256, Map::new(), wrap_by_rsa(n, e, &content_key)?),
        TeePubKey::Ec { alg, .. } | TeePubKey::Rsa { alg, .. } => return Err(JweError::unsupported("algorithm", alg)),
    };
    let header = ProtectedHeader { alg: alg.to_owned(), enc: A256GCM.to_owned(), other };
    let protected = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).map_err(|_| JweError::Malformed("the header"))?);
    let iv: [u8; NONCE_LEN] = random()?;
    let mut ciphertext = plaintext.to_vec();
    let tag = cipher(content_key.as_slice())?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(protected.as_bytes()), &mut ciphertext)
        .map_err(|_| JweError::Crypto("encrypt the content"))?;
    Ok(Response { protected, encrypted_key, iv: iv.to_vec(), ciphertext, tag: tag.as_ref().to_vec(), aad: None })
}

/// Decrypts with the TEE key itself, as a client does.
pub fn decrypt(key: &TeeKey, response: &Response) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let header = read_header(&response.protected)?;
    let content_key = match key.decryption() {
        crate::tee_key::Decryption::Agreement(curve, private) if header.alg == ECDH_ES_A256KW => {
            let epk = header.other.get("epk").ok_or(JweError::Malformed("the header's epk"))?;
            let point = epk_point(curve, epk)?;
            let kek = agree(curve, private, &point, &party(&header, "apu")?, &party(&header, "apv")?)?;
            unwrap(&kek, &response.encrypted_key)?
        }
        crate::tee_key::Decryption::Rsa(private) if header.alg == RSA_OAEP_256 => {
            let mut output = Zeroizing::new(vec![0; private.min_output_size()]);
            let content_key = private
                .decrypt(&OAEP_SHA256_MGF1SHA256, &response.encrypted_key, &mut output, None)
                .map_err(|_| JweError::Crypto("decrypt the content key"))?;
            Zeroizing::new(content_key.to_vec())
        }
        _ => return Err(JweError::unsupported("for this key, algorithm", &header.alg)),
    };
    let iv = Nonce::try_assume_unique_for_key(&response.iv).map_err(|_| JweError::Malformed("the initialization vector"))?;
    if response.tag.len() != TAG_BYTES {
        return Err(JweError::Malformed("the tag"));
    }
    let mut authenticated = response.protected.clone();
    if let Some(aad) = &response.aad {
        authenticated.push('.');
        authenticated.push_str(aad);
    }
    let mut plaintext = Zeroizing::new(vec![0; response.ciphertext.len()]);
    cipher(&content_key)?
        .open_separate_gather(iv, Aad::from(authenticated.as_bytes()), &response.ciphertext, &response.tag, &mut plaintext)
        .map_err(|_| JweError::Crypto("decrypt the content"))?;
    Ok(plaintext)
}

/// The key derivation of RFC 7518 section 4.6.2 (ConcatKDF of NIST SP 800-56A over SHA-256).
pub fn concat_kdf(secret: &[u8], algorithm: &str, party_u: &[u8], party_v: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let bytes = bits.div_ceil(8) as usize;
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut key = Zeroizing::new(Vec::with_capacity(bytes + SHA256.output_len()));
    for round in 1_u32.. {
        if key.len() >= bytes {
            break;
        }
        let mut context = digest::Context::new(&SHA256);
        context.update(&round.to_be_bytes());
        context.update(secret);
        for part in [algorithm.as_bytes(), party_u, party_v] {
            context.update(&length(part));
            context.update(part);
        }
        context.update(&bits.to_be_bytes());
        key.extend_from_slice(context.finish().as_ref());
    }
    key.truncate(bytes);
    key
}

// ---------------------------------------------------------------------------------------------------------------- private helpers

fn random<const N: usize>() -> Result<[u8; N], JweError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| JweError::Crypto("get random bytes"))?;
    Ok(bytes)
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, JweError> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| JweError::Malformed("the content key"))?))
}

fn read_header(protected: &str) -> Result<ProtectedHeader, JweError> {
    let malformed = JweError::Malformed("the header");
    if protected.len() > MAX_HEADER {
        return Err(malformed);
    }
    let json = URL_SAFE_NO_PAD.decode(protected).map_err(|_| malformed.clone())?;
    let header: ProtectedHeader = serde_json::from_slice(&json).map_err(|_| malformed)?;
    if header.enc != A256GCM {
        return Err(JweError::unsupported("encryption", &header.enc));
    }
    // What these ask for changes how the content is read; a reader that does not know them must refuse.
    match ["crit", "zip", "b64"].into_iter().find(|name| header.other.contains_key(*name)) {
        Some(name) => Err(JweError::unsupported("header", name)),
        None => Ok(header),
    }
}

fn party(header: &ProtectedHeader, name: &'static str) -> Result<Vec<u8>, JweError> {
    match header.other.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => URL_SAFE_NO_PAD.decode(text).map_err(|_| JweError::Malformed(name)),
        Some(_) => Err(JweError::Malformed(name)),
    }
}

/// The uncompressed point of two coordinates.
fn point(curve: Curve, x: &str, y: &str) -> Result<Vec<u8>, JweError> {
    let mut point = vec![4];
    for (name, text) in [("coordinate x", x), ("coordinate y", y)] {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| JweError::Malformed(name))?;
        if bytes.len() != curve.coordinate_bytes() {
            return Err(JweError::Malformed(name));
        }
        point.extend_from_slice(&bytes);
    }
    Ok(point)
}

fn epk_point(curve: Curve, epk: &Value) -> Result<Vec<u8>, JweError> {
    let member = |name: &str| epk.get(name).and_then(Value::as_str).ok_or(JweError::Malformed("the header's epk"));
    if member("kty")? != "EC" || member("crv")? != curve.name() {
        return Err(JweError::unsupported("curve", member("crv")?));
    }
    point(curve, member("x")?, member("y")?)
}

/// The key encryption key of both sides.
fn agree(
    curve: Curve,
    private: &agreement::PrivateKey,
    point: &[u8],
    party_u: &[u8],
    party_v: &[u8],
) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let failed = JweError::Crypto("agree on a key");
    agreement::agree(private, UnparsedPublicKey::new(curve.agreement(), point), failed, |secret| {
        Ok(concat_kdf(secret, ECDH_ES_A256KW, party_u, party_v, 256))
    })
}

fn wrap_by_agreement(curve: Curve, point: &[u8], content_key: &[u8; KEY_BYTES]) -> Result<(Value, Vec<u8>), JweError> {
    let failed = |_| JweError::Crypto("make an ephemeral key");
    let ephemeral = agreement::PrivateKey::generate(curve.agreement()).map_err(failed)?;
    let kek = agree(curve, &ephemeral, point, &[], &[])?;
    let public = ephemeral.compute_public_key().map_err(failed)?;
    let (x, y) = curve.coordinates(public.as_ref()).ok_or(JweError::Crypto("make an ephemeral key"))?;
    // Members in the order of their names: as Trustee's map has them.
    let epk = serde_json::json!({ "crv": curve.name(), "kty": "EC", "x": x, "y": y });
    Ok((epk, wrap(&kek, content_key)?))
}

fn wrap_by_rsa(n: &str, e: &str, content_key: &[u8; KEY_BYTES]) -> Result<Vec<u8>, JweError> {
    let malformed = JweError::Malformed("the RSA key");
    let number = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed.clone());
    let (modulus, exponent) = (number(n)?, number(e)?);
    if !RSA_BYTES.contains(&modulus.len()) || exponent.len() > 8 {
        return Err(malformed);
    }
    let public = PublicEncryptingKey::from_der(&der::public_key(&modulus, &exponent)).map_err(|_| malformed.clone())?;
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| malformed)?;
    let mut output = vec![0; public.ciphertext_size()];
    let encrypted = public
        .encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut output, None)
        .map_err(|_| JweError::Crypto("encrypt the content key"))?
        .len();
    output.truncate(encrypted);
    Ok(output)
}

fn wrap(kek: &[u8], content_key: &[u8; KEY_BYTES]) -> Result<Vec<u8>, JweError> {
    let mut output = vec![0; KEY_BYTES + WRAP_BYTES];
    AesKek::new(&AES_256, kek)
        .and_then(|kek| kek.wrap(content_key, &mut output).map(|_| ()))
        .map_err(|_| JweError::Crypto("wrap the content key"))?;
    Ok(output)
}

fn unwrap(kek: &[u8], encrypted_key: &[u8]) -> Result<Zeroizing<Vec<u8>>, JweError> {
    if encrypted_key.len() != KEY_BYTES + WRAP_BYTES {
        return Err(JweError::Malformed("the encrypted key"));
    }
    let mut output = Zeroizing::new(vec![0; KEY_BYTES]);
    AesKek::new(&AES_256, kek)
        .and_then(|kek| kek.unwrap(encrypted_key, &mut output).map(|_| ()))
        .map_err(|_| JweError::Crypto("unwrap the content key"))?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee_key::TeeKeyAlgorithm;
    use proptest::prelude::*;

    const ALGORITHMS: [TeeKeyAlgorithm; 3] = [TeeKeyAlgorithm::EcdhEsP256, TeeKeyAlgorithm::EcdhEsP521, TeeKeyAlgorithm::RsaOaep256];

    fn bytes(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    fn from_hex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn key_derivation_gives_the_known_answer() {
        // RFC 7518 appendix C.
        let bob = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, &bytes("VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw"));
        let x = "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0";
        let y = "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps";
        let alice = UnparsedPublicKey::new(&agreement::ECDH_P256, point(Curve::P256, x, y).unwrap());
        let key = agreement::agree(&bob.unwrap(), alice, (), |secret| {
            assert_eq!(
                secret,
                [
                    158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163, 218, 128, 106, 72, 246,
                    218, 167, 121, 140, 254, 144, 196
                ]
            );
            Ok(concat_kdf(secret, "A128GCM", b"Alice", b"Bob", 128))
        });
        assert_eq!(URL_SAFE_NO_PAD.encode(key.unwrap().as_slice()), "VqqN6vgjbSBcIijNcacQGg");
        assert_eq!(concat_kdf(b"z", "A", b"", b"", 1000).len(), 125, "several rounds");
    }

    #[test]
    fn key_wrap_gives_the_known_answer() {
        // RFC 3394 section 4.6.
        let kek: Vec<u8> = (0..32).collect();
        let content_key = from_hex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F");
        let wrapped = wrap(&kek, content_key.as_slice().try_into().unwrap()).unwrap();
        assert_eq!(wrapped, from_hex("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"));
        assert_eq!(unwrap(&kek, &wrapped).unwrap().as_slice(), content_key);
    }

    #[test]
    fn what_is_encrypted_to_a_key_is_decrypted_by_it_alone() {
        for algorithm in ALGORITHMS {
            let key = TeeKey::generate(algorithm).unwrap();
            let response = encrypt(&key.public().unwrap(), b"a resource").unwrap();
            assert_eq!(decrypt(&key, &response).unwrap().as_slice(), b"a resource", "{algorithm:?}");
            assert_eq!(decrypt(&key, &encrypt(&key.public().unwrap(), b"").unwrap()).unwrap().len(), 0);
            let other = TeeKey::generate(algorithm).unwrap();
            assert!(matches!(decrypt(&other, &response), Err(JweError::Crypto(_))), "{algorithm:?}");
        }
    }

    #[test]
    fn header_has_the_order_that_trustee_authenticates() {
        let key = TeeKey::generate(TeeKeyAlgorithm::EcdhEsP256).unwrap();
        let response = encrypt(&key.public().unwrap(), b"x").unwrap();
        let header = String::from_utf8(bytes(&response.protected)).unwrap();
        assert!(header.starts_with(r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":""#), "{header}");
        let reparsed: ProtectedHeader = serde_json::from_str(&header).unwrap();
        assert_eq!(serde_json::to_string(&reparsed).unwrap(), header);
    }

    #[test]
    fn every_changed_part_is_refused() {
        type Change = fn(&mut Response);
        let key = TeeKey::generate(TeeKeyAlgorithm::EcdhEsP256).unwrap();
        let good = encrypt(&key.public().unwrap(), b"a resource").unwrap();
        let changes: [Change; 7] = [
            |response| response.ciphertext[0] ^= 1,
            |response| response.tag[0] ^= 1,
            |response| response.tag.truncate(12),
            |response| response.iv[0] ^= 1,
            |response| response.iv.push(0),
            |response| response.encrypted_key[0] ^= 1,
            |response| response.aad = Some("e30".to_owned()),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut response = good.clone();
            change(&mut response);
            assert!(decrypt(&key, &response).is_err(), "change {index}");
        }
        let with_header = |change: fn(&mut ProtectedHeader)| {
            let mut header: ProtectedHeader = serde_json::from_slice(&bytes(&good.protected)).unwrap();
            change(&mut header);
            Response { protected: URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).unwrap()), ..good.clone() }
        };
        let headers: [fn(&mut ProtectedHeader); 6] = [
            |header| header.alg = "RSA-OAEP-256".to_owned(),
            |header| header.enc = "A128GCM".to_owned(),
            |header| drop(header.other.insert("crit".to_owned(), serde_json::json!(["b64"]))),
            |header| drop(header.other.remove("epk")),
            |header| header.other["epk"]["crv"] = "P-521".into(),
            |header| header.other["epk"]["x"] = "AA".into(),
        ];
        for (index, change) in headers.into_iter().enumerate() {
            assert!(decrypt(&key, &with_header(change)).is_err(), "header {index}");
        }
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let ec = |crv: &str, alg: &str, x: &str, y: &str| {
            let key = TeePubKey::Ec { crv: crv.to_owned(), alg: alg.to_owned(), x: x.to_owned(), y: y.to_owned() };
            encrypt(&key, b"x").unwrap_err()
        };
        let zeros = URL_SAFE_NO_PAD.encode([0; 32]);
        assert_eq!(ec("P-256", ECDH_ES_A256KW, &zeros, &zeros), JweError::Crypto("agree on a key"), "not on the curve");
        assert_eq!(ec("P-256", ECDH_ES_A256KW, "AA", &zeros), JweError::Malformed("coordinate x"));
        assert_eq!(ec("P-384", ECDH_ES_A256KW, &zeros, &zeros), JweError::unsupported("curve", "P-384"));
        assert_eq!(ec("P-256", "ECDH-ES", &zeros, &zeros), JweError::unsupported("algorithm", "ECDH-ES"));
        let rsa =
            |n: usize| TeePubKey::Rsa { alg: RSA_OAEP_256.to_owned(), n: URL_SAFE_NO_PAD.encode(vec![0xff; n]), e: "AQAB".to_owned() };
        assert!(encrypt(&rsa(128), b"x").is_err(), "too short");
        assert!(encrypt(&rsa(4096), b"x").is_err(), "too long");
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(
            header in prop_oneof!["[ -~]{0,80}", r#"\{"alg":"ECDH-ES\+A256KW","enc":"A256GCM","epk":[ -~]{0,60}\}"#],
            encrypted_key in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let key = TeeKey::generate(TeeKeyAlgorithm::EcdhEsP256).unwrap();
            let protected = URL_SAFE_NO_PAD.encode(header);
            let response = Response { protected, encrypted_key, iv: vec![0; 12], ciphertext: vec![0; 4], tag: vec![0; 16], aad: None };
            prop_assert!(decrypt(&key, &response).is_err());
        }
    }
}
