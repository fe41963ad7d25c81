//! What was written and not yet consumed by the peer's reader: the replay buffer. Pure.
//!
//! Memory is taken as it is written and given back as it is acknowledged. Bytes are copied once, in; what goes to a connection
//! shares the memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::frame::{Half, MAX_DATA};

/// What a chunk costs beside its bytes. Counted, so that a flood of tiny writes meets the window as well.
const CHUNK_OVERHEAD: usize = 64;

/// One direction's sending end.
#[derive(Debug)]
pub(super) struct Outbox {
    window: usize,
    /// Sequence number of the first byte of `chunks`.
    front: u64,
    /// Not yet acknowledged, each at most `MAX_DATA` long.
    chunks: VecDeque<Bytes>,
    /// Written after the chunks and never taken.
    tail: BytesMut,
    /// Everything before it is acknowledged; within the first chunk.
    acked: u64,
    /// Chunk and offset in it that are to be taken next.
    cursor: (usize, usize),
    /// Sequence number at the cursor.
    next: u64,
    /// The highest `next` of all connections.
    high: u64,
    /// Sequence number after the last byte that was written.
    end: u64,
    close: Close,
}

/// How far closing has come. The end of writing has a sequence number; that of reading is only said again after each resume.
#[derive(Debug, Default)]
struct Close {
    write: bool,
    both: bool,
    write_taken: bool,
    both_taken: bool,
}

impl Outbox {
    pub(super) fn new(window: usize) -> Self {
        Self {
            window,
            front: 0,
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            acked: 0,
            cursor: (0, 0),
            next: 0,
            high: 0,
            end: 0,
            close: Close::default(),
        }
    }

    /// Takes as much of `data` as the window allows; 0 means that it is full.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let used = usize::try_from(self.end - self.front).unwrap_or(usize::MAX);
        let room = self.window.saturating_sub(used).saturating_sub(self.chunks.len() * CHUNK_OVERHEAD);
        let taken = data.len().min(room);
        let mut rest = &data[..taken];
        while !rest.is_empty() {
            if self.tail.len() == MAX_DATA {
                self.freeze_tail();
            }
            if self.tail.capacity() == self.tail.len() {
                // Small messages share one block; a bulk write gets blocks of a whole frame.
                self.tail.reserve(MAX_DATA - self.tail.len());
            }
            let now = rest.len().min(MAX_DATA - self.tail.len()).min(self.tail.capacity() - self.tail.len());
            self.tail.extend_from_slice(&rest[..now]);
            rest = &rest[now..];
        }
        self.end += taken as u64;
        taken
    }

    /// The next piece to send on this connection, with its sequence number.
    pub(super) fn take(&mut self) -> Option<(u64, Bytes)> {
        if self.cursor.0 == self.chunks.len() {
            if self.tail.is_empty() {
                return None;
            }
            self.freeze_tail();
        }
        let (index, offset) = self.cursor;
        let piece = self.chunks[index].slice(offset..);
        let seq = self.next;
        self.cursor = (index + 1, 0);
        self.next += piece.len() as u64;
        self.high = self.high.max(self.next);
        Some((seq, piece))
    }

    /// The next Close to send, once all data was taken.
    pub(super) fn take_close(&mut self) -> Option<(Half, u64)> {
        if self.next < self.end {
            return None;
        }
        if self.close.write && !self.close.write_taken {
            self.close.write_taken = true;
            self.high = self.end + 1;
            return Some((Half::Write, self.end));
        }
        if self.close.both && !self.close.both_taken {
            self.close.both_taken = true;
            return Some((Half::Both, self.end + u64::from(self.close.write)));
        }
        None
    }

    /// No more writes.
    pub(super) fn close(&mut self, half: Half) {
        match half {
            Half::Write => self.close.write = true,
            Half::Both => self.close.both = true,
        }
    }

    /// Forgets what the peer's reader has consumed. An error: it cannot have.
    pub(super) fn ack(&mut self, consumed: u64) -> Result<(), &'static str> {
        if consumed > self.next + u64::from(self.close.write_taken) {
            return Err("acknowledgement of bytes that were not sent");
        }
        self.acked = self.acked.max(consumed);
        while let Some(first) = self.chunks.front() {
            let next_front = self.front + first.len() as u64;
            if next_front > self.acked || self.cursor.0 == 0 {
                break;
            }
            self.chunks.pop_front();
            self.cursor.0 -= 1;
            self.front = next_front;
        }
        if self.chunks.is_empty() && self.tail.is_empty() {
            self.chunks = VecDeque::new();
            self.tail = BytesMut::new();
        }
        Ok(())
    }

    /// Starts a new connection at what the peer has received. An error: it cannot have, or it is forgotten here.
    pub(super) fn rewind(&mut self, received: u64) -> Result<(), &'static str> {
        if received > self.high || received < self.acked {
            return Err("resume at a byte that is not in the replay buffer");
        }
        self.close.write_taken = self.close.write && received > self.end;
        self.close.both_taken = false;
        self.next = received.min(self.end);
        let mut offset = usize::try_from(self.next - self.front).map_err(|_| "replay buffer too long")?;
        let mut index = 0;
        while index < self.chunks.len() && offset >= self.chunks[index].len() {
            offset -= self.chunks[index].len();
            index += 1;
        }
        // Past the last chunk the offset is 0: the tail was never sent, so nobody received a part of it.
        self.cursor = (index, offset);
        Ok(())
    }

    /// Whether everything written, Close included, was taken for this connection.
    pub(super) fn is_drained(&self) -> bool {
        self.next == self.end && self.close.write == self.close.write_taken && self.close.both == self.close.both_taken
    }

    /// Whether the end of writing is acknowledged.
    pub(super) fn is_close_acked(&self) -> bool {
        self.close.write && self.acked > self.end
    }

    /// Bytes that wait to be taken.
    pub(super) fn waiting(&self) -> usize {
        usize::try_from(self.end - self.next).unwrap_or(usize::MAX)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.close.write || self.close.both
    }

    fn freeze_tail(&mut self) {
        self.chunks.push_back(self.tail.split().freeze());
    }
}
