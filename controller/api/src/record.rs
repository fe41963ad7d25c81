//! Records of the Journal, version 1: JSON with the version first.
//!
//! A record is written whole and alone; none relies on another one changing with it. `PodVmRecord::claimed_by` alone says which claim
//! a pod VM serves. A reader refuses a version that it does not know, and unknown fields within one that it does: whoever drops a
//! field on reading would lose it on the next write.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{ClaimId, ClaimKey, ClaimRef, Class, ClassName, InstanceId, LaunchToken, Mib, NodeName, PodRef, PodVmState, Tee, Zone};

/// The largest encoded record that every Journal must accept and may not exceed.
pub const MAX_RECORD_BYTES: usize = 64 << 10;

const VERSION: u32 = 1;

/// A node's wish for a pod VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRecord {
    /// What the node calls it.
    pub key: ClaimKey,
    /// Which life of that key this is.
    pub id: ClaimId,
    /// The pod.
    pub pod: PodRef,
    /// The class asked for; `None` means `default`.
    pub class: Option<ClassName>,
    /// Virtual processors asked for; 0 means any.
    pub vcpus: f32,
    /// Memory asked for; 0 means any.
    pub memory_mib: Mib,
    /// Pod VM image asked for.
    pub image: Option<String>,
    /// Instance type asked for.
    pub instance_type: Option<String>,
    /// The node that the pod runs on.
    pub node: NodeName,
    /// The node's public key, SubjectPublicKeyInfo in DER, as hex digits.
    pub node_spki: String,
    /// How it stands.
    pub status: ClaimStatus,
}

/// How a claim stands. What it has been given is in [`PodVmRecord::claimed_by`], not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimStatus {
    /// Wanted.
    Open,
    /// Cannot be served, or what served it has failed; stays until it is released.
    Failed {
        /// What was being done.
        during: String,
        /// Why it failed, in words for the pod's owner.
        cause: String,
    },
    /// No longer wanted; the record stays until everything made for it is gone.
    Released,
}

/// What makes two launches the same request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchKey {
    /// The class.
    pub class: ClassName,
    /// The class's TEE when the launch was recorded.
    pub tee: Tee,
    /// The instance type.
    pub instance_type: String,
    /// Where; `None` leaves it to the provider.
    pub zone: Option<Zone>,
    /// The image; `None` means the provider's configured one.
    pub image: Option<String>,
}

/// A launch: written before the cloud is called, removed when its pod VMs are recorded or proved absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchRecord {
    /// Makes the call idempotent.
    pub token: LaunchToken,
    /// What is launched.
    pub key: LaunchKey,
    /// How many.
    pub count: u32,
    /// The claim that the pod VM is for; `None` for ones made in advance.
    pub claim: Option<ClaimRef>,
}

/// One pod VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodVmRecord {
    /// The cloud's name of it.
    pub instance_id: InstanceId,
    /// The launch that made it.
    pub token: LaunchToken,
    /// What was launched.
    pub key: LaunchKey,
    /// Where nodes reach it; `None` until the cloud has said.
    pub address: Option<std::net::IpAddr>,
    /// `Launching`, `Running`, `Claimed` or `Deleting`.
    pub state: PodVmState,
    /// The claim that it serves, or will serve once it runs. Nothing else records an assignment.
    pub claimed_by: Option<ClaimRef>,
}

/// A class as the engine uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassRecord {
    /// Its name.
    pub name: ClassName,
    /// What it offers.
    pub class: Class,
}

/// Any record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A claim.
    Claim(ClaimRecord),
    /// A pod VM.
    PodVm(PodVmRecord),
    /// A class.
    Class(ClassRecord),
    /// A launch.
    Launch(LaunchRecord),
}

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// [`ClaimRecord`].
    Claim,
    /// [`PodVmRecord`].
    PodVm,
    /// [`ClassRecord`].
    Class,
    /// [`LaunchRecord`].
    Launch,
}

impl RecordKind {
    /// All kinds.
    pub const ALL: [RecordKind; 4] = [RecordKind::Claim, RecordKind::PodVm, RecordKind::Class, RecordKind::Launch];

    /// The name used by Journals and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordKind::Claim => "claim",
            RecordKind::PodVm => "pod-vm",
            RecordKind::Class => "class",
            RecordKind::Launch => "launch",
        }
    }
}

/// A record's place in a Journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Its kind.
    pub kind: RecordKind,
    /// Its name within the kind.
    pub name: String,
}

impl RecordKey {
    /// Of a claim.
    pub fn claim(key: &ClaimKey) -> Self {
        Self { kind: RecordKind::Claim, name: key.to_string() }
    }

    /// Of a pod VM.
    pub fn pod_vm(id: &InstanceId) -> Self {
        Self { kind: RecordKind::PodVm, name: id.to_string() }
    }

    /// Of a class.
    pub fn class(name: &ClassName) -> Self {
        Self { kind: RecordKind::Class, name: name.to_string() }
    }

    /// Of a launch.
    pub fn launch(token: &LaunchToken) -> Self {
        Self { kind: RecordKind::Launch, name: token.to_string() }
    }
}

impl std::fmt::Display for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by a release that this one does not know.
    #[error(
        "{kind} record has version {found}, this release knows up to {VERSION}; run the release that wrote it, or upgrade one \
         release at a time"
    )]
    UnknownVersion {
        /// The kind of record.
        kind: &'static str,
        /// Its version.
        found: u32,
    },
    /// Not a record of this kind.
    #[error("{kind} record is malformed")]
    Malformed {
        /// The kind of record.
        kind: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Larger than [`MAX_RECORD_BYTES`].
    #[error("{kind} record of {len} bytes exceeds {MAX_RECORD_BYTES}")]
    TooLarge {
        /// The kind of record.
        kind: &'static str,
        /// Its size.
        len: usize,
    },
}

impl Record {
    /// Its kind.
    pub fn kind(&self) -> RecordKind {
        match self {
            Record::Claim(_) => RecordKind::Claim,
            Record::PodVm(_) => RecordKind::PodVm,
            Record::Class(_) => RecordKind::Class,
            Record::Launch(_) => RecordKind::Launch,
        }
    }

    /// Its place.
    pub fn key(&self) -> RecordKey {
        match self {
            Record::Claim(claim) => RecordKey::claim(&claim.key),
            Record::PodVm(pod_vm) => RecordKey::pod_vm(&pod_vm.instance_id),
            Record::Class(class) => RecordKey::class(&class.name),
            Record::Launch(launch) => RecordKey::launch(&launch.token),
        }
    }

    /// The stored form.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let kind = self.kind().as_str();
        let encoded = match self {
            Record::Claim(record) => serde_json::to_vec(&Versioned { version: VERSION, record }),
            Record::PodVm(record) => serde_json::to_vec(&Versioned { version: VERSION, record }),
            Record::Class(record) => serde_json::to_vec(&Versioned { version: VERSION, record }),
            Record::Launch(record) => serde_json::to_vec(&Versioned { version: VERSION, record }),
        };
        let bytes = encoded.map_err(|source| RecordError::Malformed { kind, source })?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge { kind, len: bytes.len() });
        }
        Ok(bytes)
    }

    /// Reads the stored form of a record of this kind.
    pub fn decode(kind: RecordKind, bytes: &[u8]) -> Result<Self, RecordError> {
        Ok(match kind {
            RecordKind::Claim => Record::Claim(decode(kind, bytes)?),
            RecordKind::PodVm => Record::PodVm(decode(kind, bytes)?),
            RecordKind::Class => Record::Class(decode(kind, bytes)?),
            RecordKind::Launch => Record::Launch(decode(kind, bytes)?),
        })
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The version is read first and alone: a later version may have any other fields.
fn decode<T: DeserializeOwned>(kind: RecordKind, bytes: &[u8]) -> Result<T, RecordError> {
    let kind = kind.as_str();
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLarge { kind, len: bytes.len() });
    }
    let malformed = |source| RecordError::Malformed { kind, source };
    let found = serde_json::from_slice::<VersionOnly>(bytes).map_err(malformed)?.version;
    if found != VERSION {
        return Err(RecordError::UnknownVersion { kind, found });
    }
    let mut fields = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes).map_err(malformed)?;
    fields.remove("version");
    T::deserialize(serde_json::Value::Object(fields)).map_err(malformed)
}
