//! Drives one session over as many connections as it takes. One task for each session and end; it ends when the session is
//! closed, lost or was dropped and has lingered, and says so to whoever reads, writes or watches.

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout};

use super::pump::{Outcome, Pump};
use super::shared::{End, Shared};
use super::stream::AgentStream;
use super::{ResumeOptions, SessionLost, StreamState};
use crate::tls::TlsStream;

/// Where the next connection of a session comes from.
pub(crate) trait Line: Send {
    /// Waits for a connection that takes the place of a live one. Cancel-safe.
    fn replaced(&mut self) -> impl Future<Output = Candidate> + Send;

    /// Gets a new connection after one broke. `received` is what has arrived here; it does not change meanwhile.
    fn reconnect(&mut self, received: u64, since: Instant, why: String) -> impl Future<Output = Result<Candidate, SessionLost>> + Send;

    /// What is to be said on the new connection before the first frame.
    fn greeting(&self, candidate: &Candidate, received: u64) -> Vec<u8>;
}

/// A connection whose peer has proved that it belongs to the session.
pub(crate) struct Candidate {
    pub(crate) io: TlsStream,
    pub(crate) epoch: u64,
    /// What has arrived at the peer.
    pub(crate) received: u64,
    /// Names this connection in MACs.
    pub(crate) exporter: [u8; 32],
}

/// A session's driver, to be run as a task.
pub(crate) struct Driver<L> {
    shared: Arc<Shared>,
    line: L,
    options: ResumeOptions,
}

/// The next connection, or the end.
type Next = Result<Candidate, End>;

impl<L: Line> Driver<L> {
    /// A new session and its stream.
    pub(crate) fn new(line: L, options: ResumeOptions) -> (Self, AgentStream) {
        let shared = Arc::new(Shared::new(options.window.min(super::options::MAX_WINDOW)));
        let stream = AgentStream::new(Arc::clone(&shared));
        (Self { shared, line, options }, stream)
    }

    /// Runs the session to its end. If it is dropped before, the stream fails with [`SessionLost::ShutDown`].
    pub(crate) async fn run(mut self, io: TlsStream, greeting: Vec<u8>) {
        let mut guard = FinishOnDrop { shared: Arc::clone(&self.shared), end: End::Lost(SessionLost::ShutDown) };
        let mut pump = Pump::new(io, &greeting, &self.options);
        guard.end = loop {
            let next = match self.drive(&mut pump).await {
                Err(end) => {
                    // A courtesy to the peer's kernel and logs; all that matters was said in frames.
                    let _ = timeout(self.options.linger, pump.into_io().shutdown()).await;
                    break end;
                }
                Ok(candidate) => candidate,
            };
            // The old connection ends here, before the peer learns what has arrived: whatever it still held was never received.
            drop(pump);
            let received = self.shared.receiving().inbox.received();
            if let Err(why) = self.rewind(next.received) {
                break End::Lost(SessionLost::Protocol(why));
            }
            let greeting = self.line.greeting(&next, received);
            pump = Pump::new(next.io, &greeting, &self.options);
            self.shared.set_state(StreamState::Connected);
        };
    }

    async fn drive(&mut self, pump: &mut Pump<TlsStream>) -> Next {
        let linger = self.options.linger;
        let outcome = tokio::select! {
            biased;
            candidate = self.line.replaced() => return Ok(candidate),
            outcome = pump.run(&self.shared) => outcome,
            () = self.shared.lingered(linger) => return Err(End::Closed),
        };
        let why = match outcome {
            Outcome::Finished => return Err(End::Closed),
            Outcome::Lost(lost) => return Err(End::Lost(lost)),
            Outcome::Broken(why) => why,
        };
        tracing::debug!(why, "connection broke; resuming");
        let since = Instant::now();
        self.shared.set_state(StreamState::Resuming { since });
        let received = self.shared.receiving().inbox.received();
        tokio::select! {
            next = self.line.reconnect(received, since, why) => match next {
                Ok(candidate) => Ok(candidate),
                // After a Close of both directions the peer has no reason to remember the session.
                Err(SessionLost::Unknown) if self.is_over() => Err(End::Closed),
                Err(lost) => Err(End::Lost(lost)),
            },
            () = self.shared.lingered(linger) => Err(End::Closed),
        }
    }

    fn rewind(&self, received: u64) -> Result<(), &'static str> {
        let mut sending = self.shared.sending();
        sending.outbox.rewind(received)?;
        sending.is_flushed = sending.outbox.is_drained();
        Ok(())
    }

    fn is_over(&self) -> bool {
        let is_ended = self.shared.receiving().inbox.is_ended();
        self.shared.is_dropped() || (is_ended && self.shared.sending().outbox.is_closed())
    }
}

struct FinishOnDrop {
    shared: Arc<Shared>,
    end: End,
}

impl Drop for FinishOnDrop {
    fn drop(&mut self) {
        self.shared.finish(&self.end);
    }
}
