//! What a manifest, an index and a configuration say. Pure: bytes in, decisions out.

use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::Deserialize;

use crate::Digest;
use crate::ocicrypt::{Annotations, ENCRYPTED, Encryption};

/// A document of a registry.
#[derive(Debug)]
pub(crate) enum Document {
    /// Images for several platforms; the digest of the one for linux/amd64.
    Index(Descriptor),
    /// An image.
    Manifest(Manifest),
}

/// One image.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Blob>,
}

/// Content by digest and length.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A layer as the registry holds it.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    /// Of a layer that arrives encrypted.
    pub(crate) encryption: Option<Encryption>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// Why a document is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// For this reason.
    Unusable(String),
    /// There is nothing for linux/amd64.
    NoPlatform,
    /// A layer of an unknown format.
    UnsupportedLayer { digest: Digest, media_type: String },
}

/// What is asked of a registry.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct RawPlatform {
    architecture: String,
    os: String,
    variant: Option<String>,
}

impl Document {
    /// Reads a document and takes from it what linux/amd64 needs.
    ///
    /// The media type that the registry states is ignored: the members decide, and a document that has both kinds is refused, so that
    /// no two readers see two images in it.
    pub(crate) fn parse(bytes: &[u8], max_layers: usize) -> Result<Self, Unfit> {
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| Unfit::Unusable(error.to_string()))?;
        match raw {
            RawDocument { schema_version: 2, manifests: Some(manifests), config: None, layers: None } => {
                choose(manifests).map(Self::Index).ok_or(Unfit::NoPlatform)
            }
            RawDocument { schema_version: 2, manifests: None, config: Some(config), layers: Some(layers) } => {
                if layers.len() > max_layers {
                    return Err(Unfit::Unusable(format!("{} layers; at most {max_layers} are allowed", layers.len())));
                }
                let layers = layers.into_iter().map(blob).collect::<Result<_, _>>()?;
                Ok(Self::Manifest(Manifest { config: Descriptor { digest: config.digest, size: config.size }, layers }))
            }
            RawDocument { schema_version: 2, .. } => Err(Unfit::Unusable("neither an index nor a manifest, or both".to_owned())),
            RawDocument { schema_version, .. } => Err(Unfit::Unusable(format!("schema version {schema_version}; only 2 is supported"))),
        }
    }
}

/// The plain amd64 entry, else the first of any variant: higher ones need a newer CPU than the pod VM may have.
fn choose(manifests: Vec<RawDescriptor>) -> Option<Descriptor> {
    let fits =
        |entry: &RawDescriptor| entry.platform.as_ref().is_some_and(|platform| platform.os == "linux" && platform.architecture == "amd64");
    let plain = |entry: &RawDescriptor| entry.platform.as_ref().is_some_and(|p| matches!(p.variant.as_deref(), None | Some("" | "v1")));
    let mut fitting: Vec<RawDescriptor> = manifests.into_iter().filter(fits).collect();
    let chosen = fitting.iter().position(plain).unwrap_or(0);
    (chosen < fitting.len()).then(|| fitting.swap_remove(chosen)).map(|entry| Descriptor { digest: entry.digest, size: entry.size })
}

fn blob(raw: RawDescriptor) -> Result<Blob, Unfit> {
    let (plain, is_encrypted) = match raw.media_type.strip_suffix(ENCRYPTED) {
        Some(plain) => (plain, true),
        None => (raw.media_type.as_str(), false),
    };
    let Some(compression) = layer_format(plain) else {
        return Err(Unfit::UnsupportedLayer { digest: raw.digest, media_type: raw.media_type.chars().take(160).collect() });
    };
    let annotations = raw.annotations.unwrap_or_default();
    let encryption = is_encrypted.then(|| Encryption::parse(&annotations)).transpose();
    let encryption = encryption.map_err(|reason| Unfit::Unusable(format!("layer {}: {reason}", raw.digest)))?;
    Ok(Blob { digest: raw.digest, size: raw.size, compression, encryption })
}

/// A layer that is not compressed; what follows says how others are.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a layer of this media type, which is not encrypted, is compressed.
pub(crate) fn layer_format(media_type: &str) -> Option<Compression> {
    const NOT_DISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    if let Some(compression) = media_type.strip_prefix(DOCKER) {
        return match compression {
            "" => Some(Compression::Plain),
            ".gzip" => Some(Compression::Gzip),
            ".zstd" => Some(Compression::Zstd),
            _ => None,
        };
    }
    match media_type.strip_prefix(OCI_LAYER).or_else(|| media_type.strip_prefix(NOT_DISTRIBUTABLE))? {
        "" => Some(Compression::Plain),
        "+gzip" => Some(Compression::Gzip),
        "+zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

/// An image's configuration with what the store needs of it.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) config: ImageConfiguration,
    /// Digests of the uncompressed layers, bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, Unfit> {
        let config = ImageConfiguration::from_reader(bytes).map_err(|error| Unfit::Unusable(error.to_string()))?;
        if *config.os() != Os::Linux || *config.architecture() != Arch::Amd64 {
            return Err(Unfit::NoPlatform);
        }
        let diff_ids: Vec<Digest> = config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|error: crate::DigestError| Unfit::Unusable(error.to_string()))?;
        if diff_ids.len() != layers {
            return Err(Unfit::Unusable(format!("{} diff_ids for {layers} layers", diff_ids.len())));
        }
        Ok(Self { config, diff_ids })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(byte: char) -> String {
        format!("sha256:{}", byte.to_string().repeat(64))
    }

    fn parse(document: &serde_json::Value) -> Result<Document, Unfit> {
        Document::parse(document.to_string().as_bytes(), 2)
    }

    #[test]
    fn index_gives_plain_amd64() {
        let entry = |d: char, os: &str, arch: &str, variant: Option<&str>| json!({"digest": digest(d), "size": 1, "platform": {"os": os, "architecture": arch, "variant": variant}});
        let index = json!({"schemaVersion": 2, "manifests": [
            entry('a', "unknown", "unknown", None), entry('b', "linux", "arm64", None), entry('c', "linux", "amd64", Some("v3")),
            entry('d', "linux", "amd64", None),
        ]});
        let Ok(Document::Index(chosen)) = parse(&index) else { panic!() };
        assert_eq!(chosen.digest.as_str(), digest('d'));
        assert_eq!(parse(&json!({"schemaVersion": 2, "manifests": [entry('b', "linux", "arm64", None)]})).unwrap_err(), Unfit::NoPlatform);
        assert_eq!(parse(&json!({"schemaVersion": 2, "manifests": [{"digest": digest('a'), "size": 1}]})).unwrap_err(), Unfit::NoPlatform);
    }

    #[test]
    fn ambiguous_old_and_overlong_documents_are_refused() {
        let config = json!({"digest": digest('a'), "size": 1});
        let layer = json!({"digest": digest('a'), "size": 1, "mediaType": "application/vnd.oci.image.layer.v1.tar"});
        for bad in [
            json!({"schemaVersion": 2, "manifests": [], "config": config, "layers": []}),
            json!({"schemaVersion": 1, "config": config, "layers": []}),
            json!({"schemaVersion": 2}),
            json!({"schemaVersion": 2, "config": config, "layers": [layer, layer, layer]}),
            json!({"schemaVersion": 2, "config": {"digest": "sha256:../..", "size": 1}, "layers": []}),
            json!({"schemaVersion": 2, "config": {"digest": digest('a'), "size": -1}, "layers": []}),
        ] {
            assert!(matches!(parse(&bad), Err(Unfit::Unusable(_))), "{bad}");
        }
    }

    #[test]
    fn unknown_layers_are_named() {
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar+lzma",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted+encrypted",
            "+encrypted",
            "",
        ] {
            let manifest = json!({"schemaVersion": 2, "config": {"digest": digest('a'), "size": 1},
                "layers": [{"digest": digest('b'), "size": 1, "mediaType": media_type}]});
            let expected = Unfit::UnsupportedLayer { digest: digest('b').parse().unwrap(), media_type: media_type.to_owned() };
            assert_eq!(parse(&manifest).unwrap_err(), expected);
        }
    }

    #[test]
    fn encrypted_layers_of_all_formats_are_read() {
        let annotations = json!({
            "org.opencontainers.image.enc.pubopts": crate::ocicrypt::encode_public(&[0; 32]),
            "org.opencontainers.image.enc.keys.provider.attestation-agent": "YQ==",
        });
        let layer = |media_type: &str, annotations: &serde_json::Value| {
            let manifest = json!({"schemaVersion": 2, "config": {"digest": digest('a'), "size": 1},
                "layers": [{"digest": digest('b'), "size": 1, "mediaType": media_type, "annotations": annotations}]});
            match parse(&manifest)? {
                Document::Manifest(mut manifest) => Ok(manifest.layers.remove(0)),
                Document::Index(_) => panic!(),
            }
        };
        for (media_type, compression) in [
            ("application/vnd.oci.image.layer.v1.tar+encrypted", Compression::Plain),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Compression::Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd+encrypted", Compression::Zstd),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+encrypted", Compression::Plain),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted", Compression::Gzip),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", Compression::Gzip),
        ] {
            let blob = layer(media_type, &annotations).unwrap();
            assert_eq!((blob.compression, blob.encryption.is_some()), (compression, true), "{media_type}");
            assert!(matches!(layer(media_type, &json!(null)), Err(Unfit::Unusable(reason)) if reason.contains("pubopts")));
            let plain = layer(media_type.trim_end_matches("+encrypted"), &annotations).unwrap();
            assert_eq!((plain.compression, plain.encryption), (compression, None));
        }
    }

    #[test]
    fn config_must_be_amd64_and_name_each_layer() {
        let config =
            |arch: &str, ids: &[String]| json!({"os": "linux", "architecture": arch, "rootfs": {"type": "layers", "diff_ids": ids}});
        let parse = |value: serde_json::Value| Config::parse(value.to_string().as_bytes(), 1);
        assert!(parse(config("amd64", &[digest('a')])).is_ok());
        assert_eq!(parse(config("arm64", &[digest('a')])).unwrap_err(), Unfit::NoPlatform);
        assert!(matches!(parse(config("amd64", &[])), Err(Unfit::Unusable(_))));
        assert!(matches!(parse(config("amd64", &["sha256:x".to_owned()])), Err(Unfit::Unusable(_))));
    }
}
