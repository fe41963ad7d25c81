//! Where GPG signatures are: the `docker:` and `default-docker:` parts of containers-registries.d(5).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Subject;
use super::name::Name;
use super::yaml;
use crate::{Digest, PullError};

/// Servers of signatures, by scope. None is known by default.
#[derive(Debug, Clone, Default)]
pub struct Lookaside {
    default: Option<String>,
    docker: BTreeMap<String, String>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LookasideError {
    /// Not YAML of that form.
    #[error("the signature store configuration: {reason}")]
    Syntax {
        /// What and where.
        reason: String,
    },
    /// A server that is none.
    #[error("the signature store configuration: {scope}: {url:?} is not an http:// or https:// URL, and a pod VM reads no others")]
    Url {
        /// `default-docker`, or a scope.
        scope: String,
        /// What is there.
        url: String,
    },
}

/// Bytes of a configuration.
const MAX_BYTES: usize = 1 << 20;
/// Bytes of a signature; one has some hundreds.
const MAX_SIGNATURE_BYTES: u64 = 64 << 10;
/// Signatures of one manifest that are looked at: each is a request.
const MAX_SIGNATURES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default, rename = "default-docker")]
    default: Option<Place>,
    #[serde(default)]
    docker: Option<BTreeMap<String, Option<Place>>>,
}

/// `sigstore` is what `lookaside` was called first. The others are for tools that write.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    lookaside: Option<String>,
    sigstore: Option<String>,
    #[serde(rename = "lookaside-staging")]
    _lookaside_staging: Option<String>,
    #[serde(rename = "sigstore-staging")]
    _sigstore_staging: Option<String>,
    #[serde(rename = "use-sigstore-attachments")]
    _use_sigstore_attachments: Option<String>,
}

impl Lookaside {
    /// Parses the YAML text: maps of maps of strings, which is all that such files have.
    pub fn parse(text: &str) -> Result<Self, LookasideError> {
        let syntax = |reason| LookasideError::Syntax { reason };
        if text.len() > MAX_BYTES {
            return Err(syntax(format!("it is larger than {MAX_BYTES} bytes")));
        }
        let value = yaml::parse(text).map_err(syntax)?;
        let raw: Raw = serde_json::from_value(value).map_err(|error| syntax(error.to_string()))?;
        let default = raw.default.and_then(|place| place.url("default-docker")).transpose()?;
        let mut docker = BTreeMap::new();
        for (scope, place) in raw.docker.unwrap_or_default() {
            if let Some(url) = place.and_then(|place| place.url(&scope)).transpose()? {
                docker.insert(scope, url);
            }
        }
        Ok(Self { default, docker })
    }

    /// The server for an image, without a slash at its end.
    pub(crate) fn base(&self, name: &Name) -> Option<&str> {
        // A wildcard is none here, as the manual has it.
        let scopes = name.scopes().into_iter().filter(|scope| !scope.starts_with('*') && !scope.is_empty());
        let own = scopes.filter_map(|scope| self.docker.get(&scope)).next();
        own.or(self.default.as_ref()).map(String::as_str)
    }
}

impl Place {
    fn url(self, scope: &str) -> Option<Result<String, LookasideError>> {
        let url = self.lookaside.or(self.sigstore)?;
        let is_http = url.parse::<reqwest::Url>().is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        Some(match is_http {
            true => Ok(url.trim_end_matches('/').to_owned()),
            false => Err(LookasideError::Url { scope: scope.to_owned(), url }),
        })
    }
}

/// The signatures of a manifest, numbered from 1 without a gap. Nothing of them is verified.
pub(crate) async fn fetch(subject: &Subject<'_>, base: &str, manifest: &Digest) -> Result<Vec<Vec<u8>>, PullError> {
    // The path of the repository without its host.
    let path = subject.name.repository.split_once('/').map_or("", |(_, path)| path);
    let mut all = Vec::new();
    for number in 1..=MAX_SIGNATURES {
        let url = format!("{base}/{path}@{}={}/signature-{number}", manifest.algorithm(), manifest.hex());
        match subject.repository.elsewhere(&url, MAX_SIGNATURE_BYTES, "a signature").await? {
            Some(signature) => all.push(signature.to_vec()),
            None => return Ok(all),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(config: &str, reference: &str) -> Option<String> {
        Lookaside::parse(config).unwrap().base(&Name::of(&reference.parse().unwrap())).map(str::to_owned)
    }

    #[test]
    fn most_specific_server_is_used() {
        let config = "default-docker:\n  sigstore: https://all.example/\ndocker:\n  r.example:\n    lookaside: https://host.example/x\n    sigstore: https://old.example\n  r.example/team:\n    sigstore: http://team.example\n";
        assert_eq!(base(config, "r.example/team/app:1").as_deref(), Some("http://team.example"));
        assert_eq!(base(config, "r.example/app:1").as_deref(), Some("https://host.example/x"));
        assert_eq!(base(config, "busybox").as_deref(), Some("https://all.example"));
        assert_eq!(base("", "busybox"), None);
    }

    #[test]
    fn odd_servers_and_members_are_refused_by_name() {
        for (config, named) in [
            ("default-docker:\n  sigstore: file:///var/lib\n", "file:///var/lib"),
            ("docker:\n  r.example:\n    lookaside: /var/lib\n", "r.example"),
            ("docker:\n  r.example:\n    lookasde: https://x.example\n", "lookasde"),
            ("dokcer:\n", "dokcer"),
            ("docker: [x]\n", "line 1"),
        ] {
            let error = Lookaside::parse(config).unwrap_err().to_string();
            assert!(error.contains(named), "{config}: {error}");
        }
    }
}
