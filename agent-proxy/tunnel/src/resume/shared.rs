//! What a stream and its driver share: the two directions, and who waits for what.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::inbox::Inbox;
use super::outbox::Outbox;
use super::{SessionLost, StreamState};

/// Consumed bytes that are acknowledged at once; fewer wait for other frames to go with, or for a timer.
pub(super) const ACK_EVERY: u64 = 256 << 10;

/// Bytes that may wait for a live connection. Less than the window: they would only fill memory before the socket does.
pub(super) const MAX_WAITING: usize = 1 << 20;

/// One session, as both tasks see it.
pub(super) struct Shared {
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    driver: Mutex<Option<Waker>>,
    /// How far the reader has come.
    consumed: AtomicU64,
    /// The reader wakes the driver when it has come this far.
    wake_at: AtomicU64,
    dropped_at: OnceLock<Instant>,
    dropped: Notify,
    is_connected: AtomicBool,
    state: watch::Sender<StreamState>,
}

pub(super) struct Sending {
    pub(super) outbox: Outbox,
    pub(super) writer: Option<Waker>,
    /// Everything that was written went to the connection and was flushed.
    pub(super) is_flushed: bool,
    /// The peer will not read any more.
    pub(super) is_refused: bool,
    pub(super) end: Option<End>,
}

pub(super) struct Receiving {
    pub(super) inbox: Inbox,
    pub(super) reader: Option<Waker>,
    pub(super) end: Option<End>,
}

/// The driver has ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    Closed,
    Lost(SessionLost),
}

impl Shared {
    pub(super) fn new(window: usize) -> Self {
        let sending = Sending { outbox: Outbox::new(window), writer: None, is_flushed: true, is_refused: false, end: None };
        Self {
            sending: Mutex::new(sending),
            receiving: Mutex::new(Receiving { inbox: Inbox::default(), reader: None, end: None }),
            driver: Mutex::new(None),
            consumed: AtomicU64::new(0),
            wake_at: AtomicU64::new(ACK_EVERY),
            dropped_at: OnceLock::new(),
            dropped: Notify::new(),
            is_connected: AtomicBool::new(true),
            state: watch::Sender::new(StreamState::Connected),
        }
    }

    pub(super) fn sending(&self) -> MutexGuard<'_, Sending> {
        lock(&self.sending)
    }

    pub(super) fn receiving(&self) -> MutexGuard<'_, Receiving> {
        lock(&self.receiving)
    }

    pub(super) fn watch(&self) -> watch::Receiver<StreamState> {
        self.state.subscribe()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Publishes a state that is not final.
    pub(super) fn set_state(&self, state: StreamState) {
        self.is_connected.store(state == StreamState::Connected, Ordering::Relaxed);
        self.state.send_replace(state);
        self.wake_writer();
    }

    /// The driver's last word. Data that has arrived can still be read.
    pub(super) fn finish(&self, end: &End) {
        let (mut sending, mut receiving) = (self.sending(), self.receiving());
        sending.end = Some(end.clone());
        receiving.end = Some(end.clone());
        let wakers = [sending.writer.take(), receiving.reader.take()];
        drop((sending, receiving));
        wakers.into_iter().flatten().for_each(Waker::wake);
        self.state.send_replace(match end {
            End::Closed => StreamState::Closed,
            End::Lost(lost) => StreamState::Lost(lost.clone()),
        });
    }

    pub(super) fn register_driver(&self, waker: &Waker) {
        let mut driver = lock(&self.driver);
        match &mut *driver {
            Some(registered) => registered.clone_from(waker),
            None => *driver = Some(waker.clone()),
        }
    }

    pub(super) fn wake_driver(&self) {
        let waker = lock(&self.driver).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&self) {
        let waker = self.sending().writer.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::SeqCst)
    }

    /// The reader has come further.
    pub(super) fn consume(&self, count: u64) {
        let consumed = self.consumed.fetch_add(count, Ordering::SeqCst) + count;
        if consumed >= self.wake_at.load(Ordering::SeqCst) {
            self.wake_driver();
        }
    }

    /// From when on the reader wakes the driver. The driver looks at `consumed` once more after this.
    pub(super) fn set_wake_at(&self, consumed: u64) {
        self.wake_at.store(consumed, Ordering::SeqCst);
    }

    /// The stream was dropped: what arrives is thrown away, and what was written has the linger time to leave.
    pub(super) fn drop_stream(&self, reading: &mut VecDeque<Bytes>) {
        if self.dropped_at.set(Instant::now()).is_err() {
            return;
        }
        self.sending().outbox.close(super::frame::Half::Both);
        self.discard(reading);
        self.dropped.notify_one();
        self.wake_driver();
    }

    /// Consumes what nobody will read.
    pub(super) fn discard(&self, reading: &mut VecDeque<Bytes>) {
        let mut receiving = self.receiving();
        receiving.inbox.drain_into(reading);
        self.consumed.store(receiving.inbox.received(), Ordering::SeqCst);
        drop(receiving);
        reading.clear();
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped_at.get().is_some()
    }

    /// Resolves when the stream has been dropped for this long.
    pub(super) async fn lingered(&self, linger: std::time::Duration) {
        let since = loop {
            match self.dropped_at.get() {
                Some(since) => break *since,
                None => self.dropped.notified().await,
            }
        };
        tokio::time::sleep_until(since + linger).await;
    }
}

/// A panic elsewhere leaves data that is still consistent: every change under these locks is complete or not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
