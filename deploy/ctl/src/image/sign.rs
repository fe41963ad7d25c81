//! Signs images as cosign does with a key of its user: an artifact beside the image, under a tag made of the image's digest.
//!
//! There is no transparency log and no certificate: guests know the key.

use std::fmt::Write as _;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_image::Digest;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::layout::{Descriptor, Layout, LayoutError, algorithm, hex_of};
use crate::input::{self, InputError};
use crate::p256::{self, KeyError};

/// A signature that was made.
#[derive(Debug)]
pub(crate) struct Signed {
    /// Of the image.
    pub(crate) manifest: Digest,
    /// The signature's tag.
    pub(crate) tag: String,
}

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The key's file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The name.
    #[error("{0:?} does not name an image: write REGISTRY/REPOSITORY[:TAG], such as registry.example.org/app:1")]
    Reference(String),
    /// No image, or more than one.
    #[error("{found} images fit; tags there are: {tags}; next: choose one with --tag")]
    Choose {
        /// How many.
        found: usize,
        /// Tags of the layout.
        tags: String,
    },
    /// It would be lost.
    #[error("an archive cannot be signed in place; next: unpack it into a folder with `skopeo copy oci-archive:FILE oci:DIR`")]
    Archive,
    /// The signature itself.
    #[error("cannot sign")]
    Sign,
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Signs an image; of one for several platforms the index and every image in it, since guests see either.
pub(crate) fn sign(layout: &Layout, key: &Path, reference: &str, tag: Option<&str>) -> Result<Vec<Signed>, SignError> {
    if layout.is_temporary() {
        return Err(SignError::Archive);
    }
    let reference = checked(reference)?;
    let key = p256::read(&Zeroizing::new(input::text(key)?), &ECDSA_P256_SHA256_ASN1_SIGNING)?;
    let mut entries = layout.entries()?;
    let image = choose(&entries, tag)?;
    let document = layout.document("manifest", &image)?;
    let mut images = vec![image];
    for entry in document["manifests"].as_array().into_iter().flatten() {
        images.push(Descriptor::parse(entry)?.digest);
    }
    let mut signed = Vec::new();
    for manifest in images {
        let tag = format!("{}-{}.sig", algorithm(&manifest), hex_of(&manifest));
        let layer = signature(layout, &key, reference, &manifest)?;
        let position = entries.iter().position(|entry| entry["annotations"][REF_NAME] == tag.as_str());
        let mut layers = match position {
            Some(position) => previous(layout, &entries.remove(position))?,
            None => Vec::new(),
        };
        layers.push(layer);
        entries.push(artifact(layout, &tag, &layers)?);
        signed.push(Signed { manifest, tag });
    }
    layout.set_entries(&entries)?;
    Ok(signed)
}

/// As for the registry, without a digest: the payload has that.
fn checked(reference: &str) -> Result<&str, SignError> {
    let named = reference.split_once('@').map_or(reference, |(named, _)| named);
    let is_name = named.split_once('/').is_some_and(|(registry, repository)| !registry.is_empty() && !repository.is_empty());
    let is_plain = named.chars().all(|c| c.is_ascii_alphanumeric() || "./:_-".contains(c));
    if is_name && is_plain && !named.contains("://") { Ok(named) } else { Err(SignError::Reference(reference.to_owned())) }
}

fn choose(entries: &[Value], tag: Option<&str>) -> Result<Digest, SignError> {
    let name = |entry: &Value| entry["annotations"][REF_NAME].as_str().unwrap_or_default().to_owned();
    let images: Vec<&Value> = entries.iter().filter(|entry| !name(entry).ends_with(".sig")).collect();
    let fitting: Vec<&&Value> = images.iter().filter(|entry| tag.is_none_or(|tag| name(entry) == tag)).collect();
    match fitting.as_slice() {
        [entry] => Ok(Descriptor::parse(entry)?.digest),
        other => {
            let tags: Vec<String> = images.iter().map(|entry| name(entry)).filter(|name| !name.is_empty()).collect();
            Err(SignError::Choose { found: other.len(), tags: if tags.is_empty() { "none".to_owned() } else { tags.join(", ") } })
        }
    }
}

/// A layer of the artifact; its content is put into the layout.
fn signature(layout: &Layout, key: &EcdsaKeyPair, reference: &str, manifest: &Digest) -> Result<Value, SignError> {
    let critical = json!({
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": manifest},
        "type": "cosign container image signature",
    });
    let payload = json!({"critical": critical, "optional": null}).to_string().into_bytes();
    let signature = key.sign(&SystemRandom::new(), &payload).map_err(|_| SignError::Sign)?;
    let digest = layout.add(&payload)?;
    let annotations = json!({SIGNATURE: STANDARD.encode(signature.as_ref())});
    Ok(json!({"mediaType": PAYLOAD, "digest": digest, "size": payload.len(), "annotations": annotations}))
}

fn previous(layout: &Layout, entry: &Value) -> Result<Vec<Value>, LayoutError> {
    let manifest = layout.document("manifest", &Descriptor::parse(entry)?.digest)?;
    Ok(manifest["layers"].as_array().cloned().unwrap_or_default())
}

fn artifact(layout: &Layout, tag: &str, layers: &[Value]) -> Result<Value, LayoutError> {
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({"architecture": "", "config": {}, "os": "", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let config = json!({"mediaType": CONFIG, "digest": layout.add(&config)?, "size": config.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).to_string().into_bytes();
    let digest = layout.add(&manifest)?;
    Ok(json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.len(), "annotations": {REF_NAME: tag}}))
}

/// JSON for programs.
pub(crate) fn to_json(signed: &[Signed]) -> String {
    let all: Vec<Value> = signed.iter().map(|signed| json!({"digest": signed.manifest, "tag": signed.tag})).collect();
    format!("{:#}\n", Value::Array(all))
}

/// What was signed, and what is to be copied.
pub(crate) fn for_people(signed: &[Signed], layout: &Path, reference: &str) -> String {
    let named = reference.split_once('@').map_or(reference, |(named, _)| named);
    let repository = match named.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => named,
    };
    let mut text = String::new();
    for signed in signed {
        let _ = writeln!(text, "signed {}", signed.manifest);
    }
    text += "Copy the image and its signatures:\n";
    for Signed { tag, .. } in signed {
        let _ = writeln!(text, "  skopeo copy oci:{}:{tag} docker://{repository}:{tag}", layout.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, KeyPair as _, UnparsedPublicKey};

    use super::super::layout::tests::sample;
    use super::*;

    fn pem_of(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    #[test]
    fn signatures_are_where_and_what_cosign_makes() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, key) = (folder.path().join("a"), folder.path().join("key.pem"));
        let digest = sample(&dir, &[b"one"]);
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        std::fs::write(&key, pem_of("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref())).unwrap();
        let layout = Layout::open(&dir).unwrap();
        for count in 1..=2 {
            let signed = sign(&layout, &key, "r.example/app:1", None).unwrap();
            assert_eq!(signed[0].tag, format!("sha256-{}.sig", hex_of(&digest)));
            let entries = layout.entries().unwrap();
            assert_eq!(entries.len(), 2);
            assert_eq!(entries[1]["annotations"][REF_NAME], signed[0].tag.as_str());
            let manifest = layout.document("manifest", &Descriptor::parse(&entries[1]).unwrap().digest).unwrap();
            let layers = manifest["layers"].as_array().unwrap();
            assert_eq!(layers.len(), count);
            for layer in layers {
                let mut payload = Vec::new();
                layout.open_blob(&Descriptor::parse(layer).unwrap().digest).unwrap().read_to_end(&mut payload).unwrap();
                let signature = STANDARD.decode(layer["annotations"][SIGNATURE].as_str().unwrap()).unwrap();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref()).verify(&payload, &signature).unwrap();
                let payload: Value = serde_json::from_slice(&payload).unwrap();
                assert_eq!(payload["critical"]["image"]["docker-manifest-digest"], digest.as_str());
                assert_eq!(payload["critical"]["identity"]["docker-reference"], "r.example/app:1");
            }
            let text = for_people(&signed, &dir, "r.example/app:1");
            assert!(text.contains(&format!(".sig docker://r.example/app:sha256-{}.sig", hex_of(&digest))), "{text}");
        }
    }

    #[test]
    fn names_and_tags_decide_what_is_signed() {
        for odd in ["app", "https://r/app", "r/", "/app", "r/a b"] {
            assert!(checked(odd).is_err(), "{odd}");
        }
        assert_eq!(checked("r.example:5000/a/b:1@sha256:00").unwrap(), "r.example:5000/a/b:1");
        let digest = Digest::of(b"x");
        let entry = |tag: &str| json!({"digest": digest, "annotations": {REF_NAME: tag}});
        let entries = [entry("1"), entry("2"), entry("sha256-00.sig")];
        assert!(choose(&entries, Some("2")).is_ok());
        let error = choose(&entries, None).unwrap_err().to_string();
        assert!(error.contains("2 images fit; tags there are: 1, 2"), "{error}");
        assert!(choose(&entries[1..], None).is_ok() && choose(&entries, Some("3")).is_err());
    }
}
