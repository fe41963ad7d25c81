//! How an RPC fails: a ttrpc code and a text for the pod's events.
//!
//! Codes are those that kata-agent was seen to send: an unknown container or exec is INTERNAL, except for a signal, where it is
//! NOT_FOUND, which the shims take for "already gone".

use std::error::Error;
use std::io;

use ttrpc::Code;

use crate::copy_file::CopyFileError;
use crate::policy::{Denied, ReplaceError};
use crate::storage::StorageError;
use crate::translate::TranslateError;

/// A failed RPC.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    /// With a code of the caller's choice.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Something did not work here.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }

    /// The request cannot be right.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// An operation failed for a reason.
    pub(crate) fn because(operation: &str, cause: &dyn Error) -> Self {
        Self::internal(format!("{operation}: {}", chain(cause)))
    }

    /// Nobody waits for the container any more.
    pub(crate) fn cancelled() -> Self {
        Self::new(Code::CANCELLED, "the creation was cancelled")
    }

    /// No such container.
    pub(crate) fn no_container() -> Self {
        Self::internal("Invalid container id")
    }

    /// No such exec.
    pub(crate) fn no_exec() -> Self {
        Self::internal("Process not found: invalid exec id")
    }

    /// No such process to signal.
    pub(crate) fn nothing_to_signal() -> Self {
        Self::new(Code::NOT_FOUND, "InvalidExecId")
    }

    /// A container's first process cannot be, in the words that runc's shim would have for it.
    pub(crate) fn not_created(reason: &str) -> Self {
        Self::internal(format!("OCI runtime create failed: unable to start container process: {reason}"))
    }

    /// Another process of a container cannot be.
    pub(crate) fn not_executed(reason: &str) -> Self {
        Self::internal(format!("OCI runtime exec failed: exec failed: unable to start container process: {reason}"))
    }

    /// The text.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        Self::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::new(Code::PERMISSION_DENIED, chain(&denied))
    }
}

impl From<ReplaceError> for Failure {
    fn from(error: ReplaceError) -> Self {
        match error {
            ReplaceError::Denied(denied) => denied.into(),
            ReplaceError::Policy(error) => Self::invalid(chain(&error)),
        }
    }
}

impl From<TranslateError> for Failure {
    fn from(error: TranslateError) -> Self {
        Self::invalid(chain(&error))
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Outside { .. } => Self::new(Code::PERMISSION_DENIED, chain(&error)),
            StorageError::Driver(_) | StorageError::Option(_) => Self::invalid(chain(&error)),
            StorageError::Io { .. } => Self::internal(chain(&error)),
        }
    }
}

impl From<CopyFileError> for Failure {
    fn from(error: CopyFileError) -> Self {
        match error {
            CopyFileError::Outside { .. } | CopyFileError::Type { .. } => Self::new(Code::PERMISSION_DENIED, chain(&error)),
            CopyFileError::Chunk { .. } => Self::invalid(chain(&error)),
            CopyFileError::Io { .. } => Self::internal(chain(&error)),
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// An error of the kernel as Go and so runc print it.
pub(crate) fn text(error: impl Into<io::Error>) -> String {
    let error: io::Error = error.into();
    let Some(number) = error.raw_os_error() else { return error.to_string() };
    let mut characters = nix::errno::Errno::from_raw(number).desc().chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}
