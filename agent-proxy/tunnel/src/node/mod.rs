//! The node's end: bind a pod VM once, then open agent streams to it.

mod binding;
mod dialing;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use binding::bind;
pub use dialing::AgentDialer;

use crate::Refusal;

/// SHA-256 of the VM's SubjectPublicKeyInfo; prints and serializes as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a SubjectPublicKeyInfo in DER.
    pub(crate) fn of_spki(spki_der: &[u8]) -> Self {
        Self(Sha256::digest(spki_der).into())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

impl TryFrom<String> for Pin {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        crate::bind::decode_hex32(&text).map(Self).ok_or("a pin is 64 lower-case hex digits")
    }
}

/// Evidence as the VM sent it, with what it must vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceMessage {
    /// The kind of evidence, in the VM's words.
    pub tee: String,
    /// The evidence; hostile until verified.
    pub evidence: Vec<u8>,
    /// What the evidence's report data must be on this connection.
    pub report_data: [u8; 48],
    /// The key that the peer of this connection holds.
    pub pin: Pin,
    /// The VM's answer to the caller's challenge, once there was one.
    pub activated: Option<Vec<u8>>,
}

/// What the caller makes of evidence that it does not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The VM gets its pod.
    Trusted,
    /// The VM must answer this first; the evidence is then shown again, with the answer. Once for a connection.
    Challenge(Vec<u8>),
}

/// A VM that has taken the Bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The VM's key for all later connections.
    pub pin: Pin,
    /// From the TCP connection to verified evidence, in milliseconds, of the attempt that succeeded.
    pub attest_ms: u64,
}

/// Why a VM was not bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Nothing answered before the deadline.
    #[error("pod VM at {addr} did not answer within {within:?}; last attempt: {last}")]
    NeverAnswered {
        /// Where it was dialled.
        addr: SocketAddr,
        /// The deadline.
        within: Duration,
        /// Why the last attempt did not succeed.
        last: String,
    },
    /// The VM does not accept our credential (foreign CA, expired, not for this key).
    #[error("pod VM refused the credential: {0}")]
    Credential(String),
    /// The VM said no.
    #[error("pod VM refused: {0}")]
    Refused(Refusal),
    /// The caller's check of the evidence said no.
    #[error("evidence is not accepted: {0}")]
    Unverified(String),
    /// The VM does not speak this protocol as we do.
    #[error("pod VM broke the protocol: {0}")]
    Protocol(String),
}

/// Why an agent stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answered within the budget.
    #[error("pod VM at {addr} did not answer within {within:?}; last attempt: {last}")]
    NeverAnswered {
        /// Where it was dialled.
        addr: SocketAddr,
        /// The budget.
        within: Duration,
        /// Why the last attempt did not succeed.
        last: String,
    },
    /// The peer does not hold the pinned key: it is another VM, or the VM restarted.
    #[error("the peer at {addr} does not hold the pinned key")]
    WrongKey {
        /// Where it was dialled.
        addr: SocketAddr,
    },
    /// The VM did not let us in.
    #[error("pod VM refused: {0}")]
    Refused(String),
    /// The VM does not speak this protocol as we do.
    #[error("pod VM broke the protocol: {0}")]
    Protocol(String),
}
