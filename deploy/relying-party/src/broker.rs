//! The broker: what each call does. Synchronous; the folder is its only side effect.
//!
//! Order of checks for a resource, as in Trustee: token, policy, then whether it exists; so a client without the right learns nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use peerpods_key_broker::wire::{
    Attestation, AttestationAnswer, Challenge, Request, SESSION_COOKIE, SetAttestationPolicy, SetResourcePolicy, VERSION,
};
use peerpods_key_broker::{ResourceUri, jwe};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::admin::Admins;
use crate::appraisal::{annotated_evidence, appraise};
use crate::error::{ApiError, StartError};
use crate::policy::{self, DEFAULT_ATTESTATION_POLICY, DEFAULT_RESOURCE_POLICY};
use crate::sessions::Sessions;
use crate::state::{ADMIN_PUBLIC_KEY, RESOURCE_POLICY, TOKEN_KEY};
use crate::store::{Folder, Store, StoreError};
use crate::token::{self, Tokens};
use crate::verifier::Verifier;
use crate::{initdata, reference};

/// What time it is.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A call, without its transport. What it carries is not printed: resources and tokens.
#[derive(Clone, Default)]
pub struct Call {
    /// Of HTTP, upper case.
    pub method: String,
    /// What follows `/kbs/v0/`.
    pub path: String,
    /// The query's parameters.
    pub query: BTreeMap<String, String>,
    /// Value of the session cookie.
    pub cookie: Option<String>,
    /// The bearer token.
    pub bearer: Option<String>,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

/// An answer that is no refusal. Its body is not printed: it may be a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// `None` for a body of bytes.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
    /// `Set-Cookie`.
    pub cookie: Option<String>,
}

/// One broker with its folder.
pub struct Broker {
    store: Store,
    verifier: Arc<dyn Verifier>,
    clock: Clock,
    tokens: Tokens,
    admins: Admins,
    sessions: Mutex<Sessions>,
}

/// The policy that attestations are asked for; with the class of the format after it, the name of its file.
const POLICY_ID: &str = "default";
const CPU_POLICY: &str = "default_cpu";
const NONCE_BYTES: usize = 32;
const SESSION_ID_BYTES: usize = 16;

impl Broker {
    /// Reads the keys of the folder.
    pub fn open(store: Store, verifier: Arc<dyn Verifier>, clock: Clock) -> Result<Self, StartError> {
        fn key<T>(store: &Store, file: &str, read: impl Fn(&[u8]) -> Result<T, &'static str>) -> Result<T, StartError> {
            let failed = |reason: &str| StartError::File { file: file.to_owned(), reason: reason.to_owned() };
            let pem = store.read(Folder::Top, file)?.ok_or_else(|| failed("it is missing"))?;
            read(&pem).map_err(failed)
        }
        let tokens = key(&store, TOKEN_KEY, Tokens::from_pem)?;
        let admins = key(&store, ADMIN_PUBLIC_KEY, Admins::from_pem)?;
        Ok(Self { store, verifier, clock, tokens, admins, sessions: Mutex::default() })
    }

    /// Carries out a call. It may take some seconds of policy and flushing.
    pub fn handle(&self, call: &Call) -> Result<Answer, ApiError> {
        let (first, rest) = call.path.split_once('/').unwrap_or((&call.path, ""));
        match (call.method.as_str(), first, rest) {
            ("POST", "auth", "") => self.auth(&call.body),
            ("POST", "attest", "") => self.attest(call.cookie.as_deref(), &call.body),
            ("POST", "attestation-policy", "") => {
                self.admit(call)?;
                self.set_attestation_policy(&call.body)
            }
            ("POST", "resource-policy", "") => {
                self.admit(call)?;
                self.set_resource_policy(&call.body)
            }
            ("GET", "resource-policy", "") => {
                self.admit(call)?;
                let policy = URL_SAFE_NO_PAD.encode(self.resource_policy()?);
                Ok(Answer::json(&json!({ "resource-policy": policy })))
            }
            ("POST", "reference-value", "") => {
                self.admit(call)?;
                reference::register(&self.store, &call.body, self.now())?;
                Ok(Answer::empty())
            }
            ("GET", "reference-value", name) => {
                self.admit(call)?;
                let values = reference::all(&self.store, self.now())?;
                let all = || Value::Object(values.iter().map(|(name, value)| (name.clone(), value.clone())).collect());
                Ok(Answer::json(&if name.is_empty() { all() } else { values.get(name).cloned().unwrap_or_default() }))
            }
            ("GET", "resource", path) => self.resource(call, path),
            ("POST", "resource", path) => {
                self.admit(call)?;
                self.store.write(Folder::Resources, &file_name(path)?, &call.body)?;
                Ok(Answer::empty())
            }
            ("DELETE", "resource", path) => {
                self.admit(call)?;
                match self.store.remove(Folder::Resources, &file_name(path)?)? {
                    true => Ok(Answer::empty()),
                    false => Err(ApiError::PluginInternal("no such resource".to_owned())),
                }
            }
            (_, "", _) => Err(ApiError::InvalidRequestPath(call.path.chars().take(80).collect())),
            (_, plugin, _) => Err(ApiError::PluginNotFound(plugin.chars().take(80).collect())),
        }
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing panics between two changes of it.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, call: &Call) -> Result<(), ApiError> {
        let denied = |reason| ApiError::AdminAccess { endpoint: format!("/kbs/v0/{}", call.path), reason };
        self.admins.check(call.bearer.as_deref(), self.now()).map_err(denied)
    }

    fn auth(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Request = serde_json::from_slice(body).map_err(|error| ApiError::Auth(format!("deserialize Request: {error}")))?;
        if request.version != VERSION {
            let found: String = request.version.chars().take(40).collect();
            let mismatch = format!("KBS Client Protocol Version Mismatch: expect ={VERSION} while the request is {found}");
            return Err(ApiError::Auth(mismatch));
        }
        let no_random = |_| ApiError::Auth("no random bytes".to_owned());
        let (mut nonce, mut id) = ([0; NONCE_BYTES], [0; SESSION_ID_BYTES]);
        aws_lc_rs::rand::fill(&mut nonce).and_then(|()| aws_lc_rs::rand::fill(&mut id)).map_err(no_random)?;
        let (nonce, id) = (STANDARD.encode(nonce), hex::encode(id));
        let tee: String = request.tee.chars().take(40).collect();
        let expires = self.sessions().insert(id.clone(), tee, nonce.clone(), self.now());
        let challenge = Challenge { nonce, extra_params: Value::String(String::new()) };
        Ok(Answer { cookie: Some(set_cookie(&id, expires)), ..Answer::json(&challenge) })
    }

    fn attest(&self, cookie: Option<&str>, body: &[u8]) -> Result<Answer, ApiError> {
        let refused = |reason: String| ApiError::Attest(reason);
        let id = cookie.ok_or_else(|| refused("cookie not found".to_owned()))?;
        let attestation: Attestation =
            serde_json::from_slice(body).map_err(|error| refused(format!("deserialize Attestation: {error}")))?;
        let session = self.sessions().get(id, self.now()).ok_or_else(|| refused("the session is unknown or has expired".to_owned()))?;
        let token = match session.token {
            // As Trustee: a client whose answer was lost may ask again.
            Some(token) => token,
            None => {
                if session.nonce != attestation.runtime_data.nonce {
                    return Err(refused("the nonce is different from the one of the session".to_owned()));
                }
                let token = self.verify(&session.tee, attestation).map_err(refused)?;
                self.sessions().attest(id, &token);
                token
            }
        };
        Ok(Answer { cookie: Some(set_cookie(id, session.expires)), ..Answer::json(&AttestationAnswer { token }) })
    }

    /// Evidence to token.
    fn verify(&self, tee: &str, attestation: Attestation) -> Result<String, String> {
        let Attestation { init_data, runtime_data, tee_evidence } = attestation;
        let additional = tee_evidence.additional_evidence;
        if !additional.is_empty() {
            return Err("no verifier for additional evidence".to_owned());
        }
        let report_data = runtime_data.report_data(&additional).map_err(|error| error.to_string())?;
        let initdata = init_data.as_ref().map(initdata::read).transpose()?;
        let digest = initdata.as_ref().map(|initdata| initdata.digest.as_slice());
        let verified = self
            .verifier
            .verify(tee, &tee_evidence.primary_evidence, &report_data, digest, self.now())
            .map_err(|reason| format!("verify TEE evidence failed: {reason}"))?;
        let annotated = annotated_evidence(tee, verified, &runtime_data, &additional, initdata)?;
        let internal = |error: StoreError| {
            tracing::error!(%error, "cannot read the state folder");
            "the state folder cannot be read".to_owned()
        };
        let policy = self.text(Folder::AttestationPolicies, CPU_POLICY, DEFAULT_ATTESTATION_POLICY).map_err(internal)?;
        let references = reference::all(&self.store, self.now()).map_err(internal)?;
        let cpu = appraise(&policy, POLICY_ID, annotated, &references)?;
        tracing::info!(tee, status = cpu["ear.status"].as_str().unwrap_or_default(), "evidence was verified");
        self.tokens.issue(&cpu, self.now())
    }

    fn resource(&self, call: &Call, path: &str) -> Result<Answer, ApiError> {
        let now = self.now();
        let attested = call.cookie.as_deref().and_then(|id| self.sessions().get(id, now)).and_then(|session| session.token);
        let token = attested.or_else(|| call.bearer.clone()).ok_or(ApiError::TokenNotFound)?;
        let claims = self.tokens.verify(&token, now).map_err(ApiError::TokenVerifier)?;
        let tee_pubkey = token::tee_pubkey(&claims).ok_or(ApiError::TokenVerifier("it names no TEE key"))?;
        let uri = ResourceUri::from_path(path).map_err(|error| ApiError::PluginInternal(error.to_string()))?;
        let data = json!({ "plugin": "resource", "resource-path": uri.parts(), "query": call.query });
        if !self.is_allowed(claims, data)? {
            return Err(ApiError::PolicyDeny);
        }
        let resource = self.store.read(Folder::Resources, &file_name(path)?)?;
        let resource = resource.ok_or_else(|| ApiError::PluginInternal(format!("no resource {uri}")))?;
        let response = jwe::encrypt(&tee_pubkey, &resource).map_err(|error| ApiError::Jwe(error.to_string()))?;
        tracing::info!(%uri, "a resource was released");
        Ok(Answer::json(&response))
    }

    /// Anything but `true` is no.
    fn is_allowed(&self, claims: Value, data: Value) -> Result<bool, ApiError> {
        let policy = self.resource_policy()?;
        let results = policy::evaluate(&policy, claims, data, &policy::References::default(), &["data.policy.allow"])
            .map_err(|error| ApiError::PolicyEngine(error.to_string()))?;
        Ok(results == [Some(Value::Bool(true))])
    }

    fn resource_policy(&self) -> Result<String, StoreError> {
        self.text(Folder::Top, RESOURCE_POLICY, DEFAULT_RESOURCE_POLICY)
    }

    /// A file that is text, or else its default.
    fn text(&self, folder: Folder, name: &str, default: &str) -> Result<String, StoreError> {
        let content = self.store.read(folder, name)?;
        Ok(content.map_or_else(|| default.to_owned(), |content| String::from_utf8_lossy(&content).into_owned()))
    }

    fn set_attestation_policy(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let refused = |reason: String| ApiError::SetAttestationPolicy(reason);
        let input: SetAttestationPolicy = serde_json::from_slice(body).map_err(|error| refused(error.to_string()))?;
        if input.policy_type.as_deref().is_some_and(|policy_type| policy_type != "rego") {
            return Err(refused("its type is not rego".to_owned()));
        }
        let policy = decoded(&input.policy).map_err(refused)?;
        match self.store.write(Folder::AttestationPolicies, &input.policy_id, policy.as_bytes()) {
            Ok(()) => Ok(Answer::empty()),
            Err(StoreError::Name(_)) => Err(refused("its policy_id is no name".to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    fn set_resource_policy(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let input: SetResourcePolicy = serde_json::from_slice(body).map_err(|error| ApiError::ParsePolicy(error.to_string()))?;
        let policy = decoded(&input.policy).map_err(ApiError::ParsePolicy)?;
        self.store.write(Folder::Top, RESOURCE_POLICY, policy.as_bytes())?;
        Ok(Answer::empty())
    }
}

impl Answer {
    fn empty() -> Self {
        Self { content_type: None, body: Vec::new(), cookie: None }
    }

    fn json(body: &impl serde::Serialize) -> Self {
        // Only maps without string keys do not serialize, and there are none.
        Self { content_type: Some("application/json"), body: serde_json::to_vec(body).unwrap_or_default(), cookie: None }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("content_type", &self.content_type).finish_non_exhaustive()
    }
}

/// A policy from the wire that can be parsed.
fn decoded(policy: &str) -> Result<String, String> {
    let bytes = URL_SAFE_NO_PAD.decode(policy).map_err(|_| "the policy is no base64url without padding".to_owned())?;
    let policy = String::from_utf8(bytes).map_err(|_| "the policy is no UTF-8".to_owned())?;
    policy::check(&policy).map_err(|error| error.to_string())?;
    Ok(policy)
}

/// Parts have no comma, so two resources never share a file.
fn file_name(path: &str) -> Result<String, ApiError> {
    let uri = ResourceUri::from_path(path).map_err(|error| ApiError::PluginInternal(error.to_string()))?;
    Ok(uri.parts().join(","))
}

fn set_cookie(id: &str, expires: SystemTime) -> String {
    format!("{SESSION_COOKIE}={id}; Expires={}", httpdate::fmt_http_date(expires))
}
