//! What a layout's images are made of.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_image::Digest;
use serde_json::{Value, json};

use super::layout::{Descriptor, Layout, LayoutError, MAX_MANIFESTS};

/// An image or an artifact.
#[derive(Debug)]
pub(crate) struct Described {
    /// In the layout; `None` within an index.
    tag: Option<String>,
    digest: Digest,
    platform: Option<String>,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    digest: Digest,
    bytes: u64,
    media_type: String,
    /// Names of the keys that open it; empty for a layer in clear.
    keys: Vec<String>,
}

/// All images of a layout, those within indexes included.
pub(crate) fn inspect(layout: &Layout) -> Result<Vec<Described>, LayoutError> {
    let mut images = Vec::new();
    let mut entries: Vec<Value> = layout.entries()?;
    entries.reverse();
    while let Some(entry) = entries.pop() {
        let digest = Descriptor::parse(&entry)?.digest;
        let document = layout.document("manifest", &digest)?;
        if let Some(manifests) = document["manifests"].as_array() {
            if manifests.len() + entries.len() + images.len() > MAX_MANIFESTS {
                let reason = format!("more than {MAX_MANIFESTS} manifests in all");
                return Err(LayoutError::Document { what: "index", digest: digest.to_string(), reason });
            }
            entries.extend(manifests.iter().rev().cloned());
            continue;
        }
        let layers = document["layers"].as_array().into_iter().flatten().map(layer).collect::<Result<_, _>>()?;
        let platform = &entry["platform"];
        let platform = platform["os"].as_str().zip(platform["architecture"].as_str()).map(|(os, machine)| format!("{os}/{machine}"));
        let tag = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned);
        images.push(Described { tag, digest, platform, layers });
    }
    Ok(images)
}

fn layer(entry: &Value) -> Result<Layer, LayoutError> {
    let Descriptor { media_type, digest } = Descriptor::parse(entry)?;
    let keys = if media_type.ends_with("+encrypted") { keys(&entry["annotations"]) } else { Vec::new() };
    Ok(Layer { digest, bytes: entry["size"].as_u64().unwrap_or_default(), media_type, keys })
}

/// Of all recipients; those that are no key of a key broker by their kind.
fn keys(annotations: &Value) -> Vec<String> {
    const KEYS: &str = "org.opencontainers.image.enc.keys.";
    let mut keys = Vec::new();
    for (name, value) in annotations.as_object().into_iter().flatten() {
        let Some(kind) = name.strip_prefix(KEYS) else { continue };
        for packet in value.as_str().unwrap_or_default().split(',').filter(|packet| !packet.is_empty()) {
            let json = STANDARD.decode(packet).ok().and_then(|json| serde_json::from_slice::<Value>(&json).ok());
            let kid = json.as_ref().filter(|_| kind.starts_with("provider.")).and_then(|json| json["kid"].as_str());
            keys.push(kid.unwrap_or(kind).chars().filter(|c| !c.is_control()).collect());
        }
    }
    keys
}

/// JSON for programs.
pub(crate) fn to_json(images: &[Described]) -> String {
    let layer = |layer: &Layer| json!({"digest": layer.digest, "size": layer.bytes, "mediaType": layer.media_type, "isEncrypted": is_encrypted(layer), "keys": layer.keys});
    let image = |image: &Described| {
        let layers: Vec<Value> = image.layers.iter().map(layer).collect();
        json!({"tag": image.tag, "digest": image.digest, "platform": image.platform, "layers": layers})
    };
    format!("{:#}\n", Value::Array(images.iter().map(image).collect()))
}

/// A paragraph for each image.
pub(crate) fn for_people(images: &[Described]) -> String {
    let mut text = String::new();
    for image in images {
        let plain = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        let names = [image.tag.as_deref(), image.platform.as_deref()].into_iter().flatten().map(plain);
        let _ = writeln!(text, "{} {}", image.digest, names.collect::<Vec<_>>().join(" "));
        for layer in &image.layers {
            let state = match (is_encrypted(layer), layer.keys.as_slice()) {
                (false, _) => "in clear".to_owned(),
                (true, []) => "encrypted, for nobody".to_owned(),
                (true, keys) => format!("encrypted with {}", keys.join(", ")),
            };
            let _ = writeln!(text, "  {} {} bytes, {}: {state}", layer.digest, layer.bytes, plain(&layer.media_type));
        }
    }
    text
}

fn is_encrypted(layer: &Layer) -> bool {
    layer.media_type.ends_with("+encrypted")
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::sample;
    use super::*;

    #[test]
    fn layers_in_clear_are_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let digest = sample(&folder.path().join("a"), &[b"one"]);
        let images = inspect(&Layout::open(&folder.path().join("a")).unwrap()).unwrap();
        let text = for_people(&images);
        assert!(text.starts_with(&format!("{digest} 1\n  sha256:")) && text.ends_with("v1.tar: in clear\n"), "{text}");
        let json: Value = serde_json::from_str(&to_json(&images)).unwrap();
        assert_eq!((&json[0]["layers"][0]["isEncrypted"], &json[0]["layers"][0]["size"]), (&json!(false), &json!(3)));
    }

    #[test]
    fn keys_of_all_recipients_are_named() {
        let packet = |json: &str| STANDARD.encode(json);
        let packets = [packet(r#"{"kid":"kbs:///a/b/c"}"#), packet("[]")].join(",");
        let annotations = json!({
            "org.opencontainers.image.enc.pubopts": "x",
            "org.opencontainers.image.enc.keys.jwe": "abc",
            "org.opencontainers.image.enc.keys.provider.attestation-agent": packets,
        });
        assert_eq!(keys(&annotations), ["jwe", "kbs:///a/b/c", "provider.attestation-agent"]);
    }
}
