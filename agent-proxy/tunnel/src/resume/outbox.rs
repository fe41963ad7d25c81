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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(outbox: &mut Outbox, into: &mut Vec<u8>) {
        while let Some((seq, piece)) = outbox.take() {
            assert_eq!(seq, into.len() as u64);
            assert!(piece.len() <= MAX_DATA);
            into.extend_from_slice(&piece);
        }
    }

    #[test]
    fn window_is_a_limit_that_acknowledgements_lift() {
        let mut outbox = Outbox::new(100);
        assert_eq!(outbox.write(&[1; 80]), 80);
        assert_eq!(outbox.write(&[2; 80]), 20);
        assert_eq!(outbox.write(&[3; 80]), 0);
        outbox.take().unwrap();
        outbox.ack(100).unwrap();
        assert_eq!(outbox.write(&[3; 80]), 80);
    }

    #[test]
    fn tiny_writes_that_are_sent_one_by_one_meet_the_window_too() {
        let mut outbox = Outbox::new(1000);
        let mut count = 0;
        while outbox.write(&[0]) == 1 {
            outbox.take().unwrap();
            count += 1;
        }
        assert!(count < 20, "{count} chunks in a window of 1000 bytes");
    }

    #[test]
    fn end_is_acknowledged_like_a_byte_and_sent_again_after_a_rewind() {
        let mut outbox = Outbox::new(100);
        outbox.write(b"abc");
        outbox.close(Half::Write);
        assert_eq!(outbox.take_close(), None);
        outbox.take().unwrap();
        assert_eq!(outbox.take_close(), Some((Half::Write, 3)));
        assert_eq!(outbox.take_close(), None);
        outbox.rewind(3).unwrap();
        assert_eq!(outbox.take_close(), Some((Half::Write, 3)));
        outbox.rewind(4).unwrap();
        assert_eq!(outbox.take_close(), None);
        outbox.ack(4).unwrap();
        assert!(outbox.is_close_acked() && outbox.is_drained());
        outbox.close(Half::Both);
        assert_eq!(outbox.take_close(), Some((Half::Both, 4)));
    }

    #[test]
    fn impossible_acknowledgements_and_resumes_are_refused() {
        let mut outbox = Outbox::new(1000);
        outbox.write(b"abcdef");
        assert!(outbox.ack(1).is_err(), "nothing was sent");
        assert!(outbox.rewind(1).is_err(), "nothing was sent");
        outbox.take().unwrap();
        assert!(outbox.ack(7).is_err());
        outbox.ack(4).unwrap();
        assert!(outbox.rewind(3).is_err(), "forgotten");
        assert!(outbox.rewind(7).is_err(), "never sent");
        outbox.rewind(5).unwrap();
        assert_eq!(outbox.take().unwrap(), (5, Bytes::from_static(b"f")));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize),
        Take,
        /// Acknowledge this share of what was taken, in 1/256.
        Ack(u8),
        /// Rewind to this share of what is between acknowledged and ever taken.
        Rewind(u8),
    }

    proptest! {
        #[test]
        fn every_byte_leaves_once_for_each_connection_that_lacks_it(
            steps in proptest::collection::vec(
                prop_oneof![
                    (1usize..200_000).prop_map(Step::Write),
                    Just(Step::Take),
                    any::<u8>().prop_map(Step::Ack),
                    any::<u8>().prop_map(Step::Rewind),
                ],
                0..60,
            )
        ) {
            let mut outbox = Outbox::new(1 << 20);
            let (mut written, mut sent, mut high, mut acked) = (Vec::new(), Vec::<u8>::new(), 0usize, 0usize);
            let share = |of: usize, part: u8| of * usize::from(part) / 255;
            for step in steps {
                match step {
                    Step::Write(len) => {
                        let data: Vec<u8> = (0..len).map(|index| u8::try_from((written.len() + index) % 251).unwrap()).collect();
                        let taken = outbox.write(&data);
                        written.extend_from_slice(&data[..taken]);
                        prop_assert!(written.len() - acked <= (1 << 20) + MAX_DATA);
                    }
                    Step::Take => {
                        if let Some((seq, piece)) = outbox.take() {
                            prop_assert_eq!(usize::try_from(seq).unwrap(), sent.len());
                            sent.extend_from_slice(&piece);
                            high = high.max(sent.len());
                        }
                    }
                    Step::Ack(part) => {
                        let to = acked + share(sent.len().saturating_sub(acked), part);
                        outbox.ack(to as u64).unwrap();
                        acked = to;
                    }
                    Step::Rewind(part) => {
                        let to = acked + share(high - acked, part);
                        outbox.rewind(to as u64).unwrap();
                        sent = written[..to].to_vec();
                    }
                }
            }
            drain(&mut outbox, &mut sent);
            prop_assert!(sent == written);
            outbox.ack(sent.len() as u64).unwrap();
            prop_assert!(outbox.chunks.is_empty() && outbox.tail.capacity() == 0);
        }
    }
}
