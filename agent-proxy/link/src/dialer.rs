//! How a connection to the agent is made, apart from what the tunnel is made of, so that tests can stand in for it.

use async_trait::async_trait;
use peerpods_tunnel::StreamState;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Opens connections to the agent of one pod VM.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// A resumable byte stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Tries once, within a deadline of its own.
    async fn dial(&self) -> Result<Dialled<Self::Stream>, DialFailure>;
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Dialled<S> {
    /// The bytes.
    pub stream: S,
    /// What the transport below is doing.
    pub state: watch::Receiver<StreamState>,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DialFailure {
    /// The chain of causes, for the log.
    pub reason: String,
    /// Whether another try can never help, as when the pod VM refuses this node.
    pub is_final: bool,
}
