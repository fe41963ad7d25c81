//! The client: attest once, get many resources.
//!
//! One token is kept. Whoever needs it while it is made waits for it, under their own deadline; a cancelled attestation is begun anew
//! by the next one who waits. A broker answers 401 to nearly everything, so a refused token is renewed, twice at most for one call.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::KeyBrokerConfig;
use crate::error::{BoxError, KeyBrokerError};
use crate::http::Http;
use crate::jwe;
use crate::tee_key::TeeKey;
use crate::token::{self, Token};
use crate::uri::ResourceUri;
use crate::wire::{Attestation, AttestationAnswer, Challenge, InitData, REPORT_DATA_BYTES, Request, Response, RuntimeData, TeeEvidence};

/// Makes evidence. Both calls may be made at any time, more than once.
#[async_trait]
pub trait Attester: Send + Sync {
    /// The format of the evidence, as brokers name it, for example `snp` or `sample`.
    fn tee(&self) -> String;

    /// Evidence over this report data, as the JSON that verifiers of this format read. The caller limits the wait and may cancel it.
    async fn evidence(&self, report_data: [u8; REPORT_DATA_BYTES]) -> Result<serde_json::Value, BoxError>;
}

/// A client of one key broker.
pub struct KeyBroker {
    config: KeyBrokerConfig,
    attester: Arc<dyn Attester>,
    http: Http,
    session: Mutex<Sessions>,
}

/// The last token, and how many there were.
#[derive(Default)]
struct Sessions {
    current: Option<Arc<Session>>,
    count: u64,
}

struct Session {
    number: u64,
    jwt: Zeroizing<String>,
    key: TeeKey,
    /// From when on it is not used for another call.
    stale_at: SystemTime,
}

const AUTH: &str = "begin an attestation";
const ATTEST: &str = "attest";
const GET_RESOURCE: &str = "get a resource";
const GET_TOKEN: &str = "get a token";

/// Attestations after a refusal, for one call.
const MAX_RENEWALS: u32 = 2;
/// Bytes of a challenge.
const MAX_CHALLENGE_BYTES: usize = 16 << 10;
/// Bytes of a token's answer. Tokens travel in a header, so brokers keep them short.
const MAX_TOKEN_BYTES: usize = 256 << 10;
/// Bytes of an attestation. Trustee reads 2 MiB by default.
const MAX_ATTESTATION_BYTES: usize = 2 << 20;
/// Bytes of random that a nonce must have had, and longest nonce in characters.
const MIN_NONCE_BYTES: usize = 16;
const MAX_NONCE: usize = 512;

impl KeyBroker {
    /// A client; nothing is sent yet.
    pub fn new(config: KeyBrokerConfig, attester: Arc<dyn Attester>) -> Result<Self, KeyBrokerError> {
        let http = Http::new(&config)?;
        Ok(Self { config, attester, http, session: Mutex::default() })
    }

    /// Gets a resource, attesting where there is no usable token. Idempotent; the host of the URI is not looked at.
    pub async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, KeyBrokerError> {
        self.within(GET_RESOURCE, self.fetch_patiently(uri)).await
    }

    /// The token in use, or a new one.
    pub async fn token(&self) -> Result<Token, KeyBrokerError> {
        self.within(GET_TOKEN, async {
            let (session, _) = self.session(None).await?;
            let export = |source| KeyBrokerError::Cryptography { operation: "export the TEE key", source };
            Ok(Token { jwt: session.jwt.clone(), tee_keypair_pem: session.key.to_pem().map_err(export)? })
        })
        .await
    }

    async fn within<T>(&self, operation: &'static str, work: impl Future<Output = Result<T, KeyBrokerError>>) -> Result<T, KeyBrokerError> {
        let limit = self.config.limits.total_timeout;
        timeout(limit, work).await.unwrap_or(Err(KeyBrokerError::Deadline { operation, limit }))
    }

    async fn fetch_patiently(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, KeyBrokerError> {
        let mut refused = None;
        let mut renewals = 0;
        loop {
            let (session, is_new) = self.session(refused).await?;
            match self.fetch(uri, &session).await {
                Err(KeyBrokerError::Refused { status: 401 | 403, refusal, .. })
                    if renewals < MAX_RENEWALS && !(is_new && refusal.is_final()) =>
                {
                    tracing::info!(%uri, error = refusal.name, "the key broker refuses a token; attesting again");
                    refused = Some(session.number);
                    renewals += 1;
                }
                other => return other,
            }
        }
    }

    async fn fetch(&self, uri: &ResourceUri, session: &Session) -> Result<Zeroizing<Vec<u8>>, KeyBrokerError> {
        // Base64 takes four bytes for three; the rest is headers.
        let limit = self.config.limits.max_resource_bytes.div_ceil(3) * 4 + (16 << 10);
        let answer = self.http.get(&format!("resource/{}", uri.path()), &session.jwt, limit, GET_RESOURCE).await?;
        let response: Response = parse(&answer.body, GET_RESOURCE)?;
        if response.ciphertext.len() > self.config.limits.max_resource_bytes {
            let reason = format!("it is longer than {} bytes", self.config.limits.max_resource_bytes);
            return Err(KeyBrokerError::Unusable { operation: GET_RESOURCE, reason });
        }
        jwe::decrypt(&session.key, &response).map_err(|source| KeyBrokerError::Cryptography { operation: "decrypt a resource", source })
    }

    /// A session that is not stale and not the refused one, and whether it was made for this call.
    async fn session(&self, refused: Option<u64>) -> Result<(Arc<Session>, bool), KeyBrokerError> {
        let mut sessions = self.session.lock().await;
        if let Some(current) = &sessions.current
            && Some(current.number) != refused
            && (self.config.clock)() < current.stale_at
        {
            return Ok((current.clone(), false));
        }
        sessions.current = None;
        let number = sessions.count;
        sessions.count += 1;
        let session = Arc::new(self.attest(number).await?);
        sessions.current = Some(session.clone());
        Ok((session, true))
    }

    async fn attest(&self, number: u64) -> Result<Session, KeyBrokerError> {
        let request = serialize(&Request::new(&self.attester.tee()), AUTH)?;
        let answer = self.http.post("auth", request, None, MAX_CHALLENGE_BYTES, AUTH).await?;
        let challenge: Challenge = parse(&answer.body, AUTH)?;
        let unusable = |reason: &str| KeyBrokerError::Unusable { operation: AUTH, reason: reason.to_owned() };
        let cookie = answer.cookie.ok_or_else(|| unusable("it sets no session cookie"))?;
        check_challenge(&challenge).map_err(unusable)?;

        let key = self.make_key().await?;
        let export = |source| KeyBrokerError::Cryptography { operation: "export the TEE key", source };
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: key.public().map_err(export)? };
        let report_data = runtime_data.report_data("").map_err(|_| unusable("its nonce has no canonical form"))?;
        let primary_evidence = self.evidence(report_data).await?;
        let attestation = Attestation {
            init_data: self.config.initdata.as_deref().map(InitData::toml),
            runtime_data,
            tee_evidence: TeeEvidence { primary_evidence, additional_evidence: String::new() },
        };
        let attestation = serialize(&attestation, ATTEST)?;
        if attestation.len() > MAX_ATTESTATION_BYTES {
            return Err(KeyBrokerError::Evidence(format!("with it, the message has more than {MAX_ATTESTATION_BYTES} bytes").into()));
        }
        let answer = self.http.post("attest", attestation, Some(&cookie), MAX_TOKEN_BYTES, ATTEST).await?;
        let body = Zeroizing::new(answer.body);
        let answer: AttestationAnswer = parse(&body, ATTEST)?;
        let jwt = Zeroizing::new(answer.token);
        let now = (self.config.clock)();
        // A token that does not say when it expires is used for the call it was made for, and for no other.
        let expiry = token::expiry(&jwt).and_then(|expiry| expiry.checked_sub(self.config.limits.token_margin));
        Ok(Session { number, jwt, key, stale_at: expiry.unwrap_or(now) })
    }

    async fn make_key(&self) -> Result<TeeKey, KeyBrokerError> {
        const MAKE_KEY: &str = "make a TEE key";
        let algorithm = self.config.tee_key_algorithm;
        let made = tokio::task::spawn_blocking(move || TeeKey::generate(algorithm)).await;
        made.unwrap_or(Err(jwe::JweError::Crypto(MAKE_KEY))).map_err(|source| KeyBrokerError::Cryptography { operation: MAKE_KEY, source })
    }

    async fn evidence(&self, report_data: [u8; REPORT_DATA_BYTES]) -> Result<serde_json::Value, KeyBrokerError> {
        let limit: Duration = self.config.limits.evidence_timeout;
        match timeout(limit, self.attester.evidence(report_data)).await {
            Ok(evidence) => evidence.map_err(KeyBrokerError::Evidence),
            Err(_) => Err(KeyBrokerError::Deadline { operation: "collect evidence", limit }),
        }
    }
}

impl std::fmt::Debug for KeyBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyBroker").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A nonce that could have been random, and no other hash than the one that report data is made with.
fn check_challenge(challenge: &Challenge) -> Result<(), &'static str> {
    let nonce = Some(&challenge.nonce).filter(|nonce| nonce.len() <= MAX_NONCE).and_then(|nonce| STANDARD.decode(nonce).ok());
    if nonce.is_none_or(|nonce| nonce.len() < MIN_NONCE_BYTES) {
        return Err("its nonce is no base64 of at least 16 bytes");
    }
    match challenge.extra_params.get("selected-hash-algorithm").map(|selected| selected.as_str()) {
        None | Some(Some("sha384")) => Ok(()),
        Some(_) => Err("it selects another hash algorithm than sha384"),
    }
}

fn serialize(message: &impl serde::Serialize, operation: &'static str) -> Result<Vec<u8>, KeyBrokerError> {
    // Only maps without string keys do not serialize, and evidence is JSON already.
    serde_json::to_vec(message).map_err(|error| KeyBrokerError::Unusable { operation, reason: error.to_string() })
}

/// The parser's own message could quote a token.
fn parse<T: DeserializeOwned>(body: &[u8], operation: &'static str) -> Result<T, KeyBrokerError> {
    serde_json::from_slice(body).map_err(|_| KeyBrokerError::Unusable { operation, reason: "it is not the JSON it should be".to_owned() })
}
