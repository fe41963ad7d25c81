//! HTTP to one registry: the distribution protocol's reads, its token exchange, and nothing unbounded.
//!
//! Every body that is read into memory has a limit, since a registry may send without end. Credentials go only to the registry they
//! are for and to the token service it names; a registry reached by TLS cannot send them, or the download, to plain HTTP.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::auth::Basic;
use crate::challenge::{self, Challenge};
use crate::error::BoxError;
use crate::registries::{Endpoint, Scheme};
use crate::{Digest, Limits, PullError};

/// An HTTP client with its roots of trust.
#[derive(Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
}

/// One repository of one registry, for one pull.
pub(crate) struct Repository {
    http: reqwest::Client,
    /// `https://host:port/v2/name`.
    base: String,
    endpoint: Endpoint,
    basic: Option<Basic>,
    /// The `Authorization` that the registry last wanted.
    authorization: Mutex<Option<HeaderValue>>,
    /// The image reference as the caller gave it, for errors.
    asked: String,
}

/// Bytes of a token service's answer. Tokens with many claims have a few KiB.
const MAX_TOKEN_BYTES: u64 = 256 << 10;

/// Redirects followed; registries use one, to their blob storage.
const MAX_REDIRECTS: usize = 5;

impl Transport {
    /// Trusts the certificates of the bundle, where there is one, and the extra ones.
    pub(crate) fn new(limits: &Limits, bundle: &Path, extra: &[String]) -> Result<Self, BoxError> {
        let mut roots = rustls::RootCertStore::empty();
        match std::fs::read(bundle) {
            // Bundles hold certificates that webpki does not take; those are left out, as everywhere.
            Ok(pem) => drop(roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        for pem in extra {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate?)?;
            }
            if roots.len() == before {
                return Err("an extra root certificate holds no PEM certificate".into());
            }
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(limits.connect_timeout)
            .read_timeout(limits.read_timeout)
            .redirect(reqwest::redirect::Policy::custom(follow))
            .no_proxy()
            .user_agent(concat!("peerpods/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http })
    }

    pub(crate) fn repository(&self, endpoint: Endpoint, basic: Option<Basic>, asked: &str) -> Repository {
        let scheme = match endpoint.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let base = format!("{scheme}://{}/v2/{}", endpoint.reference.resolve_registry(), endpoint.reference.repository());
        Repository { http: self.http.clone(), base, endpoint, basic, authorization: Mutex::new(None), asked: asked.to_owned() }
    }
}

/// Never from TLS to plain HTTP. reqwest itself drops `Authorization` when the host changes.
fn follow(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let downgrade = attempt.url().scheme() != "https" && attempt.previous().iter().any(|url| url.scheme() == "https");
    match (downgrade, attempt.previous().len()) {
        (true, _) => attempt.error("a redirect from HTTPS to plain HTTP"),
        (false, 0..=MAX_REDIRECTS) => attempt.follow(),
        (false, _) => attempt.error("too many redirects"),
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Repository {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Host and port, for errors.
    pub(crate) fn registry(&self) -> String {
        self.endpoint.reference.resolve_registry().to_owned()
    }

    pub(crate) fn asked(&self) -> String {
        self.asked.clone()
    }

    /// A manifest or index by tag or digest.
    pub(crate) async fn manifest(&self, name: &str, limit: u64) -> Result<Bytes, PullError> {
        let response = self.get(&format!("{}/manifests/{name}", self.base), crate::manifest::ACCEPT, "manifest").await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(PullError::NotFound { reference: self.asked(), registry: self.registry() });
        }
        self.read(self.success(response, "manifest")?, limit, "manifest").await
    }

    /// A blob small enough for memory.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64, what: &'static str) -> Result<Bytes, PullError> {
        let response = self.blob(digest, what).await?;
        self.read(response, limit, what).await
    }

    /// A blob whose body the caller reads.
    pub(crate) async fn blob(&self, digest: &Digest, what: &str) -> Result<Response, PullError> {
        let response = self.get(&format!("{}/blobs/{digest}", self.base), "*/*", what).await?;
        self.success(response, what)
    }

    async fn get(&self, url: &str, accept: &str, what: &str) -> Result<Response, PullError> {
        let used = self.authorization();
        let response = self.send(url, accept, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // Another layer of this pull may have been given a token meanwhile.
        let latest = self.authorization().filter(|latest| Some(latest) != used.as_ref());
        let authorization = match latest {
            Some(latest) => latest,
            None => self.authorize(&response, what).await?,
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.clone());
        self.send(url, accept, Some(&authorization)).await
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, url: &str, accept: &str, authorization: Option<&HeaderValue>) -> Result<Response, PullError> {
        let mut request = self.http.get(url).header(ACCEPT, accept);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|error| self.unreachable(error.without_url()))
    }

    /// Answers the challenge of a 401.
    async fn authorize(&self, response: &Response, what: &str) -> Result<HeaderValue, PullError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match (challenge::parse(headers), &self.basic) {
            (Some(Challenge::Bearer { realm, service }), _) => self.token(&realm, service.as_deref(), what).await,
            (Some(Challenge::Basic), Some(basic)) => {
                use base64::Engine as _;
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", basic.user(), basic.password()));
                self.sensitive(&format!("Basic {pair}"))
            }
            (Some(Challenge::Basic) | None, _) => Err(self.unauthorized()),
        }
    }

    async fn token(&self, realm: &str, service: Option<&str>, what: &str) -> Result<HeaderValue, PullError> {
        let mut url: Url = realm.parse().map_err(|_| self.unreachable("the registry names a token service that is no URL"))?;
        if url.scheme() != "https" && self.endpoint.scheme == Scheme::Https {
            return Err(self.unreachable("the registry names a token service without TLS"));
        }
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service)));
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", self.endpoint.reference.repository()));
        let mut request = self.http.get(url);
        if let Some(basic) = &self.basic {
            request = request.basic_auth(basic.user(), Some(basic.password()));
        }
        let response = request.send().await.map_err(|error| self.unreachable(error.without_url()))?;
        let response = self.success(response, &format!("a token for the {what}"))?;
        let body = self.read(response, MAX_TOKEN_BYTES, "token").await?;
        // The parser's message could quote the token.
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| self.unusable("token", "not JSON with a token".to_owned()))?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| self.unusable("token", "no token in it".to_owned()))?;
        self.sensitive(&format!("Bearer {token}"))
    }

    fn sensitive(&self, value: &str) -> Result<HeaderValue, PullError> {
        let mut value = HeaderValue::from_str(value).map_err(|_| self.unauthorized())?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn success(&self, response: Response, what: &str) -> Result<Response, PullError> {
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.unauthorized()),
            status => Err(PullError::Status {
                reference: self.asked(),
                registry: self.registry(),
                what: what.to_owned(),
                status: status.as_u16(),
            }),
        }
    }

    /// Reads a whole body, or fails as soon as it is longer than allowed.
    async fn read(&self, mut response: Response, limit: u64, what: &'static str) -> Result<Bytes, PullError> {
        let announced = response.content_length();
        let mut body = BytesMut::new();
        loop {
            let got = body.len() as u64;
            match response.chunk().await {
                Ok(Some(chunk)) if got + chunk.len() as u64 > limit => {
                    return Err(self.unusable(what, format!("it is longer than {limit} bytes")));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Ok(body.freeze()),
                Err(error) => return Err(self.truncated(what, announced.unwrap_or(limit), got, Some(error.without_url().into()))),
            }
        }
    }

    pub(crate) fn truncated(&self, what: &str, expected: u64, got: u64, source: Option<BoxError>) -> PullError {
        PullError::Truncated { reference: self.asked(), registry: self.registry(), what: what.to_owned(), expected, got, source }
    }

    pub(crate) fn wrong_digest(&self, what: &str, expected: &Digest, actual: Digest) -> PullError {
        let expected = expected.clone();
        PullError::WrongDigest { reference: self.asked(), registry: self.registry(), what: what.to_owned(), expected, actual }
    }

    pub(crate) fn unusable(&self, what: &'static str, reason: String) -> PullError {
        PullError::Unusable { reference: self.asked(), what, reason }
    }

    fn unreachable(&self, source: impl Into<BoxError>) -> PullError {
        PullError::Unreachable { reference: self.asked(), registry: self.registry(), source: source.into() }
    }

    fn unauthorized(&self) -> PullError {
        let (reference, registry) = (self.asked(), self.registry());
        if self.basic.is_some() { PullError::AuthRefused { reference, registry } } else { PullError::NeedsAuth { reference, registry } }
    }
}
