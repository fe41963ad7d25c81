//! Private keys of people who sign: ECDSA P-256, as PEM or JWK.

use aws_lc_rs::signature::{EcdsaKeyPair, EcdsaSigningAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::pem;

/// A text is no key of this kind.
#[derive(Debug, thiserror::Error)]
#[error(
    "the key is no ECDSA P-256 private key: {reason}; next: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes one"
)]
pub(crate) struct KeyError {
    reason: String,
}

/// Reads PEM (PKCS #8 or SEC 1, without a password) or a JWK.
pub(crate) fn read(text: &str, algorithm: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, KeyError> {
    if text.trim_start().starts_with('{') {
        return jwk(text, algorithm);
    }
    let (label, der) = pem::first(text).ok_or_else(|| refused("it has no PEM block"))?;
    let pair = match label.as_str() {
        "PRIVATE KEY" => EcdsaKeyPair::from_pkcs8(algorithm, &der),
        "EC PRIVATE KEY" => EcdsaKeyPair::from_private_key_der(algorithm, &der),
        other => return Err(refused(&format!("its first block is {other:?}"))),
    };
    pair.map_err(|_| refused("its curve or its form is another"))
}

fn jwk(text: &str, algorithm: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, KeyError> {
    let jwk: Value = serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?;
    if jwk["kty"] != "EC" || jwk["crv"] != "P-256" {
        return Err(refused("the JWK has another kty or crv"));
    }
    let member = |name: &str| {
        let bytes = jwk[name].as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).map(Zeroizing::new);
        bytes.filter(|bytes| bytes.len() == 32).ok_or_else(|| refused(&format!("the JWK has no {name} of 32 bytes")))
    };
    let public = [&[4][..], &member("x")?, &member("y")?].concat();
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, &member("d")?, &public).map_err(|_| refused("the JWK's halves do not fit"))
}

fn refused(reason: &str) -> KeyError {
    KeyError { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsBigEndian as _, AsDer as _, EcPrivateKeyBin, EcPrivateKeyRfc5915Der};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING as ALGORITHM, KeyPair as _};
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    #[test]
    fn all_forms_give_the_same_key() {
        let pair = EcdsaKeyPair::generate(&ALGORITHM).unwrap();
        let pem = |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
        let sec1: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
        let scalar: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().unwrap();
        let point = pair.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": part(&point[1..33]), "y": part(&point[33..]), "d": part(scalar.as_ref())});
        for text in [pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref()), pem("EC PRIVATE KEY", sec1.as_ref()), jwk.to_string()] {
            assert_eq!(read(&text, &ALGORITHM).unwrap().public_key().as_ref(), point);
        }
        for (text, named) in [
            (String::new(), "no PEM block"),
            (pem("ENCRYPTED SIGSTORE PRIVATE KEY", b"x"), "ENCRYPTED SIGSTORE"),
            (pem("PRIVATE KEY", b"x"), "curve"),
            ("{}".to_owned(), "kty"),
            (json!({"kty": "EC", "crv": "P-256", "x": ""}).to_string(), "no x"),
        ] {
            let error = read(&text, &ALGORITHM).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
