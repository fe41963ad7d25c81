//! What a signature says: the JSON of "simple signing", which cosign and GPG signatures share.

use serde::Deserialize;

use super::name::Name;
use crate::Digest;

/// A signature's claim: this manifest is that image.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) manifest: Digest,
    pub(crate) name: Name,
}

/// `critical.type` of cosign.
pub(crate) const COSIGN: &str = "cosign container image signature";
/// `critical.type` of GPG signatures.
pub(crate) const ATOMIC: &str = "atomic container signature";

/// What is not critical may say anything.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    r#type: String,
    image: Image,
    identity: Identity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

impl Claim {
    /// Reads a payload whose signature was verified.
    pub(crate) fn parse(payload: &[u8], kind: &str) -> Result<Self, String> {
        let Payload { critical } = serde_json::from_slice(payload).map_err(|error| format!("its payload: {error}"))?;
        if critical.r#type != kind {
            return Err(format!("its type is {:?}, not {kind:?}", shortened(&critical.r#type)));
        }
        let reference = critical.identity.docker_reference;
        let name = Name::parse(&reference).ok_or_else(|| format!("it names {:?}, which is no image", shortened(&reference)))?;
        Ok(Self { manifest: critical.image.docker_manifest_digest, name })
    }
}

/// A registry's text for a person.
fn shortened(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn critical_members_are_all_understood_or_refused() {
        let digest = Digest::of(b"x");
        let good = || {
            json!({"critical": {"type": COSIGN, "image": {"docker-manifest-digest": digest}, "identity": {"docker-reference": "r.example/app"}},
            "optional": {"anything": 1}})
        };
        let parse = |value: &serde_json::Value| Claim::parse(value.to_string().as_bytes(), COSIGN);
        let claim = parse(&good()).unwrap();
        assert_eq!((claim.manifest, claim.name.repository.as_str()), (digest.clone(), "r.example/app"));
        for (path, value, named) in [
            ("/critical/type", json!(ATOMIC), "its type is"),
            ("/critical/image/docker-manifest-digest", json!("sha1:x"), "is not a digest"),
            ("/critical/identity/docker-reference", json!("A B"), "no image"),
            ("/critical/identity", json!({"docker-reference": "r.example/app", "more": 1}), "more"),
        ] {
            let mut bad = good();
            *bad.pointer_mut(path).unwrap() = value;
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        let mut more = good();
        more["critical"]["more"] = json!(1);
        assert!(parse(&more).is_err());
    }
}
