//! Moves frames between one connection and the shared buffers, until the connection ends. Written as one poll function: both
//! directions, acknowledgements and signs of life share a task, a wake-up and a batch.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::egress::Egress;
use super::frame::{Frame, HEADER, Half};
use super::shared::{ACK_EVERY, Shared};
use super::{ResumeOptions, SessionLost};

/// A block for incoming bytes; a TLS record is at most a quarter of it.
const READ_BLOCK: usize = 64 << 10;
/// Laid out for the connection at a time; more would only wait in memory.
const EGRESS_TARGET: usize = 256 << 10;
/// How long a small acknowledgement waits for a frame to go with.
const ACK_DELAY: Duration = Duration::from_millis(25);
/// Reads before writes get their turn.
const READS_PER_TURN: usize = 32;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Cut, silent or garbled: worth a new connection.
    Broken(String),
    /// Both ends have closed.
    Finished,
    /// No connection can help.
    Lost(SessionLost),
}

/// One connection's work.
pub(super) struct Pump<S> {
    io: S,
    egress: Egress,
    needs_flush: bool,
    incoming: BytesMut,
    /// Of the current Data frame, not yet arrived.
    data_left: usize,
    ack: Ack,
    pulse: Pulse,
    owes_pong: bool,
    peer_is_gone: bool,
}

struct Ack {
    sent: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Signs of life: any byte counts. Counted in whole intervals that this process lived through, so that a process (or VM) that
/// was stopped for a while does not blame its peer.
struct Pulse {
    interval: Duration,
    most_quiet: u32,
    quiet: u32,
    heard: bool,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pump<S> {
    /// `greeting` is sent before the first frame.
    pub(super) fn new(io: S, greeting: &[u8], options: &ResumeOptions) -> Self {
        let mut egress = Egress::default();
        egress.push_bytes(greeting);
        Self {
            io,
            egress,
            needs_flush: false,
            incoming: BytesMut::new(),
            data_left: 0,
            ack: Ack { sent: 0, timer: None },
            pulse: Pulse::new(options),
            owes_pong: false,
            peer_is_gone: false,
        }
    }

    /// Runs the connection. May be dropped at any time; the shared buffers are whole at every await.
    pub(super) async fn run(&mut self, shared: &Shared) -> Outcome {
        std::future::poll_fn(|cx| self.poll(cx, shared)).await
    }

    /// The connection, for an orderly goodbye.
    pub(super) fn into_io(self) -> S {
        self.io
    }

    fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Outcome> {
        shared.register_driver(cx.waker());
        Poll::Ready(match ready!(self.try_poll(cx, shared)) {
            Ok(()) => Outcome::Finished,
            // It has read all it wants; whether our Close got through does not matter.
            Err(Outcome::Broken(_)) if self.peer_is_gone => Outcome::Finished,
            Err(outcome) => outcome,
        })
    }

    fn try_poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Result<(), Outcome>> {
        loop {
            let read = self.poll_incoming(cx, shared)?;
            self.poll_timers(cx, shared)?;
            let written = self.poll_outgoing(cx, shared)?;
            if written.is_ready() && self.is_finished(shared) {
                return Poll::Ready(Ok(()));
            }
            if read.is_pending() {
                return Poll::Pending;
            }
        }
    }

    // ---- incoming

    /// Ready: there may be more to read.
    fn poll_incoming(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<Poll<()>, Outcome> {
        for _ in 0..READS_PER_TURN {
            if self.incoming.capacity() - self.incoming.len() < READ_BLOCK / 4 {
                self.incoming.reserve(READ_BLOCK);
            }
            let read = std::pin::pin!(self.io.read_buf(&mut self.incoming)).poll(cx);
            match read {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Err(Outcome::Broken("the peer closed the connection".to_owned())),
                Poll::Ready(Ok(_)) => {
                    self.pulse.heard = true;
                    self.parse(shared).map_err(|why| Outcome::Lost(SessionLost::Protocol(why)))?;
                }
                Poll::Ready(Err(error)) => return Err(Outcome::Broken(error.to_string())),
            }
        }
        Ok(Poll::Ready(()))
    }

    fn parse(&mut self, shared: &Shared) -> Result<(), &'static str> {
        let consumed = shared.consumed();
        let mut receiving = shared.receiving();
        loop {
            if self.data_left > 0 {
                let now = self.data_left.min(self.incoming.len());
                if now == 0 {
                    break;
                }
                self.data_left -= now;
                receiving.inbox.push(self.incoming.split_to(now).freeze(), consumed)?;
                continue;
            }
            let Some(header) = self.incoming.first_chunk::<HEADER>() else { break };
            let frame = Frame::decode(header).map_err(|_| "unknown frame")?;
            self.incoming.advance(HEADER);
            match frame {
                Frame::Data { seq, len } if seq == receiving.inbox.received() => self.data_left = len,
                Frame::Data { .. } => return Err("data out of order"),
                Frame::Ack { consumed } => {
                    let mut sending = shared.sending();
                    sending.outbox.ack(consumed)?;
                    let writer = sending.writer.take();
                    drop(sending);
                    writer.into_iter().for_each(std::task::Waker::wake);
                }
                Frame::Ping => self.owes_pong = true,
                Frame::Pong => {}
                Frame::Close { half: Half::Write, seq } if seq == receiving.inbox.received() && !receiving.inbox.is_ended() => {
                    receiving.inbox.end();
                }
                Frame::Close { half: Half::Both, seq } if seq == receiving.inbox.received() => {
                    receiving.inbox.end();
                    self.peer_is_gone = true;
                }
                Frame::Close { .. } => return Err("end out of order"),
            }
        }
        if self.ack.timer.is_none() && receiving.inbox.received() > self.ack.sent {
            self.ack.timer = Some(Box::pin(sleep(ACK_DELAY)));
        }
        let reader = receiving.reader.take();
        drop(receiving);
        reader.into_iter().for_each(std::task::Waker::wake);
        if self.peer_is_gone {
            let mut sending = shared.sending();
            sending.is_refused = true;
            sending.outbox.close(Half::Both);
            drop(sending);
            shared.wake_writer();
        }
        if shared.is_dropped() {
            shared.discard(&mut Default::default());
        }
        Ok(())
    }

    // ---- outgoing

    /// Ready: everything has left.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<Poll<()>, Outcome> {
        loop {
            if self.egress.len() < EGRESS_TARGET / 2 {
                self.fill(shared);
            }
            if self.egress.len() == 0 {
                break;
            }
            let io = Pin::new(&mut self.io);
            match self.egress.with_slices(|slices| io.poll_write_vectored(cx, slices)) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Err(Outcome::Broken("the connection takes no more".to_owned())),
                Poll::Ready(Ok(written)) => self.egress.advance(written),
                Poll::Ready(Err(error)) => return Err(Outcome::Broken(error.to_string())),
            }
            self.needs_flush = true;
        }
        if self.needs_flush {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(error)) => return Err(Outcome::Broken(error.to_string())),
            }
        }
        let mut sending = shared.sending();
        if sending.outbox.is_drained() && !sending.is_flushed {
            sending.is_flushed = true;
            let writer = sending.writer.take();
            drop(sending);
            writer.into_iter().for_each(std::task::Waker::wake);
        }
        Ok(Poll::Ready(()))
    }

    fn fill(&mut self, shared: &Shared) {
        if std::mem::take(&mut self.owes_pong) {
            self.egress.push(Frame::Pong);
        }
        let mut sending = shared.sending();
        let mut has_data = self.egress.len() > 0;
        while self.egress.len() < EGRESS_TARGET {
            let Some((seq, piece)) = sending.outbox.take() else { break };
            self.egress.push_data(seq, piece);
            has_data = true;
        }
        if let Some((half, seq)) = sending.outbox.take_close() {
            self.egress.push(Frame::Close { half, seq });
            has_data = true;
        }
        let writer = if has_data { sending.writer.take() } else { None };
        drop(sending);
        writer.into_iter().for_each(std::task::Waker::wake);
        self.fill_ack(shared, has_data);
    }

    /// Acknowledges when it is worth a frame, or costs none of its own.
    fn fill_ack(&mut self, shared: &Shared, has_company: bool) {
        let consumed = shared.consumed();
        let is_due = consumed >= self.ack.sent + ACK_EVERY || (consumed > self.ack.sent && (has_company || self.ack.timer.is_none()));
        if is_due {
            self.egress.push(Frame::Ack { consumed });
            self.ack.sent = consumed;
            shared.set_wake_at(consumed + ACK_EVERY);
            // What has arrived but is not read yet gets a timer of its own.
            let has_more = shared.receiving().inbox.received() > consumed;
            self.ack.timer = has_more.then(|| Box::pin(sleep(ACK_DELAY)));
        }
    }

    // ---- time

    fn poll_timers(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Result<(), Outcome> {
        if let Some(timer) = &mut self.ack.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.ack.timer = None;
            // If the reader has not moved, its first step from here on is acknowledged.
            shared.set_wake_at(self.ack.sent + 1);
        }
        while self.pulse.timer.as_mut().poll(cx).is_ready() {
            if self.pulse.is_silent() {
                return Err(Outcome::Broken("the peer is silent".to_owned()));
            }
            if self.pulse.quiet > 0 {
                self.egress.push(Frame::Ping);
            }
        }
        Ok(())
    }

    fn is_finished(&self, shared: &Shared) -> bool {
        if self.peer_is_gone {
            // Our Close has left; the peer waits for nothing else.
            return shared.sending().outbox.is_drained();
        }
        let has_all = {
            let receiving = shared.receiving();
            receiving.inbox.is_ended() && receiving.inbox.received() == self.ack.sent
        };
        has_all && shared.sending().outbox.is_close_acked()
    }
}

impl Pulse {
    fn new(options: &ResumeOptions) -> Self {
        let interval = options.ping_interval.max(Duration::from_millis(1));
        let most_quiet = u32::try_from(options.silence.as_millis().div_ceil(interval.as_millis().max(1))).unwrap_or(u32::MAX);
        Self { interval, most_quiet: most_quiet.max(1), quiet: 0, heard: false, timer: Box::pin(sleep(interval)) }
    }

    /// Another interval has passed.
    fn is_silent(&mut self) -> bool {
        self.quiet = if std::mem::take(&mut self.heard) { 0 } else { self.quiet + 1 };
        self.timer.as_mut().reset(Instant::now() + self.interval);
        self.quiet > self.most_quiet
    }
}
