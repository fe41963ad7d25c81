use std::path::{Path, PathBuf};

use peerpods_cloud_api::ProviderError;

/// Why something about a machine could not be done.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file or folder.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried, an infinitive.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A link, address or namespace of the network.
    #[error("cannot {operation} {link}")]
    Network {
        /// What was tried, an infinitive.
        operation: &'static str,
        /// The link's name.
        link: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A machine's JSON file is not one of ours or of a version we do not know.
    #[error("cannot understand {}: {detail}", path.display())]
    Understand {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The helper could not make the machine's process.
    #[error("cannot start the machine: {detail}")]
    StartMachine {
        /// In its own words.
        detail: String,
    },
    /// The machine's process ended while it was being started.
    #[error("{program} ended at once: {output}")]
    EndedAtOnce {
        /// `qemu-system-x86_64` or `sandbox`.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// The machine's TPM could not be made.
    #[error("swtpm_setup does not make the machine's TPM: {detail}")]
    MakeTpm {
        /// Why not, with the end of what it wrote.
        detail: String,
    },
    /// QEMU's monitor said no or nothing.
    #[error("QEMU does not {operation}: {detail}")]
    Monitor {
        /// The monitor's command.
        operation: &'static str,
        /// Its answer.
        detail: String,
    },
    /// Somebody else held a lock for too long.
    #[error("{} is locked by somebody else", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
    },
    /// There is no such machine.
    #[error("machine not found")]
    NotFound,
    /// The token belongs to a launch with other parameters.
    #[error("token {token} belongs to a launch with other parameters")]
    TokenTaken {
        /// The token.
        token: String,
    },
    /// All addresses of the bridge's /24 are in use.
    #[error("no address of {gateway}/24 is free")]
    NoAddress {
        /// The bridge's address.
        gateway: std::net::Ipv4Addr,
    },
    /// A request or setting that can never work.
    #[error("{detail}")]
    Invalid {
        /// What is wrong and what is allowed.
        detail: String,
    },
}

impl MachineError {
    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { operation, path, source }
    }

    pub(crate) fn network(operation: &'static str, link: &str) -> impl FnOnce(std::io::Error) -> Self {
        let link = link.to_owned();
        move |source| Self::Network { operation, link, source }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid { detail: detail.into() }
    }
}

impl From<MachineError> for ProviderError {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::NotFound => Self::NotFound,
            MachineError::TokenTaken { token } => Self::AlreadyExists { detail: format!("token {token}") },
            MachineError::NoAddress { .. } => Self::InsufficientCapacity { detail: chain(&error) },
            MachineError::Invalid { detail } => Self::InvalidRequest { detail },
            MachineError::Lock { .. } => Self::Unavailable { detail: chain(&error) },
            MachineError::File { .. }
            | MachineError::Network { .. }
            | MachineError::Understand { .. }
            | MachineError::StartMachine { .. }
            | MachineError::EndedAtOnce { .. }
            | MachineError::MakeTpm { .. }
            | MachineError::Monitor { .. } => Self::Internal { detail: chain(&error) },
        }
    }
}

/// The message with its causes: [`ProviderError`] is closed and carries text only.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
