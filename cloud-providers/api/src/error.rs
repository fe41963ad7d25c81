use std::time::Duration;

/// Why a provider could not do what it was asked. Closed on purpose: the engine decides by variant alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The instance is gone or never existed. For a delete this is success.
    #[error("instance not found")]
    NotFound,
    /// The name or token is taken by something with other parameters.
    #[error("already exists with other parameters: {detail}")]
    AlreadyExists {
        /// What is taken.
        detail: String,
    },
    /// The cloud has no room in this zone or of this type now; another zone or type may do.
    #[error("the cloud has no capacity: {detail}")]
    InsufficientCapacity {
        /// The type and zone that are full.
        detail: String,
    },
    /// The account's quota is used up; waiting does not help.
    #[error("quota exceeded: {detail}")]
    QuotaExceeded {
        /// The quota's name.
        detail: String,
    },
    /// Too many calls.
    #[error("throttled")]
    Throttled {
        /// When the cloud asks to be called again, if it says so.
        retry_after: Option<Duration>,
    },
    /// The credentials do not allow this.
    #[error("permission denied: {detail}")]
    PermissionDenied {
        /// The missing permission, without any credential.
        detail: String,
    },
    /// The request can never succeed as it is.
    #[error("invalid request: {detail}")]
    InvalidRequest {
        /// The offending field and what is allowed.
        detail: String,
    },
    /// No answer in time; the call may have taken effect.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The cloud cannot be reached or is failing; try again later.
    #[error("provider unavailable: {detail}")]
    Unavailable {
        /// What could not be reached.
        detail: String,
    },
    /// A fault of ours or of the provider's that fits no other variant.
    #[error("internal provider error: {detail}")]
    Internal {
        /// What went wrong.
        detail: String,
    },
}
