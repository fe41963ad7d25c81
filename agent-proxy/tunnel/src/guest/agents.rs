//! Agent sessions of the guest: opened, resumed, fenced.

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::tls::TlsStream;
use crate::{AgentStream, ResumeOptions};

/// The table of sessions.
pub(super) struct Agents {
    options: ResumeOptions,
    streams: mpsc::Sender<AgentStream>,
}

impl Agents {
    pub(super) fn new(options: ResumeOptions, streams: mpsc::Sender<AgentStream>) -> Self {
        Self { options, streams }
    }

    pub(super) fn options(&self) -> &ResumeOptions {
        &self.options
    }

    pub(super) async fn serve(&self, _stream: TlsStream, _until: Instant, slot: OwnedSemaphorePermit) {
        let _ = &self.streams;
        drop(slot);
    }
}
