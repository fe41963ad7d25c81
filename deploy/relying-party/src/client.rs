//! Administration over HTTP, as `kbs-client` does it: the calls work with Trustee too.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use peerpods_key_broker::ResourceUri;
use peerpods_key_broker::wire::{ErrorInfo, PREFIX, ReferenceValueMessage, SetAttestationPolicy, SetResourcePolicy};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// An admin of one broker.
pub struct Admin {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Admin {
    /// With the certificate that the broker's chain must end in, for `https://`.
    ///
    /// # Errors
    /// `http://` to another machine: secrets and the token that commands the broker would be readable on the way.
    pub fn new(url: &str, certificate_pem: Option<&[u8]>, token: String) -> Result<Self> {
        let parsed: reqwest::Url = url.parse().context("cannot read the broker's URL")?;
        let is_local = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if parsed.scheme() != "https" && !is_local {
            bail!(
                "{url}: resources and the admin's token go to other machines over https only; next: run this beside the broker, or serve TLS"
            );
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(certificate_pem.unwrap_or_default()) {
            roots.add(certificate.context("cannot read the broker's certificate")?)?;
        }
        if url.starts_with("https:") && roots.is_empty() {
            bail!("https needs the broker's certificate");
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(DEADLINE)
            .build()?;
        Ok(Self { http, base: format!("{}{PREFIX}", url.trim_end_matches('/')), token })
    }

    /// Makes or replaces a resource.
    pub async fn set_resource(&self, uri: &ResourceUri, content: Vec<u8>) -> Result<()> {
        self.call(Method::POST, &format!("resource/{}", uri.path()), content).await.map(drop)
    }

    /// Removes a resource.
    pub async fn delete_resource(&self, uri: &ResourceUri) -> Result<()> {
        self.call(Method::DELETE, &format!("resource/{}", uri.path()), Vec::new()).await.map(drop)
    }

    /// Replaces the policy that decides on resources.
    pub async fn set_resource_policy(&self, policy: &str) -> Result<()> {
        let body = SetResourcePolicy { policy: URL_SAFE_NO_PAD.encode(policy) };
        self.call(Method::POST, "resource-policy", serde_json::to_vec(&body)?).await.map(drop)
    }

    /// Replaces a policy that appraises evidence.
    pub async fn set_attestation_policy(&self, id: &str, policy: &str) -> Result<()> {
        let body =
            SetAttestationPolicy { policy_type: Some("rego".to_owned()), policy_id: id.to_owned(), policy: URL_SAFE_NO_PAD.encode(policy) };
        self.call(Method::POST, "attestation-policy", serde_json::to_vec(&body)?).await.map(drop)
    }

    /// Sets one reference value.
    pub async fn set_reference_value(&self, name: &str, value: &Value) -> Result<()> {
        let payload = STANDARD.encode(json!({ name: value }).to_string());
        let body = ReferenceValueMessage { version: "0.1.0".to_owned(), message_type: "sample".to_owned(), payload };
        self.call(Method::POST, "reference-value", serde_json::to_vec(&body)?).await.map(drop)
    }

    /// A reference value, or null.
    pub async fn reference_value(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.call(Method::GET, &format!("reference-value/{name}"), Vec::new()).await?)?)
    }

    async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Vec<u8>> {
        let request = self.http.request(method, format!("{}/{path}", self.base)).bearer_auth(&self.token);
        let mut response = request.header(CONTENT_TYPE, "application/json").body(body).send().await.context("cannot reach the broker")?;
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if chunk.len() > MAX_ANSWER_BYTES - answer.len() {
                bail!("the broker's answer is too long");
            }
            answer.extend_from_slice(&chunk);
        }
        if response.status().is_success() {
            return Ok(answer);
        }
        match serde_json::from_slice::<ErrorInfo>(&answer) {
            Ok(info) => bail!("the broker refuses: {}: {}", info.name(), info.detail),
            Err(_) => bail!("the broker refuses: {}", response.status()),
        }
    }
}
