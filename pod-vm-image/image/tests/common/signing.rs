//! Signers: cosign with ECDSA P-256, GPG with Ed25519.

use aws_lc_rs::digest::{SHA512, digest as hash};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::image::digest;
use super::registry::{Body, Registry};

/// The payload of a signature.
pub fn payload(kind: &str, manifest: &str, reference: &str) -> Vec<u8> {
    let critical = json!({"type": kind, "image": {"docker-manifest-digest": manifest}, "identity": {"docker-reference": reference}});
    json!({"critical": critical, "optional": {"creator": "test"}}).to_string().into_bytes()
}

pub struct Cosign(EcdsaKeyPair);

impl Cosign {
    pub fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    pub fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref()))
    }

    /// A layer of a signatures' manifest, whose content is put into the repository.
    pub fn sign(&self, registry: &Registry, name: &str, manifest: &str, reference: &str) -> Value {
        let payload = payload("cosign container image signature", manifest, reference);
        registry.set_blob(name, &payload, Body::Bytes(payload.clone()));
        let signature = self.0.sign(&SystemRandom::new(), &payload).unwrap();
        json!({"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": digest(&payload), "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(signature.as_ref())}})
    }
}

/// Puts signatures where cosign puts those of a manifest.
pub fn attach(registry: &Registry, name: &str, manifest: &str, layers: &[Value]) {
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2});
    let document =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers});
    let tag = format!("{}.sig", manifest.replace(':', "-"));
    registry.push_manifest(name, &tag, document.to_string().into_bytes());
}

pub struct Gpg(Ed25519KeyPair);

impl Gpg {
    pub fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    /// As `gpg --export` writes it, without the user's name.
    pub fn key(&self) -> Vec<u8> {
        let curve = [0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];
        let point = integer(&[&[0x40], self.0.public_key().as_ref()].concat());
        packet(6, &[&[4, 0, 0, 0, 1, 22, 9][..], &curve, &point].concat())
    }

    /// As `gpg --sign` writes it, not compressed.
    pub fn sign(&self, payload: &[u8]) -> Vec<u8> {
        let head = [4, 0x00, 22, 10, 0, 6, 5, 2, 0, 0, 0, 1];
        let hashed = [payload, &head, &[4, 0xff, 0, 0, 0, 12]].concat();
        let hashed = hash(&SHA512, &hashed);
        let signature = self.0.sign(hashed.as_ref());
        let (r, s) = signature.as_ref().split_at(32);
        let signature = [&head[..], &[0, 0], &hashed.as_ref()[..2], &integer(r), &integer(s)].concat();
        let literal = [&[b'b', 0, 0, 0, 0, 0][..], payload].concat();
        [packet(4, &[3, 0, 10, 22, 0, 0, 0, 0, 0, 0, 0, 0, 1]), packet(11, &literal), packet(2, &signature)].concat()
    }
}

fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[0xc0 | tag, 255][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let bytes = &bytes[start..];
    let bits = bytes.first().map_or(0, |first| bytes.len() * 8 - first.leading_zeros() as usize);
    [&u16::try_from(bits).unwrap().to_be_bytes()[..], bytes].concat()
}
