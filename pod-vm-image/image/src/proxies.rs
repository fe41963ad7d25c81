//! Proxies between the pod VM and the registries.

use std::fmt;

use reqwest::NoProxy;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

/// `[image.image_pull_proxy]` of `cdh.toml`. Proxies may be given credentials in their URLs, so no value is ever printed.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxies {
    /// For registries that are reached by TLS.
    https_proxy: Option<SecretString>,
    /// For registries that are reached by plain HTTP.
    http_proxy: Option<SecretString>,
    /// Hosts, domains and networks that are reached without a proxy, separated by commas; `*` is all.
    no_proxy: Option<String>,
}

/// A proxy that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("image.image_pull_proxy.{key} is not the URL of an HTTP proxy, such as http://user:password@proxy.example:3128")]
pub struct ProxyError {
    key: &'static str,
}

impl Proxies {
    /// Fails for the first one that is no URL of an HTTP proxy.
    pub(crate) fn check(self) -> Result<Self, ProxyError> {
        self.all().map(|()| self)
    }

    /// The proxies as the client takes them.
    pub(crate) fn to_reqwest(&self) -> Result<Vec<reqwest::Proxy>, ProxyError> {
        let no_proxy = self.no_proxy.as_deref().and_then(NoProxy::from_string);
        let named = [("https_proxy", &self.https_proxy), ("http_proxy", &self.http_proxy)];
        let given = named.into_iter().filter_map(|(key, url)| Some((key, url.as_ref()?.expose_secret())));
        given
            .filter(|(_, url)| !url.is_empty())
            .map(|(key, url)| {
                let bad = ProxyError { key };
                let parsed: reqwest::Url = url.parse().map_err(|_| ProxyError { key })?;
                if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
                    return Err(bad);
                }
                let proxy = if key == "https_proxy" { reqwest::Proxy::https(parsed) } else { reqwest::Proxy::http(parsed) };
                Ok(proxy.map_err(|_| bad)?.no_proxy(no_proxy.clone()))
            })
            .collect()
    }

    fn all(&self) -> Result<(), ProxyError> {
        self.to_reqwest().map(drop)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (https, http) = (self.https_proxy.is_some(), self.http_proxy.is_some());
        f.debug_struct("Proxies").field("https", &https).field("http", &http).field("no_proxy", &self.no_proxy).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Proxies, String> {
        toml::from_str::<Proxies>(text).map_err(|error| error.to_string())?.check().map_err(|error| error.to_string())
    }

    #[test]
    fn credentials_are_never_printed() {
        let proxies = parse("https_proxy = \"http://me:hunter2@proxy.example:3128\"\nno_proxy = \"10.0.0.0/8,.example\"\n").unwrap();
        let shown = format!("{proxies:?}");
        assert!(!shown.contains("hunter2") && shown.contains("10.0.0.0/8"), "{shown}");
        let error = parse("https_proxy = \"socks5://me:hunter2@proxy.example\"\n").unwrap_err();
        assert!(!error.contains("hunter2") && error.contains("https_proxy"), "{error}");
    }

    #[test]
    fn odd_values_are_refused_by_name() {
        for text in ["http_proxy = \"proxy\"", "http_proxy = \"file:///x\"", "http_proxy = \"http://\""] {
            assert!(parse(text).unwrap_err().contains("http_proxy"), "{text}");
        }
        assert!(parse("all_proxy = \"http://p\"").unwrap_err().contains("all_proxy"));
        assert!(parse("").unwrap().to_reqwest().unwrap().is_empty());
        assert!(parse("http_proxy = \"\"").unwrap().to_reqwest().unwrap().is_empty(), "an empty value is none, as in the environment");
    }
}
