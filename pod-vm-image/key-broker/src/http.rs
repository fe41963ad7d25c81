//! HTTP to one broker: no redirects, no proxies, nothing unbounded.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderValue, SET_COOKIE};
use reqwest::{RequestBuilder, Response, StatusCode};

use crate::config::KeyBrokerConfig;
use crate::error::{KeyBrokerError, Refusal};
use crate::tls;
use crate::wire::{PREFIX, SESSION_COOKIE};

/// Bytes of a refusal that are read.
const MAX_REFUSAL_BYTES: usize = 16 << 10;
/// Longest value of the session cookie. Trustee's has 32 characters.
const MAX_COOKIE: usize = 256;

/// A connection pool to the broker.
pub(crate) struct Http {
    client: reqwest::Client,
    base: String,
    request_timeout: Duration,
}

/// A successful answer.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    /// Value of the session cookie, where it is set.
    pub(crate) cookie: Option<String>,
}

impl Http {
    pub(crate) fn new(config: &KeyBrokerConfig) -> Result<Self, KeyBrokerError> {
        let base = config.base()?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(config)?)
            .connect_timeout(config.limits.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("peerpods/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| KeyBrokerError::Config { key: "url", source: error.into() })?;
        Ok(Self { client, base, request_timeout: config.limits.request_timeout })
    }

    /// `POST` of JSON, with the session cookie where there is one.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
        cookie: Option<&str>,
        limit: usize,
        operation: &'static str,
    ) -> Result<Answer, KeyBrokerError> {
        let mut request = self.client.post(self.url(path)).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(cookie) = cookie {
            request = request.header(COOKIE, sensitive(&format!("{SESSION_COOKIE}={cookie}"), operation)?);
        }
        self.send(request, limit, operation).await
    }

    /// `GET` with a token.
    pub(crate) async fn get(&self, path: &str, token: &str, limit: usize, operation: &'static str) -> Result<Answer, KeyBrokerError> {
        let request = self.client.get(self.url(path)).header(AUTHORIZATION, sensitive(&format!("Bearer {token}"), operation)?);
        self.send(request, limit, operation).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{PREFIX}/{path}", self.base)
    }

    async fn send(&self, request: RequestBuilder, limit: usize, operation: &'static str) -> Result<Answer, KeyBrokerError> {
        let exchange = async {
            let unreachable = |error: reqwest::Error| KeyBrokerError::Unreachable { operation, source: error.without_url().into() };
            let mut response = request.send().await.map_err(unreachable)?;
            if response.status() != StatusCode::OK {
                let status = response.status().as_u16();
                let body = read(&mut response, MAX_REFUSAL_BYTES).await.ok().flatten().unwrap_or_default();
                return Err(KeyBrokerError::Refused { operation, status, refusal: Refusal::parse(&body) });
            }
            let cookie = session_cookie(&response);
            match read(&mut response, limit).await.map_err(unreachable)? {
                Some(body) => Ok(Answer { body, cookie }),
                None => Err(KeyBrokerError::Unusable { operation, reason: format!("it is longer than {limit} bytes") }),
            }
        };
        let limit = self.request_timeout;
        tokio::time::timeout(limit, exchange).await.unwrap_or(Err(KeyBrokerError::Deadline { operation, limit }))
    }
}

/// The whole body, or `None` as soon as it is longer than allowed.
async fn read(response: &mut Response, limit: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if chunk.len() > limit - body.len() {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// By hand: one cookie of one host, whose attributes do not matter to a client that uses it once.
fn session_cookie(response: &Response) -> Option<String> {
    let cookies = response.headers().get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut values = cookies.filter_map(|cookie| {
        let (name, value) = cookie.split(';').next()?.split_once('=')?;
        (name.trim() == SESSION_COOKIE).then(|| value.trim().to_owned())
    });
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+/=".contains(&byte);
    values.find(|value| (1..=MAX_COOKIE).contains(&value.len()) && value.bytes().all(is_plain))
}

fn sensitive(value: &str, operation: &'static str) -> Result<HeaderValue, KeyBrokerError> {
    let reason = "its token is no header".to_owned();
    let mut value = HeaderValue::from_str(value).map_err(|_| KeyBrokerError::Unusable { operation, reason })?;
    value.set_sensitive(true);
    Ok(value)
}
