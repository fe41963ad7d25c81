//! Credentials in the form of docker's `config.json`: `{"auths": {"<registry>[/<path>]": {"auth": "<base64 of user:password>"}}}`.

use std::collections::BTreeMap;

use base64::Engine as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

/// Credentials by registry or path below one; the longest match wins.
#[derive(Debug, Clone, Default)]
pub struct RegistryAuths {
    entries: BTreeMap<String, Basic>,
}

/// A user and a password.
#[derive(Debug, Clone)]
pub(crate) struct Basic {
    user: SecretString,
    password: SecretString,
}

/// Credentials that cannot be read. Tells where, never what.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// More than a credentials file ever has.
    #[error("the credentials are larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Not JSON of that form.
    #[error("the credentials are not {{\"auths\": {{registry: {{\"auth\": base64}}}}}}: error at line {line}, column {column}")]
    Syntax {
        /// 1-based.
        line: usize,
        /// 1-based.
        column: usize,
    },
    /// One entry is wrong.
    #[error("the credentials of {registry}: {reason}")]
    Entry {
        /// The key of the entry.
        registry: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The resource could not be had.
    #[error("cannot get the credentials")]
    Resource(#[source] crate::ResourceError),
}

/// Bytes of a credentials file; the largest that Kubernetes stores in a secret.
const MAX_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl RegistryAuths {
    /// Parses docker's `config.json`. Members other than `auths` are ignored: helpers cannot run in the guest.
    pub fn from_docker_config(bytes: &[u8]) -> Result<Self, AuthError> {
        if bytes.len() > MAX_BYTES {
            return Err(AuthError::TooLarge { limit: MAX_BYTES });
        }
        let file: File = serde_json::from_slice(bytes).map_err(|error| AuthError::Syntax { line: error.line(), column: error.column() })?;
        let mut entries = BTreeMap::new();
        for (registry, entry) in file.auths {
            let basic = match entry {
                Entry { auth: Some(auth), .. } => decode(&registry, &auth)?,
                Entry { username: Some(user), password: Some(password), .. } => {
                    Basic { user: SecretString::from(user), password: SecretString::from(password) }
                }
                _ => return Err(AuthError::Entry { registry, reason: "neither auth nor username and password" }),
            };
            entries.insert(scope(&registry), basic);
        }
        Ok(Self { entries })
    }

    /// The credentials for a repository of a registry.
    pub(crate) fn find(&self, registry: &str, repository: &str) -> Option<&Basic> {
        let mut path = format!("{}/{repository}", scope(registry));
        loop {
            if let Some(basic) = self.entries.get(&path) {
                return Some(basic);
            }
            path.truncate(path.rfind('/')?);
        }
    }
}

impl Basic {
    pub(crate) fn user(&self) -> &str {
        self.user.expose_secret()
    }

    pub(crate) fn password(&self) -> &str {
        self.password.expose_secret()
    }
}

fn decode(registry: &str, auth: &str) -> Result<Basic, AuthError> {
    let wrong = |reason| AuthError::Entry { registry: registry.to_owned(), reason };
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| wrong("auth is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("auth is not UTF-8"))?;
    let (user, password) = text.split_once(':').ok_or_else(|| wrong("auth is not user:password"))?;
    Ok(Basic { user: SecretString::from(user.to_owned()), password: SecretString::from(password.to_owned()) })
}

/// Docker writes `https://index.docker.io/v1/` for its own registry; all spellings of that become `docker.io`.
fn scope(registry: &str) -> String {
    let name = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    match name {
        "index.docker.io/v1" | "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_scope_wins() {
        let auths = RegistryAuths::from_docker_config(
            br#"{"auths":{"r.example:5000":{"auth":"YTpi"},"r.example:5000/team":{"username":"c","password":"d"},"https://index.docker.io/v1/":{"auth":"ZTpm"}}}"#,
        )
        .unwrap();
        assert_eq!(auths.find("r.example:5000", "x/y").unwrap().user(), "a");
        assert_eq!(auths.find("r.example:5000", "team/y").unwrap().user(), "c");
        assert_eq!(auths.find("docker.io", "library/busybox").unwrap().password(), "f");
        assert!(auths.find("other.example", "team/y").is_none());
        assert!(auths.find("r.example", "team/y").is_none());
    }

    #[test]
    fn errors_and_debug_do_not_show_secrets() {
        let error = RegistryAuths::from_docker_config(br#"{"auths":{"r":{"auth":"c2VjcmV0"}}}"#).unwrap_err();
        assert_eq!(error.to_string(), "the credentials of r: auth is not user:password");
        let error = RegistryAuths::from_docker_config(br#"{"auths":{"r":{"auth":"hunter2"#).unwrap_err();
        assert!(!format!("{error:?}{error}").contains("hunter2"));
        let auths = RegistryAuths::from_docker_config(br#"{"auths":{"r":{"auth":"aHVudGVyMjpodW50ZXIy"}}}"#).unwrap();
        assert!(!format!("{auths:?}").contains("hunter2"));
    }
}
