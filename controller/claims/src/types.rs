//! What is asked and answered.

use std::collections::BTreeMap;
use std::net::IpAddr;

use peerpods_controller_api::{Mib, PodRef};

/// A node's wish for a pod VM.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimRequest {
    /// What the node calls it: the pod's UID, or `node/namespace/name`.
    pub key: String,
    /// The pod.
    pub pod: PodRef,
    /// The class; `None` means `default`.
    pub class: Option<String>,
    /// Virtual processors, fractions allowed; 0 means any.
    pub vcpus: f32,
    /// Memory; 0 means any.
    pub memory: Mib,
    /// Pod VM image; the class must allow it.
    pub image: Option<String>,
    /// Instance type; decides alone, and the class must allow it.
    pub instance_type: Option<String>,
    /// The node's name.
    pub node: String,
    /// The node's public key, SubjectPublicKeyInfo in DER.
    pub node_spki: Vec<u8>,
}

/// A claim as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its key.
    pub key: String,
    /// How it stands.
    pub state: ClaimState,
}

/// How a claim stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimState {
    /// The pod VM is coming, or going after a release.
    Pending {
        /// For people: `intended`, `launching`, `running`, `deleting`, with a cause when something is being tried again.
        phase: String,
    },
    /// The pod VM runs.
    Assigned(Assignment),
    /// There will be no pod VM, or it has failed. The claim must be released.
    Failed {
        /// What was being done.
        during: String,
        /// Why it failed, in words for the pod's owner.
        cause: String,
    },
    /// Nothing of the claim is left, or it never was.
    Gone,
}

/// A pod VM and the right to bind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The cloud's name of the pod VM.
    pub instance_id: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// The TEE that the node must see evidence of.
    pub tee: String,
    /// The least that must stand behind it: `hardware`, `cloud-tpm` or `insecure`.
    pub root_of_trust: String,
    /// Values that claims of the evidence must have, by the claim's path.
    pub reference_values: BTreeMap<String, Vec<String>>,
    /// Certificate chain for the node's key, leaf first, DER; it names the instance and the node.
    pub chain: Vec<Vec<u8>>,
    /// How long the leaf is valid from now, in seconds; get or watch again for a new one.
    pub valid_secs: u64,
    /// What the pod's class lets it use of its node, in the words of the class; a node ignores those that it does not know.
    pub host_access: Vec<String>,
}

/// Why a call has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The request can never succeed as it is.
    #[error("the claim is invalid: {detail}")]
    Invalid {
        /// The field and what is allowed.
        detail: String,
    },
    /// The key is in use with another wish; it must be released first.
    #[error("the claim's key is in use: {detail}")]
    InUse {
        /// What differs.
        detail: String,
    },
    /// The controller cannot be reached or cannot record anything now; try again.
    #[error("the controller is unavailable: {detail}")]
    Unavailable {
        /// Why.
        detail: String,
    },
    /// No answer in time; the call may have taken effect. Try again.
    #[error("no answer from the controller in time")]
    DeadlineExceeded,
    /// The controller's answer makes no sense, or it reports a fault of its own.
    #[error("controller fault: {detail}")]
    Internal {
        /// What is wrong.
        detail: String,
    },
}

impl ClaimError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClaimError::Unavailable { .. } | ClaimError::DeadlineExceeded => true,
            ClaimError::Invalid { .. } | ClaimError::InUse { .. } | ClaimError::Internal { .. } => false,
        }
    }
}
