//! Reading manifests; pure. (OCI image-spec `manifest.md`, `image-index.md`; Docker's list has the same members.)

use serde::Deserialize;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Child>,
}

#[derive(Deserialize)]
struct Child {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    digest: String,
}

/// The pod VM's architecture in the words of image manifests.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The manifest of this platform, if the document is an index.
pub(super) fn choose(bytes: &[u8]) -> Result<Option<String>, String> {
    let index: Index = serde_json::from_slice(bytes).map_err(|error| format!("its manifest is not JSON: {error}"))?;
    if index.manifests.is_empty() {
        return Ok(None);
    }
    let suits = |child: &&Child| child.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == ARCHITECTURE);
    let child = index.manifests.iter().find(suits).ok_or_else(|| format!("it has no manifest for linux/{ARCHITECTURE}"))?;
    digest(&child.digest).map(Some)
}

/// The configuration's digest.
pub(super) fn config(bytes: &[u8]) -> Result<String, String> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| format!("its manifest names no configuration: {error}"))?;
    digest(&manifest.config.digest)
}

/// The layers' diff_ids and the user of an image's configuration (OCI image-spec `config.md`).
pub(super) fn layers_and_user(bytes: &[u8]) -> Option<(Vec<String>, String)> {
    #[derive(Deserialize)]
    struct Configuration {
        rootfs: Rootfs,
        #[serde(default)]
        config: Runtime,
    }
    #[derive(Deserialize)]
    struct Rootfs {
        diff_ids: Vec<String>,
    }
    #[derive(Deserialize, Default)]
    struct Runtime {
        #[serde(rename = "User", default)]
        user: String,
    }
    let configuration: Configuration = serde_json::from_slice(bytes).ok()?;
    Some((configuration.rootfs.diff_ids, configuration.config.user))
}

/// `host/path` of a reference, without tag and digest.
pub(super) fn repository(reference: &str) -> Option<&str> {
    let named = reference.split_once('@').map_or(reference, |(named, _)| named);
    let (host, path) = named.split_once('/')?;
    let path = path.rsplit_once(':').map_or(path, |(path, _)| path);
    (!host.is_empty() && !path.is_empty()).then(|| &named[..host.len() + 1 + path.len()])
}

fn digest(text: &str) -> Result<String, String> {
    let is_valid = text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if is_valid { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a SHA-256 digest")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_lose_tag_and_digest_only() {
        for (reference, expected) in [
            ("docker.io/library/busybox:1.36", Some("docker.io/library/busybox")),
            ("10.0.0.1:5000/a/b:t@sha256:00", Some("10.0.0.1:5000/a/b")),
            ("10.0.0.1:5000/a", Some("10.0.0.1:5000/a")),
            ("sha256:00", None),
        ] {
            assert_eq!(repository(reference), expected, "{reference}");
        }
    }

    #[test]
    fn an_index_gives_this_platform_and_a_manifest_its_configuration() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let of = |arch: &str| format!(r#"{{"manifests":[{{"digest":"{digest}","platform":{{"os":"linux","architecture":"{arch}"}}}}]}}"#);
        assert_eq!(choose(of(ARCHITECTURE).as_bytes()).unwrap(), Some(digest.clone()));
        assert!(choose(of("s390x").as_bytes()).unwrap_err().contains(ARCHITECTURE));
        let manifest = format!(r#"{{"config":{{"digest":"{digest}"}},"layers":[]}}"#);
        assert_eq!(choose(manifest.as_bytes()).unwrap(), None);
        assert_eq!(config(manifest.as_bytes()).unwrap(), digest);
        assert!(config(br#"{"config":{"digest":"md5:1"}}"#).unwrap_err().contains("md5"));
    }
}
