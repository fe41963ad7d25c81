//! Images of a policy: a reference with its digest, and what the image's configuration says of how it runs.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::expand::escaped;

/// An image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// With the registry, such as `docker.io/library/nginx`.
    repository: String,
    tag: Option<String>,
    /// Of the manifest or index; `None` names whatever the tag points to.
    pub(crate) digest: Option<String>,
}

/// What an image says of how it runs: `config` of the OCI image configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ImageConfig {
    /// Comes first.
    pub(crate) entrypoint: Option<Vec<String>>,
    /// Comes after it.
    pub(crate) cmd: Option<Vec<String>>,
    /// Environment variables.
    pub(crate) env: Option<Vec<String>>,
    /// Empty is the root.
    pub(crate) working_dir: String,
    /// Name or number, and group.
    pub(crate) user: String,
    /// What ends it; empty is TERM.
    pub(crate) stop_signal: String,
    /// Mount points of volumes.
    pub(crate) volumes: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: ImageConfig,
}

/// Registries' other names for the default one.
const DEFAULT_REGISTRY: &str = "docker.io";

impl ImageConfig {
    /// Reads an image configuration, as `skopeo inspect --config` prints it.
    pub(crate) fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Document>(json).map(|document| document.config)
    }
}

impl Reference {
    /// Reads a reference as Kubernetes takes it; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(checked_digest(digest)?)),
            None => (text, None),
        };
        let (name, tag) = match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (named, None),
        };
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "./:_-".contains(c);
        if name.is_empty() || !name.chars().all(|c| is_name(c) || c.is_ascii_uppercase()) || name.split('/').any(str::is_empty) {
            return None;
        }
        let repository = match name.split_once('/') {
            Some((registry, rest)) if registry.contains(['.', ':']) || registry == "localhost" => match registry {
                "index.docker.io" | "registry-1.docker.io" | DEFAULT_REGISTRY if !rest.contains('/') => {
                    format!("{DEFAULT_REGISTRY}/library/{rest}")
                }
                "index.docker.io" | "registry-1.docker.io" => format!("{DEFAULT_REGISTRY}/{rest}"),
                _ => name.to_owned(),
            },
            Some(_) => format!("{DEFAULT_REGISTRY}/{name}"),
            None => format!("{DEFAULT_REGISTRY}/library/{name}"),
        };
        Some(Self { repository, tag, digest })
    }

    /// A regular expression, anchored, for this repository by one of these digests, whatever the tag.
    pub(crate) fn pinned(&self, digests: &[String]) -> String {
        format!("^{}(:[0-9A-Za-z_.-]+)?@{}$", self.names(), alternatives(digests))
    }

    /// A regular expression, anchored, for what the node may call this image: as in the manifest, or by one of these digests.
    pub(crate) fn named(&self, digests: &[String]) -> String {
        if self.digest.is_some() {
            return self.pinned(digests);
        }
        let tag = self.tag.as_deref().map_or_else(|| "(:latest)?".to_owned(), |tag| format!("(:{})?", escaped(tag)));
        format!("^{}{tag}(@{})?$", self.names(), alternatives(digests))
    }

    /// The repository by its full name and by the short ones.
    fn names(&self) -> String {
        let short = self.repository.strip_prefix("docker.io/").map(|short| (short, short.strip_prefix("library/")));
        match short {
            Some((_, Some(official))) => format!(r"(docker\.io/)?(library/)?{}", escaped(official)),
            Some((short, None)) => format!(r"(docker\.io/)?{}", escaped(short)),
            None => escaped(&self.repository),
        }
    }
}

/// `sha256:` and its digits, or the longer one.
pub(crate) fn checked_digest(text: &str) -> Option<String> {
    text.parse::<peerpods_image::Digest>().ok().map(String::from)
}

fn alternatives(digests: &[String]) -> String {
    if let [digest] = digests { digest.clone() } else { format!("({})", digests.join("|")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_by_containerd() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, repository, tag) in [
            ("nginx", "docker.io/library/nginx", None),
            ("nginx:1.25", "docker.io/library/nginx", Some("1.25")),
            ("bitnami/nginx", "docker.io/bitnami/nginx", None),
            ("index.docker.io/nginx", "docker.io/library/nginx", None),
            ("localhost:5000/a/b:x", "localhost:5000/a/b", Some("x")),
            ("r.example.org/a", "r.example.org/a", None),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.repository.as_str(), reference.tag.as_deref(), reference.digest), (repository, tag, None), "{text}");
            assert_eq!(Reference::parse(&format!("{text}@{digest}")).unwrap().digest.as_deref(), Some(digest.as_str()));
        }
        for odd in ["", "a b", "a@sha256:00", "a//b", "a@", "/a"] {
            assert_eq!(Reference::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn patterns_hold_repository_and_digests() {
        let digests = ["sha256:aa".to_owned(), "sha256:bb".to_owned()];
        let reference = Reference::parse("nginx:1.25").unwrap();
        assert_eq!(reference.pinned(&digests[..1]), r"^(docker\.io/)?(library/)?nginx(:[0-9A-Za-z_.-]+)?@sha256:aa$");
        assert_eq!(reference.named(&digests), r"^(docker\.io/)?(library/)?nginx(:1\.25)?(@(sha256:aa|sha256:bb))?$");
        let reference = Reference::parse("r.example/a").unwrap();
        assert_eq!(reference.pinned(&digests), r"^r\.example/a(:[0-9A-Za-z_.-]+)?@(sha256:aa|sha256:bb)$");
    }

    #[test]
    fn configurations_of_skopeo_are_read() {
        let json = r#"{"architecture":"amd64","config":{"Entrypoint":["/a"],"Cmd":null,"Env":["PATH=/bin"],"User":"1000","Volumes":{"/data":{}}}}"#;
        let config = ImageConfig::parse(json).unwrap();
        assert_eq!(config.entrypoint.as_deref(), Some(&["/a".to_owned()][..]));
        assert!(config.cmd.is_none() && config.working_dir.is_empty());
        assert!(config.volumes.unwrap().contains_key("/data"));
        assert!(ImageConfig::parse("{}").is_ok() && ImageConfig::parse("[").is_err());
    }
}
