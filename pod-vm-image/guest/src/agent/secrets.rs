//! Opens sealed secrets with the key broker (confidential-data-hub, "Sealed Secret").
//!
//! ```text
//! sealed.<base64url header>.<base64url payload>.<base64url signature>
//! header  {"alg": "ES256", "kid": "kbs:///default/signing-key/1"}      the key is a JWK that the broker has
//! payload {"version": "0.1.0", "type": "vault", "provider": "kbs", "name": "kbs:///default/secret/1", ...}
//! ```
//!
//! Only the vault type of the broker itself is opened: the envelope type needs a cloud's key service. The signature is checked unless
//! `skip_sealed_secret_verification = true` in `cdh.toml`; without the check the node can name any resource that the pod may have.

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use peerpods_agent::{SecretError, SecretSource};
use peerpods_key_broker::ResourceUri;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::broker::Broker;

/// Longest sealed secret that is read.
const MAX_SEALED_BYTES: usize = 16 << 10;
/// The only version of payloads.
const VERSION: &str = "0.1.0";

/// Opens secrets with this broker.
pub(super) struct BrokerSecrets {
    broker: Broker,
    is_signature_checked: bool,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

#[derive(Deserialize)]
struct Payload {
    version: String,
    #[serde(rename = "type")]
    kind: String,
    provider: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

#[derive(Deserialize, Default)]
struct CdhFile {
    #[serde(default)]
    skip_sealed_secret_verification: bool,
}

impl BrokerSecrets {
    /// `cdh_toml` is the file of initdata.
    pub(super) fn new(broker: Broker, cdh_toml: Option<&str>) -> Result<Self, toml::de::Error> {
        let file: CdhFile = cdh_toml.map(toml::from_str).transpose()?.unwrap_or_default();
        Ok(Self { broker, is_signature_checked: !file.skip_sealed_secret_verification })
    }

    async fn get(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let parsed: ResourceUri = uri.parse().map_err(|error| SecretError::because(format!("resource {uri}"), error))?;
        self.broker.resource(&parsed).await.map_err(|error| SecretError::because(format!("resource {uri}"), error))
    }

    async fn check_signature(&self, kid: &str, signed: &str, signature: &str) -> Result<(), SecretError> {
        let key = self.get(kid).await?;
        let jwk: Jwk = serde_json::from_slice(&key).map_err(|_| SecretError::new(format!("{kid} is not a JWK")))?;
        let coordinate = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == 32);
        let (Some(x), Some(y)) = (coordinate(&jwk.x), coordinate(&jwk.y)) else {
            return Err(SecretError::new(format!("{kid} is not a key on P-256")));
        };
        if (jwk.kty.as_str(), jwk.crv.as_str()) != ("EC", "P-256") {
            return Err(SecretError::new(format!("{kid} is not a key on P-256")));
        }
        let point = [&[4][..], &x, &y].concat();
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| SecretError::new("its signature is not base64url"))?;
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &signature);
        verified.map_err(|_| SecretError::new(format!("it is not signed by {kid}")))
    }
}

#[async_trait]
impl SecretSource for BrokerSecrets {
    async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        if sealed.len() > MAX_SEALED_BYTES {
            return Err(SecretError::new(format!("it has {} bytes; at most {MAX_SEALED_BYTES} are read", sealed.len())));
        }
        let ["sealed", header, payload, signature] = sealed.split('.').collect::<Vec<_>>()[..] else {
            return Err(SecretError::new("it is not sealed.HEADER.PAYLOAD.SIGNATURE"));
        };
        if self.is_signature_checked {
            let Header { alg, kid } = part("header", header)?;
            if alg != "ES256" {
                return Err(SecretError::new(format!("its algorithm is {alg:?}; only ES256 is supported")));
            }
            self.check_signature(&kid, &format!("{header}.{payload}"), signature).await?;
        }
        let Payload { version, kind, provider, name } = part("payload", payload)?;
        if version != VERSION {
            return Err(SecretError::new(format!("it has version {version:?}; only {VERSION:?} is known")));
        }
        if (kind.as_str(), provider.as_str()) != ("vault", "kbs") {
            let text = format!("it is of type {kind:?} by provider {provider:?}; only \"vault\" by \"kbs\" is supported");
            return Err(SecretError::new(text));
        }
        self.get(&name).await
    }
}

fn part<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, SecretError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| SecretError::new(format!("its {what} is not base64url")))?;
    serde_json::from_slice(&bytes).map_err(|error| SecretError::new(format!("its {what} is malformed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::attestation::Attestation;
    use super::*;
    use peerpods_attester::Attester;

    fn secrets(cdh: &str) -> BrokerSecrets {
        let attestation = Attestation::new(Attester::for_tee("sample").expect("an attester"));
        let broker = Broker::from_initdata(|_| None, None, attestation).expect("no broker");
        BrokerSecrets::new(broker, Some(cdh)).expect("valid")
    }

    fn sealed(header: &str, payload: &str) -> String {
        format!("sealed.{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
    }

    async fn refused(cdh: &str, text: &str) -> String {
        let error = secrets(cdh).unseal(text).await.map(drop).expect_err("refused");
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_secret_is_told() {
        let skip = "skip_sealed_secret_verification = true\n";
        let vault = r#"{"version":"0.1.0","type":"vault","provider":"kbs","name":"kbs:///default/secret/1"}"#;
        for (cdh, text, expected) in [
            ("", "sealed.a".to_owned(), "HEADER.PAYLOAD"),
            ("", sealed(r#"{"alg":"none","kid":"x"}"#, vault), "only ES256"),
            ("", sealed(r#"{"alg":"ES256","kid":"file"}"#, vault), "resource file"),
            ("", sealed(r#"{"alg":"ES256","kid":"kbs:///a/b/c"}"#, vault), "names no key broker"),
            (skip, sealed("{}", vault), "names no key broker"),
            (skip, sealed("{}", &vault.replace("vault", "envelope")), "only \"vault\""),
            (skip, sealed("{}", &vault.replace("0.1.0", "9")), "only \"0.1.0\""),
            (skip, "sealed.!.!.!".to_owned(), "not base64url"),
        ] {
            let told = refused(cdh, &text).await;
            assert!(told.contains(expected), "{told}");
        }
    }
}
