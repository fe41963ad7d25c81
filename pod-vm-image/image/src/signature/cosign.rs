//! Signatures of cosign: an artifact beside the image, under a tag made of the manifest's digest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::key::PublicKey;
use crate::transport::Repository;
use crate::{Digest, PullError};

/// What was signed, and the signature.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) payload: Vec<u8>,
    signature: Vec<u8>,
}

/// The layers that are signatures.
const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where a layer has its signature.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Bytes of the signatures' manifest, which may hold certificates beside them.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Bytes of a payload. Cosign writes some 250.
const MAX_PAYLOAD_BYTES: u64 = 64 << 10;
/// Signatures that are looked at: each is a request.
const MAX_SIGNATURES: usize = 64;

#[derive(Deserialize)]
struct RawManifest {
    layers: Vec<RawLayer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLayer {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// The tag that holds the signatures of a manifest.
pub(crate) fn tag(manifest: &Digest) -> String {
    format!("{}-{}.sig", manifest.algorithm(), manifest.hex())
}

/// The signatures of a manifest; none if there is no such tag. Nothing of them is verified, nor that they are of that manifest.
pub(crate) async fn fetch(repository: &Repository, manifest: &Digest) -> Result<Vec<Signed>, PullError> {
    let document = match repository.manifest(&tag(manifest), MAX_MANIFEST_BYTES).await {
        Ok(document) => document,
        Err(PullError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let layers = layers(&document).map_err(|reason| repository.unusable("the signatures' manifest", reason))?;
    let mut all = Vec::new();
    for (digest, signature) in layers {
        let payload = repository.small_blob(&digest, MAX_PAYLOAD_BYTES, "a signature").await?;
        all.push(Signed { payload: payload.to_vec(), signature });
    }
    Ok(all)
}

/// The payloads' digests, and the signatures.
fn layers(document: &[u8]) -> Result<Vec<(Digest, Vec<u8>)>, String> {
    let raw: RawManifest = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let layers: Vec<_> = raw
        .layers
        .into_iter()
        .filter(|layer| layer.media_type == MEDIA_TYPE)
        .filter_map(|layer| {
            let signature = STANDARD.decode(layer.annotations?.get(SIGNATURE)?.trim()).ok()?;
            Some((layer.digest, signature))
        })
        .collect();
    match layers.len() {
        0..=MAX_SIGNATURES => Ok(layers),
        many => Err(format!("{many} signatures; at most {MAX_SIGNATURES} are allowed")),
    }
}

impl Signed {
    /// The payload, once the key has proven it.
    pub(crate) fn verified_by(&self, key: &PublicKey) -> Option<&[u8]> {
        key.verifies(&self.payload, &self.signature).then_some(&self.payload)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_signature_layers_with_a_signature_count() {
        let digest = Digest::of(b"x");
        let layer = |media_type: &str, annotations: serde_json::Value| json!({"mediaType": media_type, "digest": digest, "size": 1, "annotations": annotations});
        let document = json!({"schemaVersion": 2, "layers": [
            layer(MEDIA_TYPE, json!({SIGNATURE: "YQ=="})), layer(MEDIA_TYPE, json!({})), layer(MEDIA_TYPE, json!(null)),
            layer(MEDIA_TYPE, json!({SIGNATURE: "?"})), layer("text/plain", json!({SIGNATURE: "YQ=="})),
        ]});
        assert_eq!(layers(document.to_string().as_bytes()).unwrap(), [(digest.clone(), b"a".to_vec())]);
        let many = json!({"layers": vec![layer(MEDIA_TYPE, json!({SIGNATURE: "YQ=="})); 65]});
        assert!(layers(many.to_string().as_bytes()).unwrap_err().contains("65 signatures"));
        assert_eq!(tag(&digest), format!("sha256-{}.sig", digest.hex()));
    }
}
