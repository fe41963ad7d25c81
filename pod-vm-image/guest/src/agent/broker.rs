//! The key broker that initdata names, and resources from it.
//!
//! `aa.toml` is the Attestation Agent's file, `cdh.toml` the Confidential Data Hub's; upstream the one names the broker to attest to and
//! the other the broker to get resources from, which is one and the same. Two different ones are refused: a pod would get its keys from
//! one that its evidence was not judged by. Both files are optional; a pod without them has no broker, and a resource that it then asks
//! for is an error that says so.
//!
//! Every key of upstream's files is known here, also those that say how upstream's programs are run (sockets, logs, event logs) and so
//! change nothing in this guest. Any other key is refused by its name: a misspelt one would silently leave its owner without what it says.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use peerpods_image::{ResourceError, ResourceSource};
use peerpods_key_broker::{KeyBroker, KeyBrokerConfig, KeyBrokerError, ResourceUri, Token};
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::attestation::Attestation;

/// The clock never shows less: the host sets it, and a certificate that has expired by the time of this release stays expired.
const RELEASED: Duration = Duration::from_secs(1_796_000_000);

/// What initdata says of the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerConfigError {
    /// Not the file's TOML.
    #[error("{file} is malformed: {detail}")]
    Malformed {
        /// Which.
        file: &'static str,
        /// What and where.
        detail: String,
    },
    /// Another kind of broker client.
    #[error("cdh.toml: kbc.name {0:?} is not supported; only \"cc_kbc\" is")]
    Kind(String),
    /// Two brokers.
    #[error("aa.toml and cdh.toml name different key brokers: token_configs.kbs and kbc must agree")]
    Contradiction,
    /// An algorithm that the client does not know.
    #[error("aa.toml: tee_key_algorithm {0:?} is not supported; ECDH-ES+A256KW-P256, ECDH-ES+A256KW-P521 and RSA-OAEP-256 are")]
    Algorithm(String),
    /// The client says why.
    #[error("the key broker of initdata")]
    Client(#[source] KeyBrokerError),
}

/// Source: guest-components, attestation-agent/src/config.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct AaFile {
    #[serde(default)]
    token_configs: TokenConfigs,
    #[serde(rename = "eventlog_config")]
    _eventlog_config: Option<IgnoredAny>,
    #[serde(rename = "log")]
    _log: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TokenConfigs {
    kbs: Option<Kbs>,
    /// Another kind of token, which the workload API refuses.
    #[serde(rename = "coco_as")]
    _coco_as: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kbs {
    url: String,
    cert: Option<String>,
    tee_key_algorithm: Option<String>,
}

/// Source: guest-components, confidential-data-hub/hub/src/config. Image pulls and sealed secrets have readers of their own for their part.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct CdhFile {
    kbc: Option<Kbc>,
    #[serde(rename = "image")]
    _image: Option<IgnoredAny>,
    #[serde(rename = "skip_sealed_secret_verification")]
    _skip_sealed_secret_verification: Option<IgnoredAny>,
    /// For cloud key services, whose envelope secrets are refused by name.
    #[serde(rename = "credentials")]
    _credentials: Option<IgnoredAny>,
    #[serde(rename = "socket")]
    _socket: Option<IgnoredAny>,
    #[serde(rename = "services_dir")]
    _services_dir: Option<IgnoredAny>,
    #[serde(rename = "aa")]
    _aa: Option<IgnoredAny>,
    #[serde(rename = "log")]
    _log: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kbc {
    name: String,
    url: String,
    kbs_cert: Option<String>,
}

/// The pod's broker, if it has one. Clones share client and token.
#[derive(Clone)]
pub(super) struct Broker(Option<Arc<KeyBroker>>);

impl Broker {
    /// Reads the files of initdata, whose whole text goes to the broker with the evidence.
    pub(super) fn from_initdata<'a>(
        file: impl Fn(&str) -> Option<&'a str>,
        initdata: Option<&str>,
        attestation: Attestation,
    ) -> Result<Self, BrokerConfigError> {
        let Some(mut config) = settings(file)? else { return Ok(Self(None)) };
        config.initdata = initdata.map(str::to_owned);
        config.clock = Arc::new(|| SystemTime::now().max(SystemTime::UNIX_EPOCH + RELEASED));
        let client = KeyBroker::new(config, Arc::new(attestation)).map_err(BrokerConfigError::Client)?;
        Ok(Self(Some(Arc::new(client))))
    }

    /// A resource by its URI.
    pub(super) async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, BrokerError> {
        Ok(self.client()?.resource(uri).await?)
    }

    /// The token, made if need be, with the key that it speaks of.
    pub(super) async fn token(&self) -> Result<Token, BrokerError> {
        Ok(self.client()?.token().await?)
    }

    fn client(&self) -> Result<&KeyBroker, BrokerError> {
        self.0.as_deref().ok_or(BrokerError::None)
    }
}

/// There is no answer from a broker.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    /// Initdata names none.
    #[error("the pod's initdata names no key broker: add aa.toml with [token_configs.kbs] url, or cdh.toml with [kbc] url")]
    None,
    /// It, or the way to it.
    #[error(transparent)]
    Client(#[from] KeyBrokerError),
}

fn settings<'a>(file: impl Fn(&str) -> Option<&'a str>) -> Result<Option<KeyBrokerConfig>, BrokerConfigError> {
    let aa: AaFile = read("aa.toml", file("aa.toml"))?;
    let cdh: CdhFile = read("cdh.toml", file("cdh.toml"))?;
    if let Some(kbc) = cdh.kbc.as_ref().filter(|kbc| kbc.name != "cc_kbc") {
        return Err(BrokerConfigError::Kind(kbc.name.clone()));
    }
    let (url, certificate) = match (&aa.token_configs.kbs, &cdh.kbc) {
        (Some(kbs), Some(kbc)) => {
            let same = |one: &Option<String>, other: &Option<String>| match (one, other) {
                (Some(one), Some(other)) => one.trim() == other.trim(),
                _ => true,
            };
            if kbs.url.trim_end_matches('/') != kbc.url.trim_end_matches('/') || !same(&kbs.cert, &kbc.kbs_cert) {
                return Err(BrokerConfigError::Contradiction);
            }
            (kbs.url.clone(), kbs.cert.clone().or_else(|| kbc.kbs_cert.clone()))
        }
        (Some(kbs), None) => (kbs.url.clone(), kbs.cert.clone()),
        (None, Some(kbc)) => (kbc.url.clone(), kbc.kbs_cert.clone()),
        (None, None) => return Ok(None),
    };
    let mut config = KeyBrokerConfig::new(url);
    config.certificate_pem = certificate;
    if let Some(name) = aa.token_configs.kbs.and_then(|kbs| kbs.tee_key_algorithm) {
        config.tee_key_algorithm = name.parse().map_err(|_| BrokerConfigError::Algorithm(name))?;
    }
    Ok(Some(config))
}

fn read<T: for<'de> Deserialize<'de> + Default>(name: &'static str, text: Option<&str>) -> Result<T, BrokerConfigError> {
    let Some(text) = text else { return Ok(T::default()) };
    toml::from_str(text).map_err(|error| BrokerConfigError::Malformed { file: name, detail: error.to_string() })
}

#[async_trait]
impl ResourceSource for Broker {
    async fn get(&self, uri: &str) -> Result<Vec<u8>, ResourceError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| ResourceError { uri: uri.to_owned(), source };
        let parsed: ResourceUri = uri.parse().map_err(|error| failed(Box::new(error)))?;
        let content = self.resource(&parsed).await.map_err(|error| failed(Box::new(error)))?;
        Ok(content.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(aa: Option<&'static str>, cdh: Option<&'static str>) -> Result<Option<KeyBrokerConfig>, BrokerConfigError> {
        settings(|name| if name == "aa.toml" { aa } else { cdh })
    }

    #[test]
    fn broker_is_named_by_either_file_or_by_both_alike() {
        let aa = "[token_configs.kbs]\nurl = \"http://broker:8080/\"\n[eventlog_config]\ninit_pcr = 17\n";
        let cdh = "[kbc]\nname = \"cc_kbc\"\nurl = \"http://broker:8080\"\n";
        for config in [of(Some(aa), None), of(None, Some(cdh)), of(Some(aa), Some(cdh))] {
            assert_eq!(config.expect("valid").expect("a broker").url.trim_end_matches('/'), "http://broker:8080");
        }
        assert!(of(None, None).expect("valid").is_none());
        assert!(of(Some(""), Some("[image]\n")).expect("valid").is_none());
        let pinned = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://broker\"\nkbs_cert = \"PEM\"\n";
        assert_eq!(of(None, Some(pinned)).expect("valid").expect("a broker").certificate_pem.as_deref(), Some("PEM"));
    }

    #[test]
    fn every_key_of_upstreams_files_passes() {
        let aa = "[token_configs.coco_as]\nurl = \"http://as\"\n[token_configs.kbs]\nurl = \"http://broker\"\ncert = \"PEM\"\n\
            tee_key_algorithm = \"RSA-OAEP-256\"\n[eventlog_config]\ninit_pcr = 17\nenable_eventlog = true\n[log]\nlevel = \"info\"\n";
        let cdh = "socket = \"unix:///run/cdh.sock\"\nservices_dir = \"/run/services\"\nskip_sealed_secret_verification = false\n\
            credentials = []\n[aa]\naa_socket = \"unix:///run/aa.sock\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"http://broker\"\n\
            kbs_cert = \"PEM\"\n[image]\nwork_dir = \"/run/image\"\n[log]\nlevel = \"warn\"\n";
        assert!(of(Some(aa), Some(cdh)).expect("valid").is_some());
    }

    #[test]
    fn keys_that_nobody_knows_are_refused_by_name() {
        for (aa, cdh, key) in [
            (Some("[token_config.kbs]\nurl = \"http://one\"\n"), None, "token_config"),
            (Some("[token_configs.kbss]\nurl = \"http://one\"\n"), None, "kbss"),
            (None, Some("[kcb]\nname = \"cc_kbc\"\nurl = \"http://one\"\n"), "kcb"),
            (None, Some("skip_sealed_secret_verificaton = false\n"), "skip_sealed_secret_verificaton"),
            (None, Some("[images]\nimage_security_policy_uri = \"kbs:///a/b/c\"\n"), "images"),
        ] {
            let error = of(aa, cdh).map(drop).expect_err(key).to_string();
            let file = if aa.is_some() { "aa.toml" } else { "cdh.toml" };
            assert!(error.starts_with(file) && error.contains(&format!("`{key}`")), "{error}");
        }
    }

    #[test]
    fn contradictions_and_unknown_kinds_are_refused_by_name() {
        let aa = "[token_configs.kbs]\nurl = \"http://one\"\n";
        let refused = |aa, cdh| of(aa, cdh).map(drop).expect_err("refused").to_string();
        assert!(refused(Some(aa), Some("[kbc]\nname = \"cc_kbc\"\nurl = \"http://two\"\n")).contains("different key brokers"));
        assert!(refused(None, Some("[kbc]\nname = \"offline_fs_kbc\"\nurl = \"\"\n")).contains("offline_fs_kbc"));
        assert!(refused(Some("[token_configs.kbs]\nurl = \"http://one\"\ncertt = \"\"\n"), None).contains("certt"));
        let algorithm = "[token_configs.kbs]\nurl = \"http://one\"\ntee_key_algorithm = \"ROT13\"\n";
        assert!(refused(Some(algorithm), None).contains("ROT13"));
    }
}
