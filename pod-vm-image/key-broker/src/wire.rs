//! The messages of KBS protocol 0.4.0, with the names and the member order that Trustee and guest-components use (kbs-types 0.18).
//!
//! The outer names are kebab-case, those of the evidence snake_case: so is the protocol.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::jcs::{self, JcsError};

/// The protocol's version. Trustee accepts exactly this one.
pub const VERSION: &str = "0.4.0";

/// Where all paths of the protocol begin.
pub const PREFIX: &str = "/kbs/v0";

/// The cookie that joins `/attest` to its `/auth`.
pub const SESSION_COOKIE: &str = "kbs-session-id";

/// Bytes of report data: a SHA-384.
pub const REPORT_DATA_BYTES: usize = 48;

/// `POST /auth`: who wants to attest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: String,
    /// The format of the evidence that will come, for example `snp`.
    pub tee: String,
    /// Hash algorithms that the client can bind evidence with.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

/// The answer to [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Base64 of random bytes, to be bound into the evidence as it is written.
    pub nonce: String,
    /// An empty string, or what the broker chose among the client's parameters.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

/// `POST /attest`: evidence and what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// Initdata, where the client knows its text. The verifier compares its digest with what the evidence holds.
    #[serde(rename = "init-data")]
    pub init_data: Option<InitData>,
    /// What the evidence's report data is the hash of.
    #[serde(rename = "runtime-data")]
    pub runtime_data: RuntimeData,
    /// The evidence.
    #[serde(rename = "tee-evidence")]
    pub tee_evidence: TeeEvidence,
}

/// Initdata as it is sent. It is public.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitData {
    /// `toml`.
    pub format: String,
    /// The whole text: every byte of it is hashed.
    pub body: String,
}

/// See [`Attestation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeData {
    /// As in [`Challenge`].
    pub nonce: String,
    /// Resources are encrypted to this key.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: TeePubKey,
}

/// See [`Attestation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeeEvidence {
    /// Of the format named in [`Request`].
    pub primary_evidence: Value,
    /// JSON of evidence of devices, or an empty string.
    pub additional_evidence: String,
}

/// A public key to encrypt to, as JWK. Numbers are base64url without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub enum TeePubKey {
    /// An elliptic curve point.
    #[serde(rename = "EC")]
    Ec {
        /// `P-256` or `P-521`.
        crv: String,
        /// `ECDH-ES+A256KW`.
        alg: String,
        /// Big-endian, as long as the curve's field.
        x: String,
        /// As `x`.
        y: String,
    },
    /// An RSA key.
    #[serde(rename = "RSA")]
    Rsa {
        /// `RSA-OAEP-256`.
        alg: String,
        /// Modulus, big-endian.
        n: String,
        /// Exponent, big-endian.
        e: String,
    },
}

/// The answer to `POST /attest`.
#[derive(Clone, Serialize, Deserialize)]
pub struct AttestationAnswer {
    /// A JWT.
    pub token: String,
}

/// A resource: a JWE in flattened JSON form (RFC 7516 section 7.2.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Base64url of the [`ProtectedHeader`]'s JSON, kept as received: the authenticated data is this very text.
    pub protected: String,
    /// The content key, encrypted to the TEE key.
    #[serde(with = "base64url")]
    pub encrypted_key: Vec<u8>,
    /// Initialization vector, 12 bytes.
    #[serde(with = "base64url")]
    pub iv: Vec<u8>,
    /// As long as the resource.
    #[serde(with = "base64url")]
    pub ciphertext: Vec<u8>,
    /// Authentication tag, 16 bytes.
    #[serde(with = "base64url")]
    pub tag: Vec<u8>,
    /// Further authenticated data. Brokers of this version send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
}

/// The header of a [`Response`].
///
/// Trustee and guest-components authenticate the header as *they* write it after parsing: this order, then the rest. So do we.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectedHeader {
    /// How the content key is encrypted.
    pub alg: String,
    /// How the content is: `A256GCM`.
    pub enc: String,
    /// Other members, such as `epk`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What a broker says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// A URL whose last segment is the name of the error.
    #[serde(rename = "type")]
    pub error_type: String,
    /// For people.
    pub detail: String,
}

/// `POST /attestation-policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttestationPolicy {
    /// `rego`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub policy_type: Option<String>,
    /// For example `default_cpu`.
    pub policy_id: String,
    /// Base64url of the text, without padding.
    pub policy: String,
}

/// `POST /resource-policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetResourcePolicy {
    /// Base64url of the text, without padding.
    pub policy: String,
}

/// `POST /reference-value`: a message to the reference value provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceValueMessage {
    /// `0.1.0`.
    pub version: String,
    /// How the payload is read; `sample` is base64 of a JSON object of names and values.
    #[serde(rename = "type")]
    pub message_type: String,
    /// See `message_type`.
    pub payload: String,
}

/// Where errors' types begin.
pub const ERROR_TYPE_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors";

impl Request {
    /// Asks for a challenge for evidence of this format. The parameters are those that guest-components sends.
    pub fn new(tee: &str) -> Self {
        let extra_params = serde_json::json!({ "supported-hash-algorithms": ["sha256", "sha384", "sha512"] });
        Self { version: VERSION.to_owned(), tee: tee.to_owned(), extra_params }
    }
}

impl InitData {
    /// Initdata of the only format there is.
    pub fn toml(body: &str) -> Self {
        Self { format: "toml".to_owned(), body: body.to_owned() }
    }
}

impl RuntimeData {
    /// What the primary evidence is bound to: SHA-384 of the canonical JSON of nonce, key and additional evidence.
    ///
    /// Fails only on text that has no canonical form, which a key and a nonce always have.
    pub fn report_data(&self, additional_evidence: &str) -> Result<[u8; REPORT_DATA_BYTES], JcsError> {
        let canonical = jcs::to_string(&self.claims(additional_evidence))?;
        let mut report_data = [0; REPORT_DATA_BYTES];
        report_data.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, canonical.as_bytes()).as_ref());
        Ok(report_data)
    }

    /// The same, not hashed, as it appears in tokens.
    pub fn claims(&self, additional_evidence: &str) -> Value {
        serde_json::json!({
            "additional-evidence": additional_evidence,
            "nonce": self.nonce,
            "tee-pubkey": self.tee_pubkey,
        })
    }
}

impl ErrorInfo {
    /// An error by its name, such as `PolicyDeny`.
    pub fn new(name: &str, detail: impl Into<String>) -> Self {
        Self { error_type: format!("{ERROR_TYPE_PREFIX}/{name}"), detail: detail.into() }
    }

    /// The last segment of the type.
    pub fn name(&self) -> &str {
        self.error_type.rsplit('/').next().unwrap_or_default()
    }
}

/// A token is a credential.
impl std::fmt::Debug for AttestationAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttestationAnswer").finish_non_exhaustive()
    }
}

mod base64url {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        URL_SAFE_NO_PAD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime_data() -> RuntimeData {
        let tee_pubkey =
            TeePubKey::Ec { crv: "P-256".to_owned(), alg: "ECDH-ES+A256KW".to_owned(), x: "eA".to_owned(), y: "eQ".to_owned() };
        RuntimeData { nonce: "bm9uY2U=".to_owned(), tee_pubkey }
    }

    fn assert_wire<T>(value: &T, json: &str)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
    {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
    }

    #[test]
    fn request_has_its_golden_bytes() {
        let json = r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512"]}}"#;
        assert_wire(&Request::new("sample"), json);
    }

    #[test]
    fn challenge_has_its_golden_bytes() {
        let challenge = Challenge { nonce: "bm9uY2U=".to_owned(), extra_params: Value::String(String::new()) };
        assert_wire(&challenge, r#"{"nonce":"bm9uY2U=","extra-params":""}"#);
    }

    #[test]
    fn attestation_has_its_golden_bytes() {
        let key = r#"{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ"}"#;
        let tee_evidence =
            TeeEvidence { primary_evidence: serde_json::json!({ "report_data": "AA==", "svn": "1" }), additional_evidence: String::new() };
        let mut attestation = Attestation { init_data: None, runtime_data: runtime_data(), tee_evidence };
        let rest = format!(
            r#""runtime-data":{{"nonce":"bm9uY2U=","tee-pubkey":{key}}},"tee-evidence":{{"primary_evidence":{{"report_data":"AA==","svn":"1"}},"additional_evidence":""}}}}"#
        );
        assert_wire(&attestation, &format!(r#"{{"init-data":null,{rest}"#));
        attestation.init_data = Some(InitData::toml("a = 1\n"));
        assert_wire(&attestation, &format!(r#"{{"init-data":{{"format":"toml","body":"a = 1\n"}},{rest}"#));
        let absent = serde_json::from_str::<Attestation>(&format!("{{{rest}")).unwrap();
        assert_eq!(absent.init_data, None);
    }

    #[test]
    fn rsa_key_has_its_golden_bytes() {
        let key = TeePubKey::Rsa { alg: "RSA-OAEP-256".to_owned(), n: "bg".to_owned(), e: "AQAB".to_owned() };
        assert_wire(&key, r#"{"kty":"RSA","alg":"RSA-OAEP-256","n":"bg","e":"AQAB"}"#);
    }

    #[test]
    fn response_has_its_golden_bytes_and_takes_a_null_aad() {
        let response =
            Response { protected: "e30".to_owned(), encrypted_key: vec![1], iv: vec![2], ciphertext: vec![3], tag: vec![4], aad: None };
        let json = r#"{"protected":"e30","encrypted_key":"AQ","iv":"Ag","ciphertext":"Aw","tag":"BA"}"#;
        assert_wire(&response, json);
        let with_null = json.replace('}', r#","aad":null}"#);
        assert_eq!(serde_json::from_str::<Response>(&with_null).unwrap(), response);
    }

    #[test]
    fn errors_and_administration_have_their_golden_bytes() {
        let error = ErrorInfo::new("PolicyDeny", "Access denied by policy");
        assert_wire(
            &error,
            r#"{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"Access denied by policy"}"#,
        );
        assert_eq!(error.name(), "PolicyDeny");
        let policy = SetAttestationPolicy {
            policy_type: Some("rego".to_owned()),
            policy_id: "default_cpu".to_owned(),
            policy: "cGFja2FnZQ".to_owned(),
        };
        assert_wire(&policy, r#"{"type":"rego","policy_id":"default_cpu","policy":"cGFja2FnZQ"}"#);
        assert_wire(&SetResourcePolicy { policy: "cGFja2FnZQ".to_owned() }, r#"{"policy":"cGFja2FnZQ"}"#);
        let message = ReferenceValueMessage { version: "0.1.0".to_owned(), message_type: "sample".to_owned(), payload: "e30=".to_owned() };
        assert_wire(&message, r#"{"version":"0.1.0","type":"sample","payload":"e30="}"#);
    }

    #[test]
    fn report_data_is_the_hash_of_sorted_members() {
        let canonical = r#"{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"eA","y":"eQ"}}"#;
        assert_eq!(jcs::to_string(&runtime_data().claims("")).unwrap(), canonical);
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, canonical.as_bytes());
        assert_eq!(runtime_data().report_data("").unwrap().as_slice(), expected.as_ref());
        assert_ne!(runtime_data().report_data("{}").unwrap().as_slice(), expected.as_ref());
    }

    #[test]
    fn token_is_not_printed() {
        assert_eq!(format!("{:?}", AttestationAnswer { token: "secret".to_owned() }), "AttestationAnswer { .. }");
    }
}
