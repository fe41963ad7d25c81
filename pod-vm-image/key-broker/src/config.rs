//! What a client is told: which broker, how it is recognized, and how long and how much.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::Url;

use crate::error::{BoxError, KeyBrokerError};
use crate::tee_key::TeeKeyAlgorithm;

/// What time it is. In a guest it comes from the host: it decides when a token is renewed, and whether certificates other than the
/// pinned one have expired.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Settings of a [`KeyBroker`](crate::KeyBroker).
#[derive(Clone)]
pub struct KeyBrokerConfig {
    /// `https://host[:port]`, or `http://` where something else protects the way: resources are encrypted, initdata and tokens not.
    pub url: String,
    /// PEM of the one certificate that the broker's chain must end in, or that the broker itself has: its names are checked then, its
    /// end is not. `None` takes the roots of [`trust_bundle`](Self::trust_bundle).
    pub certificate_pem: Option<String>,
    /// PEM file of roots, used without a pinned certificate. A missing file holds none.
    pub trust_bundle: PathBuf,
    /// The kind of the TEE key.
    pub tee_key_algorithm: TeeKeyAlgorithm,
    /// Text of the initdata to send, where the evidence holds its digest. `None` sends none.
    pub initdata: Option<String>,
    /// How long and how much.
    pub limits: Limits,
    /// What time it is.
    pub clock: Clock,
}

/// How long is waited and how much is read.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To a connection, TLS included.
    pub connect_timeout: Duration,
    /// From sending a request to the end of its answer.
    pub request_timeout: Duration,
    /// From asking for evidence to having it. A TPM quotes in a second, some take several.
    pub evidence_timeout: Duration,
    /// For a whole [`resource`](crate::KeyBroker::resource) or [`token`](crate::KeyBroker::token), attestations and the wait for
    /// another one included. Upstream's callers wait 50 s.
    pub total_timeout: Duration,
    /// How long before its expiry a token is no longer used.
    pub token_margin: Duration,
    /// Longest resource, in bytes. Trustee takes 2 MiB by default.
    pub max_resource_bytes: usize,
}

/// Where distributions keep their roots.
const TRUST_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Longest initdata that brokers and guests read, in bytes.
const MAX_INITDATA_BYTES: usize = 512 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(20),
            evidence_timeout: Duration::from_secs(20),
            total_timeout: Duration::from_secs(45),
            token_margin: Duration::from_secs(30),
            max_resource_bytes: 4 << 20,
        }
    }
}

impl KeyBrokerConfig {
    /// Defaults for this broker.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            certificate_pem: None,
            trust_bundle: PathBuf::from(TRUST_BUNDLE),
            tee_key_algorithm: TeeKeyAlgorithm::default(),
            initdata: None,
            limits: Limits::default(),
            clock: Arc::new(SystemTime::now),
        }
    }

    /// The URL before [`PREFIX`](crate::wire::PREFIX), without a slash at its end.
    pub(crate) fn base(&self) -> Result<String, KeyBrokerError> {
        let refused = |source: BoxError| KeyBrokerError::Config { key: "url", source };
        let url: Url = self.url.parse().map_err(|error: <Url as std::str::FromStr>::Err| refused(error.into()))?;
        let has_more = url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || has_more {
            return Err(refused("it must be http(s)://host[:port], without user, query and fragment".into()));
        }
        if url.scheme() == "http" && self.certificate_pem.is_some() {
            return Err(refused("a certificate is pinned, which http:// never shows".into()));
        }
        if self.initdata.as_ref().is_some_and(|text| text.len() > MAX_INITDATA_BYTES) {
            let source = format!("it has more than {MAX_INITDATA_BYTES} bytes").into();
            return Err(KeyBrokerError::Config { key: "initdata", source });
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

/// Initdata is public, but long.
impl fmt::Debug for KeyBrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBrokerConfig")
            .field("url", &self.url)
            .field("is_pinned", &self.certificate_pem.is_some())
            .field("tee_key_algorithm", &self.tee_key_algorithm)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_is_a_plain_url() {
        assert_eq!(KeyBrokerConfig::new("https://kbs.example:8443/").base().unwrap(), "https://kbs.example:8443");
        assert_eq!(KeyBrokerConfig::new("http://10.0.0.1/broker/").base().unwrap(), "http://10.0.0.1/broker");
        for url in ["kbs.example", "ftp://kbs.example", "https://user@kbs.example", "https://kbs.example/?a=b", "https://", ""] {
            assert!(matches!(KeyBrokerConfig::new(url).base(), Err(KeyBrokerError::Config { key: "url", .. })), "{url}");
        }
    }

    #[test]
    fn pinned_certificate_needs_tls() {
        let config = KeyBrokerConfig { certificate_pem: Some("x".to_owned()), ..KeyBrokerConfig::new("http://kbs.example") };
        assert!(config.base().is_err());
    }
}
