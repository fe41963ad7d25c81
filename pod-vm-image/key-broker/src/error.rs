//! Why a resource or a token could not be had.

use std::fmt;
use std::time::Duration;

use crate::jwe::JweError;
use crate::wire::ErrorInfo;

/// An error of someone else's.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Characters of a refusal's name and detail that are kept.
const MAX_NAME: usize = 60;
const MAX_DETAIL: usize = 400;

/// Why a resource or a token could not be had. No variant holds a part of either.
#[derive(Debug, thiserror::Error)]
pub enum KeyBrokerError {
    /// A setting that cannot be used.
    #[error("key broker setting {key} cannot be used")]
    Config {
        /// The field of [`KeyBrokerConfig`](crate::KeyBrokerConfig).
        key: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The attester made no evidence.
    #[error("cannot collect evidence for the key broker")]
    Evidence(#[source] BoxError),
    /// The broker cannot be reached, or its certificate is not the expected one. Trying again may help.
    #[error("cannot reach the key broker to {operation}")]
    Unreachable {
        /// For example `attest`.
        operation: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The broker, or the evidence, took too long. Trying again may help.
    #[error("it took more than {limit:?} to {operation}")]
    Deadline {
        /// For example `attest`.
        operation: &'static str,
        /// How long it was waited.
        limit: Duration,
    },
    /// The broker refuses. Its policies, or the resource's absence, are the reason; trying again does not help.
    #[error("the key broker refuses to {operation}: status {status}{refusal}")]
    Refused {
        /// For example `get a resource`.
        operation: &'static str,
        /// Of HTTP.
        status: u16,
        /// In the broker's words.
        refusal: Refusal,
    },
    /// The broker's answer is none.
    #[error("cannot use the key broker's answer to {operation}: {reason}")]
    Unusable {
        /// For example `attest`.
        operation: &'static str,
        /// Why.
        reason: String,
    },
    /// No key could be made, or a resource not be decrypted.
    #[error("cannot {operation}")]
    Cryptography {
        /// For example `decrypt a resource`.
        operation: &'static str,
        /// Why.
        #[source]
        source: JweError,
    },
}

/// What a broker said when it refused; empty when it said nothing readable. Control characters are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The name of Trustee's error, such as `PolicyDeny`.
    pub name: String,
    /// For people.
    pub detail: String,
}

impl KeyBrokerError {
    /// Whether trying again later, unchanged, may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Deadline { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Config { .. } | Self::Evidence(_) | Self::Unusable { .. } | Self::Cryptography { .. } => false,
        }
    }
}

impl Refusal {
    /// Reads a refusal's body.
    pub(crate) fn parse(body: &[u8]) -> Self {
        let clean = |text: &str, limit| text.chars().filter(|c| !c.is_control()).take(limit).collect();
        let info: Option<ErrorInfo> = serde_json::from_slice(body).ok();
        info.map(|info| Self { name: clean(info.name(), MAX_NAME), detail: clean(&info.detail, MAX_DETAIL) }).unwrap_or_default()
    }

    /// Whether the broker accepted the token, looked, and said no: a token as new as the refused one gets the same answer.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.name.as_str(), "PolicyDeny" | "PluginInternalError" | "PluginNotFound" | "InvalidRequestPath" | "JweError")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.detail.as_str()) {
            ("", "") => Ok(()),
            (name, detail) => write!(f, ", {name}: {detail}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_keeps_the_brokers_words() {
        let body = serde_json::to_vec(&ErrorInfo::new("PolicyDeny", "Access denied\u{1b} by policy")).unwrap();
        let refusal = Refusal::parse(&body);
        assert_eq!(refusal, Refusal { name: "PolicyDeny".to_owned(), detail: "Access denied by policy".to_owned() });
        let error = KeyBrokerError::Refused { operation: "get a resource", status: 401, refusal };
        assert_eq!(error.to_string(), "the key broker refuses to get a resource: status 401, PolicyDeny: Access denied by policy");
        assert_eq!(Refusal::parse(b"<html>"), Refusal::default());
        let long = serde_json::to_vec(&ErrorInfo::new("X", "x".repeat(10_000))).unwrap();
        assert_eq!(Refusal::parse(&long).detail.len(), MAX_DETAIL);
    }
}
