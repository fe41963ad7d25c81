//! The link's life: accept, count, stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::{self, Ending};
use crate::dialer::Dialer;

/// Shims open two connections; more than this at one time is not a shim.
const CONNECTION_LIMIT: usize = 32;

/// What is going on, told after every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open connections.
    pub connections: u32,
    /// All connections so far.
    pub accepted: u64,
    /// Sessions that are being resumed.
    pub resuming: u32,
}

/// Serves shims until a session is lost, and gives the reason; dropping the future closes every connection.
pub async fn serve<D: Dialer>(listener: UnixListener, dialer: Arc<D>, mut changed: impl FnMut(Counts)) -> String {
    let mut counts = Counts::default();
    let mut connections: JoinSet<Ending> = JoinSet::new();
    let (resuming_sender, mut resuming) = mpsc::channel(CONNECTION_LIMIT);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(_) if connections.len() >= CONNECTION_LIMIT => {
                    tracing::warn!(limit = CONNECTION_LIMIT, "closed a connection: too many are open");
                }
                Ok((shim, _)) => {
                    counts.accepted += 1;
                    let (dialer, sender) = (Arc::clone(&dialer), resuming_sender.clone());
                    connections.spawn(async move {
                        let told = ResumingGuard::new(sender);
                        connection::run(shim, &*dialer, |is_resuming| told.tell(is_resuming)).await
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "accepting a connection");
                    // Out of file descriptors, most likely; a busy loop helps nobody.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(is_resuming) = resuming.recv() => {
                counts.resuming = if is_resuming { counts.resuming + 1 } else { counts.resuming.saturating_sub(1) };
                tracing::info!(resuming = counts.resuming, "the tunnel {}", if is_resuming { "is being resumed" } else { "is back" });
            }
            Some(ended) = connections.join_next() => match ended {
                Ok(Ending::Lost(reason)) => {
                    tracing::error!(reason, "the session with the pod VM is lost");
                    return reason;
                }
                Ok(Ending::NoAgent(failure)) => tracing::error!(%failure, "closed a connection: the agent cannot be reached"),
                Ok(Ending::Refused(error)) => tracing::error!(%error, "closed a connection"),
                Ok(Ending::AgentClosed) => tracing::info!("the agent closed a connection"),
                Ok(Ending::ShimClosed) => tracing::info!("the shim closed a connection"),
                Err(error) => tracing::error!(%error, "a connection's task panicked"),
            },
        }
        counts.connections = u32::try_from(connections.len()).unwrap_or(u32::MAX);
        changed(counts);
    }
}

/// Takes back a connection's "resuming" when the connection ends.
struct ResumingGuard {
    sender: mpsc::Sender<bool>,
    is_resuming: AtomicBool,
}

impl ResumingGuard {
    fn new(sender: mpsc::Sender<bool>) -> Self {
        Self { sender, is_resuming: AtomicBool::new(false) }
    }

    /// The channel is read by a loop that never waits long; a full one loses a count and nothing else.
    fn tell(&self, is_resuming: bool) {
        if self.is_resuming.swap(is_resuming, Ordering::Relaxed) != is_resuming {
            let _ = self.sender.try_send(is_resuming);
        }
    }
}

impl Drop for ResumingGuard {
    fn drop(&mut self) {
        self.tell(false);
    }
}
