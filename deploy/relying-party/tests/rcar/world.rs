//! A relying party that serves, its client, and what tests ask of both.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_key_broker::wire::{Attestation, Challenge, ErrorInfo, Request, RuntimeData, TeeEvidence};
use peerpods_key_broker::{KeyBroker, KeyBrokerConfig, KeyBrokerError, ResourceUri, TeeKey, TeeKeyAlgorithm};
use peerpods_relying_party::client::Admin;
use peerpods_relying_party::{Broker, EvidenceVerifier, Folder, Listening, Store, Tls, issue_admin_token, serve, state};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::common::Sample;

/// A broker with its folder and a clock that tests turn.
pub(super) struct World {
    pub(super) directory: tempfile::TempDir,
    pub(super) now: Arc<AtomicU64>,
    pub(super) scheme: &'static str,
    pub(super) url: String,
    pub(super) stop: CancellationToken,
    pub(super) served: JoinHandle<()>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with("http").await
    }

    pub(super) async fn with(scheme: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        drop(state::init(&directory.path().join("state"), &names).unwrap());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        Self::start(directory, Arc::new(AtomicU64::new(now)), scheme).await
    }

    pub(super) async fn start(directory: tempfile::TempDir, now: Arc<AtomicU64>, scheme: &'static str) -> Self {
        let store = Store::open(&directory.path().join("state")).unwrap();
        let file = |name: &str| store.read(Folder::Top, name).unwrap().unwrap();
        let tls = (scheme == "https").then(|| Tls::from_pem(&file(state::TLS_CERTIFICATE), &file(state::TLS_KEY)).unwrap());
        let broker = Broker::open(store, Arc::new(EvidenceVerifier::default()), clock(&now)).unwrap();
        let listening = Listening::bind("127.0.0.1:0".parse().unwrap(), tls).await.unwrap();
        let url = format!("{scheme}://{}", listening.address().unwrap());
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(Arc::new(broker), listening, stop.clone()));
        Self { directory, now, scheme, url, stop, served }
    }

    /// As after a crash of the process: only the folder is left.
    pub(super) async fn restart(self) -> Self {
        self.stop.cancel();
        self.served.await.unwrap();
        Self::start(self.directory, self.now, self.scheme).await
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(super) fn turn(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(super) fn token(&self) -> String {
        let key = std::fs::read(self.state().join(state::ADMIN_KEY)).unwrap();
        issue_admin_token(&key, Duration::from_secs(3600), clock(&self.now)()).unwrap()
    }

    pub(super) fn admin(&self) -> Admin {
        let certificate = std::fs::read(self.state().join(state::TLS_CERTIFICATE)).unwrap();
        Admin::new(&self.url, Some(&certificate), self.token()).unwrap()
    }

    pub(super) fn config(&self) -> KeyBrokerConfig {
        KeyBrokerConfig { clock: clock(&self.now), ..KeyBrokerConfig::new(self.url.clone()) }
    }

    pub(super) fn client(&self) -> KeyBroker {
        KeyBroker::new(self.config(), Arc::new(Sample)).unwrap()
    }

    pub(super) fn client_with(&self, initdata: &str) -> KeyBroker {
        KeyBroker::new(KeyBrokerConfig { initdata: Some(initdata.to_owned()), ..self.config() }, Arc::new(Sample)).unwrap()
    }

    pub(super) async fn call(&self, method: Method, path: &str, headers: &[(&str, String)], body: impl Into<Vec<u8>>) -> Response {
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls_without_roots()).no_proxy().build().unwrap();
        let mut request = http.request(method, format!("{}{path}", self.url)).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.send().await.unwrap()
    }

    /// A raw `/auth`: nonce and `Cookie` header.
    pub(super) async fn auth(&self) -> (String, (&'static str, String)) {
        let response = self.call(Method::POST, "/kbs/v0/auth", &[], serde_json::to_vec(&Request::new("sample")).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert!(
            pair.len() == "kbs-session-id=".len() + 32 && attributes.starts_with("Expires=") && attributes.ends_with(" GMT"),
            "{cookie}"
        );
        let challenge: Challenge = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        assert_eq!((STANDARD.decode(&challenge.nonce).unwrap().len(), challenge.extra_params), (32, json!("")));
        (challenge.nonce, ("cookie", pair.to_owned()))
    }

    pub(super) async fn attest(&self, cookie: &(&'static str, String), attestation: &Attestation) -> Response {
        self.call(Method::POST, "/kbs/v0/attest", std::slice::from_ref(cookie), serde_json::to_vec(attestation).unwrap()).await
    }
}

pub(super) fn clock(now: &Arc<AtomicU64>) -> Arc<dyn Fn() -> SystemTime + Send + Sync> {
    let now = now.clone();
    Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(now.load(Ordering::SeqCst)))
}

pub(super) fn tls_without_roots() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

pub(super) fn attestation(key: &TeeKey, nonce: &str) -> Attestation {
    let runtime_data = RuntimeData { nonce: nonce.to_owned(), tee_pubkey: key.public().unwrap() };
    let report_data = STANDARD.encode(runtime_data.report_data("").unwrap());
    let primary_evidence = json!({ "svn": "1", "report_data": report_data });
    Attestation { init_data: None, runtime_data, tee_evidence: TeeEvidence { primary_evidence, additional_evidence: String::new() } }
}

pub(super) fn key() -> TeeKey {
    TeeKey::generate(TeeKeyAlgorithm::default()).unwrap()
}

pub(super) fn uri() -> ResourceUri {
    "kbs:///default/key/1".parse().unwrap()
}

pub(super) fn digest(initdata: &str) -> String {
    hex::encode(peerpods_evidence::initdata::digest(Some(initdata)).unwrap())
}

pub(super) async fn refused(response: Response, status: u16, name: &str, part: &str) {
    assert_eq!(response.status().as_u16(), status);
    let info: ErrorInfo = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert!(info.name() == name && info.detail.contains(part), "{info:?}");
}

pub(super) fn denied(result: Result<impl Sized, KeyBrokerError>, name: &str) {
    match result {
        Err(KeyBrokerError::Refused { status: 401, refusal, .. }) => assert_eq!(refusal.name, name),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("released"),
    }
}
