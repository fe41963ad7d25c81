//! `peerpodctl secret`: sealed secrets, which may lie in Kubernetes in the open because only the guest opens them.
//!
//! The form is that of the Confidential Containers project: a JWS that names a resource of the key broker. What the node could do with one is
//! exchange it for another, and that the signature prevents.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use crate::input::{self, InputError};
use crate::key_file::KeyId;
use crate::p256::{self, KeyError};

/// Sealed secrets: Kubernetes holds their names, the key broker what is in them.
#[derive(Subcommand)]
pub(crate) enum Secret {
    /// Print the sealed secret for a resource of the key broker.
    #[command(after_help = SEAL_EXAMPLES)]
    Seal(Seal),
    /// Print the public key that guests check sealed secrets with, as JWK.
    #[command(after_help = KEY_EXAMPLES)]
    PublicKey(PublicKey),
}

const SEAL_EXAMPLES: &str = "\
Examples:
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out sealing.pem
  kubectl create secret generic shop --from-literal=\"password=$(peerpodctl secret seal \\
    --signing-key sealing.pem --key-uri kbs:///default/sealing-key/1 kbs:///default/shop/password)\"

The key broker needs the password itself as default/shop/password, and the public key as default/sealing-key/1:
  peerpodctl secret public-key --signing-key sealing.pem > sealing.jwk";

const KEY_EXAMPLES: &str = "\
Examples:
  peerpodctl secret public-key --signing-key sealing.pem > sealing.jwk
  kbs-client --url URL config --auth-private-key ADMIN_KEY set-resource --path default/sealing-key/1 --resource-file sealing.jwk";

/// Arguments of `secret seal`.
#[derive(Args)]
pub(crate) struct Seal {
    /// The resource that holds the secret, such as kbs:///default/shop/password.
    #[arg(value_parser = KeyId::parse)]
    name: KeyId,
    /// The resource that holds the public key: guests look there.
    #[arg(long, value_name = "kbs:///REPOSITORY/TYPE/TAG", value_parser = KeyId::parse)]
    key_uri: KeyId,
    /// ECDSA P-256 private key, PEM or JWK.
    #[arg(long, value_name = "FILE", required_unless_present = "unsigned")]
    signing_key: Option<PathBuf>,
    /// Leave the signature out: guests take it only if their cdh.toml has skip_sealed_secret_verification, and the node may then exchange it.
    #[arg(long, conflicts_with = "signing_key")]
    unsigned: bool,
}

/// Arguments of `secret public-key`.
#[derive(Args)]
pub(crate) struct PublicKey {
    /// ECDSA P-256 private key, PEM or JWK.
    #[arg(long, value_name = "FILE")]
    signing_key: PathBuf,
}

/// Why nothing is sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// The key's file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The signature.
    #[error("cannot sign")]
    Sign,
}

/// Stands where a signature would be; not empty, since readers split at the points.
const NO_SIGNATURE: &[u8] = b"unsigned";

/// Carries the command out; gives what is printed.
pub(crate) fn run(command: &Secret) -> Result<String, SecretError> {
    match command {
        Secret::Seal(Seal { name, key_uri, signing_key, .. }) => {
            let key = signing_key.as_deref().map(read).transpose()?;
            Ok(seal(name, key_uri, key.as_ref())? + "\n")
        }
        Secret::PublicKey(PublicKey { signing_key }) => {
            let pair = read(signing_key)?;
            // An uncompressed point: 4, x, y.
            let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
            let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            Ok(format!("{}\n", json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": encoded(x), "y": encoded(y)})))
        }
    }
}

fn read(path: &Path) -> Result<EcdsaKeyPair, SecretError> {
    Ok(p256::read(&Zeroizing::new(input::text(path)?), &ECDSA_P256_SHA256_FIXED_SIGNING)?)
}

fn seal(name: &KeyId, key_uri: &KeyId, key: Option<&EcdsaKeyPair>) -> Result<String, SecretError> {
    let header = json!({"alg": "ES256", "kid": key_uri.as_str()}).to_string();
    let payload = json!({
        "version": "0.1.0", "type": "vault", "provider": "kbs", "name": name.as_str(), "provider_settings": {}, "annotations": {},
    });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload.to_string()));
    let signature = match key {
        Some(key) => key.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| SecretError::Sign)?.as_ref().to_vec(),
        None => NO_SIGNATURE.to_vec(),
    };
    Ok(format!("sealed.{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use base64::engine::general_purpose::STANDARD;
    use serde_json::Value;

    use super::*;

    #[test]
    fn sealed_secrets_are_signed_jws_that_name_a_resource() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        let der = STANDARD.encode(pair.to_pkcs8v1().unwrap());
        std::fs::write(&file, format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n")).unwrap();
        let id = |text: &str| KeyId::parse(text).unwrap();
        let (name, key_uri) = (id("kbs:///default/shop/password"), id("kbs:///default/sealing-key/1"));
        let command = Seal { name, key_uri, signing_key: Some(file.clone()), unsigned: false };
        let sealed = run(&Secret::Seal(command)).unwrap();
        let parts: Vec<&str> = sealed.trim_end().split('.').collect();
        let [prefix, header, payload, signature] = parts.try_into().unwrap();
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
        let json = |part: &str| serde_json::from_slice::<Value>(&decoded(part)).unwrap();
        assert_eq!((prefix, json(header)["kid"].as_str()), ("sealed", Some("kbs:///default/sealing-key/1")));
        assert_eq!(json(payload)["name"], "kbs:///default/shop/password");
        assert_eq!((&json(payload)["type"], &json(payload)["provider"]), (&json!("vault"), &json!("kbs")));

        let jwk: Value = serde_json::from_str(&run(&Secret::PublicKey(PublicKey { signing_key: file })).unwrap()).unwrap();
        let point = [vec![4], decoded(jwk["x"].as_str().unwrap()), decoded(jwk["y"].as_str().unwrap())].concat();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(format!("{header}.{payload}").as_bytes(), &decoded(signature)).unwrap();
    }

    #[test]
    fn unsigned_secrets_have_four_parts_too() {
        let id = |text: &str| KeyId::parse(text).unwrap();
        let sealed = seal(&id("kbs:///a/b/c"), &id("kbs:///a/b/d"), None).unwrap();
        assert_eq!(sealed.split('.').count(), 4);
        assert!(sealed.split('.').all(|part| !part.is_empty()));
    }
}
