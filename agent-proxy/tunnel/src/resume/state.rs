//! What a stream's owner can watch.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// Where a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamState {
    /// Bytes flow.
    Connected,
    /// The connection broke; writes are buffered and reads wait.
    Resuming {
        /// When it broke.
        since: Instant,
    },
    /// Both ends closed in order. Final.
    Closed,
    /// Reads and writes fail. Final.
    Lost(SessionLost),
}

/// Why a session is gone for good. What was written but not yet read by the peer's application may or may not have arrived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionLost {
    /// No connection could be resumed within the budget.
    #[error("no connection for {after:?}; last attempt: {last}")]
    GaveUp {
        /// How long it was tried.
        after: Duration,
        /// Why the last attempt did not succeed.
        last: String,
    },
    /// The peer does not know the session: its process died, or it gave up first.
    #[error("the peer does not know the session: it restarted or gave up")]
    Unknown,
    /// The peer is not the one that the session was opened with, or does not let us in any more.
    #[error("the peer refused to resume: {0}")]
    Refused(String),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The process or task that drove this end has ended.
    #[error("this end has shut down")]
    ShutDown,
}

impl From<SessionLost> for io::Error {
    fn from(lost: SessionLost) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, lost)
    }
}

impl SessionLost {
    /// Finds the loss in an error of [`crate::AgentStream`].
    pub fn find(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}
