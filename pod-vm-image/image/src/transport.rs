//! HTTP to one registry: the distribution protocol's reads, its token exchange, and nothing unbounded.
//!
//! Every body that is read into memory has a limit, since a registry may send without end. Credentials go only to the registry they
//! are for and to the token service it names; a registry reached by TLS cannot send them, or the download, to plain HTTP.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::auth::Basic;
use crate::challenge::{self, Challenge};
use crate::error::BoxError;
use crate::patience::{Patience, is_passing, retry_after};
use crate::registries::{Endpoint, Scheme};
use crate::{Digest, Limits, PullError, PullPolicy};

/// An HTTP client with its roots of trust.
#[derive(Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    limits: Limits,
}

/// One repository of one registry, for one pull.
pub(crate) struct Repository {
    http: reqwest::Client,
    limits: Limits,
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

/// Bytes of a refusal that are looked at, and characters of it that are shown.
const MAX_REFUSAL_BYTES: usize = 16 << 10;
const MAX_REASON: usize = 200;

/// Redirects followed; registries use one, to their blob storage.
const MAX_REDIRECTS: usize = 5;

impl Transport {
    /// Trusts the certificates of the bundle, where there is one, and the policy's; goes through the policy's proxies.
    pub(crate) fn new(limits: &Limits, bundle: &Path, policy: &PullPolicy) -> Result<Self, BoxError> {
        let mut roots = rustls::RootCertStore::empty();
        match std::fs::read(bundle) {
            // Bundles hold certificates that webpki does not take; those are left out, as everywhere.
            Ok(pem) => drop(roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        for pem in &policy.extra_root_certificates {
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
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(limits.connect_timeout)
            .read_timeout(limits.read_timeout)
            .redirect(reqwest::redirect::Policy::custom(follow))
            .no_proxy()
            .user_agent(concat!("peerpods/", env!("CARGO_PKG_VERSION")));
        for proxy in policy.proxies.to_reqwest()? {
            builder = builder.proxy(proxy);
        }
        Ok(Self { http: builder.build()?, limits: limits.clone() })
    }

    pub(crate) fn repository(&self, endpoint: Endpoint, basic: Option<Basic>, asked: &str) -> Repository {
        let scheme = match endpoint.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let base = format!("{scheme}://{}/v2/{}", endpoint.reference.resolve_registry(), endpoint.reference.repository());
        let limits = self.limits.clone();
        Repository { http: self.http.clone(), limits, base, endpoint, basic, authorization: Mutex::new(None), asked: asked.to_owned() }
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

/// What is asked for besides the URL.
#[derive(Clone, Copy)]
struct Wanted {
    accept: &'static str,
    /// The first byte; those before it are there already.
    first: u64,
}

/// The distribution protocol's form of an error.
#[derive(Deserialize)]
struct Refusal {
    errors: Vec<RefusalReason>,
}

#[derive(Deserialize)]
struct RefusalReason {
    message: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Why a registry refuses, in its own words and with a colon before them, as far as they are short and printable.
async fn reason(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > MAX_REFUSAL_BYTES {
            return String::new();
        }
        body.extend_from_slice(&chunk);
    }
    let refusal: Option<Refusal> = serde_json::from_slice(&body).ok();
    let message = refusal.and_then(|refusal| refusal.errors.into_iter().next()).map(|reason| reason.message).unwrap_or_default();
    let text: String = message.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
    if text.is_empty() { text } else { format!(": {text}") }
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

    /// Something that belongs to the image and is on another server, which gets no credentials. `None` if it is not there.
    pub(crate) async fn elsewhere(&self, url: &str, limit: u64, what: &'static str) -> Result<Option<Bytes>, PullError> {
        let response = self.send(url, Wanted { accept: "*/*", first: 0 }, None, what).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        match response.status() {
            StatusCode::OK => self.read(response, limit, what).await.map(Some),
            status => {
                let server = response.url().host_str().unwrap_or_default().to_owned();
                Err(self.status(server, what, status))
            }
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A blob whose body the caller reads.
    async fn blob(&self, digest: &Digest, what: &str) -> Result<Response, PullError> {
        let response = self.get(&format!("{}/blobs/{digest}", self.base), "*/*", what).await?;
        self.success(response, what)
    }

    /// A blob from this byte on. With the body comes how many of its bytes are to be left out, since a registry may send all of them.
    pub(crate) async fn blob_from(&self, digest: &Digest, what: &str, first: u64, size: u64) -> Result<(Response, u64), PullError> {
        if first == 0 {
            return Ok((self.blob(digest, what).await?, 0));
        }
        let wanted = Wanted { accept: "*/*", first };
        let response = self.get_as(&format!("{}/blobs/{digest}", self.base), wanted, what).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((self.success(response, what)?, first));
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        let last = size.saturating_sub(1);
        if range != format!("bytes {first}-{last}/{size}") && range != format!("bytes {first}-{last}/*") {
            let range: String = range.chars().take(80).collect();
            return Err(self.unusable("a layer", format!("bytes from {first} of {size} were asked for and {range:?} came")));
        }
        Ok((response, 0))
    }

    async fn get(&self, url: &str, accept: &'static str, what: &str) -> Result<Response, PullError> {
        self.get_as(url, Wanted { accept, first: 0 }, what).await
    }

    async fn get_as(&self, url: &str, wanted: Wanted, what: &str) -> Result<Response, PullError> {
        let used = self.authorization();
        let response = self.send(url, wanted, used.as_ref(), what).await?;
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
        self.send(url, wanted, Some(&authorization), what).await
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, url: &str, wanted: Wanted, authorization: Option<&HeaderValue>, what: &str) -> Result<Response, PullError> {
        let request = || {
            let mut request = self.http.get(url).header(ACCEPT, wanted.accept);
            if wanted.first > 0 {
                request = request.header(RANGE, format!("bytes={}-", wanted.first));
            }
            match authorization {
                Some(authorization) => request.header(AUTHORIZATION, authorization),
                None => request,
            }
        };
        self.send_patiently(request, what).await
    }

    /// Waits for a registry that cannot answer now; gives its last answer.
    async fn send_patiently(&self, request: impl Fn() -> RequestBuilder, what: &str) -> Result<Response, PullError> {
        let mut patience = Patience::new(&self.limits);
        loop {
            let response = request().send().await.map_err(|error| self.unreachable(error.without_url()))?;
            let status = response.status();
            if !is_passing(status) {
                return Ok(response);
            }
            let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let asked = header.and_then(|header| retry_after(header, SystemTime::now()));
            match patience.next(asked) {
                Some(pause) => {
                    tracing::info!(registry = self.registry(), status = status.as_u16(), ?pause, "the registry is busy with {what}");
                    tokio::time::sleep(pause).await;
                }
                None if status == StatusCode::TOO_MANY_REQUESTS || asked.is_some() => {
                    let (reference, registry, what) = (self.asked(), self.registry(), what.to_owned());
                    return Err(PullError::RateLimited { reference, registry, what, wait: asked, reason: reason(response).await });
                }
                None => return Ok(response),
            }
        }
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
        let request = || {
            let request = self.http.get(url.clone());
            match &self.basic {
                Some(basic) => request.basic_auth(basic.user(), Some(basic.password())),
                None => request,
            }
        };
        let what = format!("a token for the {what}");
        let response = self.send_patiently(request, &what).await?;
        let response = self.success(response, &what)?;
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
            status => Err(self.status(self.registry(), what, status)),
        }
    }

    fn status(&self, registry: String, what: &str, status: StatusCode) -> PullError {
        PullError::Status { reference: self.asked(), registry, what: what.to_owned(), status: status.as_u16() }
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
