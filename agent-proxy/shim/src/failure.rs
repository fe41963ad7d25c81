//! What containerd is told when something cannot be done: a code that it understands and a text for people.

use containerd_shim_protos::protobuf::Enum as _;
use containerd_shim_protos::ttrpc;
use ttrpc::Code;

/// A refusal of a task call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    /// With that code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The container or process is not there.
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NOT_FOUND, format!("{what}: not found"))
    }

    /// The request cannot be met in the present state.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// Something went wrong that is nobody's request's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }

    /// A cause with its own causes.
    pub fn because(during: &str, error: &dyn std::error::Error) -> Self {
        Self::internal(format!("cannot {during}: {}", chain(error)))
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }
}

/// What the agent or the node daemon answered; its code is kept, for containerd acts on it.
impl From<::ttrpc::Error> for Failure {
    fn from(error: ::ttrpc::Error) -> Self {
        match error {
            ::ttrpc::Error::RpcStatus(status) => {
                // What went wrong without being anybody's fault is Unknown to containerd when it comes from runc.
                let code = match Code::from_i32(status.code.value()) {
                    Some(Code::INTERNAL) | None => Code::UNKNOWN,
                    Some(code) => code,
                };
                Self::new(code, status.message)
            }
            other => Self::new(Code::UNAVAILABLE, other.to_string()),
        }
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
