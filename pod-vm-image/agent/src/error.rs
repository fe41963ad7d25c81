//! Errors of the agent's public functions.

use std::path::PathBuf;

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A folder cannot be made or emptied.
    #[error("preparing folder {}", path.display())]
    PrepareFolder {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// [`crate::AgentConfig::runner`] is empty.
    #[error("the runner command is empty")]
    NoRunner,
}

/// A root filesystem could not be brought or removed. The text reaches the pod's events.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RootfsError {
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl RootfsError {
    /// An error with its cause; `message` says which image and what was being done.
    pub fn new(message: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }

    /// An error without a deeper cause.
    pub fn message(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }
}

/// A sealed secret could not be opened. The text reaches the pod's events and tells nothing of the secret.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SecretError {
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl SecretError {
    /// An error without a deeper cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// An error with its cause.
    pub fn because(message: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }
}
