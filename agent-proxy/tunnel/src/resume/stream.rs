//! The stream that users hold.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::StreamState;
use super::frame::Half;
use super::shared::{End, MAX_WAITING, Shared};

/// A byte stream to the agent (or, in the guest, to a node) that outlives its connections.
///
/// Written bytes are buffered, and sent again after a resume, until the peer's reader has consumed them; a full buffer blocks.
/// Flushing does nothing: bytes leave as soon as they can. Shutting down waits until everything was handed to a connection.
/// Dropping the stream closes both directions; what was written before still leaves, within [`crate::ResumeOptions::linger`].
/// When the session is lost, what has arrived can still be read; then reads and writes fail with [`crate::SessionLost`].
pub struct AgentStream {
    shared: Arc<Shared>,
    /// Taken from the inbox, not yet read.
    reading: VecDeque<Bytes>,
    has_ended: bool,
}

impl AgentStream {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, reading: VecDeque::new(), has_ended: false }
    }

    /// The stream's state, to read or to wait on.
    pub fn state(&self) -> watch::Receiver<StreamState> {
        self.shared.watch()
    }

    fn copy_out(&mut self, buf: &mut ReadBuf<'_>) {
        let before = buf.remaining();
        while let Some(first) = self.reading.front_mut() {
            let now = first.len().min(buf.remaining());
            buf.put_slice(&first[..now]);
            first.advance(now);
            if first.has_remaining() {
                break;
            }
            self.reading.pop_front();
        }
        self.shared.consume((before - buf.remaining()) as u64);
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 || this.has_ended {
            return Poll::Ready(Ok(()));
        }
        if this.reading.is_empty() {
            let mut receiving = this.shared.receiving();
            receiving.inbox.drain_into(&mut this.reading);
            if this.reading.is_empty() {
                if receiving.inbox.is_ended() {
                    drop(receiving);
                    this.has_ended = true;
                    this.shared.consume(1);
                    this.shared.wake_driver();
                    return Poll::Ready(Ok(()));
                }
                return match &receiving.end {
                    Some(End::Lost(lost)) => Poll::Ready(Err(lost.clone().into())),
                    Some(End::Closed) => Poll::Ready(Ok(())),
                    None => {
                        receiving.reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            }
        }
        this.copy_out(buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut sending = self.shared.sending();
        match &sending.end {
            Some(End::Lost(lost)) => return Poll::Ready(Err(lost.clone().into())),
            Some(End::Closed) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            None if sending.is_refused || sending.outbox.is_closed() => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            None => {}
        }
        let holds_back = self.shared.is_connected() && sending.outbox.waiting() >= MAX_WAITING;
        let written = if holds_back { 0 } else { sending.outbox.write(buf) };
        if written == 0 {
            sending.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        sending.is_flushed = false;
        drop(sending);
        self.shared.wake_driver();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sending = self.shared.sending();
        match &sending.end {
            Some(End::Lost(lost)) => return Poll::Ready(Err(lost.clone().into())),
            Some(End::Closed) => return Poll::Ready(Ok(())),
            None if sending.is_refused => return Poll::Ready(Ok(())),
            None => {}
        }
        if !sending.outbox.is_closed() {
            sending.outbox.close(Half::Write);
            sending.is_flushed = false;
            drop(sending);
            self.shared.wake_driver();
            sending = self.shared.sending();
        }
        if sending.is_flushed {
            return Poll::Ready(Ok(()));
        }
        sending.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        self.shared.drop_stream(&mut self.reading);
    }
}

impl fmt::Debug for AgentStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentStream").field("state", &*self.shared.watch().borrow()).finish_non_exhaustive()
    }
}
