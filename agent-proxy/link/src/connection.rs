//! One connection of a shim, from accept to close.
//!
//! The agent is dialled when the first frame has arrived: Kata's shims open a second connection that never speaks, and it must cost
//! nothing. After that frames are copied whole in both directions. A Kata shim gives up its pod when a Health.Check fails or the
//! connection closes, and never dials again; so while the tunnel is resuming, Health.Check is answered here, also the ones that were sent
//! on before the loss was noticed. Everything else waits in the tunnel. When the session is lost the connection is closed at once.

use std::collections::BTreeSet;
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use peerpods_tunnel::{SessionLost, StreamState};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};
use ttrpc::proto::Code;

use crate::dialer::{DialFailure, Dialer, Dialled};
use crate::frame::{Frame, FrameError, FrameKind, FrameReader};
use crate::reply;

/// How long the first frame may wait for a connection to the agent; Kata's Go shim waits 30 s for its first answer.
const DIAL_BUDGET: Duration = Duration::from_secs(25);
const DIAL_PAUSE: Duration = Duration::from_millis(100);
/// Health.Checks on their way at one time; shims send one every 5 or 30 s.
const PENDING_LIMIT: usize = 64;
/// How long an already closed shim connection keeps the stream for the tunnel to send the rest.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);

/// How a connection ended.
#[derive(Debug)]
pub enum Ending {
    /// The shim closed it, or went away.
    ShimClosed,
    /// The agent closed it.
    AgentClosed,
    /// One side sent what is not ttrpc.
    Refused(FrameError),
    /// The agent could not be reached.
    NoAgent(DialFailure),
    /// The session is gone for good; holds the reason.
    Lost(String),
}

/// Copies frames between a shim and the agent until one of them is done; `resuming` is told of every change.
pub async fn run<S, D>(shim: S, dialer: &D, resuming: impl Fn(bool)) -> Ending
where
    S: AsyncRead + AsyncWrite + Send,
    D: Dialer + ?Sized,
{
    let (shim_reader, shim_writer) = split(shim);
    let mut shim_frames = FrameReader::new(shim_reader);
    let shim_writer = Mutex::new(shim_writer);
    let first = loop {
        match next_from_shim(&mut shim_frames, &shim_writer).await {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(ending) => return ending,
        }
    };
    let Dialled { stream, state } = match dial(dialer).await {
        Ok(dialled) => dialled,
        Err(failure) => {
            let text = format!("the agent cannot be reached: {failure}");
            let _ = send(&shim_writer, &reply::refusal(first.header.stream_id, Code::UNAVAILABLE, &text)).await;
            return Ending::NoAgent(failure);
        }
    };
    let (agent_reader, agent_writer) = split(stream);
    let pump = Pump { shim_writer, state, ledger: StdMutex::default() };
    tokio::select! {
        ending = pump.to_agent(first, shim_frames, agent_writer) => ending,
        ending = pump.to_shim(agent_reader) => ending,
        ending = pump.follow_state(resuming) => ending,
    }
}

async fn dial<D: Dialer + ?Sized>(dialer: &D) -> Result<Dialled<D::Stream>, DialFailure> {
    let give_up = Instant::now() + DIAL_BUDGET;
    loop {
        match dialer.dial().await {
            Ok(dialled) => return Ok(dialled),
            Err(failure) if failure.is_final || Instant::now() + DIAL_PAUSE > give_up => return Err(failure),
            Err(failure) => tracing::warn!(%failure, "the agent cannot be reached yet; trying again"),
        }
        sleep(DIAL_PAUSE).await;
    }
}

/// The shim's next frame; `None` after one that was refused and can be passed over.
async fn next_from_shim<R: AsyncRead + Unpin, W: AsyncWrite>(
    frames: &mut FrameReader<R>,
    shim: &Mutex<WriteHalf<W>>,
) -> Result<Option<Frame>, Ending> {
    match frames.next().await {
        Ok(Some(frame)) => Ok(Some(frame)),
        Ok(None) => Err(Ending::ShimClosed),
        Err(FrameError::Read { source }) => {
            tracing::debug!(error = %source, "the shim's connection broke");
            Err(Ending::ShimClosed)
        }
        Err(error) => {
            tracing::warn!(%error, "refused a frame of the shim");
            let stream_id = stream_of(&error);
            if let Some(stream_id) = stream_id {
                let _ = send(shim, &reply::refusal(stream_id, Code::INVALID_ARGUMENT, &error.to_string())).await;
            }
            if matches!(error, FrameError::TooLong { .. }) { Ok(None) } else { Err(Ending::Refused(error)) }
        }
    }
}

fn stream_of(error: &FrameError) -> Option<u32> {
    match error {
        FrameError::TooLong { header } | FrameError::UnknownKind { header, .. } | FrameError::Truncated { header: Some(header), .. } => {
            Some(header.stream_id)
        }
        FrameError::Truncated { header: None, .. } | FrameError::Read { .. } => None,
    }
}

async fn send<W: AsyncWrite>(shim: &Mutex<WriteHalf<W>>, bytes: &Bytes) -> std::io::Result<()> {
    let mut shim = shim.lock().await;
    shim.write_all(bytes).await?;
    shim.flush().await
}

/// Health.Checks between the shim's question and somebody's answer.
#[derive(Debug, Default)]
struct Ledger {
    /// Sent to the agent, not answered by anybody.
    pending: BTreeSet<u32>,
    /// Answered by the link; the agent's own answer is dropped when it comes.
    answered: BTreeSet<u32>,
}

struct Pump<S> {
    shim_writer: Mutex<WriteHalf<S>>,
    state: watch::Receiver<StreamState>,
    ledger: StdMutex<Ledger>,
}

impl<S: AsyncWrite + AsyncRead> Pump<S> {
    async fn to_agent<R: AsyncRead + Unpin, A: AsyncWrite>(
        &self,
        first: Frame,
        mut frames: FrameReader<R>,
        mut agent: WriteHalf<A>,
    ) -> Ending {
        let mut next = Some(first);
        loop {
            if let Some(frame) = next.take()
                && !self.answered_here(&frame).await
            {
                let written = async {
                    agent.write_all(&frame.bytes).await?;
                    agent.flush().await
                };
                if let Err(error) = written.await {
                    return self.agent_failed(&error);
                }
            }
            match next_from_shim(&mut frames, &self.shim_writer).await {
                Ok(frame) => next = frame,
                Err(ending) => {
                    let _ = timeout(CLOSE_BUDGET, agent.shutdown()).await;
                    return ending;
                }
            }
        }
    }

    async fn to_shim<A: AsyncRead>(&self, agent: ReadHalf<A>) -> Ending {
        let mut frames = FrameReader::new(agent);
        loop {
            let bytes = match frames.next().await {
                Ok(Some(frame)) if self.is_answered(&frame) => continue,
                Ok(Some(frame)) => frame.bytes,
                Ok(None) => return Ending::AgentClosed,
                Err(FrameError::Read { source }) => return self.agent_failed(&source),
                Err(error) => {
                    tracing::warn!(%error, "refused a frame of the agent");
                    if let Some(stream_id) = stream_of(&error) {
                        let _ =
                            send(&self.shim_writer, &reply::refusal(stream_id, Code::INTERNAL, &format!("from the pod VM: {error}"))).await;
                    }
                    if matches!(error, FrameError::TooLong { .. }) {
                        continue;
                    }
                    return Ending::Refused(error);
                }
            };
            if let Err(error) = send(&self.shim_writer, &bytes).await {
                tracing::debug!(%error, "the shim's connection broke");
                return Ending::ShimClosed;
            }
        }
    }

    async fn follow_state(&self, resuming: impl Fn(bool)) -> Ending {
        let mut state = self.state.clone();
        let mut is_resuming = false;
        loop {
            let now = state.borrow_and_update().clone();
            match &now {
                StreamState::Lost(lost) => return Ending::Lost(lost.to_string()),
                StreamState::Resuming { .. } => {
                    if !std::mem::replace(&mut is_resuming, true) {
                        resuming(true);
                    }
                    for stream_id in self.take_pending() {
                        if send(&self.shim_writer, &reply::serving(stream_id)).await.is_err() {
                            return Ending::ShimClosed;
                        }
                    }
                }
                StreamState::Connected => {
                    if std::mem::replace(&mut is_resuming, false) {
                        resuming(false);
                    }
                }
                StreamState::Closed => {}
            }
            if now == StreamState::Closed || state.changed().await.is_err() {
                // The stream's own end is seen by the two pumps.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Answers a Health.Check while the tunnel is resuming; remembers it otherwise.
    async fn answered_here(&self, frame: &Frame) -> bool {
        if !reply::is_health_check(frame) {
            return false;
        }
        let stream_id = frame.header.stream_id;
        let is_resuming = matches!(*self.state.borrow(), StreamState::Resuming { .. });
        if is_resuming {
            // A broken shim connection is noticed by the next read.
            let _ = send(&self.shim_writer, &reply::serving(stream_id)).await;
            return true;
        }
        let mut ledger = self.ledger();
        if ledger.pending.len() < PENDING_LIMIT {
            ledger.pending.insert(stream_id);
        }
        false
    }

    fn is_answered(&self, frame: &Frame) -> bool {
        if frame.header.kind != Ok(FrameKind::Response) {
            return false;
        }
        let mut ledger = self.ledger();
        ledger.pending.remove(&frame.header.stream_id);
        ledger.answered.remove(&frame.header.stream_id)
    }

    fn take_pending(&self) -> BTreeSet<u32> {
        let mut ledger = self.ledger();
        let pending = std::mem::take(&mut ledger.pending);
        ledger.answered.extend(&pending);
        pending
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agent_failed(&self, error: &std::io::Error) -> Ending {
        let told = match &*self.state.borrow() {
            StreamState::Lost(lost) => Some(lost.to_string()),
            _ => SessionLost::find(error).map(ToString::to_string),
        };
        Ending::Lost(told.unwrap_or_else(|| error.to_string()))
    }
}
