//! The client against a broker that is scripted: what it sends, when it attests, and what it does with bad answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use peerpods_key_broker::wire::{Attestation, ErrorInfo, Request, TeePubKey};
use peerpods_key_broker::{
    Attester, BoxError, KeyBroker, KeyBrokerConfig, KeyBrokerError, Limits, ResourceUri, TeeKey, TeeKeyAlgorithm, jwe,
};
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret of the workload";
const NOW: u64 = 1_000_000;

/// What the scripted broker does and has seen.
struct Script {
    /// Refusals of resources that are left, and their name.
    refusals: AtomicU32,
    refusal: &'static str,
    /// Bytes sent in place of an answer, by path.
    answers: Mutex<Vec<(&'static str, Vec<u8>)>>,
    exp: u64,
    cookie: &'static str,
    nonce: String,
    attestations: Mutex<Vec<Value>>,
    key: Mutex<Option<TeePubKey>>,
    fetches: AtomicU32,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            refusals: AtomicU32::new(0),
            refusal: "TokenVerifierError",
            answers: Mutex::default(),
            exp: NOW + 300,
            cookie: "kbs-session-id=0123456789abcdef0123456789abcdef; Expires=Mon, 01 Jan 2035 00:00:00 GMT",
            nonce: STANDARD.encode([7; 32]),
            attestations: Mutex::default(),
            key: Mutex::default(),
            fetches: AtomicU32::new(0),
        }
    }
}

impl Script {
    fn answer(self, path: &'static str, body: impl Into<Vec<u8>>) -> Self {
        self.answers.lock().unwrap().push((path, body.into()));
        self
    }

    fn scripted(&self, path: &str) -> Option<Response> {
        let answers = self.answers.lock().unwrap();
        answers.iter().find(|(scripted, _)| *scripted == path).map(|(_, body)| body.clone().into_response())
    }

    fn attested(&self) -> usize {
        self.attestations.lock().unwrap().len()
    }
}

async fn auth(State(script): State<Arc<Script>>, body: Bytes) -> Response {
    let request: Request = serde_json::from_slice(&body).unwrap();
    assert_eq!(request, Request::new("sample"));
    let challenge = json!({ "nonce": script.nonce, "extra-params": "" }).to_string();
    script.scripted("auth").unwrap_or_else(|| ([(header::SET_COOKIE, script.cookie)], challenge).into_response())
}

async fn attest(State(script): State<Arc<Script>>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers[header::COOKIE], "kbs-session-id=0123456789abcdef0123456789abcdef");
    let attestation: Attestation = serde_json::from_slice(&body).unwrap();
    assert_eq!(attestation.runtime_data.nonce, script.nonce);
    let report_data = STANDARD.encode(attestation.runtime_data.report_data("").unwrap());
    assert_eq!(attestation.tee_evidence.primary_evidence["report_data"], report_data.as_str());
    *script.key.lock().unwrap() = Some(attestation.runtime_data.tee_pubkey);
    script.attestations.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    let payload = URL_SAFE_NO_PAD.encode(json!({ "exp": script.exp }).to_string());
    let token = json!({ "token": format!("e30.{payload}.{}", script.attested()) }).to_string();
    script.scripted("attest").unwrap_or_else(|| token.into_response())
}

async fn resource(State(script): State<Arc<Script>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    script.fetches.fetch_add(1, Ordering::SeqCst);
    assert_eq!(path, "default/key/1");
    let bearer = headers[header::AUTHORIZATION].to_str().unwrap();
    assert!(bearer.starts_with("Bearer e30.") && bearer.ends_with(&format!(".{}", script.attested())), "{bearer}");
    if script.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        let info = serde_json::to_string(&ErrorInfo::new(script.refusal, "the reason")).unwrap();
        return (StatusCode::UNAUTHORIZED, info).into_response();
    }
    let key = script.key.lock().unwrap().clone().unwrap();
    let answer = serde_json::to_vec(&jwe::encrypt(&key, SECRET).unwrap()).unwrap();
    script.scripted("resource").unwrap_or_else(|| answer.into_response())
}

struct Sample;

#[async_trait]
impl Attester for Sample {
    fn tee(&self) -> String {
        "sample".to_owned()
    }

    async fn evidence(&self, report_data: [u8; 48]) -> Result<Value, BoxError> {
        tokio::task::yield_now().await;
        Ok(json!({ "svn": "1", "report_data": STANDARD.encode(report_data) }))
    }
}

/// A clock that tests turn.
struct World {
    script: Arc<Script>,
    url: String,
    now: Arc<AtomicU64>,
}

impl World {
    async fn new(script: Script) -> Self {
        let script = Arc::new(script);
        let router = Router::new()
            .route("/kbs/v0/auth", post(auth))
            .route("/kbs/v0/attest", post(attest))
            .route("/kbs/v0/resource/{*path}", get(resource))
            .with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { script, url, now: Arc::new(AtomicU64::new(NOW)) }
    }

    fn config(&self) -> KeyBrokerConfig {
        let now = self.now.clone();
        let clock = Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(now.load(Ordering::SeqCst)));
        let limits = Limits { max_resource_bytes: 1 << 10, ..Limits::default() };
        KeyBrokerConfig { clock, limits, ..KeyBrokerConfig::new(self.url.clone()) }
    }

    fn client(&self) -> KeyBroker {
        KeyBroker::new(self.config(), Arc::new(Sample)).unwrap()
    }

    fn counts(&self) -> (usize, u32) {
        (self.script.attested(), self.script.fetches.load(Ordering::SeqCst))
    }
}

fn uri() -> ResourceUri {
    "kbs://ignored.example/default/key/1".parse().unwrap()
}

#[tokio::test]
async fn one_attestation_serves_many_resources() {
    let world = World::new(Script::default()).await;
    let client = world.client();
    for _ in 0..3 {
        assert_eq!(client.resource(&uri()).await.unwrap().as_slice(), SECRET);
    }
    assert_eq!(world.counts(), (1, 3));
    assert_eq!(world.script.attestations.lock().unwrap()[0]["init-data"], Value::Null);
}

#[tokio::test]
async fn every_kind_of_tee_key_works() {
    for algorithm in [TeeKeyAlgorithm::EcdhEsP521, TeeKeyAlgorithm::RsaOaep256] {
        let world = World::new(Script::default()).await;
        let config = KeyBrokerConfig { tee_key_algorithm: algorithm, ..world.config() };
        let client = KeyBroker::new(config, Arc::new(Sample)).unwrap();
        assert_eq!(client.resource(&uri()).await.unwrap().as_slice(), SECRET, "{algorithm:?}");
    }
}

#[tokio::test]
async fn initdata_is_sent_as_it_is_written() {
    let world = World::new(Script::default()).await;
    let config = KeyBrokerConfig { initdata: Some("version = \"0.1.0\" # a comment\r\n".to_owned()), ..world.config() };
    KeyBroker::new(config, Arc::new(Sample)).unwrap().resource(&uri()).await.unwrap();
    let sent = world.script.attestations.lock().unwrap()[0]["init-data"].clone();
    assert_eq!(sent, json!({ "format": "toml", "body": "version = \"0.1.0\" # a comment\r\n" }));
}

#[tokio::test]
async fn token_is_renewed_before_it_expires() {
    let world = World::new(Script::default()).await;
    let client = world.client();
    client.resource(&uri()).await.unwrap();
    world.now.store(NOW + 269, Ordering::SeqCst);
    client.resource(&uri()).await.unwrap();
    assert_eq!(world.counts(), (1, 2));
    world.now.store(NOW + 270, Ordering::SeqCst);
    client.resource(&uri()).await.unwrap();
    assert_eq!(world.counts(), (2, 3));
}

#[tokio::test]
async fn token_comes_with_the_key_that_it_speaks_of() {
    let world = World::new(Script::default()).await;
    let client = world.client();
    let token = client.token().await.unwrap();
    let key = TeeKey::from_pem(&token.tee_keypair_pem).unwrap();
    assert_eq!(Some(key.public().unwrap()), *world.script.key.lock().unwrap());
    assert_eq!(client.token().await.unwrap().jwt, token.jwt);
    assert_eq!(world.counts(), (1, 0));
}

#[tokio::test]
async fn calls_at_once_share_one_attestation() {
    let world = World::new(Script::default()).await;
    let client = world.client();
    let uri = uri();
    let (a, b, c) = tokio::join!(client.resource(&uri), client.resource(&uri), client.token());
    a.unwrap();
    b.unwrap();
    c.unwrap();
    assert_eq!(world.counts(), (1, 2));
}

#[tokio::test]
async fn refused_token_is_renewed_twice_at_most() {
    for (refusals, counts) in [(1, (2, 2)), (2, (3, 3)), (9, (3, 3))] {
        let world = World::new(Script { refusals: AtomicU32::new(refusals), ..Script::default() }).await;
        let result = world.client().resource(&uri()).await;
        assert_eq!(result.is_ok(), refusals <= 2);
        assert_eq!(world.counts(), counts);
        if let Err(error) = result {
            assert_eq!(error.to_string(), "the key broker refuses to get a resource: status 401, TokenVerifierError: the reason");
            assert!(!error.is_passing());
        }
    }
}

#[tokio::test]
async fn denial_of_a_new_token_is_the_answer() {
    let world = World::new(Script { refusals: AtomicU32::new(1), refusal: "PolicyDeny", ..Script::default() }).await;
    let client = world.client();
    assert!(matches!(client.resource(&uri()).await, Err(KeyBrokerError::Refused { status: 401, .. })));
    assert_eq!(world.counts(), (1, 1));
    // The token is now an old one: reference values may have come meanwhile, so it is renewed once.
    world.script.refusals.store(1, Ordering::SeqCst);
    assert!(client.resource(&uri()).await.is_ok());
    assert_eq!(world.counts(), (2, 3));
}

#[tokio::test]
async fn answers_that_are_none_are_refused() {
    let long = vec![b' '; 1 << 20];
    let nonces = ["", "AAAA", "no base64 at all, but long enough"].map(|nonce| Script { nonce: nonce.to_owned(), ..Script::default() });
    let cookies = ["other=1", "kbs-session-id=", "kbs-session-id=a,b"].map(|cookie| Script { cookie, ..Script::default() });
    let scripts = [
        Script::default().answer("auth", "{}"),
        Script::default().answer("auth", long.clone()),
        Script::default().answer("auth", r#"{"nonce":"BwcHBwcHBwcHBwcHBwcHBw==","extra-params":{"selected-hash-algorithm":"sha512"}}"#),
        Script::default().answer("attest", "{}"),
        Script::default().answer("attest", r#"{"token":"line\nbreak"}"#),
        Script::default().answer("attest", long.clone()),
        Script::default().answer("resource", "not JSON"),
        Script::default().answer("resource", long),
    ];
    for (index, script) in scripts.into_iter().chain(nonces).chain(cookies).enumerate() {
        let world = World::new(script).await;
        let error = world.client().resource(&uri()).await.unwrap_err();
        assert!(matches!(error, KeyBrokerError::Unusable { .. }), "script {index}: {error}");
    }
}

#[tokio::test]
async fn resource_for_another_key_is_not_decrypted() {
    let other = TeeKey::generate(TeeKeyAlgorithm::default()).unwrap();
    let answer = serde_json::to_vec(&jwe::encrypt(&other.public().unwrap(), SECRET).unwrap()).unwrap();
    let world = World::new(Script::default().answer("resource", answer)).await;
    assert!(matches!(world.client().resource(&uri()).await, Err(KeyBrokerError::Cryptography { .. })));
}

#[tokio::test]
async fn attester_has_a_deadline_and_may_fail() {
    struct Bad(bool);
    #[async_trait]
    impl Attester for Bad {
        fn tee(&self) -> String {
            "sample".to_owned()
        }
        async fn evidence(&self, _: [u8; 48]) -> Result<Value, BoxError> {
            if self.0 { std::future::pending().await } else { Err("no device".into()) }
        }
    }
    let world = World::new(Script::default()).await;
    let limits = Limits { evidence_timeout: Duration::from_millis(20), ..Limits::default() };
    let client = |hangs| KeyBroker::new(KeyBrokerConfig { limits: limits.clone(), ..world.config() }, Arc::new(Bad(hangs))).unwrap();
    let error = client(true).resource(&uri()).await.unwrap_err();
    assert!(matches!(error, KeyBrokerError::Deadline { operation: "collect evidence", .. }) && error.is_passing(), "{error}");
    assert!(matches!(client(false).resource(&uri()).await, Err(KeyBrokerError::Evidence(_))));
    assert_eq!(world.counts(), (0, 0));
}

#[tokio::test]
async fn silent_broker_is_left_at_the_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let limits = Limits { request_timeout: Duration::from_millis(20), ..Limits::default() };
    let client = KeyBroker::new(KeyBrokerConfig { limits, ..KeyBrokerConfig::new(url.clone()) }, Arc::new(Sample)).unwrap();
    assert!(matches!(client.resource(&uri()).await, Err(KeyBrokerError::Deadline { operation: "begin an attestation", .. })));
    let limits = Limits { total_timeout: Duration::from_millis(20), ..Limits::default() };
    let client = KeyBroker::new(KeyBrokerConfig { limits, ..KeyBrokerConfig::new(url) }, Arc::new(Sample)).unwrap();
    assert!(matches!(client.token().await, Err(KeyBrokerError::Deadline { operation: "get a token", .. })));
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let world = World::new(Script::default()).await;
    let target = format!("{}/kbs/v0/auth", world.url);
    let router = Router::new().fallback(move || async move { (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = KeyBroker::new(KeyBrokerConfig::new(url), Arc::new(Sample)).unwrap();
    assert!(matches!(client.resource(&uri()).await, Err(KeyBrokerError::Refused { status: 307, .. })));
    assert_eq!(world.counts(), (0, 0));
}
