//! The stream that users hold.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::{SessionLost, StreamState};

/// A byte stream to the agent (or, in the guest, to a node) that outlives its connections.
#[derive(Debug)]
pub struct AgentStream {
    state: watch::Receiver<StreamState>,
}

impl AgentStream {
    /// The stream's state, to read or to wait on.
    pub fn state(&self) -> watch::Receiver<StreamState> {
        self.state.clone()
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(SessionLost::ShutDown.into()))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(SessionLost::ShutDown.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
