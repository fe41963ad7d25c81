//! Bytes on their way into one connection: frames laid out for few, large writes.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{Frame, HEADER};

/// Data up to this length is copied next to its header: cheaper than a piece of its own.
const COPY_BELOW: usize = 2 << 10;

/// Pieces of one vectored write.
const MAX_SLICES: usize = 16;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(super) struct Egress {
    pieces: VecDeque<Bytes>,
    scratch: BytesMut,
    len: usize,
}

impl Egress {
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.scratch.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.push_bytes(&frame.encode());
    }

    pub(super) fn push_data(&mut self, seq: u64, data: Bytes) {
        self.push(Frame::Data { seq, len: data.len() });
        if data.len() < COPY_BELOW {
            return self.push_bytes(&data);
        }
        self.len += data.len();
        self.pieces.push_back(self.scratch.split().freeze());
        self.pieces.push_back(data);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lends the front of the queue to a vectored write.
    pub(super) fn with_slices<T>(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        if !self.scratch.is_empty() {
            self.pieces.push_back(self.scratch.split().freeze());
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        write(&slices[..count])
    }

    /// Forgets what was written.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(first) = self.pieces.front_mut() {
            let now = first.len().min(written);
            first.advance(now);
            written -= now;
            if first.has_remaining() {
                return;
            }
            self.pieces.pop_front();
        }
        if self.scratch.capacity() < HEADER {
            self.scratch = BytesMut::with_capacity(COPY_BELOW);
        }
    }
}
