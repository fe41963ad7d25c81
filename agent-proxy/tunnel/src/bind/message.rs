//! The messages, as JSON. Order on the wire: Hello, Evidence, Bind, Answer; an Answer may also take the place of Evidence.
//!
//! Between Evidence and Bind the node may ask once for what only the hardware behind the evidence can answer: Activate, Activated. A guest
//! of a release without that refuses Activate as a bad Bind and is left as it was.

use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The version of Hello and Bind that this crate writes.
pub const BIND_VERSION: u32 = 1;

/// Gives a pod VM its pod. Public data: nothing in it is secret from the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindRequest {
    /// Format version, [`BIND_VERSION`].
    pub version: u32,
    /// The shim's name for the sandbox.
    pub sandbox_id: String,
    /// The pod that the VM will serve.
    pub pod: Pod,
    /// The pod network as its own crate writes it; null for a pod without one (host network).
    pub network: serde_json::Value,
    /// The initdata TOML, byte for byte as it will be measured; absent means the fixed empty document.
    pub initdata: Option<String>,
    /// SHA-256 (lower-case hex) of the SubjectPublicKeyInfo of each key that may open agent streams.
    pub agent_keys: Vec<String>,
}

/// The pod's names in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; Kata's shims do not send it.
    pub uid: Option<String>,
}

/// A typed no from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// What kind of no.
    pub code: RefusalCode,
    /// For the operator; never holds anything secret.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The closed list of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The VM has taken another Bind before; it serves one pod and is then deleted.
    AlreadyBound,
    /// The assignment names another instance.
    WrongInstance,
    /// A version that this guest does not read.
    UnsupportedVersion,
    /// The message is malformed or out of bounds.
    BadRequest,
    /// Evidence could not be made.
    EvidenceFailed,
    /// The initdata could not be measured; the VM is spent.
    MeasurementFailed,
    /// The pod network could not be set up; the VM is spent.
    NetworkFailed,
    /// Too many requests at once; the same request may be tried again.
    Busy,
    /// Anything else that went wrong in the guest; the VM is spent.
    Internal,
    /// A code that this release does not know.
    #[serde(other)]
    Unknown,
}

impl std::fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AlreadyBound => "already-bound",
            Self::WrongInstance => "wrong-instance",
            Self::UnsupportedVersion => "unsupported-version",
            Self::BadRequest => "bad-request",
            Self::EvidenceFailed => "evidence-failed",
            Self::MeasurementFailed => "measurement-failed",
            Self::NetworkFailed => "network-failed",
            Self::Busy => "busy",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        })
    }
}

/// Opens a Bind; the nonce goes into the report data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    #[serde(with = "hex32")]
    pub(crate) nonce: [u8; 32],
}

/// The guest's answer to Hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Evidence {
    pub(crate) tee: String,
    #[serde(with = "base64_bytes")]
    pub(crate) evidence: Vec<u8>,
}

/// Asks the guest for a proof beside its evidence. What challenge and answer are is for the evidence's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activate {
    pub(crate) version: u32,
    #[serde(with = "base64_bytes")]
    pub(crate) challenge: Vec<u8>,
}

/// The guest's answer to Activate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activated {
    #[serde(with = "base64_bytes")]
    pub(crate) activated: Vec<u8>,
}

/// What may follow Activate.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ActivateReply {
    Activated(Activated),
    Answer(Answer),
}

/// The guest's last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Bound,
    Refused(Refusal),
}

/// What may follow Hello: evidence, or a refusal in its place.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    Evidence(Evidence),
    Answer(Answer),
}

mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::bind::decode_hex32(&text).ok_or_else(|| D::Error::custom("not 64 lower-case hex digits"))
    }
}

mod base64_bytes {
    use super::STANDARD;
    use base64::Engine as _;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
